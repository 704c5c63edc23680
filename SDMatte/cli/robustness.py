"""``python -m SDMatte robustness [CONFIG CHECKPOINT ...] [key=value ...]``: scores by prompt."""

import argparse
from dataclasses import dataclass

from SDMatte.cli.common import add_process_arguments, split_runs
from SDMatte.cli.test import add_subject_arguments, output_folders
from SDMatte.evaluation.metrics import METRICS


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "robustness",
        help="measure how scores change with worse prompts",
        description="Tests with looser and tighter boxes, fewer points, larger and smaller masks "
        "and the wrong opacity, and draws the scores. Nothing in it is random but the prompts "
        "that it starts from. What was interrupted goes on where it was.",
    )
    add_subject_arguments(parser)
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
        help="folder (default: robustness/ beside the checkpoint; of several models, "
        "output/robustness)",
    )
    add_process_arguments(parser)
    parser.set_defaults(run=run)
    return parser


@dataclass(frozen=True)
class Request:
    """What a user asked for, in what can be sent to other processes."""

    runs: list[tuple[str, str | None]]
    baselines: list[str]
    overrides: list[str]
    output: str | None
    restart: bool
    num_workers: int | None
    kinds: list[str]
    metric: str


def run(args: argparse.Namespace) -> None:
    """Measures, in as many processes as asked for."""
    runs, overrides = split_runs(args.words)

    from SDMatte.engine.config import load_config
    from SDMatte.engine.distributed import launch

    settings = load_config(runs[0][0], overrides).train
    request = Request(
        runs,
        args.baseline,
        overrides,
        args.output,
        args.restart,
        args.num_workers,
        [kind for kind in args.kinds.split(",") if kind],
        args.metric,
    )
    launch(
        measure,
        args.num_processes,
        args.num_machines,
        args.machine_rank,
        args.dist_url,
        args=(request,),
        device=settings.device,
        timeout=settings.ddp.timeout,
    )


def measure(request: Request) -> None:
    """Measures, draws and prints; called in every process."""
    from SDMatte.engine.robustness import measure_robustness, plan_robustness, write_robustness
    from SDMatte.engine.subjects import find_subjects

    subjects = find_subjects(request.runs, request.baselines, request.overrides)
    folders = output_folders(subjects, request.output, "robustness")
    steps = []
    for subject, folder in zip(subjects, folders, strict=True):
        if request.num_workers is not None:
            subject.config.test.num_workers = request.num_workers
        steps.append(plan_robustness(subject, folder, request.kinds, request.restart))
    measured = []
    for subject, todo in zip(subjects, steps, strict=True):
        measured += measure_robustness(subject, todo)
    if measured:
        top = folders[0] if len(folders) == 1 else folders[0].parent
        paths = write_robustness(measured, top, request.metric)
        print(paths[1].read_text(encoding="utf-8"))
        print(f"The plot is {paths[0]}.")
