"""``python -m SDMatte robustness [CONFIG CHECKPOINT ...] [key=value ...]``: scores by prompt."""

import argparse
from pathlib import Path

from SDMatte.cli.common import add_process_arguments, launch, split_runs
from SDMatte.cli.test import add_model_arguments, find_tested
from SDMatte.scoring.metrics import METRICS


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "robustness",
        help="measure how scores change with worse prompts",
        description="Tests with looser and tighter boxes, fewer points, larger and smaller masks "
        "and the wrong opacity, and draws the scores. Nothing in it is random but the prompts "
        "that it starts from. What was interrupted goes on where it was.",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--kinds",
        metavar="KIND,...",
        default="",
        help="box, points, mask, opacity (default: all)",
    )
    parser.add_argument(
        "--metric", choices=list(METRICS), default="SAD", help="what the plot shows"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder (default: robustness/ beside the checkpoint; of several models, "
        "output/robustness)",
    )
    add_process_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> None:
    """Measures, in as many processes as asked for."""
    runs, overrides = split_runs(args.words)
    launch(args, runs[0][0], overrides, measure, args)


def measure(args: argparse.Namespace) -> None:
    """Measures, draws and prints; called in every process."""
    from SDMatte.evaluation.robustness import measure_robustness, plan_robustness, write_robustness

    methods, folders = find_tested(args, "robustness")
    kinds = [kind for kind in args.kinds.split(",") if kind]
    steps = [
        plan_robustness(method, folder, kinds, args.restart)
        for method, folder in zip(methods, folders, strict=True)
    ]
    measured = []
    for method, todo in zip(methods, steps, strict=True):
        measured += measure_robustness(method, todo)
    if measured:
        top = folders[0] if len(folders) == 1 else folders[0].parent
        paths = write_robustness(measured, top, args.metric)
        print(paths[1].read_text("utf-8", "surrogateescape"))
        print(f"The plot is {paths[0]}.")
