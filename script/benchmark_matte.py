"""Benchmark matting a folder in a batch against a plain loop over its images.

Draw photographs and make their cutouts with the shipped small model in two ways, in turns; fail if
the pixels or the metadata of a file differ. *loop*: one after the other, with pymatting's colors.
*batch*: like ``sdmatte matte FOLDER``, which also sets OMP_WAIT_POLICY::

    OMP_WAIT_POLICY=PASSIVE python script/benchmark_matte.py [--number 60] [--size 3000 2000]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pymatting
from PIL import Image

from SDMatte.cli.common import integer, run_command
from SDMatte.images.decode import read_metadata
from SDMatte.images.io import write_image
from SDMatte.inference import foreground
from SDMatte.inference.batch import Batch, Job
from SDMatte.inference.predictor import MattePredictor
from SDMatte.inference.result import OutputSettings
from SDMatte.prompts.requests import PromptRequest

TURNS = 3


def write_photograph(path: Path, seed: int, width: int, height: int) -> None:
    """Write a soft ellipse on a smooth background, with sensor noise and a resolution."""
    rng = np.random.default_rng(seed)
    front, behind = (cv2.resize(rng.random((9, 12, 3)), (width, height)) for _ in range(2))
    disc = np.zeros((height, width))
    cv2.ellipse(disc, (width // 2, height // 2), (width // 3, height // 3), 0, 0, 360, 1.0, -1)
    alpha = cv2.blur(disc, (width // 30, width // 30))[..., None]
    image = alpha * front + (1 - alpha) * behind + rng.normal(0, 0.01, alpha.shape)
    write_image(path, np.clip(image, 0, 1), {"dpi": (300, 300)})


def loop(predictor: MattePredictor, jobs: Sequence[Job]) -> None:
    """Make the cutouts one after the other, with pymatting's foreground colors."""
    estimate = partial(pymatting.estimate_foreground_ml, n_big_iterations=4)
    with mock.patch.object(foreground, "_load_estimator", lambda: estimate):
        for job in jobs:
            encoded = predictor.encode(job.image)
            result = predictor.predict(**job.prompt.load(job.image), image=encoded)
            write_image(job.output, OutputSettings().render(result), read_metadata(job.image))


def batch(predictor: MattePredictor, jobs: Sequence[Job]) -> None:
    """Make the cutouts as the command line does."""
    many = Batch(OutputSettings())
    many.jobs = list(jobs)
    many.run(predictor, progress=False)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--number", type=integer(1), default=60, help="photographs")
    parser.add_argument(
        "--size", type=integer(30), nargs=2, default=(3000, 2000), metavar=("W", "H")
    )
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Run the benchmark."""
    predictor = MattePredictor.from_pretrained()
    prompt = PromptRequest("box", [side * n // 6 for n in (1, 5) for side in args.size])
    with tempfile.TemporaryDirectory() as folder:
        images = [Path(folder, f"{i}.jpg") for i in range(args.number)]
        for i, image in enumerate(images):
            write_photograph(image, i, *args.size)
        spent = {loop: np.zeros(2), batch: np.zeros(2)}  # seconds, of the clock and of processors
        for turn in range(-1, TURNS):
            for way in spent:
                part = images[turn::TURNS] if turn >= 0 else images[:1]  # warm up
                jobs = [Job(i, prompt, i.parent / way.__name__ / f"{i.stem}.png") for i in part]
                start = np.array([time.perf_counter(), time.process_time()])
                way(predictor, jobs)
                if turn >= 0:
                    spent[way] += np.array([time.perf_counter(), time.process_time()]) - start
        for image in images:
            a, b = (Image.open(image.parent / n / f"{image.stem}.png") for n in ("loop", "batch"))
            if a.tobytes() != b.tobytes() or a.info != b.info or a.getexif() != b.getexif():
                raise SystemExit(f"{image.name}: the files differ.")
    for way, seconds in spent.items():
        wall, cpu = seconds / args.number
        print(f"{way.__name__}: {wall:.2f} s per image, {cpu:.2f} s of CPUs")
    print(f"batch is {spent[loop][0] / spent[batch][0]:.2f} times as fast; all files are equal")


if __name__ == "__main__":
    sys.exit(run_command(main, parse_args()))
