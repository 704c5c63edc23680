"""Compares time and peak memory of training steps of a full-size SDMatte, with random weights.

The steps of `SDMatte.engine.trainer`, in float32 and bfloat16, with and without gradient
checkpointing, beside a plain loop around the same network that materialises all attention scores,
encodes the empty caption in every step, lays tensors out as they come and takes the optimizer as it
is. Each case has a process of its own, so that the peak is its own; a case that needs more memory
than there is says so::

    python script/benchmark_train.py                      # 256 and 512 pixels, all cases
    python script/benchmark_train.py --sizes 256 --cases plain float32
    python script/benchmark_train.py --tiny               # the small model: does the script work?
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path

import SDMatte.compat  # noqa: F401

import torch
from detectron2.utils.events import EventStorage
from full_size import LOSSES, PlainModel, build, make_batch

from SDMatte.engine.options import adamw
from SDMatte.engine.progress import peak_memory
from SDMatte.engine.trainer import MatteTrainer, TrainingModel
from SDMatte.modeling import SDMatte as Model
from SDMatte.modeling.losses import MattingCriterion
from SDMatte.runtime.devices import choose_device

CASES = {  # dtype of automatic mixed precision, gradient checkpointing
    "plain": (None, False),
    "float32": (None, False),
    "float32, checkpointing": (None, True),
    "bfloat16": ("bfloat16", False),
    "bfloat16, checkpointing": ("bfloat16", True),
}
TOLERANCE = 1e-3  # relative, of the first step's loss in float32 to the plain loop's


@dataclass(frozen=True)
class Measurement:
    """What the steps of one case took.

    Attributes:
        seconds: Median of a step, after one that warms up.
        memory: Peak of the process (of the device, on a GPU), in GiB.
        loss: Of the first step.
    """

    seconds: float
    memory: float
    loss: float


def measure(case: str, size: int, steps: int, device: torch.device, tiny: bool) -> Measurement:
    """Runs one case in this process.

    Args:
        case: Of `CASES`.
        size: Height and width of the picture.
        steps: How many to time.
        device: Where to train.
        tiny: Train the small model instead.
    """
    amp_dtype, checkpointing = CASES[case]
    model = build(PlainModel if case == "plain" else Model, tiny)
    if checkpointing:
        model.enable_gradient_checkpointing()
    task = TrainingModel(model, MattingCriterion(LOSSES, size)).to(device).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if case == "plain":
        optimizer = torch.optim.AdamW(parameters, lr=5e-5, weight_decay=0.1)
        losses, seconds = plain_steps(task, make_batch(size), optimizer, steps + 1)
    else:
        batches = repeat(make_batch(size))
        optimizer = adamw(parameters, lr=5e-5)
        trainer = MatteTrainer(task, batches, optimizer, ["bbox_mask"], amp_dtype=amp_dtype)
        losses, seconds = our_steps(trainer, steps + 1)
    return Measurement(statistics.median(seconds[1:]), peak_memory(device), losses[0])


def plain_steps(task, batch, optimizer, steps: int) -> tuple[list[float], list[float]]:
    """Runs steps in a plain loop; gives their losses and seconds."""
    losses, seconds = [], []
    for _ in range(steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = sum(task(batch, "bbox_mask").values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        synchronize()
        seconds.append(time.perf_counter() - start)
    return losses, seconds


def our_steps(trainer: MatteTrainer, steps: int) -> tuple[list[float], list[float]]:
    """Runs steps of the trainer; gives their losses and seconds."""
    losses, seconds = [], []
    with EventStorage(0) as trainer.storage:
        for trainer.iter in range(steps):
            start = time.perf_counter()
            trainer.run_step()
            synchronize()
            seconds.append(time.perf_counter() - start)
            losses.append(trainer.storage.history("total_loss").latest())
    return losses, seconds


def synchronize() -> None:
    """Waits for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def run_apart(case: str, size: int, arguments: argparse.Namespace) -> Measurement | None:
    """Measures one case in a process of its own; None if its memory does not suffice."""
    command = [sys.executable, __file__, "--cases", case, "--sizes", str(size), "--apart"]
    command += ["--steps", str(arguments.steps), "--device", arguments.device]
    command += ["--limit", str(arguments.limit)] + ["--tiny"] * arguments.tiny
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return Measurement(**json.loads(done.stdout.splitlines()[-1]))
    lacking = ("out of memory", "can't allocate memory", "MemoryError", "bad_alloc")
    if done.returncode == -9 or any(word in done.stderr for word in lacking):
        return None
    raise SystemExit(f"{case} at {size} pixels failed:\n{done.stderr}")


def available_memory() -> float:
    """Memory that processes can have without swapping, in GiB; infinite where not known."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return float("inf")
    return int(next(x for x in lines if x.startswith("MemAvailable")).split()[1]) / 2**20


def table(size: int, found: dict[str, Measurement | None], limit: float) -> Iterable[str]:
    """Makes the lines of one size's table."""
    plain = found.get("plain")
    yield f"{size} x {size}"
    yield f"  {'case':26}{'s/step':>9}{'GiB':>8}{'faster':>9}{'memory':>9}"
    for case, measured in found.items():
        if measured is None:
            yield f"  {case:26} needs more than {limit:.1f} GiB"
            continue
        ratios = ""
        if plain is not None:
            speed, memory = plain.seconds / measured.seconds, measured.memory / plain.memory
            ratios = f"{speed:8.2f}x{memory:8.2f}x"
        yield f"  {case:26}{measured.seconds:9.3f}{measured.memory:8.2f}{ratios}"


def check(found: dict[str, Measurement | None]) -> None:
    """Sees that all cases in float32 computed the same."""
    plain = found.get("plain")
    for case, measured in found.items():
        if plain is None or measured is None or CASES[case][0] is not None:
            continue
        if abs(measured.loss - plain.loss) > TOLERANCE * abs(plain.loss):
            raise SystemExit(f"{case} has a loss of {measured.loss}, not {plain.loss}.")


def main(arguments: argparse.Namespace) -> None:
    """Measures all cases and prints how they compare."""
    if arguments.apart:
        if arguments.limit != float("inf") and not torch.cuda.is_available():
            limit = int(arguments.limit * 2**30)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        case, size, device = arguments.cases[0], arguments.sizes[0], choose_device(arguments.device)
        print(json.dumps(asdict(measure(case, size, arguments.steps, device, arguments.tiny))))
        return
    device = choose_device(arguments.device)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}; batch 1")
    for size in arguments.sizes:
        found = {case: run_apart(case, size, arguments) for case in arguments.cases}
        check(found)
        print("\n".join(table(size, found, arguments.limit)), flush=True)


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", help="multiples of 64 (default: 256 512)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=2, help="to time, after one that warms up")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="the small model, at 64 pixels")
    parser.add_argument(
        "--limit",
        type=float,
        default=available_memory(),
        help="GiB that a case may take on a CPU (default: what is free now)",
    )
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.sizes = arguments.sizes or ([64] if arguments.tiny else [256, 512])
    return arguments


if __name__ == "__main__":
    main(parse())
