"""Mattes of many files: plan them, drop what needs no model, predict the rest.

Importing this module loads neither torch nor a model, so mistakes are reported early.
"""

import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from SDMatte.errors import ConfigError, DataError, SDMatteError
from SDMatte.images.decode import read_metadata
from SDMatte.images.formats import IMAGE_EXTENSIONS
from SDMatte.images.io import write_image
from SDMatte.images.listing import scan_folder, shorten
from SDMatte.inference.result import OutputSettings
from SDMatte.prompts.requests import MAPS, PromptRequest
from SDMatte.runtime.files import NameLookup, check_not_read, find_obstacle, name_key

if TYPE_CHECKING:
    from SDMatte.inference.predictor import EncodedImage, MattePredictor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One matte to predict.

    Attributes:
        image: The image file.
        prompt: The prompt.
        output: The file to write.
        problem: Why the job will fail, if that is known in advance.
    """

    image: Path
    prompt: PromptRequest
    output: Path
    problem: str = ""


@dataclass
class BatchReport:
    """Results of the jobs.

    Attributes:
        done: Files that were written.
        skipped: Files that already existed.
        failed: Jobs, each with the reason.
        num_left_out: Number of files in the folders that no job was planned for.
    """

    done: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: list[tuple[Job, str]] = field(default_factory=list)
    num_left_out: int = 0

    def fail(self, job: Job, reason: str) -> None:
        """Log and record that a job failed."""
        where = "" if str(job.image) in reason else f"{job.image}: "
        logger.error("error: %s%s", where, reason)
        self.failed.append((job, reason))

    def summary(self) -> str:
        """Return the counts in a sentence."""
        parts = [f"{len(self.done)} matte{'s' * (len(self.done) != 1)} written"]
        if self.skipped:
            parts.append(f"{len(self.skipped)} already existed")
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        if self.num_left_out:
            parts.append(f"{self.num_left_out} file{'s' * (self.num_left_out != 1)} left out")
        return f"{', '.join(parts)}."


# -------------------------------------------------------------------- planning


def plan_single(
    image: Path, prompts: Sequence[PromptRequest], output: Path | None, suffix: str
) -> list[Job]:
    """Plan the mattes of one image.

    Args:
        image: The image file.
        prompts: One per matte.
        output: A file, for a single matte, or a folder. None: ``NAME_matte`` beside the image.
        suffix: Format of the mattes, unless ``output`` is a file.

    Raises:
        ConfigError: ``output`` is a file, but there are several prompts.
    """
    lookup = NameLookup()
    if output is None:
        return _jobs_of(image, prompts, image.with_name(f"{image.stem}_matte"), suffix, lookup)
    if output.is_dir() or not output.suffix:
        return _jobs_of(image, prompts, output / image.stem, suffix, lookup)
    if len(prompts) > 1:
        raise ConfigError(f"{len(prompts)} mattes need an output folder; {output} is a file.")
    return _jobs_of(image, prompts, output, "", lookup)


def plan_many(
    inputs: Sequence[Path],
    prompts: Sequence[PromptRequest],
    output: Path | None,
    suffix: str,
    recursive: bool = False,
    report: BatchReport | None = None,
) -> list[Job]:
    """Plan the mattes of several images, and log which files of the folders are left out.

    Args:
        inputs: Images and folders of images.
        prompts: One per matte; masks and trimaps may be folders with the same sub-folders and
            names as the images.
        output: The output folder; mattes keep the names and sub-folders of their images. None:
            ``FOLDER_mattes`` beside a single input folder.
        suffix: Format of the mattes.
        recursive: Include the sub-folders of input folders.
        report: Receives the number of files that are left out.

    Raises:
        ConfigError: ``output`` is missing or is a file.
        DataError: No image was found.
        OutputError: ``output`` is one of the input folders.
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
        raise DataError(f"No image found in {', '.join(map(str, inputs))}.")
    return jobs


def plan_listed(
    folder: Path,
    listed: Mapping[str, Sequence[PromptRequest]],
    output: Path | None,
    suffix: str,
    report: BatchReport | None = None,
) -> list[Job]:
    """Plan the mattes of the images that a prompt file names.

    Args:
        folder: Folder of the images, whose names may contain sub-folders.
        listed: Prompts by image name, from `read_prompt_file`.
        output: See `plan_many`.
        suffix: Format of the mattes.
        report: Receives the number of images without a prompt.

    Raises:
        ConfigError: ``output`` is missing or is a file.
        DataError: The folder does not exist, or a name is ambiguous.
        OutputError: ``output`` is the input folder.
    """
    output = _output_folder([folder], output)
    check_not_read([output], [folder])
    images = scan_folder(folder, recursive=True, skip=[output]).images
    lookup = NameLookup()
    named: dict[str, list[PromptRequest]] = {}
    for name, prompts in listed.items():  # two spellings may name the same image
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
    if output is not None:
        if output.is_file() or output.suffix.lower() in IMAGE_EXTENSIONS:
            raise ConfigError(f"Several images need an output folder; {output} is a file.")
        return output
    if len(inputs) != 1 or not inputs[0].is_dir():
        raise ConfigError("Several images need an output folder: -o FOLDER.")
    folder = inputs[0]
    name = folder.resolve().name
    if not name:
        raise ConfigError(f"{folder} has no folder beside it for the mattes: use -o FOLDER.")
    if folder.name in ("", ".."):  # "." and ".." do not name their folder
        folder = folder.resolve()
    return folder.with_name(f"{name}_mattes")


def _jobs_of(
    image: Path,
    prompts: Sequence[PromptRequest],
    stem: Path,
    suffix: str,
    lookup: NameLookup,
    place: str = "",
) -> list[Job]:
    """Plan the mattes of one image, numbered if there are several."""
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


# -------------------------------------------------------------------- checking


def pending_jobs(
    jobs: Sequence[Job],
    overwrite: bool,
    report: BatchReport,
    also_read: Iterable[str | Path | None] = (),
) -> list[Job]:
    """Return the jobs that need a model; only headers of images and prompt maps are read.

    Args:
        jobs: All jobs.
        overwrite: Replace existing mattes.
        report: Receives existing mattes, and jobs that cannot succeed: files that are missing or
            clash, prompts that do not fit.
        also_read: Files that the command reads besides images, masks and trimaps.

    Raises:
        OutputError: A matte would overwrite a file that is read.
    """
    maps = [job.prompt.value for job in jobs if job.prompt.kind in MAPS]
    check_not_read((job.output for job in jobs), [*(job.image for job in jobs), *maps, *also_read])
    pending: list[Job] = []
    sources: dict[str, Path] = {}
    for job in jobs:
        source = sources.setdefault(name_key(str(job.output)), job.image)
        if source != job.image:
            problem = f"{job.output} is already the matte of {source}: rename one of the images."
            report.fail(job, problem)
        elif not os.path.exists(job.image):
            report.fail(job, f"Cannot read {job.image}: the file does not exist.")
        elif job.problem:
            report.fail(job, job.problem)
        elif (obstacle := find_obstacle(job.output)) is not None:
            report.fail(job, f"Cannot write {job.output}: {obstacle}.")
        elif os.path.exists(job.output) and not overwrite:
            report.skipped.append(job.output)
        else:
            try:
                job.prompt.check(job.image)
                pending.append(job)
            except SDMatteError as error:
                report.fail(job, str(error))
    return pending


# ------------------------------------------------------------------ predicting


def run_jobs(
    predictor: "MattePredictor",
    jobs: Sequence[Job],
    settings: OutputSettings,
    report: BatchReport,
    refine: str | None = None,
    ignore_alpha: bool = False,
) -> None:
    """Predict and write mattes; a job that fails does not stop the others.

    Files are written atomically, so an interrupted batch resumes with `pending_jobs`. Consecutive
    prompts of an image share its encoding.

    Args:
        predictor: The model.
        jobs: From `pending_jobs`.
        settings: What to write.
        report: Receives the results.
        refine: See `MattePredictor.predict`.
        ignore_alpha: See `MattePredictor.set_image`.
    """
    import torch

    encoded: tuple[Path, EncodedImage] | None = None
    interval = 0.1 if sys.stderr.isatty() else 30  # seconds; a log file needs few lines
    with logging_redirect_tqdm():
        for job in tqdm(jobs, unit="matte", disable=len(jobs) < 2, mininterval=interval):
            try:
                arguments = job.prompt.load(job.image)
                if encoded is None or encoded[0] != job.image:
                    encoded = None  # free its memory before the next image is encoded
                    encoded = job.image, predictor.encode(job.image, ignore_alpha=ignore_alpha)
                result = predictor.predict(**arguments, refine=refine, image=encoded[1])
                metadata = None if settings.kind == "alpha" else read_metadata(job.image)
                write_image(job.output, settings.render(result), metadata)
                report.done.append(job.output)
            except SDMatteError as error:
                report.fail(job, str(error))
            except (torch.OutOfMemoryError, MemoryError):
                report.fail(job, "Out of memory: use a lower resolution.")
            except Exception as error:  # a bug must not cost the rest of the batch
                logger.exception("%s: unexpected error.", job.image)
                report.failed.append((job, f"{type(error).__name__}: {error}"))
