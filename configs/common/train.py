"""How training and testing run. The defaults are the published recipe, for 8 GPUs at batch 1."""

train = dict(
    output_dir="output/SDMatte",
    init_checkpoint="",  # a full checkpoint to start from, published or our own
    seed=42,
    device="auto",  # cuda if there is one, else cpu; or a device's name
    epochs=10,
    max_iter=None,  # None: derived from epochs, data, batch, accumulation and processes
    accumulate=1,  # batches a step
    amp=dict(enabled=False, dtype="bfloat16"),
    gradient_checkpointing=False,
    clip_grad_norm=None,
    checkpoints=10,  # checkpoints and evaluations a run
    evaluations=10,
    max_to_keep=3,
    log_period=20,
    num_pictures=4,  # in the strips of pictures for TensorBoard
    ddp=dict(find_unused_parameters=True, broadcast_buffers=False, fp16_compression=True),
)

# ``script/test.sh`` tests with each of these prompts, of point, box, mask, auto, trimap.
test = dict(
    prompts=["box"],
    protocol="official",  # or "corrected"
    use_trimap=False,
    use_captions=True,
    save_mattes=True,
)
