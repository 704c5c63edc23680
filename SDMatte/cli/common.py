"""What all commands share: how they log, and how they end."""

import argparse
import io
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from SDMatte.errors import ConfigError, RunStopped, SDMatteError
from SDMatte.runtime.files import clear_leftovers, expand_path

DEFAULT_CONFIG = str(Path(__file__).parents[2] / "configs" / "SDMatte_small.py")

USER_ERROR = 2
INTERRUPTED = 130


def run_command(function: Callable[[argparse.Namespace], int | None], args) -> int:
    """Runs a command and gives its exit status.

    An error that the user can mend is one sentence on standard error; any other exception keeps
    its trace, for it is ours.

    Args:
        function: Takes the parsed arguments; may return an exit status.
        args: The parsed arguments.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    clear_leftovers.cache_clear()  # each command looks anew
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    try:
        return function(args) or 0
    except RunStopped as stopped:
        sys.stderr.write(f"{stopped}\n")
        return stopped.status
    except SDMatteError as error:
        sys.stderr.write(f"error: {error}\n")
        return USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return INTERRUPTED


def print_help(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Return what a parser runs when none of its subcommands is named."""

    def run(args: argparse.Namespace) -> int:
        parser.print_help()
        return USER_ERROR

    return run


class CommandParser(argparse.ArgumentParser):
    """A parser, and the class of its subparsers, whose ``type=Path`` expands ``~`` and ``$NAME``.

    A shell expands neither within quotes, nor ``~`` behind the ``=`` of ``--output=~/x``.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register("type", Path, lambda text: Path(path_or_name(text)))


def path_or_name(text: str) -> str:
    """Read an option that is a path or the name of something; a path is expanded."""
    try:
        return expand_path(text)
    except ConfigError as error:  # argparse has words of its own for a ValueError
        raise argparse.ArgumentTypeError(str(error)) from error


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say in how many processes to run, and where."""
    group = parser.add_argument_group("processes")
    group.add_argument(
        "--num-processes",
        "--num-gpus",
        type=int,
        default=1,
        help="processes on this machine: one a GPU, or shares of the CPU (default: 1); torchrun "
        "sets its own",
    )
    group.add_argument("--num-machines", type=int, default=1)
    group.add_argument("--machine-rank", type=int, default=0, help="this machine's, from 0")
    group.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT of machine 0")


def launch(
    args: argparse.Namespace,
    config_file: str,
    overrides: Sequence[str],
    function: Callable,
    *given,
    saved: Callable[[str], str] = lambda _: "what was saved before is kept",
) -> None:
    """Runs ``function(*given)`` in as many processes as the command line asks for.

    Args:
        args: The parsed arguments, with those of `add_process_arguments`.
        config_file: The config that names the device, and how long processes wait for another.
        overrides: Its settings.
        function: A module-level function.
        *given: Its arguments; they must be picklable.
        saved: Says, of ``train.output_dir``, what there is after a signal.

    Raises:
        SDMatteError: As raised by the function; or the config or the counts cannot be.
    """
    from SDMatte.runtime import launch as processes
    from SDMatte.runtime.config import load_config

    train = load_config(config_file, overrides).train
    processes.launch(
        function,
        args.num_processes,
        args.num_machines,
        args.machine_rank,
        args.dist_url,
        args=given,
        device=train.device,
        timeout=train.ddp.timeout,
        saved=lambda: saved(train.output_dir),
    )


def is_setting(word: str) -> bool:
    """Whether a word is a ``key=value`` setting."""
    return bool(re.match(r"[+~\w.]+=", word))


def split_positionals(words: Sequence[str], most: int) -> tuple[list[str | None], list[str]]:
    """Parts files from ``key=value`` settings.

    Args:
        words: The positional arguments.
        most: How many files there may be; the first is a config and has a default.

    Returns:
        ``most`` files, None where not given, and the settings.

    Raises:
        ConfigError: There are more files.
    """
    overrides = [word for word in words if is_setting(word)]
    files: list[str | None] = [expand_path(word) for word in words if word not in overrides]
    if len(files) > most:
        raise ConfigError(
            f"{files[most]!r} is one word too many: settings are written key=value, without spaces."
        )
    files += [None] * (most - len(files))
    if most:
        files[0] = files[0] or DEFAULT_CONFIG
    return files, overrides


def split_runs(words: Sequence[str]) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Parts configs, each followed by its checkpoints, from ``key=value`` settings.

    Args:
        words: The positional arguments. What ends as configs do (.py, .yaml) is one; checkpoints
            before the first one belong to the default.

    Returns:
        Pairs of config and checkpoint, None where a config has no checkpoint; and the settings.
    """
    overrides = [word for word in words if is_setting(word)]
    configs: list[tuple[str, list[str]]] = []
    for word in words:
        if is_setting(word):
            continue
        word = expand_path(word)
        if word.endswith((".py", ".yaml", ".yml")):
            configs.append((word, []))
            continue
        if not configs:
            configs.append((DEFAULT_CONFIG, []))
        configs[-1][1].append(word)
    configs = configs or [(DEFAULT_CONFIG, [])]
    return [(file, path) for file, paths in configs for path in paths or [None]], overrides
