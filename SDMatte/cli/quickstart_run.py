"""Implementation of ``sdmatte quickstart``: samples, training, test, scores and images."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from SDMatte.images.sheets import checkerboard, contact_sheet
from SDMatte.inference.predictor import MattePredictor
from SDMatte.inference.result import MatteResult
from SDMatte.modeling import SDMatte, hub
from SDMatte.runtime.config import build, load_config
from SDMatte.runtime.files import check_not_read, write_text
from SDMatte.samples import make_sample_set
from SDMatte.samples.photos import real_photographs
from SDMatte.samples.sample_set import read_manifest
from SDMatte.scoring.protocols import get_protocol
from SDMatte.scoring.tables import score_table

logger = logging.getLogger(__name__)

_ROWS = 12
_PROMPT_COLOR = (255, 210, 0)
# Prompts for the photographs from installed packages, in pixels.
_POINTS = {
    "coffee": ((280, 120), (200, 200), (330, 200), (280, 280)),
    "flower": ((310, 220), (250, 180), (370, 260)),
}
_ELLIPSES = {"coffee": ((280, 200), (170, 150)), "grace_hopper": ((260, 330), (220, 290))}
PROMPTS = ("box", "point", "mask")
NEXT_STEPS = """\
In {output}: photographs.png (the shipped model), scores.md, train/curves.png and results.png
(after fine-tuning).
Next: your own data, the published weights and the published recipe; see README.md."""


@dataclass(frozen=True)
class QuickstartResult:
    """Results of `quickstart`."""

    scores: dict[str, dict[str, float]]  # raw metrics by method and set/prompt
    # Whether MSE and SAD with boxes are lower than for the box as alpha and an untrained network.
    beats_baselines: bool
    markdown: str  # table of the scores


def quickstart(
    config_file: str,
    output: str | Path,
    samples: str | Path,
    overrides: Sequence[str] = (),
    sample_settings: Mapping[str, Any] | None = None,
) -> QuickstartResult:
    """Cut out photographs, fine-tune on the sample set, test against baselines, draw the results.

    A run in ``output/train`` is resumed.
    """
    output, run_dir = Path(output), Path(output) / "train"
    settings = [f"train.output_dir={run_dir}", *overrides]
    config = load_config(config_file, settings)
    read_manifest(Path(samples))  # refuses a folder of other files before the first one is written
    draw_photographs(MattePredictor.from_pretrained(), output / "photographs.png")
    logger.info("Mattes of photographs by the shipped model: %s", output / "photographs.png")
    make_sample_set(samples, **(sample_settings or {}))
    outputs = [output / name for name in ("test", "results.png", "scores.json", "scores.md")]
    check_not_read([output, *outputs], [samples])
    os.environ["SDMATTE_DATA_ROOT"] = str(samples)  # replaces the user's
    train(config_file, settings, resume=True)
    model = load_trained(config, run_dir / hub.FINAL_CHECKPOINT)
    scores = score_with_baselines(config, model, output / "test")
    draw_results(config, model, output / "results.png")
    markdown, beats = _summary(scores, config.test.protocol)
    write_text(output / "scores.json", json.dumps(scores, indent=2) + "\n")
    write_text(output / "scores.md", markdown + "\n")
    return QuickstartResult(scores, beats, markdown)


def score_with_baselines(
    config: DictConfig, model: SDMatte, output: Path
) -> dict[str, dict[str, float]]:
    """Score the trained network with each prompt, and the baselines with boxes."""
    torch.manual_seed(config.train.seed)
    runs = [
        ("trained", model, PROMPTS),
        ("before training", load_trained(config, config.train.init_checkpoint), ("box",)),
        ("untrained", build(config.model), ("box",)),
        ("box as alpha", PromptBaseline, ("box",)),
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


def draw_photographs(predictor: MattePredictor, path: Path, tile: int = 256) -> None:
    """Draw photographs with their prompts, mattes and cutouts on a checkerboard."""
    tiles = []
    for photograph in real_photographs():
        if photograph.box is None:
            continue
        image = np.array(photograph.load())
        x0, y0, x1, y1 = photograph.box
        prompts: list[dict[str, Any]] = [{"box": (x0, y0, x1 + 1, y1 + 1)}]
        if photograph.name in _POINTS:
            prompts.append({"points": _POINTS[photograph.name]})
        if photograph.name in _ELLIPSES:
            mask = np.zeros(image.shape[:2], np.uint8)
            cv2.ellipse(mask, *_ELLIPSES[photograph.name], 0, 0, 360, 1, -1)
            prompts.append({"mask": mask})
        for prompt in prompts:
            result = predictor.predict(**prompt, image=predictor.encode(image))
            assert isinstance(result, MatteResult)  # one prompt gives one result
            ground = checkerboard(result.alpha.shape, max(image.shape) // 24)
            tiles += [_prompted(image, **prompt), result.alpha, result.composite(ground)]
    write_image(path, contact_sheet(tiles, ["prompt", "matte", "cutout"] * 2, 6, tile))


def draw_results(config: DictConfig, model: SDMatte, path: Path) -> None:
    """Draw rows of image, prompt, prediction and truth of the test set."""
    _, loader = next(iter(build_test_loaders(config)))
    samples = loader.dataset.samples
    predictor = MattePredictor(model, resolution=loader.dataset.size)
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(_ROWS, len(samples))).round())
    tiles = []
    for index in chosen.astype(int):
        sample = samples[index]
        image = read_image(loader.dataset.root / sample.image)
        truth = read_alpha(loader.dataset.root / sample.alpha)
        x0, y0, x1, y1 = loader.dataset[index]["bbox_coords"].tolist()
        height, width = truth.shape
        box = (x0 * width, y0 * height, x1 * width, y1 * height)
        result = predictor.predict(box=box, image=predictor.encode(image))
        assert isinstance(result, MatteResult)  # one box gives one result
        tiles += [image, _prompted(image, box), result.alpha, truth]
    labels = ["image", "box prompt", "prediction", "truth"]
    write_image(path, contact_sheet(tiles, labels, columns=4))


def _prompted(
    image: np.ndarray,
    box: Sequence[float] | None = None,
    points: Sequence[tuple[int, int]] = (),
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Draw a prompt: a box, points, or a mask whose outside is dimmed."""
    drawn = image.copy()
    width = max(2, image.shape[1] // 100)
    if box is not None:
        x0, y0, x1, y1 = (int(round(v)) for v in box)
        mask = np.zeros(image.shape[:2], np.uint8)
        mask[y0:y1, x0:x1] = 1
    if mask is not None:
        drawn = (drawn * np.where(mask[..., None] > 0, 1, 0.4)).astype(np.uint8)
    if box is not None:
        cv2.rectangle(drawn, (x0, y0), (x1, y1), _PROMPT_COLOR, width)
    for point in points:
        cv2.circle(drawn, point, 2 * width, _PROMPT_COLOR, -1)
    return drawn
