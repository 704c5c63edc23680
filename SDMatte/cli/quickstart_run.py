"""The work of ``sdmatte quickstart``: samples, training, test, scores and images."""

import json
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
from SDMatte.images.sheets import PAGE, contact_sheet
from SDMatte.inference.predictor import MattePredictor
from SDMatte.inference.result import MatteResult
from SDMatte.modeling import SDMatte, hub
from SDMatte.runtime.config import build, load_config
from SDMatte.runtime.files import check_not_read, write_text
from SDMatte.samples import make_sample_set
from SDMatte.samples.photos import real_photographs
from SDMatte.scoring.protocols import get_protocol
from SDMatte.scoring.tables import score_table

_BLANK = np.full((1, 1), PAGE, np.uint8)
_ROWS = 12
PROMPTS = ("box", "point", "mask")
NEXT_STEPS = """\
Scores, curves and images are in {output}: scores.md, train/curves.png, results.png.
Next: your own data, the published weights and the published recipe; see README.md."""


@dataclass(frozen=True)
class QuickstartResult:
    """Results of `quickstart`.

    Attributes:
        scores: Raw metrics by method and ``set/prompt``.
        beats_baselines: Whether the trained network has lower MSE and SAD with boxes than both
            baselines, the box as alpha and an untrained network.
        markdown: Table of the scores.
    """

    scores: dict[str, dict[str, float]]
    beats_baselines: bool
    markdown: str


def quickstart(
    config_file: str,
    output: str | Path,
    samples: str | Path,
    overrides: Sequence[str] = (),
    sample_settings: Mapping[str, Any] | None = None,
) -> QuickstartResult:
    """Create the sample set, train, test against baselines, and draw the results.

    A training in ``output/train`` is resumed.
    """
    output, run_dir = Path(output), Path(output) / "train"
    make_sample_set(samples, **(sample_settings or {}))
    outputs = [output / name for name in ("test", "results.png", "scores.json", "scores.md")]
    check_not_read([output, *outputs], [samples])
    settings = [f"train.output_dir={run_dir}", *overrides]
    config = load_config(config_file, settings)
    os.environ["SDMATTE_DATA_ROOT"] = str(samples)  # which may be set for other data
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
    """Score the trained network with each prompt, and its baselines with boxes."""
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


def draw_results(config: DictConfig, model: SDMatte, path: Path) -> None:
    """Draw rows of image, prompt, prediction and truth.

    The first rows are images of the test set, the others photographs without a true matte.
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
        rows.append([image, _prompted(image, box), _predict(predictor, image, box), truth])
    for photograph in real_photographs():
        if photograph.box is not None:
            image, box = np.array(photograph.load()), photograph.box
            rows.append([image, _prompted(image, box), _predict(predictor, image, box), _BLANK])
    tiles = [cell for row in rows for cell in row]
    labels = ["image", "box prompt", "prediction", "truth"]
    write_image(path, contact_sheet(tiles, labels, columns=4))


def _predict(predictor: MattePredictor, image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    result = predictor.predict(box=box, image=predictor.encode(image))
    assert isinstance(result, MatteResult)  # a single box
    return result.alpha


def _prompted(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Draw a box, given in pixels, and dim its outside."""
    prompt = (image * 0.4).astype(np.uint8)
    x0, y0, x1, y1 = (int(round(v)) for v in box)
    prompt[y0:y1, x0:x1] = image[y0:y1, x0:x1]
    width = max(2, image.shape[1] // 100)
    cv2.rectangle(prompt, (x0, y0), (x1, y1), (255, 210, 0), width)
    return prompt
