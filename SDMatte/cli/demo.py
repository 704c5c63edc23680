"""``sdmatte demo``: a web page on this machine."""

import argparse
import functools
import logging
import os
import socket
import tempfile
import threading
from pathlib import Path

from SDMatte.cli.matte import add_model_arguments, load_predictor
from SDMatte.errors import ConfigError, DependencyError

DEFAULT_PORT = 7860


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.description = (
        "Open a web page to cut objects out of images, see docs/demo.md. Stop it with Ctrl-C; a "
        "visitor's images are removed when they leave."
    )
    group = parser.add_argument_group("server")
    group.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 for all addresses of this machine (default: "
        "127.0.0.1, only reachable from this machine)",
    )
    group.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"default: {DEFAULT_PORT}")
    group.add_argument(
        "--share", action="store_true", help="also open a public address, through gradio.live"
    )
    group.add_argument(
        "--max-pixels", type=float, default=5e7, help="largest image in pixels (default: 5e7)"
    )
    group.add_argument(
        "--max-upload", type=float, default=100, help="largest upload in MB (default: 100)"
    )
    group.add_argument(
        "--more-models",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="other models to choose from, each loaded when it is first chosen",
    )
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Load the model and serve the page until a signal arrives."""
    from SDMatte.runtime.signals import interrupted_once

    if not 0 < args.port < 65536:
        raise ConfigError(f"--port must be from 1 to 65535; got {args.port}.")
    if not (args.max_pixels >= 1 and 0.001 <= args.max_upload <= 1e6):
        raise ConfigError("--max-pixels must be at least 1, and --max-upload from 0.001 to 1e6.")
    # Gradio writes uploads and downloads to this folder; it reads the variables when imported.
    with (
        tempfile.TemporaryDirectory(prefix="sdmatte-demo-", ignore_cleanup_errors=True) as folder,
        interrupted_once() as received,
    ):
        uploads = Path(folder).resolve()
        os.environ |= {"GRADIO_TEMP_DIR": str(uploads), "GRADIO_ANALYTICS_ENABLED": "False"}
        try:
            _serve(args, uploads)
        except KeyboardInterrupt:
            if not received:
                raise
            print("Stopped.")
    return 0


def _serve(args: argparse.Namespace, folder: Path) -> None:
    """Serve the page until interrupted."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "sdmatte demo needs gradio: run `python tools/install_demo.py`."
        ) from error
    from SDMatte.demo.page import LAUNCH, build_page

    try:  # before models are loaded
        family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
        socket.create_server((args.host, args.port), family=family).close()
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {args.host}, port {args.port}: {error.strerror}; choose another "
            f"with --host and --port."
        ) from error
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio's requests to itself
    models = {}
    for model in (args.model, *args.more_models):
        name = "SDMatte_small" if model is None else Path(model).absolute().name
        changed = {} if model == args.model else {"model": model, "checkpoint": None}
        chosen = argparse.Namespace(**{**vars(args), **changed})
        models[name] = functools.partial(load_predictor, chosen, progress=True)
    if len(models) <= len(args.more_models):
        raise ConfigError("--more-models: two models have the same name.")
    print(f"Loading {next(iter(models))} ...", flush=True)
    page = build_page(
        models,
        folder,
        tiles=args.refine == "tiles",
        max_pixels=args.max_pixels,
        max_upload=args.max_upload,
    )
    _, address, public = page.launch(
        server_name=args.host,
        server_port=args.port,
        share=args.share,
        max_file_size=int(args.max_upload * 1e6),
        **LAUNCH,
    )
    try:
        print(f"The page is at {public or address} (stop it with Ctrl-C).", flush=True)
        threading.Event().wait()
    finally:
        page.close(verbose=False)
