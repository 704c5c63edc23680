"""Test and benchmark the project on an NVIDIA GPU; docs/gpu.md explains the parts.

Each part runs in its own processes with a time limit. After each part, ``report.md``,
``report.json`` and the part's output are written to OUT, so finished parts are kept. The exit
status is 1 if a check fails or is cut off, if a part measures nothing, or if there is no GPU::

    bash script/check_gpu.sh                      # all parts in 8 minutes, to output/gpu
    bash script/check_gpu.sh --only inference --minutes 20 output/gpu-inference
    bash script/check_gpu.sh --dry-run            # the same at toy size on the CPU
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from SDMatte.cli.common import positive_number, run_command
from SDMatte.runtime.files import check_writable

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "detectron2",
    "peft",
    "bitsandbytes",
)
WORKERS = (1, 2, 4, 8, 16)


class Part(NamedTuple):
    """A part of the check.

    Attributes:
        share: Fraction of the whole time that it may take; time left by earlier parts is added.
        must_finish: Whether being cut off is a failure; measurements may be cut off.
        commands: Returns its commands, given the file for its figures and whether it is a dry run.
    """

    share: float
    must_finish: bool
    commands: Callable[[Path, bool], list[list[str]]]


def _tests(figures: Path, dry: bool) -> list[list[str]]:
    return [
        ["-m", "pytest", "tests/gpu", "-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider"]
    ]


def _inference(figures: Path, dry: bool) -> list[list[str]]:
    command = ["script/benchmark_inference.py", "--json", str(figures)]
    toy = ["--tiny", "--device", "cpu", "--runs", "1", "--batches", "1"]
    full = ["--sizes", "512", "1024", "--batches", "1", "4", "--device", "cuda", "--runs", "3"]
    eager = ["--cases", "plain", "bfloat16", "float32", "TF32"]  # most important first
    if dry:
        return [
            [*command, *toy, "--cases", "plain", "bfloat16", "--model", m]
            for m in ("sdmatte", "lite")
        ]
    compiled = ["--sizes", "1024", "--device", "cuda", "--runs", "3"]
    compiled += ["--cases", "plain", "bfloat16, compiled", "bfloat16, CUDA graphs"]
    return [
        [*command, *full, *eager],
        [*command, *full, *eager, "--model", "lite"],
        [*command, *compiled],
    ]


def _training(figures: Path, dry: bool) -> list[list[str]]:
    command = ["script/benchmark_train.py", "--json", str(figures)]
    loader = ["script/check_gpu.py", "--child", "loader", str(figures)] + ["--dry-run"] * dry
    if dry:
        toy = ["--tiny", "--device", "cpu", "--steps", "1", "--cases", "plain", "bfloat16"]
        return [loader, [*command, *toy]]
    cases = ["plain", "TF32", "bfloat16", "bfloat16, channels_last", "bfloat16, checkpointing"]
    cases += ["bfloat16, 8-bit optimizer", "bfloat16, compiled"]
    full = ["--sizes", "512", "--batches", "1", "4", "8", "--device", "cuda", "--steps", "3"]
    return [loader, [*command, *full, "--cases", *cases]]


def _config(figures: Path, dry: bool) -> list[list[str]]:
    return [["script/check_gpu.py", "--child", "config", str(figures)] + ["--dry-run"] * dry]


PARTS = {
    "tests": Part(0.33, True, _tests),
    "inference": Part(0.23, False, _inference),
    "training": Part(0.19, False, _training),
    "config": Part(0.25, True, _config),
}


# ----------------------------------------------------------------------- driver


def run_part(name: str, out: Path, seconds: float, dry: bool) -> dict[str, Any]:
    """Run the commands of a part; return its status, seconds and figures."""
    part, start = PARTS[name], time.monotonic()
    log, figures = out / f"{name}.log", out / f"{name}.jsonl"
    figures.write_text("")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    )
    environment["SDMATTE_TEST_DEVICE"] = "cpu" if dry else "cuda"
    status = "passed"
    with log.open("w") as file:
        for command in part.commands(figures, dry):
            left = seconds - (time.monotonic() - start)
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                failed = process.wait(max(1, left)) != 0
            except subprocess.TimeoutExpired:
                status = "failed" if status == "failed" else "cut off"
                break
            finally:
                if process.poll() is None:  # also after Ctrl-C, which the process does not receive
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            status = "failed" if failed else status
    text = log.read_text(errors="replace")
    found = [json.loads(line) for line in figures.read_text().splitlines()]
    if name == "tests":
        found = [
            {"test": test, "result": result.lower()}
            for test, result in re.findall(
                r"^(?:\S+::)(.+?) (PASSED|FAILED|SKIPPED|ERROR)", text, re.M
            )
        ]
    spent = round(time.monotonic() - start, 1)
    return {"status": status, "seconds": spent, "figures": found, "output": text[-4000:]}


def describe_machine(dry: bool) -> dict[str, Any]:
    """Return the card and the versions."""
    import torch

    machine: dict[str, Any] = {"card": "none: a dry run on the CPU" if dry else ""}
    if not dry:
        properties = torch.cuda.get_device_properties(0)
        machine["card"] = properties.name
        machine["memory_gib"] = round(properties.total_memory / 2**30, 1)
        machine["compute_capability"] = f"{properties.major}.{properties.minor}"
        machine["cuda"], machine["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            machine["driver"] = subprocess.check_output(query, text=True).split()[0]
        except (OSError, subprocess.CalledProcessError, IndexError):
            machine["driver"] = "unknown"
    machine |= {"cpu_cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            machine[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = importlib.util.find_spec(name) is not None
            machine[name] = "unknown" if installed else "not installed"
    return machine


def write_report(out: Path, report: dict[str, Any]) -> None:
    """Write ``report.json`` and ``report.md``."""
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    lines = ["# Check on a GPU", "", *table([report["machine"]])]
    for name, part in report["parts"].items():
        lines += ["", f"## {name}: {part['status']}, {part['seconds']} s", ""]
        lines += table(part["figures"])
        if part["status"] != "passed":
            lines += ["", "```", part["output"], "```"]
    (out / "report.md").write_text("\n".join(lines) + "\n")


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Format rows as a table in Markdown."""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    if not heads:
        return ["No figures."]
    lines = [heads, ["---"] * len(heads)]
    lines += [[_cell(row.get(head, "")) for head in heads] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(value: Any) -> str:
    if value is None:
        return "out of memory"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


# ------------------------------------------------------------------ measurements


def measure_loader(figures: Path, dry: bool) -> None:
    """Measure samples per second of the training loader at 512 pixels, by number of workers."""
    import benchmark_data
    from benchmark_common import record

    from SDMatte.data import MattingDataset, build_train_loader

    shape, batches = ((384, 384), 4) if dry else (benchmark_data.SHAPE, 24)
    with tempfile.TemporaryDirectory() as folder:
        samples = benchmark_data.write_sources(Path(folder), shape, 6)
        cores = len(os.sched_getaffinity(0))
        for workers in [n for n in WORKERS if n <= cores][: 1 if dry else None]:
            dataset = MattingDataset(samples=samples, root=folder, size=96 if dry else 512)
            loader = iter(build_train_loader(dataset, num_workers=workers))
            for _ in range(2 * workers):  # until the workers run and their queues are full
                next(loader)
            start = time.perf_counter()
            for _ in range(batches):
                next(loader)
            rate = batches / (time.perf_counter() - start)
            loader.close()
            record(figures, loader_workers=workers, samples_per_second=rate)


def run_config(figures: Path, dry: bool) -> None:
    """Run the steps of ``configs/SDMatte.py`` for 60 seconds on miniature data sets.

    The weights are random, and the learning rate is that of the config without its schedule.

    Raises:
        SystemExit: The loss does not fall, or memory grows.
    """
    import SDMatte.compat  # noqa: F401  # isort: skip

    import psutil
    import torch
    from benchmark_common import record, write_configs
    from detectron2.utils.events import EventStorage

    from SDMatte.data.listing import BACKGROUNDS
    from SDMatte.engine.builders import build_trainer
    from SDMatte.runtime.config import build, load_config
    from SDMatte.runtime.devices import peak_memory

    device = torch.device("cpu" if dry else "cuda", 0)
    with tempfile.TemporaryDirectory() as scratch:
        root, pretrained = f"{scratch}/data", Path(scratch) / "pretrained"
        size = ["--num", "2", "--size", "96"] if dry else ["--num", "4", "--size", "640"]
        sets = [*load_config("configs/SDMatte.py").dataloader.train.dataset.names, BACKGROUNDS]
        subprocess.run([sys.executable, "tests/layouts.py", root, *sets, *size], check=True)
        write_configs(pretrained, tiny=dry)
        words = [
            f"model.pretrained_model_name_or_path={pretrained}",
            "model.load_weight=False",
            f"dataloader.train.dataset.root={root}",
        ]
        if dry:
            words += ["dataloader.train.dataset.size=64", "dataloader.train.num_workers=1"]
        config = load_config("configs/SDMatte.py", words)
        loader = build(config.dataloader.train)
        _, trainer, _ = build_trainer(config, loader, device)
        seconds, memory = [], []
        end = time.monotonic() + (5 if dry else 60)
        with EventStorage(0) as storage:
            trainer.storage = storage
            while len(seconds) < 4 or time.monotonic() < end:
                start = time.perf_counter()
                trainer.run_step()
                seconds.append(time.perf_counter() - start)
                allocated = (
                    torch.cuda.memory_allocated(device)
                    if not dry
                    else psutil.Process().memory_info().rss
                )
                memory.append(allocated / 2**30)
                trainer.iter += 1
                storage.iter = trainer.iter
            losses = [value for value, _ in storage.history("total_loss").values()]
            waits = [value for value, _ in storage.history("data_time").values()]
        trainer._data_loader_iter.close()
    third = len(seconds) // 3
    first, last = statistics.mean(losses[: third or 1]), statistics.mean(losses[-third:])
    record(
        figures,
        steps=len(seconds),
        samples_per_second=1 / statistics.median(seconds[1:]),
        loss_of_first_third=first,
        loss_of_last_third=last,
        fraction_waiting_for_data=sum(waits[1:]) / sum(seconds[1:]),
        memory_after_first_third=memory[third],
        memory_at_the_end=memory[-1],
        peak_memory=peak_memory(device),
    )
    if not all(map(math.isfinite, losses)):
        raise SystemExit("A loss is not finite.")
    if dry:
        return  # too few steps for the checks below
    if last >= first:
        raise SystemExit(f"The loss does not fall: {first:.4f}, then {last:.4f}.")
    if memory[-1] > 1.05 * memory[third]:
        raise SystemExit(f"Memory grows from {memory[third]:.2f} to {memory[-1]:.2f} GiB.")


def needed_workers(figures: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return how many loader workers keep the fastest measured training fed."""
    figures = list(figures)
    rates = {f["loader_workers"]: f["samples_per_second"] for f in figures if "loader_workers" in f}
    trained = [f for f in figures if "case" in f and f.get("samples_per_second")]
    if not rates or not trained:
        return {}
    fastest = max(trained, key=lambda f: f["samples_per_second"])
    enough = [n for n, rate in rates.items() if rate >= fastest["samples_per_second"]]
    needed = min(enough) if enough else f"more than {max(rates)}"
    return {"case": fastest["case"], "batch": fastest["batch"], "workers_needed": needed}


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", nargs="?", type=Path, default=Path("output/gpu"), metavar="OUT")
    parser.add_argument("--dry-run", action="store_true", help="at toy size, on the CPU")
    parser.add_argument("--only", choices=PARTS, help="one part, which gets all the time")
    parser.add_argument(
        "--minutes", type=positive_number, default=8, help="for all parts (default: 8)"
    )
    parser.add_argument("--child", choices=("loader", "config"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    """Run the parts; return the exit status."""
    if args.child:
        {"loader": measure_loader, "config": run_config}[args.child](args.out, args.dry_run)
        return 0

    check_writable(args.out / "report.md")
    import torch

    names = [args.only] if args.only else list(PARTS)
    if not args.dry_run and not torch.cuda.is_available():
        print(
            f"No NVIDIA GPU found. With one, this runs {', '.join(names)} for up to "
            f"{args.minutes:g} minutes and writes {args.out}/report.md; --dry-run does so at toy "
            f"size on the CPU.",
            file=sys.stderr,
        )
        return 1
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": describe_machine(args.dry_run), "parts": {}}
    end = time.monotonic() + 60 * args.minutes
    passed = True
    for index, name in enumerate(names):
        later = sum(PARTS[n].share for n in names[index:])
        seconds = (end - time.monotonic()) * PARTS[name].share / later
        part = run_part(name, out, seconds, args.dry_run)
        if name == "training" and (needed := needed_workers(part["figures"])):
            part["figures"].append(needed)
        report["parts"][name] = part
        write_report(out, report)
        print(f"{name}: {part['status']}, {part['seconds']} s", flush=True)
        passed &= part["status"] == "passed" or (
            part["status"] == "cut off" and not PARTS[name].must_finish and bool(part["figures"])
        )
    print(f"Report: {args.out / 'report.md'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(run_command(main, parse_args()))
