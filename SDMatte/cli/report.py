"""``python -m SDMatte report RUN...``: runs side by side, beside the published numbers."""

from __future__ import annotations

import argparse
from pathlib import Path

from SDMatte.errors import ConfigError
from SDMatte.runtime.files import expand_path
from SDMatte.scoring.comparison import read_runs, write_comparison


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "report",
        help="compare runs with each other and with the paper",
        description="Puts the results of test and score side by side: a table for each set, "
        "prompt and protocol, the paper's numbers (published, not measured here), relative "
        "differences to the first run and to the paper, and pictures. Writes report.md, "
        "report.tex and report.html; the last one is a single file.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a folder with results, at any depth (--output of test and score), or NAME=FOLDER",
    )
    parser.add_argument("--output", type=Path, default=Path("output/report"), help="folder")
    parser.add_argument(
        "--pictures", type=int, default=6, help="pictures for each set and prompt (default: 6)"
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> None:
    """Reads, compares and writes.

    Raises:
        ConfigError: The number of pictures is negative.
        DataError: A folder holds no results, or the output cannot be written.
    """
    if args.pictures < 0:
        raise ConfigError(f"There cannot be {args.pictures} pictures.")
    comparisons = read_runs([_split(word) for word in args.runs])
    paths = write_comparison(comparisons, args.output, args.pictures)
    print(paths[0].read_text("utf-8", "surrogateescape"))
    print(f"The report is in {', '.join(map(str, paths))}.")


def _split(word: str) -> tuple[str, Path]:
    """Parts ``NAME=FOLDER``; a folder may have an equals sign in its own name."""
    name, separator, folder = word.partition("=")
    if separator and name and not Path(word).exists():
        return name, Path(expand_path(folder))
    return "", Path(expand_path(word))
