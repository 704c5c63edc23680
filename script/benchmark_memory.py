"""Measures time and peak memory of a full-size SDMatte with random weights, on a CPU.

One case a process, so that the peak is that case's own:

    python script/benchmark_memory.py forward 512
    python script/benchmark_memory.py forward 1024
    python script/benchmark_memory.py train 256

`script/benchmark_train.py` compares ways to train.
"""

import argparse
import time

import torch
from full_size import LOSSES, build, make_batch

from SDMatte.engine.progress import peak_memory
from SDMatte.modeling.losses import MattingCriterion


def main(mode: str, size: int) -> None:
    """Runs one case and prints its numbers."""
    model, batch = build(), make_batch(size)
    start = time.perf_counter()
    if mode == "forward":
        model.eval()
        with torch.no_grad():
            alpha = model(batch)
    else:
        model.train()
        model.enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=5e-5)
        alpha = model(batch)
        truth = (batch["alpha"] + 1) / 2  # [-1, 1] -> [0, 1]
        sum(MattingCriterion(LOSSES, size)(alpha, truth, batch["trimap"]).values()).backward()
        optimizer.step()
    seconds = time.perf_counter() - start
    peak = peak_memory(torch.device("cpu"))
    if not bool(torch.isfinite(alpha).all()):
        raise SystemExit("The result is not finite.")
    print(
        f"{mode} at {size}x{size}, float32, {torch.get_num_threads()} threads: "
        f"{seconds:.1f} s, peak memory {peak:.2f} GiB"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=("forward", "train"))
    parser.add_argument("size", type=int, help="side of the picture, a multiple of 64")
    arguments = parser.parse_args()
    main(arguments.mode, arguments.size)
