"""``sdmatte test [CONFIG CHECKPOINT ...] [key=value ...]``."""

import argparse
from collections import defaultdict
from pathlib import Path

from SDMatte.cli.common import add_process_arguments, launch, split_runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.description = (
        "Predict test sets, write the mattes and print MSE, MAD, SAD, Grad and Conn. Sets and "
        "prompts are settings: dataloader.test.dataset.names=[AIM-500] or [{image:DIR,alpha:DIR}], "
        "test.prompts=[box,point,mask], test.protocol=corrected, test.error_maps=True, "
        "test.save_mattes=False. An interrupted test is resumed."
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--output",
        type=Path,
        help="folder of mattes and reports (default: test/ beside the checkpoint, output/NAME/test "
        "for one from the hub; for several models, output/test with a folder for each)",
    )
    parser.add_argument(
        "--only",
        choices=("predict", "score"),
        help="only write the mattes, or only score those written with the same arguments",
    )
    parser.add_argument(
        "--save-prompts",
        type=Path,
        metavar="FILE",
        help="save the boxes, points and masks of this test to a JSON file",
    )
    parser.add_argument(
        "--prompts-from",
        type=Path,
        metavar="FILE",
        help="read boxes, points and masks from a saved file instead of drawing them",
    )
    add_process_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for what to test, which ``test`` and ``robustness`` share."""
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
        help="also test a baseline on the sets of the first config: prompt (the prompt as alpha), "
        "grabcut, grabcut-guided (with a guided filter), closed-form (needs trimaps); without "
        "checkpoints, only baselines are tested",
    )
    parser.add_argument(
        "--restart", action="store_true", help="delete earlier results in the output folders first"
    )
    parser.add_argument(
        "-j",
        "--num-workers",
        type=int,
        metavar="N",
        help="scoring processes per model process, same as test.num_workers=N (default: 1, a "
        "thread)",
    )


def run(args: argparse.Namespace) -> None:
    """Run the test in as many processes as requested."""
    runs, overrides = split_runs(args.words)
    launch(args, runs[0][0], overrides, test, args)


def test(args: argparse.Namespace) -> None:
    """Load, test and print; called in every process."""
    import SDMatte.compat  # noqa: F401

    from detectron2.utils import comm

    from SDMatte.errors import ConfigError
    from SDMatte.evaluation.plan import plan_test
    from SDMatte.evaluation.run import run_plan
    from SDMatte.evaluation.save_prompts import save_prompts
    from SDMatte.scoring.protocols import get_protocol
    from SDMatte.scoring.tables import score_table

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
            raise ConfigError("--save-prompts needs a single config.")
        save_prompts(methods[0].config, args.save_prompts)
    rows: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for method, plan in zip(methods, plans, strict=True):
        missing = any(test.missing for test in plan)
        model = method.load() if missing and args.only != "score" else None
        scores = run_plan(plan, model, method.name, method.info, args.only)
        for key, values in scores.items():
            rows[method.config.test.protocol][f"{method.name}, {key}"] = values
    if not comm.is_main_process():
        return
    for name, protocol_rows in rows.items():
        print(f"\nprotocol {name}: {get_protocol(name).description}\n")
        print(score_table(protocol_rows, display=True))
    what = "Mattes are" if args.only == "predict" else "Mattes and reports are"
    print(f"{what} in {', '.join(map(str, folders))}.")


def find_tested(args: argparse.Namespace, name: str) -> tuple[list, list[Path]]:
    """Return the methods that `add_model_arguments` selects, and their output folders.

    ``name`` is that of the default folder.
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
