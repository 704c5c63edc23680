"""Measure what parts of the small model contribute, by training it without them.

`train` runs `tools/train_small.py` once per variant and seed, and passes further arguments on to
it. Variants of the encoder start from `--start`, a model without an image prior; the others start
from the shipped model and adapt it to the lack of a part. `test` scores the trained models on
scenes and on data sets, with the prompts of `tools/score_small.py`::

    python tools/ablations.py train --variants pretrained random --start START \
        --prior lite0.pth --minutes 20 --objects POOL --backgrounds PHOTOS
    python tools/ablations.py train --minutes 7 --objects POOL --backgrounds PHOTOS
    python tools/ablations.py test --objects OTHERS --backgrounds PHOTOS --real FOLDER
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from score_small import PROMPTS, draw, read_set
from small_scenes import SceneMaker, read_backgrounds, read_cutouts
from train_small import SMALL, build, make_parser, weighted

from SDMatte import MattePredictor
from SDMatte.modeling.weights import load_checkpoint, write_tensors
from SDMatte.runtime.files import write_text
from SDMatte.scoring import mse
from SDMatte.scoring.protocols import get_protocol
from SDMatte.scoring.tables import Table

ENCODERS = {"pretrained": "pretrained encoder", "random": "random encoder"}
PARTS = {  # title, setting of the model to turn off
    "whole": ("whole model", None),
    "coordinates": ("no coordinate embedding", "use_coor_input"),
    "opacity": ("no opacity embedding", "use_opacity_input"),
    "masking": ("no masked self-attention", "use_attention_mask"),
    "visual": ("text instead of visual cross-attention", "use_encoder_hidden_states"),
}
TITLES = {"shipped": "as shipped"} | ENCODERS | {name: title for name, (title, _) in PARTS.items()}
Rng = np.random.Generator


class Sample(NamedTuple):
    """An image to score: uint8 `[H, W, 3]`, alpha `[H, W]` in [0, 1]."""

    name: str
    image: np.ndarray
    alpha: np.ndarray
    transparent: bool


def without(variant: str) -> list[str]:
    """Return the settings that a variant turns off."""
    setting = PARTS[variant][1] if variant in PARTS else None
    return [] if setting is None else [setting]


def train_variants(args: argparse.Namespace, rest: list[str]) -> None:
    """Train the variants with each seed; stopped runs are resumed."""
    args.output.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // args.jobs)

    def run(variant: str, seed: int) -> None:
        output = args.output / f"{variant}-{seed}.safetensors"
        start = SMALL / "model.safetensors"
        if variant in ENCODERS:
            start = write_start(args, variant, seed)
        command = [sys.executable, str(Path(__file__).with_name("train_small.py")), *rest]
        command += ["--output", str(output), "--start", str(start), "--seed", str(seed)]
        command += ["--without", *without(variant)]
        with output.with_suffix(".log").open("a") as log:
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            subprocess.run(command, env=environment, stderr=log, check=True)

    runs = [(variant, seed) for seed in args.seeds for variant in args.variants]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda one: run(*one), runs))


def write_start(args: argparse.Namespace, variant: str, seed: int) -> Path:
    """Write the weights that a variant of the encoder starts from.

    A random encoder gets batch statistics from photographs, because training freezes them.
    """
    path = args.output / f"start-{variant}-{seed}.safetensors"
    given = ["--objects", "1:none", "--backgrounds", "none", "--start", str(args.start)]
    given += ["--seed", str(seed)] + (["--prior", str(args.prior)] * (variant == "pretrained"))
    model = build(make_parser().parse_args(given))
    if variant == "random":
        photos = read_backgrounds([args.photos])
        maker, rng = SceneMaker([], photos), np.random.default_rng(seed)
        crops = np.stack([maker.photo(96, rng) for _ in range(256)])
        assert model.image_prior is not None
        norms = [m for m in model.image_prior.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms:
            torch.nn.BatchNorm2d.train(norm)
            norm.momentum = None  # the mean over all batches
        with torch.no_grad():
            for batch in torch.from_numpy(crops).permute(0, 3, 1, 2).split(32):
                model.encode_prior(batch * 2 - 1)
    write_tensors(dict(model.state_dict()), path)
    return path


def draw_scenes(args: argparse.Namespace) -> dict[str, list[Sample]]:
    """Compose scenes of three kinds with objects that were not used in training."""
    groups = [(weight, read_cutouts([Path(folder)])) for weight, folder in args.objects]
    maker = SceneMaker(groups, read_backgrounds(args.backgrounds))
    sets: dict[str, list[Sample]] = {"alone": [], "among others": [], "transparent": []}
    index = 0
    while any(len(samples) < args.count for samples in sets.values()):
        index += 1
        scene = maker.draw(256, False, np.random.default_rng([7, index]))
        if scene.transparent:
            kind = "transparent"
        elif scene.others == 1:
            continue
        else:
            kind = "among others" if scene.others else "alone"
        has_mask = draw(scene.alpha, "mask", str(index))[1].any()  # not for faint and tiny ones
        if len(sets[kind]) < args.count and has_mask:
            image = np.round(scene.image * 255).astype(np.uint8)
            sets[kind].append(Sample(str(index), image, scene.alpha, scene.transparent))
    return sets


def load(path: Path, variant: str, size: int) -> MattePredictor:
    """Load a model from a folder or from the weights of a variant."""
    settings = {"resolution": size, "crop_margin": 0.5}
    if path.is_dir():
        return MattePredictor.from_pretrained(path, **settings)
    given = ["--objects", "1:none", "--backgrounds", "none", "--without", *without(variant)]
    model = build(make_parser().parse_args(given))
    load_checkpoint(model, path)
    return MattePredictor(model.eval(), **settings)


def score(predictor: MattePredictor, sets: dict[str, list[Sample]]) -> dict[str, float]:
    """Compute the mean MSE x 1000 per set and prompt, protocol official."""
    protocol, means = get_protocol("official"), {}
    for title, samples in sets.items():
        for prompt in PROMPTS:
            errors = []
            for sample in samples:
                arguments, _ = draw(sample.alpha, prompt, sample.name)
                arguments |= {"transparent": sample.transparent, "refine": "guided"}
                alpha = predictor.predict(**arguments, image=predictor.encode(sample.image)).alpha
                pred = (np.clip(alpha, 0, 1) * 255).astype(np.uint8)  # [0, 1] -> [0, 255]
                errors.append(mse(pred, protocol.as_scored(sample.alpha)))
            means[f"{title}, {prompt}"] = 1000 * float(np.mean(errors))
    return means


def test_variants(args: argparse.Namespace) -> None:
    """Score the trained variants; print and write the tables."""
    sets = draw_scenes(args)
    for folder in sorted(args.real.iterdir()) if args.real else ():
        if (folder / "alpha").is_dir():
            sets[folder.name] = [Sample(*one, False) for one in read_set(folder)]
    runs = {("shipped", ""): SMALL / "model.safetensors"}
    for path in sorted(args.output.glob("*-*.safetensors")):
        variant, _, seed = path.stem.partition("-")
        if variant in TITLES:
            runs[variant, seed] = path
    runs |= {(folder.name, ""): folder for folder in args.models}
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for (variant, seed), path in runs.items():
        scores[variant, seed] = score(load(path, variant, args.size), sets)
        print(variant, seed, {key: round(v, 1) for key, v in scores[variant, seed].items()})
    columns = list(next(iter(scores.values())))
    text = ""
    for title, keys in {
        "Mean of the prompts": [[c for c in columns if c.startswith(s + ", ")] for s in sets],
        **{p: [[f"{s}, {p}"] for s in sets] for p in PROMPTS},
    }.items():
        rows = []
        for variant in dict.fromkeys(variant for variant, _ in runs):
            seeds = [value for (name, _), value in scores.items() if name == variant]
            cells = [[np.mean([s[k] for k in group]) for s in seeds] for group in keys]
            if seeds:
                cells = [" / ".join(f"{value:.1f}" for value in cell) for cell in cells]
                rows.append([TITLES.get(variant, variant), *cells])
        text += f"{title}, MSE x 1000 of each seed\n\n{Table(['', *sets], rows).format()}\n\n"
    print(text)
    write_text(args.output / "scores.md", text)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/ablations"))
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train", allow_abbrev=False)
    training.add_argument("--variants", nargs="+", choices=[*ENCODERS, *PARTS], default=[*PARTS])
    training.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    training.add_argument("--jobs", type=int, default=1, help="number of concurrent runs")
    training.add_argument("--start", type=Path, help="model without a prior")
    training.add_argument("--prior", type=Path, help="the encoder's pretrained weights")
    training.add_argument(
        "--photos", type=Path, help="photographs for the statistics of a random encoder"
    )
    training.set_defaults(run=train_variants)
    testing = commands.add_parser("test")
    testing.add_argument("--objects", type=weighted, nargs="+", required=True, metavar="W:FOLDER")
    testing.add_argument("--backgrounds", type=Path, nargs="+", required=True)
    testing.add_argument("--count", type=int, default=32, help="scenes of each kind")
    testing.add_argument("--size", type=int, default=160)
    testing.add_argument(
        "--real", type=Path, metavar="FOLDER", help="folder of sets, image/ and alpha/"
    )
    testing.add_argument(
        "--models", type=Path, nargs="*", default=[], help="folders of other models"
    )
    testing.set_defaults(run=test_variants)
    args, rest = parser.parse_known_args()
    if args.run is train_variants:
        train_variants(args, rest)
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    else:
        test_variants(args)


if __name__ == "__main__":
    main()
