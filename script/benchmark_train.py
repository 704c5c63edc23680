"""Compare time and peak memory of training steps of a full-size SDMatte with random weights.

The steps of `SDMatte.engine.trainer`, in float32 and bfloat16, with and without gradient
checkpointing, are compared with a plain loop that materializes all attention scores, encodes the
empty caption in every step, and keeps default memory formats and the default optimizer. Each case
runs in a separate process, so that peak memory is measured per case::

    python script/benchmark_train.py                      # 256 and 512 pixels, all cases
    python script/benchmark_train.py --sizes 256 --cases plain float32
    python script/benchmark_train.py --batches 1 4 8 --cases plain TF32 bfloat16
    python script/benchmark_train.py --tiny               # the small model: a quick check

Cases that pay off only on GPUs, or that need a compiler or bitsandbytes, are measured only if they
are named.
"""

import argparse
import importlib.util
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import NamedTuple

import SDMatte.compat  # noqa: F401

import psutil
import torch
from benchmark_common import (
    LOSSES,
    PlainModel,
    Point,
    allow_tf32,
    build,
    case_parser,
    make_batch,
    measure_in_subprocess,
    point_groups,
    print_measurements,
    record,
    synchronize,
)
from detectron2.utils.events import EventStorage

from SDMatte.cli.common import integer, positive_number, run_command
from SDMatte.engine.options import adamw, compile_model
from SDMatte.engine.trainer import MatteTrainer, TrainingModel
from SDMatte.modeling import SDMatte as Model
from SDMatte.modeling.losses import MattingCriterion
from SDMatte.runtime.devices import choose_device, peak_memory


class Case(NamedTuple):
    """The training options of a case."""

    amp: str | None = None  # dtype of automatic mixed precision
    checkpointing: bool = False
    tf32: bool = False
    channels_last: bool = False
    compiled: bool = False
    eight_bit: bool = False


CASES = {
    "plain": Case(),
    "float32": Case(),
    "float32, checkpointing": Case(checkpointing=True),
    "bfloat16": Case("bfloat16"),
    "bfloat16, checkpointing": Case("bfloat16", checkpointing=True),
    "TF32": Case(tf32=True),
    "bfloat16, channels_last": Case("bfloat16", channels_last=True),
    "bfloat16, 8-bit optimizer": Case("bfloat16", eight_bit=True),
    "bfloat16, compiled": Case("bfloat16", compiled=True),
}
DEFAULT_CASES = list(CASES)[:5]
TOLERANCE = 1e-3  # of the first step's loss in float32, relative to the plain loop


@dataclass(frozen=True)
class Measurement:
    """Cost of the steps of one case.

    Attributes:
        seconds: Median per step, without the first one, which is a warm-up.
        memory: Peak memory of the process (of the device, on a GPU) in GiB.
        loss: Loss of the first step.
    """

    seconds: float
    memory: float
    loss: float


def measure(
    case: str, size: int, steps: int, device: torch.device, tiny: bool, count: int = 1
) -> Measurement:
    """Run one of `CASES` in this process on batches of `count` images."""
    options = CASES[case]
    allow_tf32(options.tf32)
    model = build(PlainModel if case == "plain" else Model, tiny, device)
    if options.checkpointing:
        model.enable_gradient_checkpointing()
    task = TrainingModel(model, MattingCriterion(LOSSES, size)).to(device).train()
    if options.channels_last:
        task.to(memory_format=torch.channels_last)
    if options.compiled:
        compile_model(model, device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    settings = {"lr": 5e-5, "betas": (0.9, 0.999), "weight_decay": 0.1}
    if case == "plain":
        optimizer = torch.optim.AdamW(parameters, **settings)
    else:
        optimizer = adamw(parameters, **settings, fused=True, eight_bit=options.eight_bit)
    batch = make_batch(size, count)
    if case == "plain":
        losses, seconds = plain_steps(task, batch, optimizer, steps + 1)
    else:
        trainer = MatteTrainer(task, repeat(batch), optimizer, ["bbox_mask"], amp_dtype=options.amp)
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


def run_in_subprocess(
    case: str, points: Sequence[Point], args: argparse.Namespace
) -> list[Measurement | None]:
    """Measure one case in a separate process; None where it ran out of memory."""
    options = ["--child", "--steps", str(args.steps), "--device", args.device]
    options += ["--limit", str(args.limit)] + ["--tiny"] * args.tiny
    measured = measure_in_subprocess(__file__, case, points, *options)
    return [m and Measurement(**m) for m in measured]


def table(
    size: int, found: dict[str, Measurement | None], limit: float, count: int = 1
) -> Iterable[str]:
    """Yield the lines of the table of one size and batch."""
    plain = found.get("plain")
    yield f"{size} x {size}" + (f", batch {count}" if count > 1 else "")
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
        if plain is None or m is None or CASES[case].amp or CASES[case].tf32:
            continue
        if abs(m.loss - plain.loss) > TOLERANCE * abs(plain.loss):
            raise SystemExit(f"{case} has a loss of {m.loss}, not {plain.loss}.")


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = case_parser(__doc__, CASES, DEFAULT_CASES, "256 512")
    parser.add_argument(
        "--steps", type=integer(1), default=2, help="timed steps, after one to warm up"
    )
    parser.add_argument(
        "--limit",
        type=positive_number,
        default=psutil.virtual_memory().available / 2**30,
        help="GiB that a case may take on a CPU (default: what is available)",
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Measure and print."""
    sizes = args.sizes or ([64] if args.tiny else [256, 512])
    device = choose_device(args.device)
    groups = point_groups(sizes, args.batches, device.type == "cuda")
    if args.child:
        if device.type != "cuda":
            limit = int(args.limit * 2**30)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

        def measure_point(size: int, count: int) -> dict[str, float]:
            return asdict(measure(args.cases[0], size, args.steps, device, args.tiny, count))

        print_measurements(measure_point, [p for group in groups for p in group], device)
        return
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for group in groups:
        found: dict[Point, dict[str, Measurement | None]] = {point: {} for point in group}
        for case in args.cases:
            if CASES[case].eight_bit and importlib.util.find_spec("bitsandbytes") is None:
                print(f"{case}: bitsandbytes is not installed")
                record(args.json, case=f"{case}: bitsandbytes is not installed")
                continue
            for point, m in zip(group, run_in_subprocess(case, group, args), strict=True):
                found[point][case] = m
                values = asdict(m) if m else {"memory": None}
                if m:
                    values["samples_per_second"] = point[1] / m.seconds
                record(args.json, case=case, size=point[0], batch=point[1], **values)
        for (size, count), cases in found.items():
            print("\n".join(table(size, cases, args.limit, count)), flush=True)
            check(cases)


if __name__ == "__main__":
    sys.exit(run_command(main, parse_args()))
