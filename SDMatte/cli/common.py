"""Logging, exit statuses and arguments that commands share."""

import argparse
import errno
import io
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from SDMatte.errors import ConfigError, RunStopped, SDMatteError
from SDMatte.runtime.files import clear_leftovers, expand_path

DEFAULT_CONFIG = str(Path(__file__).parents[2] / "configs" / "SDMatte_small.py")

USER_ERROR = 2
INTERRUPTED = 130


def run_command(function: Callable[[argparse.Namespace], int | None], args) -> int:
    """Run a command with its parsed arguments and return its exit status.

    Errors caused by user input are printed in one line; any other exception is a bug and keeps its
    traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    clear_leftovers.cache_clear()  # each command checks again
    # SDMatte.images logs damaged metadata itself.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be valid text
    try:
        return function(args) or 0
    except RunStopped as stopped:
        sys.stderr.write(f"{stopped}\n")
        return stopped.status
    except SDMatteError as error:
        sys.stderr.write(f"error: {error}\n")
        return USER_ERROR
    except OSError as error:
        if error.filename is None or error.errno not in (errno.EACCES, errno.ENAMETOOLONG):
            raise
        sys.stderr.write(f"error: Cannot access {error.filename}: {error.strerror}.\n")
        return USER_ERROR
    except ModuleNotFoundError as error:  # with only requirements-onnx.txt installed
        if (error.name or __package__).partition(".")[0] == __package__.partition(".")[0]:
            raise
        sys.stderr.write(
            f"error: This needs {error.name}, which is not installed: "
            f"pip install -r requirements.txt.\n"
        )
        return USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return INTERRUPTED


def print_help(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Return the command to run if no subcommand is given: it prints the parser's help."""

    def run(args: argparse.Namespace) -> int:
        parser.print_help()
        return USER_ERROR

    return run


class CommandParser(argparse.ArgumentParser):
    """A parser, also for subcommands, whose ``type=Path`` expands ``~`` and ``$NAME``.

    Shells expand neither inside quotes, nor ``~`` after the ``=`` of ``--output=~/x``.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register("type", Path, lambda text: Path(path_or_name(text)))


def path_or_name(text: str) -> str:
    """Parse an option that is a path or a name; expand it if it is a path."""
    if not text:  # such as an unset shell variable
        raise argparse.ArgumentTypeError("it must not be empty")
    try:
        return expand_path(text)
    except ConfigError as error:  # argparse replaces the message of a ValueError
        raise argparse.ArgumentTypeError(str(error)) from error


def integer(minimum: int) -> Callable[[str], int]:
    """Return the parser of an option that is an integer of at least ``minimum``."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < minimum:
            raise argparse.ArgumentTypeError(
                f"must be an integer of at least {minimum}; got {text!r}"
            )
        return int(text)

    return parse


def positive_number(text: str) -> float:
    """Parse an option that is a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0; got {text!r}")
    return value


class Removed(argparse.Action):
    """An option of earlier versions, rejected with a message that says what to do instead."""

    def __init__(self, option_strings, dest, instead: str, **kwargs):
        super().__init__(option_strings, dest, nargs="?", help=argparse.SUPPRESS)
        self.instead = instead

    def __call__(self, parser, namespace, values, option_string=None):
        """Reject the option."""
        parser.error(f"{option_string} was removed; {self.instead}")


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the number of processes and machines."""
    group = parser.add_argument_group("processes")
    group.add_argument(
        "--num-processes",
        "--num-gpus",
        type=int,
        default=1,
        help="processes on this machine, one per GPU (default: 1; torchrun sets it)",
    )
    group.add_argument("--num-machines", type=int, default=1, help="machines (default: 1)")
    group.add_argument("--machine-rank", type=int, default=0, help="rank of this one, from 0")
    group.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT of machine 0")
    group.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        help="how often to restart all processes from the last checkpoint after one fails",
    )


def launch(
    args: argparse.Namespace,
    config_file: str,
    overrides: Sequence[str],
    function: Callable,
    *given,
    saved: Callable[[str], str] = lambda _: "earlier results are kept",
) -> Any:
    """Run ``function(*given)`` in as many processes as the command line asks for.

    See `start_processes`; device and timeout come from the config. Given ``train.output_dir``,
    ``saved`` describes what was saved before a signal.
    """
    from SDMatte.runtime.config import load_config

    train = load_config(config_file, overrides).train
    return start_processes(
        args,
        function,
        given,
        train.device,
        timeout=train.ddp.timeout,
        saved=lambda: saved(train.output_dir),
    )


def start_processes(
    args: argparse.Namespace, function: Callable, given: tuple, device: str, **options
) -> Any:
    """Start processes as `launch` does, without a config; see `SDMatte.runtime.launch.launch`.

    Raises:
        ConfigError: The counts do not fit this machine or each other.
    """
    import torch

    from SDMatte.runtime.launch import launch as start
    from SDMatte.runtime.ranks import under_torchrun

    alone = not under_torchrun()
    on_gpu = torch.cuda.is_available() and not str(device).startswith("cpu")
    several = not alone or args.num_processes * args.num_machines > 1
    if several and str(device).startswith("cuda:"):
        raise ConfigError(
            f"The device {device} is one GPU for several processes; use cuda or auto to give each "
            f"its own."
        )
    if alone and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        raise ConfigError(
            "srun starts several tasks, each of which would run alone: use "
            "`srun --ntasks-per-node=1 torchrun ...`, see docs/training.md."
        )
    if min(args.num_processes, args.num_machines, args.max_restarts + 1) < 1:
        raise ConfigError(
            "--num-processes and --num-machines must be at least 1, --max-restarts at least 0."
        )
    if not 0 <= args.machine_rank < args.num_machines:
        raise ConfigError(
            f"--machine-rank must be from 0 to {args.num_machines - 1} (--num-machines is "
            f"{args.num_machines}); got {args.machine_rank}."
        )
    if args.dist_url != "auto" or args.num_machines > 1:
        if not re.fullmatch(r"tcp://[^/]+:\d+", args.dist_url):
            raise ConfigError(
                f"--dist-url must be tcp://HOST:PORT of machine 0; got {args.dist_url!r}."
            )
    if alone and on_gpu and args.num_processes > torch.cuda.device_count():
        raise ConfigError(
            f"{args.num_processes} processes need as many GPUs; this machine has "
            f"{torch.cuda.device_count()}."
        )
    counts = (args.num_processes, args.num_machines, args.machine_rank, args.dist_url)
    options["max_restarts"] = args.max_restarts
    return start(function, *counts, args=given, device=device, **options)


def is_setting(word: str) -> bool:
    """Return whether a word is a ``key=value`` override."""
    return bool(re.match(r"[+~\w.]+=", word))


def is_config(word: str) -> bool:
    """Return whether a word is a config file."""
    return word.endswith((".py", ".yaml", ".yml"))


def split_config(words: Sequence[str]) -> tuple[str, list[str]]:
    """Split words into one config file (or the default) and ``key=value`` overrides."""
    overrides = [word for word in words if is_setting(word)]
    files = [expand_path(word) for word in words if not is_setting(word)]
    if len(files) > 1:
        raise ConfigError(
            f"Unexpected argument {files[1]!r}: settings are written key=value, without spaces."
        )
    return (files or [DEFAULT_CONFIG])[0], overrides


def split_runs(words: Sequence[str]) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Split words into pairs of config and checkpoint, and ``key=value`` overrides.

    Checkpoints belong to the config before them, or else to the default one, and are optional.
    """
    overrides = [word for word in words if is_setting(word)]
    configs: list[tuple[str, list[str | None]]] = []
    for word in words:
        if is_setting(word):
            continue
        word = expand_path(word)
        if is_config(word):
            configs.append((word, []))
        elif configs:
            configs[-1][1].append(word)
        else:
            configs.append((DEFAULT_CONFIG, [word]))
    configs = configs or [(DEFAULT_CONFIG, [])]
    return [(file, path) for file, paths in configs for path in paths or [None]], overrides
