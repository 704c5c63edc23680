"""``sdmatte robustness [CONFIG CHECKPOINT ...] [key=value ...]``."""

import argparse
from pathlib import Path

from SDMatte.cli.common import add_process_arguments, launch, split_runs
from SDMatte.cli.test import add_model_arguments, find_tested


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.description = (
        "Test with looser and tighter boxes, fewer points, larger and smaller masks and the wrong "
        "opacity, and plot the scores. The perturbations are deterministic. An interrupted "
        "measurement is resumed."
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--output",
        type=Path,
        help="folder (default: robustness/ beside the checkpoint; output/robustness for several "
        "models)",
    )
    add_process_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Run the measurement in as many processes as requested."""
    runs, overrides = split_runs(args.words)
    launch(args, runs[0][0], overrides, measure, args)


def measure(args: argparse.Namespace) -> None:
    """Measure, plot and print; called in every process."""
    from SDMatte.evaluation.robustness import measure_robustness, plan_robustness, write_robustness

    methods, folders = find_tested(args, "robustness")
    plans = [
        plan_robustness(method, folder, args.restart)
        for method, folder in zip(methods, folders, strict=True)
    ]
    measured = []
    for method, plan in zip(methods, plans, strict=True):
        measured += measure_robustness(method, plan)
    if measured:
        top = folders[0] if len(folders) == 1 else folders[0].parent
        paths = write_robustness(measured, top)
        print(paths[1].read_text("utf-8", "surrogateescape"))
        print(f"The plot is {paths[0]}.")
