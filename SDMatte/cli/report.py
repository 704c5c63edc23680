"""``sdmatte report RUN...``."""

import argparse
from pathlib import Path

from SDMatte.cli.common import Removed
from SDMatte.errors import ConfigError
from SDMatte.runtime.files import expand_path
from SDMatte.scoring.comparison import read_runs, write_comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.description = (
        "Compare the results of `test` and `score`: a table per data set, prompt and protocol, "
        "the paper's numbers (published, not measured here), relative differences to the first run "
        "and to the paper, and images. Writes report.md, report.tex and report.html, which is "
        "self-contained."
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a folder with results at any depth (--output of test and score), or NAME=FOLDER",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/report"), help="folder of the report"
    )
    parser.add_argument(
        "--images", type=int, default=6, help="images per data set and prompt (default: 6)"
    )
    parser.add_argument("--pictures", action=Removed, instead="use --images.")


def run(args: argparse.Namespace) -> None:
    """Read the runs, write the report and print it.

    Raises:
        ConfigError: The number of images is negative.
        DataError: A folder holds no results.
        OutputError: The output is not writable.
    """
    if args.images < 0:
        raise ConfigError(f"--images must be at least 0; got {args.images}.")
    comparisons = read_runs([_split(word) for word in args.runs])
    paths = write_comparison(comparisons, args.output, args.images)
    print(paths[0].read_text("utf-8", "surrogateescape"))
    print(f"The report is in {', '.join(map(str, paths))}.")


def _split(word: str) -> tuple[str, Path]:
    """Split ``NAME=FOLDER``, unless the whole word is an existing path."""
    name, separator, folder = word.partition("=")
    if separator and name and not Path(word).exists():
        return name, Path(expand_path(folder))
    return "", Path(expand_path(word))
