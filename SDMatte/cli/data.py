"""``sdmatte data ACTION``."""

import argparse
from pathlib import Path
from typing import Any

from SDMatte.cli.common import DEFAULT_CONFIG, is_config, is_setting
from SDMatte.errors import ConfigError, first_line

PUBLISHED_CONFIG = str(Path(DEFAULT_CONFIG).with_name("SDMatte.py"))
CANNOT_START = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions of the subcommand."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")

    action = actions.add_parser(
        "list",
        help="list data sets",
        description="List data sets, whether they are installed, and how many samples they have, "
        "without reading images. Default: all known sets.",
    )
    _add_words(action)
    action.set_defaults(run=list_sets)

    action = actions.add_parser(
        "check",
        help="read all files and report whether training can start",
        description="Read all files of the sets and list those that are missing or unreadable, "
        "alphas that are all 0 or all 255, and files whose size differs from their alpha's. The "
        f"exit status is 0 if training can start, else {CANNOT_START}. Default: the sets of "
        "configs/SDMatte_small.py.",
    )
    _add_words(action)
    action.add_argument(
        "--output",
        type=Path,
        default=Path("output/data_check"),
        help="folder of the contact sheets, one per set (default: output/data_check)",
    )
    action.add_argument(
        "-j",
        "--num-workers",
        type=int,
        metavar="N",
        help="reading processes (default: one per core, at most 8)",
    )
    action.set_defaults(run=check_sets)

    action = actions.add_parser(
        "sample",
        help="show samples as training sees them",
        description="Draw a sheet of samples: image, box, points, mask, trimap, alpha. Of training "
        "sets, it shows the first samples of a run. Default: the sets of "
        "configs/SDMatte_small.py.",
    )
    _add_words(action)
    action.add_argument("--count", type=int, default=12, help="samples (default: 12)")
    action.add_argument(
        "--output",
        type=Path,
        default=Path("output/data_sample.png"),
        help="the sheet, PNG or JPEG (default: output/data_sample.png)",
    )
    action.set_defaults(run=show_samples)

    action = actions.add_parser(
        "make-samples",
        help="write the embedded sample set",
        description="Draw images with exact mattes, in the layouts of Composition-1K (training), "
        "BG-20K (backgrounds) and AIM-500 (test). A sample set that the folder has is replaced if "
        "it was made with other values; other files are kept.",
    )
    action.add_argument("folder", type=Path, nargs="?", default=Path("data/samples"))
    action.add_argument("--train", type=int, default=240, help="training foregrounds")
    action.add_argument("--test", type=int, default=48, help="test images")
    action.add_argument("--size", type=int, default=384, help="approximate side in pixels")
    action.add_argument("--seed", type=int, default=0)
    action.set_defaults(run=make_samples)


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG|NAME|key=value",
        help="a config file (its sets), names of known sets, folder pairs as "
        "'{image: DIR, alpha: DIR}', and settings such as dataloader.train.dataset.root=DIR",
    )
    parser.add_argument("--part", choices=("train", "test"), help="only training or test sets")


def list_sets(args: argparse.Namespace) -> None:
    """Print a table of data sets."""
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
    """Print the problems of data sets, write contact sheets, and return the exit status."""
    from SDMatte.data.check import check_set, obstacles, summary_table
    from SDMatte.data.listing import files_of
    from SDMatte.data.samplers import Mix
    from SDMatte.data.sheets import source_sheet
    from SDMatte.images.io import write_image
    from SDMatte.runtime.files import check_not_read
    from SDMatte.runtime.settings import DatasetSettings

    if args.num_workers is not None and args.num_workers < 0:
        raise ConfigError(f"--num-workers must be at least 0; got {args.num_workers}.")
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
    mix = Mix.of([(one.entry, len(one.samples)) for one in listed if one.training])
    if mix is not None:
        print(mix.describe())
    left_out = sum(report.num_bad for report in reports)
    samples = f"{left_out} bad sample{'s' if left_out > 1 else ''}"
    print(f"Training can start{f', without {samples}' if left_out else ''}.")
    return 0


def show_samples(args: argparse.Namespace) -> None:
    """Draw samples of the data set that training or testing uses."""
    from itertools import islice

    import numpy as np
    from tqdm import tqdm

    from SDMatte.data.listing import files_of
    from SDMatte.data.sheets import sample_sheet
    from SDMatte.images.io import check_suffix, write_image
    from SDMatte.runtime.config import build
    from SDMatte.runtime.files import check_not_read, check_writable

    if args.count < 1:
        raise ConfigError(f"--count must be at least 1; got {args.count}.")
    check_suffix(args.output)
    check_writable(args.output)
    config, items = _chosen(args)
    part = args.part or items[0][1]
    node = config.dataloader[part]
    node.dataset.names = [item for item, of in items if of == part]
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
    """Write the embedded sample set."""
    from SDMatte.samples import make_sample_set

    make_sample_set(
        args.folder, num_train=args.train, num_test=args.test, size=args.size, seed=args.seed
    )


def _listed(args: argparse.Namespace) -> tuple[Any, list[Any]]:
    """Return the config and the chosen sets, listed."""
    from SDMatte.data.check import list_set

    config, items = _chosen(args)
    roots = {part: config.dataloader[part].dataset.get("root") for part in ("train", "test")}
    return config, [list_set(item, roots[part], part == "train") for item, part in items]


def _chosen(args: argparse.Namespace) -> tuple[Any, list[tuple[Any, str]]]:
    """Return the config and the chosen sets with their parts, training sets first.

    Names replace the config's sets. A name may be both a training and a test set; folder pairs are
    training sets unless ``--part`` is given.
    """
    from SDMatte.data.check import parts_of
    from SDMatte.evaluation.plan import choose_test_sets, dataset_names
    from SDMatte.runtime.config import load_config

    settings = [word for word in args.words if is_setting(word)]
    others = [word for word in args.words if not is_setting(word)]
    configs = [word for word in others if is_config(word)]
    names = [_parse(word) for word in others if word not in configs]
    if len(configs) > 1:
        raise ConfigError(f"Only one config file is allowed; got {' and '.join(configs)}.")
    default = PUBLISHED_CONFIG if names else DEFAULT_CONFIG
    config = load_config(configs[0] if configs else default, settings)
    if names:
        found = [(name, part) for name in names for part in parts_of(name, args.part)]
        return config, sorted(found, key=lambda item: item[1] == "test")
    # Training uses test sets only for evaluations.
    parts = ("train", "test") if config.train.evaluations else ("train",)
    parts = (args.part,) if args.part else parts
    if "test" in parts:
        choose_test_sets(config, training=True)
    items = [(name, part) for part in parts for name in dataset_names(config, part)]
    if not items:
        raise ConfigError(f"The config has no {' or '.join(parts)} set.")
    return config, items


def _parse(word: str) -> Any:
    """Parse a name, or a folder pair as written in a config."""
    from hydra.errors import HydraException

    from SDMatte.runtime.config import parse_value

    if not word.startswith("{"):
        return word
    try:
        return parse_value(word)
    except HydraException as error:
        raise ConfigError(
            f"{word} is not a folder pair {{image: DIR, alpha: DIR}}: {first_line(error)}."
        ) from None
