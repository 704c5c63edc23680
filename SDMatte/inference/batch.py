"""Mattes of many files: doing what was planned."""

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from SDMatte.errors import SDMatteError
from SDMatte.images.decode import read_metadata
from SDMatte.images.io import write_image
from SDMatte.inference.jobs import BatchReport, Job, OutputSettings, note_failure
from SDMatte.inference.predictor import EncodedImage, MattePredictor

logger = logging.getLogger(__name__)


def run_jobs(
    predictor: MattePredictor,
    jobs: Sequence[Job],
    settings: OutputSettings,
    report: BatchReport,
    refine: str | None = None,
    ignore_alpha: bool = False,
) -> None:
    """Makes mattes one after another; what goes wrong with one does not stop the others.

    Each file is written whole or not at all, so that a run that was interrupted goes on with
    `pending_jobs`. A picture with several prompts in a row is encoded once.

    Args:
        predictor: The model.
        jobs: What to do.
        settings: What to write.
        report: Gets what was done and what failed.
        refine: See `MattePredictor.predict`.
        ignore_alpha: See `MattePredictor.set_image`.
    """
    current: tuple[Path, EncodedImage] | None = None
    for job in _with_progress(jobs):
        try:
            arguments = job.prompt.load(job.image)
            if current is None or current[0] != job.image:
                current = None  # two pictures at once would be one too many for the memory
                current = job.image, predictor.encode(job.image, ignore_alpha=ignore_alpha)
            result = predictor.predict(**arguments, refine=refine, image=current[1])
            metadata = None if settings.kind == "alpha" else read_metadata(job.image)
            write_image(job.output, settings.render(result), metadata)
            report.done.append(job.output)
        except SDMatteError as error:
            note_failure(report, job, str(error))
        except (torch.OutOfMemoryError, MemoryError):
            note_failure(report, job, "There is not enough memory for it; lower the resolution.")
        except Exception as error:  # a defect of ours must not cost a night's work
            logger.exception("%s failed in a way that is not foreseen.", job.image)
            report.failed.append((job, f"{type(error).__name__}: {error}"))


def _with_progress(jobs: Sequence[Job]) -> Iterator[Job]:
    """Shows a bar for more than one job; where it is not a terminal's, twice a minute."""
    interval = 0.1 if sys.stderr.isatty() else 30
    with logging_redirect_tqdm():
        yield from tqdm(jobs, unit="matte", disable=len(jobs) < 2, mininterval=interval)
