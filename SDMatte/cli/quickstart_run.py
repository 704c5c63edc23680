"""The main job on the embedded default: samples, training, test, scores and pictures."""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import SDMatte.compat  # noqa: F401

import cv2
import numpy as np
import torch
from omegaconf import DictConfig

from SDMatte.engine.train import train
from SDMatte.evaluation.baselines import PromptBaseline
from SDMatte.evaluation.methods import load_trained
from SDMatte.evaluation.plan import build_test_loaders
from SDMatte.evaluation.run import run_test
from SDMatte.images.io import read_alpha, read_image, write_image
from SDMatte.images.sheets import PAGE, contact_sheet
from SDMatte.inference.predictor import MattePredictor
from SDMatte.modeling import SDMatte, hub
from SDMatte.runtime.config import build, load_config
from SDMatte.runtime.files import check_not_read, write_text
from SDMatte.samples import make_sample_set
from SDMatte.samples.photos import real_photographs
from SDMatte.scoring.protocols import get_protocol
from SDMatte.scoring.tables import score_table

logger = logging.getLogger(__name__)

_BLANK = np.full((1, 1), PAGE, np.uint8)
_ROWS = 12
PROMPTS = ("box", "point", "mask")
NEXT_STEPS = """\
Scores, curves and pictures are in {output}: scores.md, train/curves.png, results.png.

What next:
- Your own data, a folder of pictures and a folder of alphas with the same names:
    bash script/train.sh configs/SDMatte_small.py train.output_dir=output/mine \\
        'dataloader.train.dataset.names=[{{image: IMAGES, alpha: ALPHAS}}]'
- The published weights: put the config folders and SDMatte.pth of the model's hub page into
  pretrained/SDMatte, then
    bash script/test.sh configs/SDMatte.py pretrained/SDMatte/SDMatte.pth \\
        'dataloader.test.dataset.names=[{{image: IMAGES, alpha: ALPHAS}}]'
- The published recipe on the published data: README.md, Dataset and Training."""


@dataclass(frozen=True)
class QuickstartResult:
    """What came out.

    Attributes:
        scores: Raw metrics by method and ``set/prompt``.
        beats_baselines: Whether the trained network has lower MSE and SAD than both baselines
            (the box as alpha, and a network that never was trained), prompted with boxes.
        markdown: The table.
    """

    scores: dict[str, dict[str, float]]
    beats_baselines: bool
    markdown: str


def quickstart(
    config_file: str,
    output: str | Path,
    samples: str | Path,
    fresh: bool = False,
    overrides: Sequence[str] = (),
    sample_settings: Mapping[str, int] | None = None,
) -> QuickstartResult:
    """Makes the sample set, trains, tests, and shows.

    Args:
        config_file: The config of the small model.
        output: Where everything goes; its ``train/`` is gone on with if it is there.
        samples: The sample set's folder.
        fresh: Forget an earlier training in ``output``.
        overrides: ``key=value`` settings.
        sample_settings: Arguments of `make_sample_set`, for another set than the default.

    Raises:
        SDMatteError: Something that was given cannot be used.
    """
    output, run_dir = Path(output), Path(output) / "train"
    make_sample_set(samples, **(sample_settings or {}))
    outputs = [output / name for name in ("test", "results.png", "scores.json", "scores.md")]
    check_not_read([output, *outputs], [samples], emptied=[run_dir] if fresh else ())
    if fresh:
        shutil.rmtree(run_dir, ignore_errors=True)
    settings = [f"train.output_dir={run_dir}", *overrides]
    config = load_config(config_file, settings)
    with overridden_data_root(samples):
        train(config_file, settings, resume=True)
        model = load_trained(config, run_dir / hub.FINAL_CHECKPOINT)
        scores = score_with_baselines(config, model, output / "test")
        draw_results(config, model, output / "results.png")
    markdown, beats = _summary(scores, config.test.protocol)
    write_text(output / "scores.json", json.dumps(scores, indent=2) + "\n")
    write_text(output / "scores.md", markdown + "\n")
    return QuickstartResult(scores, beats, markdown)


@contextlib.contextmanager
def overridden_data_root(path: str | Path) -> Iterator[None]:
    """Has all data come from one folder; what the user has set is for other data."""
    before = os.environ.get("SDMATTE_DATA_ROOT")
    os.environ["SDMATTE_DATA_ROOT"] = str(path)
    try:
        yield
    finally:
        del os.environ["SDMATTE_DATA_ROOT"]
        if before is not None:
            os.environ["SDMATTE_DATA_ROOT"] = before


def score_with_baselines(
    config: DictConfig, model: SDMatte, output: Path
) -> dict[str, dict[str, float]]:
    """Scores the trained network with each prompt, and with boxes what it is compared with."""
    torch.manual_seed(config.train.seed)
    runs = [
        ("trained", model, PROMPTS),
        ("before training", load_trained(config, config.train.init_checkpoint), ("box",)),
        ("untrained", build(config.model), ("box",)),
        ("box as alpha", PromptBaseline("box"), ("box",)),
    ]
    scores = {}
    for name, predictor, prompts in runs:
        folder = output / name.replace(" ", "_")
        for key, values in run_test(config, predictor, folder, name, prompts).items():
            scores[f"{name}, {key}"] = values
    return scores


def _summary(scores: dict[str, dict[str, float]], protocol: str) -> tuple[str, bool]:
    boxes = {name.split(",")[0]: value for name, value in scores.items() if name.endswith("/box")}
    trained, baselines = boxes["trained"], (boxes["untrained"], boxes["box as alpha"])
    beats = all(trained[m] < other[m] for other in baselines for m in ("MSE", "SAD"))
    table = score_table(scores, display=True)
    description = get_protocol(protocol).description
    return f"Held-out part of the sample set, protocol {protocol}: {description}\n\n{table}", beats


def draw_results(config: DictConfig, model: SDMatte, picture: Path) -> None:
    """Draws rows of image, prompt, prediction and truth.

    First pictures of the test part, whose foregrounds are drawn and whose backgrounds are
    photographs or drawn too; then photographs as they are, which have no true matte.
    """
    _, loader = next(iter(build_test_loaders(config)))
    samples = loader.dataset.samples
    predictor = MattePredictor(model, resolution=loader.dataset.size)
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(_ROWS, len(samples))).round())
    rows = []
    for index in chosen.astype(int):
        sample = samples[index]
        image = read_image(loader.dataset.root / sample.image)
        truth = read_alpha(loader.dataset.root / sample.alpha)
        x0, y0, x1, y1 = loader.dataset[index]["bbox_coords"].tolist()
        height, width = truth.shape
        box = (x0 * width, y0 * height, x1 * width, y1 * height)
        prediction = predictor.predict(box=box, image=predictor.encode(image)).alpha
        rows.append([image, _prompted(image, box), prediction, truth])
    for photograph in real_photographs():
        if photograph.box is not None:
            image, box = np.array(photograph.load()), photograph.box
            prediction = predictor.predict(box=box, image=predictor.encode(image)).alpha
            rows.append([image, _prompted(image, box), prediction, _BLANK])
    half = (len(rows) + 1) // 2
    sides = zip_longest(rows[:half], rows[half:], fillvalue=[_BLANK] * 4)
    tiles = [cell for pair in sides for row in pair for cell in row]
    labels = ["image", "box prompt", "prediction", "truth"] * 2
    write_image(picture, contact_sheet(tiles, labels, columns=8))


def _prompted(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Draws a box, given in pixels, and dims what is outside."""
    prompt = (image * 0.4).astype(np.uint8)
    x0, y0, x1, y1 = (int(round(v)) for v in box)
    prompt[y0:y1, x0:x1] = image[y0:y1, x0:x1]
    width = max(2, image.shape[1] // 100)
    cv2.rectangle(prompt, (x0, y0), (x1, y1), (255, 210, 0), width)
    return prompt
