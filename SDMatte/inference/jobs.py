"""Mattes of many files: what is to be done, and what became of it.

Planning imports neither torch nor a model, so that mistakes are found before either is loaded.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SDMatte.errors import ConfigError, DataError, SDMatteError
from SDMatte.files import find_obstacle
from SDMatte.image_io import IMAGE_EXTENSIONS, list_names
from SDMatte.images.formats import WRITERS
from SDMatte.inference.images import read_background
from SDMatte.inference.prompt_lists import PromptRequest

if TYPE_CHECKING:
    from SDMatte.inference.result import MatteResult

logger = logging.getLogger(__name__)

OUTPUTS = ("cutout", "alpha", "composite")
_WITH_16_BITS = {"alpha": (".png", ".tif", ".tiff"), "cutout": (".png",)}
_WITHOUT_ALPHA = (".jpg", ".jpeg", ".bmp")  # of a BMP, readers see no alpha


@dataclass(frozen=True)
class OutputSettings:
    """What is written of a matte.

    Attributes:
        kind: ``"cutout"``, RGBA with estimated foreground colours; ``"alpha"``, the gray matte; or
            ``"composite"``, the object on another background.
        background: Of a composite: a colour or a picture, see `read_background`, which reads it.
        premultiplied: Of a cut-out: colours multiplied with alpha.
        bits: 8, or 16 for ``"alpha"`` as PNG or TIFF and ``"cutout"`` as PNG.
        suffix: The files' format, where their names are not given.

    Raises:
        ConfigError: The settings do not go together.
        DataError: The background is neither a colour nor a picture.
    """

    kind: str = "cutout"
    background: Any = None
    premultiplied: bool = False
    bits: int = 8
    suffix: str = ".png"

    def __post_init__(self) -> None:
        """Checks the settings."""
        if self.kind not in OUTPUTS:
            raise ConfigError(f"The output is one of {', '.join(OUTPUTS)}; got {self.kind!r}.")
        if self.bits not in (8, 16) or (self.bits == 16 and self.kind == "composite"):
            raise ConfigError("A file has 8 bits a channel; 16 are for mattes and cut-outs.")
        if self.premultiplied and self.kind != "cutout":
            raise ConfigError("Only the colours of a cut-out can be premultiplied.")
        self.check_suffix(self.suffix)
        if self.kind == "composite":  # read once, and refused before anything is computed
            object.__setattr__(self, "background", read_background(self.background))

    def check_suffix(self, suffix: str) -> None:
        """Refuses a format that cannot hold the output.

        Raises:
            ConfigError: It cannot.
        """
        suffix = suffix.lower()
        if suffix not in WRITERS:
            raise ConfigError(
                f"{suffix or 'No suffix'} is no format for pictures: use one of "
                f"{', '.join(WRITERS)}."
            )
        if self.kind == "cutout" and suffix in _WITHOUT_ALPHA:
            raise ConfigError(f"A {suffix} file has no alpha channel: use .png, .webp or .tif.")
        if self.bits == 16 and suffix not in _WITH_16_BITS[self.kind]:
            raise ConfigError(
                f"A {suffix} file has no 16 bits here: use {' or '.join(_WITH_16_BITS[self.kind])}."
            )

    def render(self, result: "MatteResult") -> np.ndarray:
        """Makes the array that is written."""
        if self.kind == "cutout":
            return result.cutout(self.premultiplied, self.bits)
        if self.kind == "composite":
            return result.composite(self.background)
        if self.bits == 16:
            return np.round(result.alpha * 65535).astype(np.uint16)  # [0, 1] -> [0, 65535]
        return result.alpha


@dataclass(frozen=True)
class Job:
    """One matte to make: which picture, which prompt, which file."""

    image: Path
    prompt: PromptRequest
    output: Path


@dataclass
class BatchReport:
    """What became of the jobs.

    Attributes:
        done: Files that were written.
        skipped: Files that were there already.
        failed: Jobs with the sentence that says what was wrong.
    """

    done: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: list[tuple[Job, str]] = field(default_factory=list)

    def summary(self) -> str:
        """The counts, in a sentence."""
        parts = [f"{len(self.done)} mattes written"]
        if self.skipped:
            parts.append(f"{len(self.skipped)} were there already")
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        return f"{', '.join(parts)}."


def plan_single(
    image: Path, prompts: Sequence[PromptRequest], output: Path | None, suffix: str
) -> list[Job]:
    """Plans the mattes of one picture.

    Args:
        image: The picture.
        prompts: One a matte.
        output: A file, for one matte; or a folder. None: beside the picture, ``NAME_matte``.
        suffix: Format, where ``output`` is no file.

    Raises:
        ConfigError: There are several mattes for one file.
    """
    if output is None:
        return _jobs_of(image, prompts, image.with_name(f"{image.stem}_matte"), suffix)
    if output.is_dir() or not output.suffix:
        return _jobs_of(image, prompts, output / image.stem, suffix)
    if len(prompts) > 1:
        raise ConfigError(f"{len(prompts)} mattes need a folder to go to; {output} is a file.")
    return [Job(image, prompts[0], output)]


def plan_many(
    inputs: Sequence[Path], prompts: Sequence[PromptRequest], output: Path | None, suffix: str
) -> list[Job]:
    """Plans the mattes of files and folders of pictures, all with the same prompts.

    Args:
        inputs: Pictures, and folders of pictures (not their sub-folders).
        prompts: One a matte; masks and trimaps may be folders.
        output: The folder for the mattes, which get their pictures' names. None: of a single
            folder, ``FOLDER_mattes`` beside it.
        suffix: Format.

    Raises:
        ConfigError: ``output`` cannot be.
        DataError: There is no picture.
    """
    output = _output_folder(inputs, output)
    jobs = []
    for path in inputs:
        images = [path / name for name in list_names(path)] if path.is_dir() else [path]
        for image in images:
            jobs += _jobs_of(image, prompts, output / image.stem, suffix)
    if not jobs:
        raise DataError(f"There is no picture in {', '.join(map(str, inputs))}.")
    return jobs


def plan_listed(
    folder: Path,
    listed: Mapping[str, Sequence[PromptRequest]],
    output: Path | None,
    suffix: str,
) -> list[Job]:
    """Plans the mattes of the pictures that a prompt file names, and of no others.

    Args:
        folder: Where the pictures are.
        listed: Prompts by name, of `read_prompt_file`.
        output: See `plan_many`.
        suffix: Format.

    Raises:
        ConfigError: ``output`` cannot be.
        DataError: The folder does not exist.
    """
    output = _output_folder([folder], output)
    others = [name for name in list_names(folder) if name not in listed]
    if others:
        logger.info("%d pictures without a prompt are left out: %s ...", len(others), others[0])
    jobs = []
    for name, prompts in listed.items():
        jobs += _jobs_of(folder / name, prompts, output / Path(name).with_suffix(""), suffix)
    return jobs


def _output_folder(inputs: Sequence[Path], output: Path | None) -> Path:
    if output is None:
        if len(inputs) != 1 or not inputs[0].is_dir():
            raise ConfigError("Several pictures need a folder for their mattes: -o FOLDER.")
        return inputs[0].with_name(f"{inputs[0].resolve().name}_mattes")
    if output.is_file() or output.suffix.lower() in IMAGE_EXTENSIONS:
        raise ConfigError(f"Several pictures need a folder for their mattes; {output} is a file.")
    for path in inputs:
        if path.is_dir() and output.is_dir() and path.samefile(output):
            raise ConfigError(
                f"{output} holds the pictures; their mattes need a folder of their own."
            )
    return output


def _jobs_of(image: Path, prompts: Sequence[PromptRequest], stem: Path, suffix: str) -> list[Job]:
    """Numbers the mattes of one picture, where there are several."""
    if len(prompts) == 1:
        return [Job(image, prompts[0], stem.with_name(stem.name + suffix))]
    return [
        Job(image, prompt, stem.with_name(f"{stem.name}_{number}{suffix}"))
        for number, prompt in enumerate(prompts, start=1)
    ]


def pending_jobs(jobs: Iterable[Job], overwrite: bool, report: BatchReport) -> list[Job]:
    """Sorts out what needs no model: mattes that are there, and files that clash.

    Args:
        jobs: All.
        overwrite: Make anew what is there.
        report: Gets what is sorted out.

    Returns:
        The jobs that need a model.
    """
    pending, sources = [], {}
    for job in jobs:
        source = sources.setdefault(job.output, job.image)
        if source != job.image:
            note_failure(report, job, f"{job.output} is the matte of {source} already.")
        elif not os.path.exists(job.image):
            note_failure(report, job, f"Cannot read {job.image}: the file does not exist.")
        elif _is_same_file(job.output, job.image):
            note_failure(report, job, "The matte would overwrite its picture.")
        elif (obstacle := find_obstacle(job.output)) is not None:
            note_failure(report, job, f"Cannot write {job.output}: {obstacle}.")
        elif os.path.exists(job.output) and not overwrite:
            report.skipped.append(job.output)
        else:
            pending.append(job)
    return pending


def checked_jobs(jobs: Iterable[Job], report: BatchReport) -> list[Job]:
    """Sort out prompts that do not fit their images; of images only the headers are read.

    Args:
        jobs: As `pending_jobs` returns them.
        report: Gets what is sorted out.

    Returns:
        The jobs that can be done.
    """
    fitting = []
    for job in jobs:
        try:
            job.prompt.check(job.image)
            fitting.append(job)
        except SDMatteError as error:
            note_failure(report, job, str(error))
    return fitting


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # one of them is not there, or cannot be
        return False


def note_failure(report: BatchReport, job: Job, reason: str) -> None:
    """Says what was wrong with a job, and keeps it for the end."""
    where = "" if str(job.image) in reason else f"{job.image}: "
    logger.error("error: %s%s", where, reason)
    report.failed.append((job, reason))
