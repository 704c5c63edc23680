"""The command line: one subcommand a file, of which only the one that is asked for is imported."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from SDMatte.cli.common import CommandParser, print_help, run_command

COMMANDS = {
    "train": "train a model",
    "test": "predict and score test sets",
    "score": "score mattes made by any method",
    "report": "compare runs with each other and with the paper",
    "robustness": "measure how scores change with worse prompts",
    "matte": "cut objects out of pictures",
    "data": "list, check, show and make data sets",
    "export-weights": "write the weights of a checkpoint alone",
    "quickstart": "make samples, train the small model, test it, and show the results",
}


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """Builds the parser; only the chosen subcommand gets its arguments."""
    parser = CommandParser(prog="sdmatte", description="SDMatte: interactive image matting.")
    parser.set_defaults(run=print_help(parser))
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in COMMANDS.items():
        if name == chosen:
            module = importlib.import_module(f"SDMatte.cli.{name.replace('-', '_')}")
            module.add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: Its arguments; None: the process's.

    Returns:
        The exit status: 0, or 2 for an error that the user can mend. Without a command the help is
        printed, as git does.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in argv if word in COMMANDS), None)
    parser = build_parser(chosen)
    args, rest = parser.parse_known_args(argv)
    # argparse takes words only in one run; settings may also stand behind options.
    if rest and (not hasattr(args, "words") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.words += rest
    return run_command(args.run, args)
