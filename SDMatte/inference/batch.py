"""Predict mattes of many files: plan the jobs, drop those that need no model, run the rest.

The model runs in the calling thread, while other threads read and write files and estimate
foreground colors. Importing this module loads neither torch nor a model, so mistakes show up early.
"""

import contextlib
import itertools
import logging
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from SDMatte.errors import ConfigError, DataError, SDMatteError
from SDMatte.images.arrays import read_pixels
from SDMatte.images.decode import read_metadata
from SDMatte.images.formats import IMAGE_EXTENSIONS
from SDMatte.images.io import write_image
from SDMatte.images.listing import scan_folder, shorten
from SDMatte.inference.result import OutputSettings
from SDMatte.prompts.requests import MAPS, PromptRequest
from SDMatte.runtime.files import (
    NameLookup,
    check_not_read,
    find_obstacle,
    name_key,
    read_error,
)

if TYPE_CHECKING:
    from SDMatte.inference.predictor import MattePredictor
    from SDMatte.inference.result import MatteResult

logger = logging.getLogger(__name__)

_NUM_AHEAD = 2  # jobs to read before the model needs them
_MAX_THREADS = 4  # estimating colors takes about 60 bytes per pixel in each thread

_Pixels = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Job:
    """One matte to predict.

    Attributes:
        image: The image file.
        prompt: The prompt.
        output: The file to write; the first one if the prompt may find several objects.
        problem: Why the job will fail, if that is known in advance.
        replaces: Whether an existing output is replaced in any case.
    """

    image: Path
    prompt: PromptRequest
    output: Path
    problem: str = ""
    replaces: bool = False

    def outputs(self, count: int) -> list[Path]:
        """Return the files of several mattes: ``NAME_1``, ``NAME_2`` and so on."""
        stem, suffix = self.output.stem.removesuffix("_1"), self.output.suffix
        others = [self.output.with_name(f"{stem}_{n}{suffix}") for n in range(2, count + 1)]
        return [self.output, *others]


class Batch:
    """Predict mattes of one or many files.

    Add the jobs, `check` them, and `run` the rest. Files are written atomically, and `check` skips
    existing ones, so an interrupted batch can be resumed.

    Args:
        settings: What to write.
        output: Output file or folder. None: beside the input.

    Attributes:
        jobs: The jobs to run.
        done: Files that were written.
        skipped: Files that already existed.
        failed: Jobs that failed, each with the reason.
        num_left_out: Number of files in input folders that have no job.
    """

    def __init__(self, settings: OutputSettings, output: Path | None = None):
        self.settings = settings
        self.output = output
        self.jobs: list[Job] = []
        self.done: list[Path] = []
        self.skipped: list[Path] = []
        self.failed: list[tuple[Job, str]] = []
        self.num_left_out = 0
        self._lookup = NameLookup()
        self._read: list[str | Path | None] = []

    # ---------------------------------------------------------------- planning

    def add_image(self, image: Path, prompts: Sequence[PromptRequest]) -> None:
        """Add the mattes of one image; without an output, they are ``NAME_matte`` beside it.

        Args:
            image: The image file.
            prompts: One per matte.

        Raises:
            ConfigError: The output is a file and cannot store the mattes.
        """
        output = self.output
        if output is None:
            self._add(image, prompts, image.with_name(f"{image.stem}_matte"), replaces=True)
        elif os.path.isdir(output) or not output.suffix:
            self._add(image, prompts, output / image.stem)
        elif len(prompts) > 1:
            raise ConfigError(f"{len(prompts)} mattes need an output folder; {output} is a file.")
        elif prompts[0].find_all:
            raise ConfigError(f"Finding all objects needs an output folder; {output} is a file.")
        else:
            self.settings.check_suffix(output.suffix)
            stem = output.with_suffix("")
            self._add(image, prompts, stem, suffix=output.suffix, replaces=True)

    def add_inputs(
        self, inputs: Sequence[Path], prompts: Sequence[PromptRequest], recursive: bool = False
    ) -> None:
        """Add the mattes of several images, and log which files in folders are left out.

        Mattes keep the names and sub-folders of their images. Without an output, the mattes of a
        single folder are written to ``FOLDER_mattes`` beside it.

        Args:
            inputs: Images and folders of images.
            prompts: One per matte; masks and trimaps may be folders with the same sub-folders and
                names as the images.
            recursive: Include the sub-folders of input folders.

        Raises:
            ConfigError: The output is missing or is a file.
            DataError: No image was found.
            OutputError: The output is one of the input folders.
        """
        output = self._output_folder(inputs)
        maps = [Path(prompt.value) for prompt in prompts if prompt.kind in MAPS]
        check_not_read([output], [path for path in (*inputs, *maps) if path.is_dir()])
        for path in inputs:
            if not path.is_dir():
                self._add(path, prompts, output / path.stem)
                continue
            scan = scan_folder(path, recursive, skip=[output, *maps])
            scan.log_left_out("--recursive includes them.")
            self.num_left_out += scan.num_left_out
            for name in scan.images:
                stem = output / os.path.splitext(name)[0]
                self._add(path / name, prompts, stem, place=os.path.dirname(name))
        if not self.jobs:
            raise DataError(f"No image found in {', '.join(map(str, inputs))}.")

    def add_listed(self, folder: Path, listed: Mapping[str, Sequence[PromptRequest]]) -> None:
        """Add the mattes of the images that a prompt file names, and log the other images.

        Args:
            folder: Folder of the images, whose names may contain sub-folders.
            listed: Prompts by image name, as returned by `read_prompt_file`.

        Raises:
            ConfigError: The output is missing or is a file.
            DataError: The folder does not exist, or a name is ambiguous.
            OutputError: The output is the input folder.
        """
        output = self._output_folder([folder])
        check_not_read([output], [folder])
        images = scan_folder(folder, recursive=True, skip=[output]).images
        named: dict[str, list[PromptRequest]] = {}
        for name, prompts in listed.items():  # two spellings may name the same image
            image = self._lookup.find(folder / name).relative_to(folder).as_posix()
            named.setdefault(image, []).extend(prompts)
        maps = {prompt.value for many in named.values() for prompt in many if prompt.kind in MAPS}
        others = [name for name in images if name not in named and folder / name not in maps]
        if others:
            logger.warning("%d images without a prompt left out: %s.", len(others), shorten(others))
        self.num_left_out += len(others)
        for name, prompts in named.items():
            self._add(folder / name, prompts, output / os.path.splitext(name)[0])

    def _output_folder(self, inputs: Sequence[Path]) -> Path:
        output = self.output
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

    def _add(
        self,
        image: Path,
        prompts: Sequence[PromptRequest],
        stem: Path,
        suffix: str | None = None,
        place: str = "",
        replaces: bool = False,
    ) -> None:
        """Add the mattes of one image, numbered if there are several."""
        suffix = self.settings.suffix if suffix is None else suffix
        for number, prompt in enumerate(prompts, start=1):
            end = f"_{number}" if len(prompts) > 1 else ""
            end += f"_1{suffix}" if prompt.find_all else suffix
            problem = ""
            try:
                prompt = prompt.located(image, place, self._lookup)
            except DataError as error:
                problem = str(error)
            self.jobs.append(Job(image, prompt, stem.with_name(stem.name + end), problem, replaces))

    # ---------------------------------------------------------------- checking

    def check(self, overwrite: bool = False, also_read: Iterable[str | Path | None] = ()) -> None:
        """Drop the jobs that need no model, reading only image headers and prompt maps.

        Existing mattes are skipped, except those of a single image whose file name is given or
        ends in ``_matte``. Repeated jobs are dropped. Jobs with missing or clashing files, or with
        prompts that do not fit their images, fail.

        Args:
            overwrite: Replace existing mattes.
            also_read: Files that the command reads besides images, masks and trimaps.

        Raises:
            OutputError: A matte would overwrite a file that is read.
        """
        jobs, self.jobs = self.jobs, []
        maps = [job.prompt.value for job in jobs if job.prompt.kind in MAPS]
        self._read = [*(job.image for job in jobs), *maps, *also_read]
        check_not_read((job.output for job in jobs), self._read)
        sources: dict[str, Path] = {}
        for job in jobs:
            key = name_key(str(job.output))
            if sources.get(key) == job.image:
                continue
            source = sources.setdefault(key, job.image)
            if source != job.image:
                problem = f"{job.output} is already the matte of {source}: rename one of the images"
                self._fail(job, f"{problem}.")
            elif problem := _access_problem(job.image) or job.problem:
                self._fail(job, problem)
            elif (obstacle := find_obstacle(job.output)) is not None:
                self._fail(job, f"Cannot write {job.output}: {obstacle}.")
            elif os.path.exists(job.output) and not (overwrite or job.replaces):
                self.skipped.append(job.output)
            else:
                try:
                    job.prompt.check(job.image)
                    self.jobs.append(job)
                except SDMatteError as error:
                    self._fail(job, str(error))

    def _fail(self, job: Job, reason: str) -> None:
        where = "" if str(job.image) in reason else f"{job.image}: "
        logger.error("error: %s%s", where, reason)
        self.failed.append((job, reason))

    # ----------------------------------------------------------------- sharing

    def share(self, rank: int, world_size: int) -> "Batch":
        """Return a rank's part: every ``world_size``-th image, with all its prompts."""
        part = Batch(self.settings, self.output)
        part._read = self._read
        numbers = {image: n for n, image in enumerate(dict.fromkeys(j.image for j in self.jobs))}
        part.jobs = [job for job in self.jobs if numbers[job.image] % world_size == rank]
        return part

    # -------------------------------------------------------------- predicting

    def run(
        self,
        predictor: "MattePredictor",
        refine: str | None = None,
        ignore_alpha: bool = False,
        num_local: int = 1,
        progress: bool = True,
    ) -> None:
        """Predict and write the mattes; a job that fails does not stop the others.

        Consecutive prompts of an image share its encoding. At most seven images are in memory.
        After a `KeyboardInterrupt`, mattes that are being written are completed.

        Args:
            predictor: The model.
            refine: See `MattePredictor.predict`.
            ignore_alpha: See `MattePredictor.set_image`.
            num_local: Number of processes that share this machine's processors.
            progress: Show a progress bar on standard error.
        """
        jobs, self.jobs = self.jobs, []
        num_threads = max(1, min(_MAX_THREADS, _available_cpus() // num_local))
        interval = 0.1 if sys.stderr.isatty() else 30  # seconds; a log file needs few lines
        hidden = not progress or len(jobs) < 2
        bar = tqdm(total=len(jobs), unit="matte", disable=hidden, mininterval=interval)
        written: deque[tuple[Job, Future]] = deque()
        pool = ThreadPoolExecutor(num_threads, "matte")
        encoded = source = None
        try:
            with logging_redirect_tqdm(), bar:
                # One matte at a time: on CPUs, a batch changes the last bits of alpha; on GPUs,
                # batches have not been measured.
                for job, pixels, arguments in _read_ahead(pool, jobs, ignore_alpha):
                    found = None
                    with self._recording(job):
                        if source is not pixels:
                            encoded = source = None  # frees memory before the next encoding
                            encoded, source = predictor.encode_pixels(*pixels.result()), pixels
                        found = predictor.predict(
                            **arguments.result(), refine=refine, image=encoded
                        )
                    if found is None:
                        bar.update()
                        continue
                    written.append((job, pool.submit(self._write, job, found)))
                    del found  # leaves the thread's reference as the only one
                    if len(written) >= num_threads:
                        self._collect(written, bar)
                while written:
                    self._collect(written, bar)
        finally:
            pool.shutdown(cancel_futures=True)
            for _, future in written:
                if not future.cancelled() and future.exception() is None:
                    self.done += future.result()

    def _write(self, job: Job, found: "MatteResult | list[MatteResult]") -> list[Path]:
        """Write the mattes of a job and return their files."""
        results = found if isinstance(found, list) else [found]
        for result in results:
            if result.box is not None:
                where = " ".join(map(str, result.box))
                text, score = job.prompt.value, result.score
                logger.info("%s: %r found at %s, score %.2f.", job.image, text, where, score)
        metadata = None if self.settings.kind == "alpha" else read_metadata(job.image)
        outputs = job.outputs(len(results))
        check_not_read(outputs[1:], self._read)  # `check` did not know their number
        # Written last, so that a job is complete if its first matte exists.
        for path, result in reversed(list(zip(outputs, results, strict=True))):
            write_image(path, self.settings.render(result), metadata)
        return outputs

    def _collect(self, written: deque[tuple[Job, Future]], bar: tqdm) -> None:
        """Wait until the oldest job is written, and remove it."""
        job, future = written[0]
        with self._recording(job):
            self.done += future.result()
        written.popleft()
        bar.update()

    @contextlib.contextmanager
    def _recording(self, job: Job) -> Iterator[None]:
        """Record an error as the job's failure."""
        try:
            yield
        except SDMatteError as error:
            self._fail(job, str(error))
        except Exception as error:  # a bug must not cost the rest of the batch
            torch = sys.modules.get("torch")  # None for exported models
            out_of_memory = (MemoryError, torch.OutOfMemoryError) if torch else MemoryError
            if isinstance(error, out_of_memory):
                self._fail(job, "Out of memory: use a lower resolution.")
            else:
                logger.exception("%s: unexpected error.", job.image)
                self.failed.append((job, f"{type(error).__name__}: {error}"))

    def summary(self) -> str:
        """Return the counts as a sentence."""
        parts = [f"{len(self.done)} matte{'s' * (len(self.done) != 1)} written"]
        if self.skipped:
            parts.append(f"{len(self.skipped)} already existed")
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        if self.num_left_out:
            parts.append(f"{self.num_left_out} file{'s' * (self.num_left_out != 1)} left out")
        return f"{', '.join(parts)}."


def _access_problem(path: Path) -> str:
    try:
        os.stat(path)
    except FileNotFoundError:
        return f"Cannot read {path}: the file does not exist."
    except OSError as error:
        return str(read_error(path, error))
    return ""


def _read_ahead(
    pool: Executor, jobs: Iterable[Job], ignore_alpha: bool
) -> Iterator[tuple[Job, "Future[_Pixels]", "Future[dict]"]]:
    """Yield jobs with futures of their image, shared by consecutive jobs, and their prompt."""
    ahead: deque[tuple[Job, Future, Future]] = deque()
    for image, prompted in itertools.groupby(jobs, lambda job: job.image):
        pixels = pool.submit(read_pixels, image, ignore_alpha)
        for job in prompted:
            ahead.append((job, pixels, pool.submit(job.prompt.load, image)))
            if len(ahead) > _NUM_AHEAD:
                yield ahead.popleft()
    while ahead:
        yield ahead.popleft()


def _available_cpus() -> int:
    """Return the number of processors that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(usable(0)) if usable else os.cpu_count() or 1
