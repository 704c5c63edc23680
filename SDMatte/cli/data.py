"""``python -m SDMatte data ACTION``: looks at data sets, checks them, and makes small ones."""

import argparse
from pathlib import Path
from typing import Any

from SDMatte.cli.common import DEFAULT_CONFIG, is_setting, print_help
from SDMatte.errors import ConfigError

PUBLISHED_CONFIG = str(Path(DEFAULT_CONFIG).with_name("SDMatte.py"))
CANNOT_START = 2

_WORDS = (
    "a config file (its sets), names of known sets, folder pairs as '{image: DIR, alpha: DIR}', "
    "and settings such as dataloader.train.dataset.root=DIR"
)


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand and its own."""
    parser = subparsers.add_parser("data", help="list, check, show and make data sets")
    parser.set_defaults(run=print_help(parser))
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    _add_list(actions)
    _add_check(actions)
    _add_sample(actions)
    _add_make_samples(actions)
    return parser


def _add_list(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "list",
        help="say which sets are there",
        description="Lists sets, whether they are there, and how many samples they give; no "
        "picture is read. Without words: all known sets.",
    )
    _add_words(parser)
    parser.set_defaults(run=list_sets)


def _add_check(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "check",
        help="read every file, and say whether training can start",
        description="Reads every file of the sets and lists what is missing, unreadable, of "
        "another size than its alpha, empty or solid. The exit status is 0 if training can "
        f"start, else {CANNOT_START}. Without words: the sets of configs/SDMatte_small.py.",
    )
    _add_words(parser)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/data_check"),
        help="folder of the contact sheets, one a set (default: output/data_check)",
    )
    parser.add_argument(
        "-j",
        "--num-workers",
        type=int,
        metavar="N",
        help="processes that read (default: one a core, 8 at most)",
    )
    parser.set_defaults(run=check_sets)


def _add_sample(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "sample",
        help="show samples as training sees them",
        description="Draws a sheet of samples: picture, box, points, mask, trimap, alpha. Of the "
        "training sets, those that a training begins with. Without words: the sets of "
        "configs/SDMatte_small.py.",
    )
    _add_words(parser)
    parser.add_argument("--count", type=int, default=12, help="how many (default: 12)")
    parser.add_argument("--seed", type=int, help="in place of the config's")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/data_sample.png"),
        help="the picture, PNG or JPEG (default: output/data_sample.png)",
    )
    parser.set_defaults(run=show_samples)


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="CONFIG|NAME|key=value", help=_WORDS)
    parser.add_argument(
        "--part", choices=("train", "test"), help="only the training sets, or only the test sets"
    )


def _add_make_samples(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "make-samples",
        help="write the embedded sample set",
        description="Draws pictures with exact mattes, in the layouts of Composition-1K "
        "(training), BG-20K (backgrounds) and AIM-500 (test).",
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("data/samples"))
    parser.add_argument("--train", type=int, default=240, help="foregrounds for training")
    parser.add_argument("--test", type=int, default=48, help="test pictures")
    parser.add_argument("--size", type=int, default=384, help="their size in pixels, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=make_samples)


def list_sets(args: argparse.Namespace) -> None:
    """Prints a table of sets."""
    from SDMatte.data import TEST_SETS, TRAIN_SETS
    from SDMatte.data.check import list_table

    if all(is_setting(word) for word in args.words):
        parts = (args.part,) if args.part else ("train", "test")
        tables = {"train": TRAIN_SETS, "test": TEST_SETS}
        args.words += dict.fromkeys(name for part in parts for name in tables[part])
    _, listed = _listed(args)
    print(f"Data root: {listed[0].root}\n")
    print(list_table(listed))


def check_sets(args: argparse.Namespace) -> int:
    """Prints what is wrong with sets, writes contact sheets, and says whether training can start.

    Returns:
        0 or `CANNOT_START`.
    """
    from SDMatte.data.check import check_set, obstacles, summary_table, training_mix
    from SDMatte.data.listing import files_of
    from SDMatte.data.sheets import source_sheet
    from SDMatte.images.io import write_image
    from SDMatte.runtime.files import check_not_read
    from SDMatte.runtime.settings import DatasetSettings

    if args.num_workers is not None and args.num_workers < 0:
        raise ConfigError(f"--num-workers must be at least 0, not {args.num_workers}.")
    config, listed = _listed(args)
    paths = [
        args.output / f"{number:02d}_{one.name}_{one.part}.png"
        for number, one in enumerate(listed, start=1)
    ]
    for one in listed:
        check_not_read([args.output, *paths], files_of(one.samples, one.root))
    reports = []
    for path, one in zip(paths, listed, strict=True):
        report = check_set(one, args.num_workers, progress=True)
        reports.append(report)
        print(*report.lines(), sep="\n", flush=True)
        if report.usable:
            print(f"  contact sheet: {write_image(path, source_sheet(report.usable, one.root))}")
    print(f"\n{summary_table(reports)}\n")
    allowed = DatasetSettings.of(config.dataloader.train.dataset).max_bad_samples
    problems = obstacles(reports, allowed)
    if problems:
        print("Training cannot start:", *problems, sep="\n- ")
        return CANNOT_START
    mix = training_mix(listed)
    if mix is not None:
        print(mix.describe())
    left_out = sum(report.num_bad for report in reports)
    samples = f"{left_out} bad sample{'s' if left_out > 1 else ''}"
    print(f"Training can start{f', without {samples}' if left_out else ''}.")
    return 0


def show_samples(args: argparse.Namespace) -> None:
    """Draws samples through the data set that training, or the test, uses."""
    from itertools import islice

    import numpy as np
    from tqdm import tqdm

    from SDMatte.data.listing import files_of
    from SDMatte.data.sheets import sample_sheet
    from SDMatte.images.io import check_suffix, write_image
    from SDMatte.runtime.config import build
    from SDMatte.runtime.files import check_not_read, check_writable

    if args.count < 1:
        raise ConfigError(f"--count must be at least 1, not {args.count}.")
    check_suffix(args.output)
    check_writable(args.output)
    config, items = _chosen(args)
    part = args.part or items[0][1]
    node = config.dataloader[part]
    node.dataset.names = [item for item, of in items if of == part]
    if args.seed is not None:
        node.dataset.seed = args.seed
    node.num_workers = 0
    loader = build(node)
    check_not_read([args.output], files_of(loader.dataset.samples, loader.dataset.root))
    if part == "train":
        keys = list(islice(loader.sampler, args.count))
    else:
        rng = np.random.default_rng(loader.dataset.seed)
        keys = rng.permutation(len(loader.dataset))[: args.count].tolist()
    sheet = sample_sheet(loader.dataset, tqdm(keys, "samples", leave=False))
    path = write_image(args.output, sheet)
    print(f"The sheet is {path}.")


def make_samples(args: argparse.Namespace) -> None:
    """Draws the set, or says that it is there."""
    from SDMatte.samples import make_sample_set

    make_sample_set(
        args.folder, num_train=args.train, num_test=args.test, size=args.size, seed=args.seed
    )


def _listed(args: argparse.Namespace) -> tuple[Any, list[Any]]:
    """The config and the sets that the words choose, listed."""
    from SDMatte.data.check import list_set

    config, items = _chosen(args)
    roots = {part: config.dataloader[part].dataset.get("root") for part in ("train", "test")}
    return config, [list_set(item, roots[part], part == "train") for item, part in items]


def _chosen(args: argparse.Namespace) -> tuple[Any, list[tuple[Any, str]]]:
    """The config and the sets that the words choose, each with its part, training sets first.

    Names stand in place of the config's sets. A name that is a training and a test set is both;
    a folder pair is a training set unless ``--part`` says otherwise.
    """
    from SDMatte.evaluation.plan import choose_test_sets, dataset_names
    from SDMatte.runtime.config import load_config

    settings = [word for word in args.words if is_setting(word)]
    others = [word for word in args.words if not is_setting(word)]
    configs = [word for word in others if word.endswith((".py", ".yaml", ".yml"))]
    names = [_parse(word) for word in others if word not in configs]
    if len(configs) > 1:
        raise ConfigError(f"{configs[1]!r} is one config file too many.")
    default = PUBLISHED_CONFIG if names else DEFAULT_CONFIG
    config = load_config(configs[0] if configs else default, settings)
    if names:
        return config, _named(names, args.part)
    # A training reads its test sets only to evaluate.
    parts = ("train", "test") if config.train.evaluations else ("train",)
    parts = (args.part,) if args.part else parts
    if "test" in parts:
        choose_test_sets(config, training=True)
    items = [(name, part) for part in parts for name in dataset_names(config, part)]
    if not items:
        raise ConfigError(f"The config names no {' or '.join(parts)} set.")
    return config, items


def _named(names: list[Any], only: str | None) -> list[tuple[Any, str]]:
    """Finds out which parts each name has.

    Raises:
        DataError: There is no such set, or it has no such setting.
    """
    from SDMatte.data.check import parts_of

    found = [(name, part) for name in names for part in parts_of(name, only)]
    return sorted(found, key=lambda item: item[1] == "test")


def _parse(word: str) -> Any:
    """Reads a word as the value of a setting, so that folder pairs look as in a config."""
    from hydra.errors import HydraException

    from SDMatte.runtime.config import parse_value

    if not word.startswith("{"):
        return word
    try:
        return parse_value(word)
    except HydraException as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{word} is no folder pair {{image: DIR, alpha: DIR}}: {reason}"
        ) from None
