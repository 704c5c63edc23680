"""``sdmatte matte IMAGE --box X0 Y0 X1 Y1 -o OUT.png``."""

import argparse
import logging
import os
from pathlib import Path

from SDMatte.cli.common import Removed, path_or_name
from SDMatte.errors import ConfigError, MissingFileError

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "LongfeiHuang/SDMatte"
FORMATS = ("png", "webp", "tif", "jpg", "bmp")
SOME_FAILED = 1
USER_ERROR = 2

EPILOG = """\
examples:
  sdmatte matte photo.jpg --box 10 20 300 400 -o cat.png
  sdmatte matte photo.jpg --points 50 60 70 80 --alpha-only --bits 16
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
    _add_model(parser)


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
        "--format", choices=FORMATS, default="png", help="unless -o is a file (default: png)"
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace existing mattes of folders"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        type=path_or_name,
        default=DEFAULT_MODEL,
        help="a folder or hub id with configs and a checkpoint, a training run's folder, or a "
        f"checkpoint in one of these (default: {DEFAULT_MODEL})",
    )
    group.add_argument(
        "--checkpoint",
        type=path_or_name,
        help="another checkpoint of the model, such as SDMatte_plus.pth",
    )
    group.add_argument("--device", default="auto", help="cuda, mps, cpu (default: auto)")
    group.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 (default: auto)")
    group.add_argument(
        "--resolution", type=int, help="side of the model's input in pixels (default: the model's)"
    )
    group.add_argument(
        "--keep-aspect",
        action="store_true",
        default=None,
        help="keep the proportions (default: resize to a square)",
    )
    group.add_argument(
        "--refine", choices=("tiles",), help="a second pass over tiles of large images"
    )
    group.add_argument(
        "--offload", action="store_true", help="keep only the active part of the model on the GPU"
    )


def run(args: argparse.Namespace) -> int:
    """Plan the mattes, load the model if any are missing, and write them."""
    from SDMatte.inference.batch import Batch
    from SDMatte.inference.result import OutputSettings

    kind = "alpha" if args.alpha_only else "composite" if args.background else "cutout"
    settings = OutputSettings(
        kind, args.background, args.premultiplied, args.bits, f".{args.format}"
    )
    single = len(args.inputs) == 1 and not args.inputs[0].is_dir()
    batch = Batch(settings, args.output)
    _add_jobs(batch, args, single)
    num_jobs = len(batch.jobs)
    # The matte of a single image is always written.
    also_read = [args.prompts, args.background, args.model, args.checkpoint]
    batch.check(args.overwrite or single, also_read)
    if batch.jobs:
        many = "s" if len(batch.jobs) > 1 else ""
        logger.info("%d matte%s to make; loading %s ...", len(batch.jobs), many, args.model)
        # Imported late: it takes seconds.
        from SDMatte.inference.predictor import MattePredictor

        predictor = MattePredictor.from_pretrained(
            args.model,
            args.checkpoint,
            device=args.device,
            dtype=args.dtype,
            resolution=args.resolution,
            keep_aspect=args.keep_aspect,
            offload=args.offload,
            progress=True,
        )
        batch.run(predictor, args.refine, args.ignore_alpha)
    if num_jobs > 1 or not single:
        print(batch.summary())
    elif batch.done:
        print(f"Written: {batch.done[0]}")
    if not batch.failed:
        return 0
    return SOME_FAILED if batch.done or batch.skipped else USER_ERROR


def _add_jobs(batch, args: argparse.Namespace, single: bool) -> None:
    """Add the mattes to write to a batch."""
    from SDMatte.prompts.requests import read_prompt_file

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
    for kind in ("mask", "trimap"):
        value = getattr(args, kind)
        if value is not None:
            if not os.path.exists(value):
                raise MissingFileError(f"--{kind} {value}: file or folder not found.")
            return [PromptRequest(kind, value, args.transparent)]
    return [PromptRequest("auto", None, args.transparent)]
