"""How training and testing run. The defaults are the published recipe, for 8 GPUs at batch 1."""

train = dict(
    output_dir="output/SDMatte",
    init_checkpoint="",  # a full checkpoint to start from, published or our own
    seed=42,  # of the steps; that of the data is dataloader.train.dataset.seed
    device="auto",  # cuda if there is one, else mps, else cpu; or a device's name
    epochs=10,
    max_iter=None,  # None: derived from epochs, data, batch, accumulation and processes
    # Batches a step. Each loss is scaled by its own batch's trimap, so that 8 accumulated pictures
    # are what 8 GPUs with one each learn from; a batch of 8 is not quite the same.
    accumulate=1,
    amp=dict(enabled=False, dtype="bfloat16"),
    float32_precision="highest",  # of matrix products; "high" is TF32 on GPUs that have it
    cudnn_benchmark=False,  # True: cuDNN tries which of its convolutions are fastest
    gradient_checkpointing=False,  # less memory, more time
    channels_last=False,  # the memory layout that GPUs with tensor cores compute in
    compile=dict(enabled=False),  # torch.compile; needs a compiler
    # Low-rank adapters (SDMatte.engine.lora), for fine-tuning: the layers that are new in SDMatte
    # are trained in full, all others are frozen. The checkpoints are plain, merged ones.
    lora=dict(
        enabled=False,
        rank=8,
        alpha=8,
        dropout=0.0,
        target_modules=["to_q", "to_k", "to_v", "to_out.0"],
    ),
    clip_grad_norm=None,
    # The moving average of the weights: if on, it is what is tested and published.
    ema=dict(enabled=False, decay=0.9999),
    non_finite="stop",  # at a loss or gradient that is not finite; or "skip" the step
    checkpoints=10,  # checkpoints and evaluations a run; before an evaluation there is always one
    evaluations=10,
    max_to_keep=3,
    best_metric=None,  # such as "AIM-500/box/SAD": the lowest one's weights are model_best.pth
    log_period=20,
    num_images=4,  # in the strips of pictures for TensorBoard
    ddp=dict(
        # What a step's prompt leaves unused, the trainer knows. To be searched for in every step
        # it need only be in a model of one's own that leaves out more.
        find_unused_parameters=False,
        fp16_compression=True,  # of the gradients, while they are exchanged
        timeout=1800,  # seconds that a process waits for the others
    ),
)

# ``script/test.sh`` tests with each of these prompts, of point, box, mask, auto, trimap.
test = dict(
    prompts=["box"],
    protocol="official",  # or "corrected"
    use_trimap=False,
    use_captions=True,
    save_mattes=True,
    error_maps=False,  # True: also a picture of each matte's errors
    num_workers=1,  # score here (0), in a thread beside the model (1), or in so many processes
)
