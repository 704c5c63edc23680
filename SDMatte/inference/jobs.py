"""Mattes of many files: what is to be done, and the result.

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
from SDMatte.images.arrays import read_background
from SDMatte.images.formats import IMAGE_EXTENSIONS, WRITERS
from SDMatte.images.listing import scan_folder, shorten
from SDMatte.prompts.requests import MAPS, PromptRequest
from SDMatte.runtime.files import NameLookup, check_not_read, find_obstacle, name_key

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
    """One matte to make: which image, which prompt, which file.

    Attributes:
        image: The image.
        prompt: The prompt.
        output: The file.
        problem: Why it will not succeed, where that is known before.
    """

    image: Path
    prompt: PromptRequest
    output: Path
    problem: str = ""


@dataclass
class BatchReport:
    """The result of the jobs.

    Attributes:
        done: Files that were written.
        skipped: Files that were there already.
        failed: Jobs with the sentence that says what was wrong.
        num_left_out: Files of the folders that no job was made of.
    """

    done: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: list[tuple[Job, str]] = field(default_factory=list)
    num_left_out: int = 0

    def summary(self) -> str:
        """Return the counts, in a sentence."""
        parts = [f"{len(self.done)} mattes written"]
        if self.skipped:
            parts.append(f"{len(self.skipped)} were there already")
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        if self.num_left_out:
            parts.append(f"{self.num_left_out} files left out")
        return f"{', '.join(parts)}."


def plan_single(
    image: Path, prompts: Sequence[PromptRequest], output: Path | None, suffix: str
) -> list[Job]:
    """Plan the mattes of one image.

    Args:
        image: The image.
        prompts: One a matte.
        output: A file, for one matte; or a folder. None: beside the image, ``NAME_matte``.
        suffix: Format, where ``output`` is no file.

    Raises:
        ConfigError: There are several mattes for one file.
    """
    lookup = NameLookup()
    if output is None:
        return _jobs_of(image, prompts, image.with_name(f"{image.stem}_matte"), suffix, lookup)
    if output.is_dir() or not output.suffix:
        return _jobs_of(image, prompts, output / image.stem, suffix, lookup)
    if len(prompts) > 1:
        raise ConfigError(f"{len(prompts)} mattes need a folder to go to; {output} is a file.")
    (job,) = _jobs_of(image, prompts, output, "", lookup)
    return [job]


def plan_many(
    inputs: Sequence[Path],
    prompts: Sequence[PromptRequest],
    output: Path | None,
    suffix: str,
    recursive: bool = False,
    report: BatchReport | None = None,
) -> list[Job]:
    """Plan the mattes of several images; what folders hold beside them is logged.

    Args:
        inputs: Images, and folders of images.
        prompts: One a matte; masks and trimaps may be folders, whose sub-folders then have the
            names of the images' sub-folders.
        output: The folder for the mattes, which get their images' names and sub-folders. None: of
            a single folder, ``FOLDER_mattes`` beside it.
        suffix: Format.
        recursive: Whether folders stand for their sub-folders, too.
        report: Gets the number of files that are left out.

    Raises:
        ConfigError: ``output`` is missing or is not a folder.
        DataError: There is no image.
        OutputError: ``output`` is a folder that is read.
    """
    output = _output_folder(inputs, output)
    maps = [Path(prompt.value) for prompt in prompts if prompt.kind in MAPS]
    check_not_read([output], [path for path in (*inputs, *maps) if path.is_dir()])
    lookup = NameLookup()
    jobs = []
    for path in inputs:
        if not path.is_dir():
            jobs += _jobs_of(path, prompts, output / path.stem, suffix, lookup)
            continue
        scan = scan_folder(path, recursive, skip=[output, *maps])
        scan.log_left_out("--recursive includes them.")
        if report is not None:
            report.num_left_out += scan.num_left_out
        for name in scan.images:
            stem = output / os.path.splitext(name)[0]
            jobs += _jobs_of(path / name, prompts, stem, suffix, lookup, os.path.dirname(name))
    if not jobs:
        raise DataError(f"There is no picture in {', '.join(map(str, inputs))}.")
    return jobs


def plan_listed(
    folder: Path,
    listed: Mapping[str, Sequence[PromptRequest]],
    output: Path | None,
    suffix: str,
    report: BatchReport | None = None,
) -> list[Job]:
    """Plan the mattes of the images that a prompt file names, and of no others.

    Args:
        folder: Where the images are; names may lead to sub-folders.
        listed: Prompts by name, of `read_prompt_file`.
        output: See `plan_many`.
        suffix: Format.
        report: Gets the number of images that are left out.

    Raises:
        ConfigError: ``output`` is missing or is not a folder.
        DataError: The folder does not exist, or a name is ambiguous.
        OutputError: ``output`` is a folder that is read.
    """
    output = _output_folder([folder], output)
    check_not_read([output], [folder])
    images = scan_folder(folder, recursive=True, skip=[output]).images
    lookup = NameLookup()
    named: dict[str, list[PromptRequest]] = {}
    for name, prompts in listed.items():  # two spellings may name one image
        image = lookup.find(folder / name).relative_to(folder).as_posix()
        named.setdefault(image, []).extend(prompts)
    maps = {prompt.value for many in named.values() for prompt in many if prompt.kind in MAPS}
    others = [name for name in images if name not in named and folder / name not in maps]
    if others:
        logger.warning("%d images without a prompt left out: %s.", len(others), shorten(others))
    if report is not None:
        report.num_left_out += len(others)
    jobs = []
    for name, prompts in named.items():
        stem = output / os.path.splitext(name)[0]
        jobs += _jobs_of(folder / name, prompts, stem, suffix, lookup)
    return jobs


def _output_folder(inputs: Sequence[Path], output: Path | None) -> Path:
    if output is None:
        if len(inputs) != 1 or not inputs[0].is_dir():
            raise ConfigError("Several pictures need a folder for their mattes: -o FOLDER.")
        return inputs[0].with_name(f"{inputs[0].resolve().name}_mattes")
    if output.is_file() or output.suffix.lower() in IMAGE_EXTENSIONS:
        raise ConfigError(f"Several pictures need a folder for their mattes; {output} is a file.")
    return output


def _jobs_of(
    image: Path,
    prompts: Sequence[PromptRequest],
    stem: Path,
    suffix: str,
    lookup: NameLookup,
    place: str = "",
) -> list[Job]:
    """Plan the mattes of one image, numbered where there are several."""
    jobs = []
    for number, prompt in enumerate(prompts, start=1):
        end = f"_{number}{suffix}" if len(prompts) > 1 else suffix
        problem = ""
        try:
            prompt = prompt.located(image, place, lookup)
        except DataError as error:
            problem = str(error)
        jobs.append(Job(image, prompt, stem.with_name(stem.name + end), problem))
    return jobs


def pending_jobs(
    jobs: Iterable[Job],
    overwrite: bool,
    report: BatchReport,
    also_read: Iterable[str | Path | None] = (),
) -> list[Job]:
    """Sort out what needs no model: mattes that are there, and files that clash.

    Args:
        jobs: All.
        overwrite: Make anew what is there.
        report: Gets what is sorted out.
        also_read: Files that are read beside images, masks and trimaps.

    Returns:
        The jobs that need a model.

    Raises:
        OutputError: A matte would overwrite what is read.
    """
    jobs = list(jobs)
    maps = [job.prompt.value for job in jobs if job.prompt.kind in MAPS]
    check_not_read((job.output for job in jobs), [*(job.image for job in jobs), *maps, *also_read])
    pending, sources = [], {}
    for job in jobs:
        source = sources.setdefault(name_key(str(job.output)), job.image)
        if source != job.image:
            reason = f"{job.output} is the matte of {source} already: rename one of the two images."
            note_failure(report, job, reason)
        elif not os.path.exists(job.image):
            note_failure(report, job, f"Cannot read {job.image}: the file does not exist.")
        elif job.problem:
            note_failure(report, job, job.problem)
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


def note_failure(report: BatchReport, job: Job, reason: str) -> None:
    """Log what was wrong with a job, and keep it for the end."""
    where = "" if str(job.image) in reason else f"{job.image}: "
    logger.error("error: %s%s", where, reason)
    report.failed.append((job, reason))
