"""``python -m SDMatte matte PICTURE --box X0 Y0 X1 Y1 -o OUT.png``: cuts objects out."""

import argparse
import logging
import os
from pathlib import Path

from SDMatte.cli.common import path_or_name
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

The exit status is 0 if all went well, 1 if some pictures failed, 2 if nothing could be done."""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "matte",
        help="cut objects out of pictures",
        description="Predicts mattes of what prompts point at, and cuts it out. Coordinates are "
        "pixels of the upright picture. Of folders, mattes that are there already are skipped, "
        "so an interrupted run goes on when it is started again.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="PICTURE_OR_FOLDER")
    parser.add_argument(
        "--ignore-alpha",
        action="store_true",
        help="take what is transparent in the images as opaque, with the colors stored there "
        "(default: mattes never exceed the image's own alpha)",
    )
    parser.add_argument(
        "-r",
        "--recursive",
        action="store_true",
        help="include the sub-folders of folders; outputs, masks and trimaps keep their names",
    )
    _add_prompts(parser)
    _add_outputs(parser)
    _add_model(parser)
    parser.set_defaults(run=run)
    return parser


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prompts (one kind)")
    kinds = group.add_mutually_exclusive_group(required=True)
    kinds.add_argument(
        "--box",
        nargs=4,
        type=float,
        action="append",
        metavar=("X0", "Y0", "X1", "Y1"),
        help="around the object, in pixels; repeat it for several mattes",
    )
    kinds.add_argument(
        "--points", nargs="+", type=float, metavar="X Y", help="one to ten points, in pixels"
    )
    kinds.add_argument(
        "--mask",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="roughly the object, of gray 0 and 255, 0 and 1, ...",
    )
    kinds.add_argument(
        "--trimap",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="0 background, 128 unknown, 255 foreground; or 0, 1, 2",
    )
    kinds.add_argument("--auto", action="store_true", help="no prompt: what stands out")
    kinds.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a JSON or CSV file with a prompt for each picture of a folder, see docs/inference.md",
    )
    group.add_argument("--transparent", action="store_true", help="glass, smoke, veils")


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("-o", "--output", type=Path, help="a file, or the folder for several")
    kinds = group.add_mutually_exclusive_group()
    kinds.add_argument(
        "--rgba", action="store_true", help="the object with its own colours (default)"
    )
    kinds.add_argument("--alpha-only", action="store_true", help="the matte, gray")
    kinds.add_argument(
        "--background",
        type=path_or_name,
        metavar="COLOUR_OR_FILE",
        help="the object on another background",
    )
    group.add_argument(
        "--premultiplied", action="store_true", help="multiply the colours with alpha"
    )
    group.add_argument(
        "--bits",
        type=int,
        choices=(8, 16),
        default=8,
        help="16 for PNG, and for TIFF with --alpha-only",
    )
    group.add_argument(
        "--format", choices=FORMATS, default="png", help="where -o is no file (default: png)"
    )
    group.add_argument(
        "--overwrite", action="store_true", help="make mattes anew that are there already"
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
        help="another of the model's files: SDMatte_plus.pth",
    )
    group.add_argument("--device", default="auto", help="cuda, mps, cpu (default: auto)")
    group.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 (default: auto)")
    group.add_argument("--resolution", type=int, help="what the model sees (default: the model's)")
    group.add_argument(
        "--keep-aspect", action="store_true", default=None, help="do not squash to a square"
    )
    group.add_argument("--refine", choices=("tiles",), help="a second pass over large pictures")
    group.add_argument(
        "--offload", action="store_true", help="keep on a small GPU only what computes"
    )


def run(args: argparse.Namespace) -> int:
    """Plans, loads the model if there is something to do, and makes the mattes."""
    from SDMatte.inference.batch import BatchReport, pending_jobs, run_jobs
    from SDMatte.inference.result import OutputSettings

    kind = "alpha" if args.alpha_only else "composite" if args.background else "cutout"
    settings = OutputSettings(
        kind, args.background, args.premultiplied, args.bits, f".{args.format}"
    )
    single = len(args.inputs) == 1 and not args.inputs[0].is_dir()
    report = BatchReport()
    jobs = _plan(args, settings, single, report)
    # Who names a single picture wants its matte, whatever is there.
    also_read = [args.prompts, args.background, args.model, args.checkpoint]
    pending = pending_jobs(jobs, args.overwrite or single, report, also_read)
    if pending:
        many = "s" if len(pending) > 1 else ""
        logger.info("%d matte%s to make; loading %s ...", len(pending), many, args.model)
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
        run_jobs(predictor, pending, settings, report, args.refine, args.ignore_alpha)
    if len(jobs) > 1 or not single:
        print(report.summary())
    elif report.done:
        print(f"Written: {report.done[0]}")
    if not report.failed:
        return 0
    return SOME_FAILED if report.done or report.skipped else USER_ERROR


def _plan(args: argparse.Namespace, settings, single: bool, report) -> list:
    """Turns the arguments into jobs."""
    from SDMatte.inference.batch import plan_listed, plan_many, plan_single
    from SDMatte.prompts.requests import read_prompt_file

    if args.prompts is not None:
        if single or len(args.inputs) != 1:
            raise ConfigError("--prompts is for the pictures of one folder.")
        listed = read_prompt_file(args.prompts)
        return plan_listed(args.inputs[0], listed, args.output, settings.suffix, report)
    prompts = _prompts(args)
    if not single:
        return plan_many(args.inputs, prompts, args.output, settings.suffix, args.recursive, report)
    jobs = plan_single(args.inputs[0], prompts, args.output, settings.suffix)
    settings.check_suffix(jobs[0].output.suffix)
    return jobs


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
                raise MissingFileError(f"--{kind} {value}: there is no such file or folder.")
            return [PromptRequest(kind, value, args.transparent)]
    return [PromptRequest("auto", None, args.transparent)]
