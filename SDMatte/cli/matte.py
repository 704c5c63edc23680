"""``sdmatte matte IMAGE --box X0 Y0 X1 Y1 -o OUT.png``."""

import argparse
import datetime
import functools
import logging
import os
import signal
from pathlib import Path

from SDMatte.cli.common import Removed, add_process_arguments, path_or_name, start_processes
from SDMatte.errors import ConfigError, MissingFileError, RunStopped
from SDMatte.prompts.types import DETECTOR, DETECTOR_THRESHOLD

logger = logging.getLogger(__name__)

FORMATS = ("png", "webp", "tif", "jpg", "bmp")
SOME_FAILED = 1
USER_ERROR = 2
_PATIENCE = datetime.timedelta(days=7)  # for the slowest process

EPILOG = """\
examples:
  sdmatte matte photo.jpg --box 10 20 300 400 -o cat.png
  sdmatte matte photo.jpg --points 50 60 70 80 --alpha-only --bits 16
  sdmatte matte photo.jpg --text "the dog on the left" -o dog.png
  sdmatte matte photo.jpg --mask rough.png --background "#00b140"
  sdmatte matte FOLDER --prompts prompts.csv -o MATTES
  sdmatte matte FOLDER --mask MASKS -o MATTES --recursive

The exit status is 0 on success, 1 if some images failed, 2 if none was written."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.description = (
        "Predict mattes of prompted objects and cut them out. Coordinates are pixels of the "
        "upright image. For folders, existing mattes are skipped, so that an interrupted run can "
        "be repeated."
    )
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("inputs", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER")
    parser.add_argument(
        "--ignore-alpha",
        action="store_true",
        help="treat transparent pixels of the images as opaque, with their stored colors (default: "
        "mattes never exceed the image's own alpha)",
    )
    parser.add_argument(
        "-r",
        "--recursive",
        action="store_true",
        help="include sub-folders; outputs, masks and trimaps have the same sub-folders",
    )
    _add_prompts(parser)
    _add_outputs(parser)
    add_model_arguments(parser)
    add_process_arguments(parser)


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prompts (one kind)")
    kinds = group.add_mutually_exclusive_group(required=True)
    kinds.add_argument(
        "--box",
        nargs=4,
        type=float,
        action="append",
        metavar=("X0", "Y0", "X1", "Y1"),
        help="around the object, in pixels; repeat for several mattes",
    )
    kinds.add_argument(
        "--points", nargs="+", type=float, metavar="X Y", help="one to ten points, in pixels"
    )
    kinds.add_argument(
        "--mask",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="rough mask of the object: 0 and 255, 0 and 1, or any two gray values",
    )
    kinds.add_argument(
        "--trimap",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="0 background, 128 unknown, 255 foreground; or 0, 1, 2",
    )
    kinds.add_argument(
        "--text", metavar="WORDS", help="a description of the object; a detector finds its box"
    )
    kinds.add_argument("--auto", action="store_true", help="no prompt: the salient object")
    kinds.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a JSON or CSV file with a prompt for each image of a folder, see docs/inference.md",
    )
    group.add_argument(
        "--transparent", action="store_true", help="the object is transparent: glass, smoke, veils"
    )
    group.add_argument(
        "--all",
        dest="find_all",
        action="store_true",
        help="with --text: write a matte for each object found, NAME_1, NAME_2, ...",
    )
    group.add_argument(
        "--detector",
        type=path_or_name,
        default=DETECTOR,
        help="folder or hub id of a zero-shot detector such as Grounding DINO or OWLv2, for texts "
        f"(default: {DETECTOR})",
    )
    group.add_argument(
        "--detector-threshold",
        type=float,
        default=DETECTOR_THRESHOLD,
        metavar="SCORE",
        help=f"lowest score of a box that is used, from 0 to 1 (default: {DETECTOR_THRESHOLD})",
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("-o", "--output", type=Path, help="a file, or a folder for several mattes")
    kinds = group.add_mutually_exclusive_group()
    kinds.add_argument(
        "--alpha-only",
        action="store_true",
        help="write the gray matte (default: the object with its own colors and alpha)",
    )
    kinds.add_argument("--rgba", action=Removed, instead="it is the default.")
    kinds.add_argument(
        "--background",
        type=path_or_name,
        metavar="COLOR_OR_FILE",
        help="write the object on another background",
    )
    group.add_argument("--premultiplied", action="store_true", help="multiply the colors by alpha")
    group.add_argument(
        "--bits",
        type=int,
        choices=(8, 16),
        default=8,
        help="16 for PNG, and for TIFF with --alpha-only",
    )
    group.add_argument(
        "--format",
        choices=FORMATS,
        default="png",
        help="file format, unless -o is a file (default: png)",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace existing mattes in output folders"
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `load_predictor`, and ``--refine``."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        type=path_or_name,
        help="a folder or hub id with configs and a checkpoint, such as LongfeiHuang/SDMatte, a "
        "training run's folder, or a checkpoint in one of these (default: the small model that "
        "ships with SDMatte)",
    )
    group.add_argument(
        "--checkpoint",
        type=path_or_name,
        help="another checkpoint of the model, such as SDMatte_plus.pth",
    )
    group.add_argument(
        "--device",
        default="auto",
        help="cuda, mps, cpu or, for exported models, openvino (default: auto)",
    )
    group.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 (default: auto)")
    group.add_argument(
        "--resolution", type=int, help="side of the model's input in pixels (default: the model's)"
    )
    group.add_argument(
        "--keep-aspect",
        action="store_true",
        default=None,
        help="keep the aspect ratio (default: resize to a square)",
    )
    group.add_argument(
        "--refine",
        choices=("none", "guided", "tiles"),
        help="guided: align edges with the image's; tiles: a second pass over tiles of large "
        "images (default: the model's)",
    )
    group.add_argument(
        "--offload", action="store_true", help="keep only the active part of the model on the GPU"
    )


def load_predictor(args: argparse.Namespace, progress: bool, **settings):
    """Load the model that the arguments of `add_model_arguments` name; see `MattePredictor`."""
    from SDMatte.inference.predictor import MattePredictor  # imported late: it takes seconds

    return MattePredictor.from_pretrained(
        args.model,
        args.checkpoint,
        device=args.device,
        dtype=args.dtype,
        resolution=args.resolution,
        keep_aspect=args.keep_aspect,
        offload=args.offload,
        progress=progress,
        **settings,
    )


def run(args: argparse.Namespace) -> int:
    """Plan the mattes, load the model if any are missing, and write them."""
    if not _is_single(args):
        # OpenMP reads this when torch loads. Busy waiting would take cores from writing threads.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    counts = (args.num_processes, args.num_machines, args.machine_rank, args.max_restarts)
    alone = (*counts, args.dist_url) == (1, 1, 0, 0, "auto")
    if alone and not os.environ.keys() & {"WORLD_SIZE", "SLURM_STEP_NUM_TASKS"}:
        batch = _plan(args)
        _predict(batch, args)
        return _report(batch, args)

    return start_processes(
        args, _run_shared, (args,), args.device, saved=lambda: "written mattes are kept"
    )


def _run_shared(args: argparse.Namespace) -> int:
    """Make this process's share of the mattes; called in every process."""
    import SDMatte.compat  # noqa: F401

    import torch.distributed as dist
    from detectron2.utils import comm

    from SDMatte.runtime.ranks import run_on_main

    batch = run_on_main(functools.partial(_plan, args))
    # One share can take hours longer than another, beyond the timeout of the run's own groups.
    group = dist.new_group(backend="gloo", timeout=_PATIENCE) if dist.is_initialized() else None
    part = batch.share(comm.get_rank(), comm.get_world_size())
    _predict(part, args, comm.get_local_size(), comm.is_main_process())
    for done, failed in comm.all_gather((part.done, part.failed), group):
        batch.done += done
        batch.failed += failed
    return _report(batch, args) if comm.is_main_process() else _status(batch)


def _plan(args: argparse.Namespace):
    """Plan the batch and check it."""
    from SDMatte.inference.batch import Batch
    from SDMatte.inference.result import OutputSettings

    kind = "alpha" if args.alpha_only else "composite" if args.background else "cutout"
    settings = OutputSettings(
        kind, args.background, args.premultiplied, args.bits, f".{args.format}"
    )
    if args.checkpoint is not None and args.model is None:
        raise ConfigError("--checkpoint needs --model.")
    if args.find_all and args.text is None:
        raise ConfigError("--all needs --text.")
    if not 0 <= args.detector_threshold <= 1:
        raise ConfigError(
            f"--detector-threshold must be from 0 to 1; got {args.detector_threshold:g}."
        )
    batch = Batch(settings, args.output)
    _add_jobs(batch, args)
    also_read = [args.prompts, args.background, args.model, args.checkpoint]
    batch.check(args.overwrite, also_read)
    if batch.jobs:
        many = "s" if len(batch.jobs) > 1 else ""
        logger.info(
            "%d matte%s to make; loading %s ...",
            len(batch.jobs),
            many,
            args.model or "the small model",
        )
    return batch


def _predict(batch, args: argparse.Namespace, num_local: int = 1, is_main: bool = True) -> None:
    """Load the model if there are jobs, and run them; show the progress if ``is_main``.

    Raises:
        RunStopped: A signal arrived; mattes that were being written are complete.
    """
    if not batch.jobs:
        return
    from SDMatte.runtime.signals import exit_status, interrupted_once

    received: list[int] = []
    try:
        with interrupted_once() as received:
            from SDMatte.inference.detection import Detector  # imported late: it takes seconds

            has_text = any(job.prompt.kind == "text" for job in batch.jobs)
            predictor = load_predictor(
                args,
                progress=is_main,
                # Loaded first, so that a mistake is reported before fetching a large model.
                detector=Detector(args.detector, args.device) if has_text else args.detector,
                detector_threshold=args.detector_threshold,
            )
            batch.run(predictor, args.refine, args.ignore_alpha, num_local, is_main)
    except KeyboardInterrupt:
        if not received:
            raise
        name = signal.Signals(received[0]).name
        raise RunStopped(
            f"Stopped by {name}; written mattes are kept. Repeat the command to make the others.",
            exit_status(received[0]),
        ) from None


def _report(batch, args: argparse.Namespace) -> int:
    """Print what was written, and return the exit status."""
    if len({*batch.done, *batch.skipped}) + len(batch.failed) > 1 or not _is_single(args):
        print(batch.summary())
    elif batch.done:
        print(f"Written: {batch.done[0]}")
    elif batch.skipped:
        print(f"{batch.skipped[0]} already exists: replace it with --overwrite.")
    return _status(batch)


def _status(batch) -> int:
    if not batch.failed:
        return 0
    return SOME_FAILED if batch.done or batch.skipped else USER_ERROR


def _is_single(args: argparse.Namespace) -> bool:
    return len(args.inputs) == 1 and not os.path.isdir(args.inputs[0])


def _add_jobs(batch, args: argparse.Namespace) -> None:
    """Add the mattes to write to a batch."""
    from SDMatte.prompts.requests import read_prompt_file

    single = _is_single(args)
    if args.prompts is not None:
        if single or len(args.inputs) != 1:
            raise ConfigError("--prompts needs one folder of images.")
        batch.add_listed(args.inputs[0], read_prompt_file(args.prompts))
    elif single:
        batch.add_image(args.inputs[0], _prompts(args))
    else:
        batch.add_inputs(args.inputs, _prompts(args), args.recursive)


def _prompts(args: argparse.Namespace) -> list:
    from SDMatte.prompts.requests import PromptRequest, as_pairs

    if args.box is not None:
        return [PromptRequest("box", box, args.transparent) for box in args.box]
    if args.points is not None:
        points = as_pairs(args.points, "--points")
        return [PromptRequest("points", points, args.transparent)]
    if args.text is not None:
        return [PromptRequest("text", args.text, args.transparent, args.find_all)]
    for kind in ("mask", "trimap"):
        value = getattr(args, kind)
        if value is not None:
            if not os.path.exists(value):
                raise MissingFileError(f"--{kind} {value}: file or folder not found.")
            return [PromptRequest(kind, value, args.transparent)]
    return [PromptRequest("auto", None, args.transparent)]
