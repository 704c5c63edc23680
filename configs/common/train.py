"""Training and test with the published defaults, for 8 GPUs with one image each.

docs/settings.md explains every setting and its range.
"""

train = dict(
    output_dir="output/SDMatte",
    init_checkpoint="",  # a full checkpoint to start from: a file, a folder or a hub id
    seed=42,
    device="auto",
    epochs=10,
    max_iter=None,  # None: derived from epochs
    accumulate=1,  # batches per step
    amp=dict(enabled=False, dtype="bfloat16"),
    float32_precision="highest",  # "high": TF32
    cudnn_benchmark=False,
    gradient_checkpointing=False,
    channels_last=False,
    compile=dict(enabled=False),
    lora=dict(
        enabled=False,
        rank=8,
        alpha=8,
        dropout=0.0,
        target_modules=["to_q", "to_k", "to_v", "to_out.0"],
    ),
    clip_grad_norm=None,
    ema=dict(enabled=False, decay=0.9999),
    non_finite="stop",  # or "skip": what to do with a loss or gradient that is not finite
    checkpoints=10,  # per run
    evaluations=10,  # per run
    max_to_keep=3,
    best_metric=None,  # such as "AIM-500/box/SAD"; its lowest value selects model_best.pth
    log_period=20,
    num_images=4,  # in TensorBoard
    ddp=dict(
        find_unused_parameters=False,  # the trainer handles those that a prompt leaves unused
        fp16_compression=True,
        timeout=1800,  # seconds
    ),
)

test = dict(
    prompts=["box"],  # to test one by one: point, box, mask, auto, trimap
    protocol="official",  # or "corrected"
    use_trimap=False,
    use_captions=True,
    save_mattes=True,
    error_maps=False,
    num_workers=1,  # scoring runs in this process (0), a thread (1) or that many processes
)
