"""The command line: one module per subcommand, imported only when it runs."""

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
    "robustness": "measure how scores change with perturbed prompts",
    "matte": "cut objects out of images",
    "demo": "open a web page to cut objects out of images",
    "data": "list, check and show data sets",
    "export": "write a model as ONNX, which runs without torch",
    "export-weights": "write the weights of a checkpoint, without the training state",
    "push": "upload a model to the Hugging Face hub",
    "quickstart": "create samples, train the small model and test it",
}


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """Build the parser; only the chosen subcommand gets its arguments."""
    parser = CommandParser(prog="sdmatte", description="SDMatte: interactive image matting.")
    parser.set_defaults(run=print_help(parser))
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=text)
        if name == chosen:
            module = importlib.import_module(f"SDMatte.cli.{name.replace('-', '_')}")
            subparser.set_defaults(run=getattr(module, "run", print_help(subparser)))
            module.add_arguments(subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command (default: ``sys.argv``) and return its exit status.

    The status is 2 after an error caused by user input, or if no command is given.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in argv if word in COMMANDS), None)
    parser = build_parser(chosen)
    args, rest = parser.parse_known_args(argv)
    # argparse accepts only one group of positional arguments, but settings may follow options.
    if rest and (not hasattr(args, "words") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.words += rest
    return run_command(args.run, args)
