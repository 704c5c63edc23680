"""``python -m SDMatte test [CONFIG CHECKPOINT ...] [key=value ...]``: predicts and scores sets."""

import argparse
from collections import defaultdict
from pathlib import Path

from SDMatte.cli.common import add_process_arguments, launch, split_runs


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "test",
        help="predict and score test sets",
        description="Predicts test sets, writes the mattes, and prints MSE, MAD, SAD, Grad and "
        "Conn. Sets and prompts are settings: dataloader.test.dataset.names=[AIM-500] or "
        "[{image:DIR,alpha:DIR}], test.prompts=[box,point,mask], test.protocol=corrected, "
        "test.error_maps=True, test.save_mattes=False. A test that was interrupted goes on where "
        "it was.",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for mattes and reports (default: test/ beside the checkpoint, in output/NAME "
        "for one from the hub; of several models, output/test, with a folder for each)",
    )
    parser.add_argument(
        "--only",
        choices=("predict", "score"),
        help="only write the mattes, or only score those that were written so; both with the "
        "arguments that the whole test would have",
    )
    parser.add_argument(
        "--save-prompts",
        type=Path,
        metavar="FILE",
        help="keep the boxes, points and masks of this run in a file (JSON)",
    )
    parser.add_argument(
        "--prompts-from",
        type=Path,
        metavar="FILE",
        help="use the boxes, points and masks of such a file, in place of drawn ones",
    )
    add_process_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say what is tested; ``robustness`` has them, too."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG CHECKPOINT key=value",
        help="configs (default: configs/SDMatte_small.py), each followed by its checkpoints "
        "(files, folders, or ids on the Hugging Face hub such as LongfeiHuang/SDMatte or "
        "LongfeiHuang/SDMatte/SDMatte_plus.pth; default: train.output_dir/model_final.pth), and "
        "settings for all of them",
    )
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="NAME",
        help="a method to test as well, on the sets of the first config: prompt (the prompt as "
        "alpha), grabcut, grabcut-guided (softened by a guided filter), closed-form (of a trimap). "
        "Then only the checkpoints named are tested",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="start over: delete the results that are in the output's folders",
    )
    parser.add_argument(
        "-j",
        "--num-workers",
        type=int,
        metavar="N",
        help="processes that score beside each model; the same as test.num_workers=N (default: 1, "
        "a thread)",
    )


def run(args: argparse.Namespace) -> None:
    """Tests, in as many processes as asked for."""
    runs, overrides = split_runs(args.words)
    launch(args, runs[0][0], overrides, test, args)


def test(args: argparse.Namespace) -> None:
    """Loads, tests and prints; called in every process."""
    from SDMatte.errors import ConfigError
    from SDMatte.evaluation.plan import plan_test
    from SDMatte.evaluation.run import run_plan
    from SDMatte.evaluation.save_prompts import save_prompts

    methods, folders = find_tested(args, "test")
    for config in {id(m.config): m.config for m in methods}.values():
        if args.prompts_from is not None:
            config.dataloader.test.dataset.prompts_from = str(args.prompts_from)
    plans = [
        plan_test(m.config, folder, m.prompts, m.identity, args.restart)
        for m, folder in zip(methods, folders, strict=True)
    ]
    if args.save_prompts is not None:
        if len({file for file, _ in split_runs(args.words)[0]}) > 1:
            raise ConfigError("--save-prompts takes the prompts of one config, not of several.")
        save_prompts(methods[0].config, args.save_prompts)
    rows: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for method, plan in zip(methods, plans, strict=True):
        missing = any(test.missing for test in plan)
        model = method.load() if missing and args.only != "score" else None
        scores = run_plan(plan, model, method.name, method.info, args.only)
        for key, values in scores.items():
            rows[method.config.test.protocol][f"{method.name}, {key}"] = values
    show(rows, folders, mattes_only=args.only == "predict")


def find_tested(args: argparse.Namespace, name: str) -> tuple[list, list[Path]]:
    """Finds what the arguments of `add_model_arguments` name, and where results of each go.

    Args:
        args: The parsed arguments.
        name: Of the default folder.

    Returns:
        The methods and their folders.

    Raises:
        SDMatteError: See `SDMatte.evaluation.methods.find_methods`.
    """
    from SDMatte.evaluation.methods import find_methods
    from SDMatte.runtime.files import check_not_read

    runs, overrides = split_runs(args.words)
    if args.num_workers is not None:
        overrides.append(f"test.num_workers={args.num_workers}")
    methods = find_methods(runs, args.baseline, overrides)
    if getattr(args, "save_prompts", None) is not None:
        read = [path for run in runs for path in run] + [method.checkpoint for method in methods]
        check_not_read([args.save_prompts], [args.prompts_from, *read])
    if len(methods) > 1:
        top = Path(args.output or f"output/{name}")
        return methods, [top / method.name for method in methods]
    return methods, [Path(args.output or methods[0].home / name)]


def show(
    rows: dict[str, dict[str, dict[str, float]]], folders: list[Path], mattes_only: bool
) -> None:
    """Prints a table for each protocol, in the main process."""
    import SDMatte.compat  # noqa: F401

    from detectron2.utils import comm

    from SDMatte.scoring.protocols import get_protocol
    from SDMatte.scoring.tables import score_table

    if not comm.is_main_process():
        return
    for name, scores in rows.items():
        print(f"\nprotocol {name}: {get_protocol(name).description}\n")
        print(score_table(scores, display=True))
    what = "Mattes are" if mattes_only else "Mattes and reports are"
    print(f"{what} in {', '.join(map(str, folders))}.")
