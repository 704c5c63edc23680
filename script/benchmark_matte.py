"""Benchmark the mattes of a folder against a plain loop over its images.

Draw photographs into a temporary folder, make their cutouts with the shipped small model in three
ways, which take turns, and print times and ratios; fail if files differ or the limit is missed::

    python script/benchmark_matte.py [--number 60] [--size 3000 2000] [--min-ratio 1.5]

*loop*: read, predict and write one after the other, with pymatting's foreground estimation. *loop, own
colors*: with that of the package. *batch*: what ``sdmatte matte FOLDER`` does. Files are equal if
their pixels and their metadata are. CPU times include the waiting of torch's threads.
"""

import argparse
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

import SDMatte as package
from SDMatte.images.decode import read_metadata
from SDMatte.images.io import write_image
from SDMatte.inference import foreground
from SDMatte.inference.batch import Batch, Job
from SDMatte.inference.predictor import MattePredictor
from SDMatte.inference.result import OutputSettings
from SDMatte.modeling import SDMatte
from SDMatte.modeling.weights import load_checkpoint
from SDMatte.prompts.requests import PromptRequest

SMALL = Path(package.__file__).parent / "assets" / "small"
SETTINGS = OutputSettings()


def write_photograph(path: Path, seed: int, width: int, height: int) -> None:
    """Write a soft ellipse on a smooth background, with sensor noise and a resolution."""
    rng = np.random.default_rng(seed)
    colors = (cv2.resize(rng.random((9, 12, 3)), (width, height)) for _ in range(2))
    disc = np.zeros((height, width), np.float32)
    cv2.ellipse(disc, (width // 2, height // 2), (width // 3, height // 3), 0, 0, 360, 1.0, -1)
    alpha = cv2.blur(disc, (width // 30, width // 30))[..., None]
    image = alpha * next(colors) + (1 - alpha) * next(colors) + rng.normal(0, 0.01, alpha.shape)
    write_image(path, np.clip(image, 0, 1), {"dpi": (300, 300)})


def load_model() -> MattePredictor:
    """Load the shipped model."""
    model = SDMatte(SMALL, load_weight=False, aux_input=None)
    load_checkpoint(model, SMALL / "start.safetensors")
    return MattePredictor(model, resolution=128)


def loop(predictor: MattePredictor, jobs: Sequence[Job]) -> None:
    """Make the cutouts one after the other."""
    for job in jobs:
        encoded = predictor.encode(job.image)
        result = predictor.predict(**job.prompt.load(job.image), image=encoded)
        write_image(job.output, SETTINGS.render(result), read_metadata(job.image))


def pymatting_loop(predictor: MattePredictor, jobs: Sequence[Job]) -> None:
    """Make the cutouts one after the other, with pymatting's foreground colors."""
    estimate = partial(pymatting.estimate_foreground_ml, n_big_iterations=4)
    with mock.patch.object(foreground, "_load_estimator", lambda: estimate):
        loop(predictor, jobs)


def batch(predictor: MattePredictor, jobs: Sequence[Job]) -> None:
    """Make the cutouts as the command line does."""
    many = Batch(SETTINGS)
    many.jobs = list(jobs)
    many.run(predictor, progress=False)
    assert len(many.done) == len(jobs), many.failed


def content(path: Path) -> tuple:
    """Return the pixels and the metadata of a file."""
    with Image.open(path) as image:
        return image.mode, image.size, image.info, image.getexif(), image.tobytes()


def benchmark(folder: Path, number: int, size: Sequence[int], rounds: int) -> float:
    """Print the times and return the ratio of loop to batch; exit with an error if files differ."""
    predictor = load_model()
    prompt = PromptRequest("box", [side * n // 6 for n in (1, 5) for side in size])
    ways = {"loop": pymatting_loop, "loop, own colors": loop, "batch": batch}
    spent = {name: np.zeros(2) for name in ways}
    images = [folder / f"{i}.jpg" for i in range(number)]
    for i, image in enumerate(images):
        write_photograph(image, i, *size)
    for turn in range(-1, rounds):  # the first is not timed: it compiles
        for name, way in ways.items():
            part = images[turn::rounds] if turn >= 0 else images[:1]
            jobs = [Job(image, prompt, folder / name / f"{image.stem}.png") for image in part]
            start = time.perf_counter(), time.process_time()
            way(predictor, jobs)
            if turn >= 0:
                spent[name] += time.perf_counter() - start[0], time.process_time() - start[1]
    for name, (seconds, cpu) in spent.items():
        ratio = spent["loop"][0] / seconds
        print(f"{name:16s} {seconds:7.1f} s, {ratio:.2f}x; {cpu:7.1f} s of CPUs", flush=True)
    for image in images:
        first, *others = (content(folder / name / f"{image.stem}.png") for name in ways)
        if any(other != first for other in others):
            raise SystemExit(f"The files of {image.stem} differ.")
    print(f"The files of all {number} images are equal.")
    return spent["loop"][0] / spent["batch"][0]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--number", type=int, default=60, help="photographs")
    parser.add_argument("--size", type=int, nargs=2, default=(3000, 2000), metavar=("W", "H"))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    parser.add_argument("--min-ratio", type=float, default=1.5, help="fail below")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ratio = benchmark(Path(folder), args.number, args.size, args.rounds)
    if ratio < args.min_ratio:
        raise SystemExit("too slow")


if __name__ == "__main__":
    main()
