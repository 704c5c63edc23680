"""Compare time and peak memory of training steps of a full-size SDMatte with random weights.

The steps of `SDMatte.engine.trainer`, in float32 and bfloat16, with and without gradient
checkpointing, next to a plain loop that materializes all attention scores, encodes the empty
caption in every step, and keeps default memory formats and the default optimizer. Each case runs
in a separate process, so that peak memory is measured per case; batch size 1::

    python script/benchmark_train.py                      # 256 and 512 pixels, all cases
    python script/benchmark_train.py --sizes 256 --cases plain float32
    python script/benchmark_train.py --tiny               # the small model: a quick check
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import repeat

import SDMatte.compat  # noqa: F401

import psutil
import torch
from benchmark_common import (
    LOSSES,
    PlainModel,
    build,
    case_parser,
    make_batch,
    measure_in_subprocess,
    synchronize,
)
from detectron2.utils.events import EventStorage

from SDMatte.engine.trainer import MatteTrainer, TrainingModel
from SDMatte.modeling import SDMatte as Model
from SDMatte.modeling.losses import MattingCriterion
from SDMatte.runtime.devices import choose_device, peak_memory

CASES = {  # dtype of automatic mixed precision, gradient checkpointing
    "plain": (None, False),
    "float32": (None, False),
    "float32, checkpointing": (None, True),
    "bfloat16": ("bfloat16", False),
    "bfloat16, checkpointing": ("bfloat16", True),
}
TOLERANCE = 1e-3  # of the first step's loss in float32, relative to the plain loop


@dataclass(frozen=True)
class Measurement:
    """Cost of the steps of one case.

    Attributes:
        seconds: Median per step, without the first, which warms up.
        memory: Peak memory of the process (of the device, on a GPU) in GiB.
        loss: Loss of the first step.
    """

    seconds: float
    memory: float
    loss: float


def measure(case: str, size: int, steps: int, device: torch.device, tiny: bool) -> Measurement:
    """Run one of `CASES` in this process."""
    amp_dtype, checkpointing = CASES[case]
    model = build(PlainModel if case == "plain" else Model, tiny)
    if checkpointing:
        model.enable_gradient_checkpointing()
    task = TrainingModel(model, MattingCriterion(LOSSES, size)).to(device).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    fused = None if case == "plain" else True
    optimizer = torch.optim.AdamW(parameters, lr=5e-5, weight_decay=0.1, fused=fused)
    if case == "plain":
        losses, seconds = plain_steps(task, make_batch(size), optimizer, steps + 1)
    else:
        batches = repeat(make_batch(size))
        trainer = MatteTrainer(task, batches, optimizer, ["bbox_mask"], amp_dtype=amp_dtype)
        losses, seconds = trainer_steps(trainer, steps + 1)
    return Measurement(statistics.median(seconds[1:]), peak_memory(device), losses[0])


def plain_steps(task, batch, optimizer, steps: int) -> tuple[list[float], list[float]]:
    """Run steps in a plain loop; return their losses and seconds."""
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


def trainer_steps(trainer: MatteTrainer, steps: int) -> tuple[list[float], list[float]]:
    """Run steps of the trainer; return their losses and seconds."""
    losses, seconds = [], []
    with EventStorage(0) as trainer.storage:
        for trainer.iter in range(steps):
            start = time.perf_counter()
            trainer.run_step()
            synchronize()
            seconds.append(time.perf_counter() - start)
            losses.append(trainer.storage.history("total_loss").latest())
    return losses, seconds


def run_in_subprocess(case: str, size: int, args: argparse.Namespace) -> Measurement | None:
    """Measure one case in a separate process; None if it ran out of memory."""
    options = ["--child", "--steps", str(args.steps), "--device", args.device]
    options += ["--limit", str(args.limit)] + ["--tiny"] * args.tiny
    measured = measure_in_subprocess(__file__, case, size, *options)
    return measured and Measurement(**measured)


def table(size: int, found: dict[str, Measurement | None], limit: float) -> Iterable[str]:
    """Yield the lines of the table of one size."""
    plain = found.get("plain")
    yield f"{size} x {size}"
    yield f"  {'case':26}{'s/step':>9}{'GiB':>8}{'faster':>9}{'memory':>9}"
    for case, m in found.items():
        if m is None:
            yield f"  {case:26} needs more than {limit:.1f} GiB"
            continue
        ratios = ""
        if plain is not None:
            ratios = f"{plain.seconds / m.seconds:8.2f}x{m.memory / plain.memory:8.2f}x"
        yield f"  {case:26}{m.seconds:9.3f}{m.memory:8.2f}{ratios}"


def check(found: dict[str, Measurement | None]) -> None:
    """Exit with an error if a case in float32 differs from the plain loop."""
    plain = found.get("plain")
    for case, m in found.items():
        if plain is None or m is None or CASES[case][0] is not None:
            continue
        if abs(m.loss - plain.loss) > TOLERANCE * abs(plain.loss):
            raise SystemExit(f"{case} has a loss of {m.loss}, not {plain.loss}.")


def main() -> None:
    """Measure and print."""
    parser = case_parser(__doc__, CASES, list(CASES), "256 512")
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after one to warm up")
    parser.add_argument(
        "--limit",
        type=float,
        default=psutil.virtual_memory().available / 2**30,
        help="GiB that a case may take on a CPU (default: what is available)",
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = args.sizes or ([64] if args.tiny else [256, 512])
    device = choose_device(args.device)
    if args.child:
        if not torch.cuda.is_available():
            limit = int(args.limit * 2**30)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        print(json.dumps(asdict(measure(args.cases[0], sizes[0], args.steps, device, args.tiny))))
        return
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}; batch 1")
    for size in sizes:
        found = {case: run_in_subprocess(case, size, args) for case in args.cases}
        check(found)
        print("\n".join(table(size, found, args.limit)), flush=True)


if __name__ == "__main__":
    main()
