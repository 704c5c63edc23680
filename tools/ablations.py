"""Train the small model with and without the paper's additions, and compare it with baselines.

All variants start from the same random weights (with the shipped autoencoder), see the same images
in the same order, and take the same number of steps; they differ in one thing only. A second run
of the whole model with another seed shows the spread between runs. If the quickstart's model
exists, it is tested as well::

    python tools/ablations.py train                      # all variants, one after another
    python tools/ablations.py train whole opacity        # some; interrupted runs are resumed
    python tools/ablations.py test                       # tables of scores, with baselines
    python tools/ablations.py test --real FOLDER         # also on FOLDER/*/{image,alpha}
"""

import argparse
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import SDMatte.compat  # noqa: F401

import torch
from omegaconf import DictConfig
from safetensors.torch import save_file

from SDMatte.engine.train import train
from SDMatte.evaluation.baselines import GuidedGrabCut, PromptBaseline
from SDMatte.evaluation.methods import load_trained
from SDMatte.evaluation.run import run_test
from SDMatte.modeling.surgery import COORDINATE_LAYERS, coordinate_weights
from SDMatte.runtime.config import build, load_config
from SDMatte.runtime.files import write_text
from SDMatte.samples import make_sample_set
from SDMatte.scoring.tables import Table, display_name, score_table, to_display

logger = logging.getLogger("ablations")
CONFIG = "configs/SDMatte_small.py"
PROMPTS = ("box", "point", "mask")
Scores = dict[str, dict[str, float]]  # "SET/PROMPT" -> raw metrics

VARIANTS: dict[str, tuple[str, str, list[str]]] = {  # title, coordinate init, overrides
    "whole": ("whole model", "default", []),
    "seed": ("whole model, another seed", "default", ["train.seed=43"]),
    "coordinates": ("no coordinate embedding", "default", ["model.use_coor_input=False"]),
    "zeros": ("coordinate layers both zero, as in the reference", "zeros", []),
    "opacity": ("no opacity embedding", "default", ["model.use_opacity_input=False"]),
    "masking": ("no masked self-attention", "default", ["model.use_attention_mask=False"]),
    "visual": (
        "text instead of visual cross-attention",
        "default",
        ["model.use_encoder_hidden_states=False"],
    ),
}


def settings_of(name: str, args: argparse.Namespace) -> list[str]:
    """Return the overrides of a variant's run."""
    return [
        f"train.output_dir={args.output / name}",
        f"train.max_iter={args.steps}",
        "model.image_prior=null",
        f"dataloader.train.dataset.size={args.size}",
        f"dataloader.test.dataset.size={args.size}",
        f"dataloader.train.batch_size={args.batch_size}",
        "optimizer.betas=[0.9,0.99]",
        "lr_multiplier.warmup_iter=100",
        "train.evaluations=0",
        "train.ema.enabled=True",
        "train.ema.decay=0.995",
        *VARIANTS[name][2],
    ]


def run_variants(args: argparse.Namespace) -> None:
    """Train the variants; finished runs are kept."""
    make_sample_set(args.samples, num_train=args.num_train, num_test=8, size=256, seed=1)
    os.environ["SDMATTE_DATA_ROOT"] = str(args.samples)
    for name in args.variants or VARIANTS:
        settings = settings_of(name, args)
        start = args.output / name / "start.safetensors"
        if not start.exists():
            write_start(load_config(CONFIG, settings), VARIANTS[name][1], start)
        train(CONFIG, [*settings, f"train.init_checkpoint={start}"], resume=True)


def write_start(config: DictConfig, init: str, path: Path) -> None:
    """Write the random weights that a variant starts from, drawn with the run's seed."""
    torch.manual_seed(config.train.seed)
    tensors = build(config.model).state_dict()
    layers = tuple(f"unet.{layer}." for layer in COORDINATE_LAYERS)
    shapes = {n: tuple(t.shape) for n, t in tensors.items() if n.startswith(layers)}
    bare = {name.removeprefix("unet."): shape for name, shape in shapes.items()}
    tensors |= {f"unet.{n}": t for n, t in coordinate_weights(bare, init).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def test_all(args: argparse.Namespace) -> None:
    """Test the trained variants and the baselines; print and write the tables."""
    os.environ["SDMATTE_DATA_ROOT"] = str(args.test_samples)
    make_sample_set(args.test_samples)  # the quickstart's
    sets: list = ["AIM-500"] + [
        {"name": folder.name, "image": str(folder / "image"), "alpha": str(folder / "alpha")}
        for folder in sorted(args.real.resolve().iterdir() if args.real else ())
        if (folder / "alpha").is_dir()
    ]
    scores: dict[str, Scores] = {}
    trained = {"SDMatte_small": args.quickstart} | {
        title: args.output / name for name, (title, _, _) in VARIANTS.items()
    }
    for title, folder in trained.items():
        if not (folder / "model_final.pth").is_file():
            logger.warning("%s is skipped: %s does not exist.", title, folder / "model_final.pth")
            continue
        config = load_config(folder / "config.yaml")
        config.dataloader.test.dataset.names = sets
        model = load_trained(config, folder / "model_final.pth")
        scores[title] = run_test(config, model, prompts=PROMPTS)
    config = load_config(CONFIG)
    config.dataloader.test.dataset.names = sets
    for title, baseline in {
        "prompt as alpha": PromptBaseline,
        "GrabCut with guided filter": GuidedGrabCut,
    }.items():
        scores[title] = run_test(config, baseline, prompts=PROMPTS)
    text = "\n".join(report(scores, config.test.protocol))
    print(text)
    write_text(args.output / "scores.md", text)
    write_text(args.output / "scores.json", json.dumps(scores, indent=2) + "\n")


def report(scores: dict[str, Scores], protocol: str) -> Iterator[str]:
    """Yield the tables: first methods and baselines, then the variants."""
    variants = [title for title, _, _ in VARIANTS.values() if title in scores]
    methods = [title for title in scores if title not in variants]
    for key in next(iter(scores.values())):
        yield f"{key}, protocol {protocol}\n"
        yield score_table({title: scores[title][key] for title in methods}, display=True)
    for metric in ("MSE", "SAD"):
        shown = display_name(metric)
        yield f"\nVariants, {shown}, protocol {protocol}\n"
        keys = list(scores[variants[0]]) if variants else []
        rows = [
            [title, *(f"{to_display(scores[title][key])[metric]:.2f}" for key in keys)]
            for title in variants
        ]
        yield Table(["", *keys], rows).format() + "\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/ablations"))
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train")
    training.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    training.add_argument("--samples", type=Path, default=Path("data/samples_ablations"))
    training.add_argument("--num-train", type=int, default=3000)
    training.add_argument("--steps", type=int, default=1500)
    training.add_argument("--size", type=int, default=64)
    training.add_argument("--batch-size", type=int, default=8)
    training.set_defaults(run=run_variants)
    testing = commands.add_parser("test")
    testing.add_argument("--test-samples", type=Path, default=Path("data/samples"))
    testing.add_argument("--quickstart", type=Path, default=Path("output/quickstart/train"))
    testing.add_argument(
        "--real", type=Path, metavar="FOLDER", help="of sets with image/ and alpha/"
    )
    testing.set_defaults(run=test_all)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.run(args)


if __name__ == "__main__":
    main()
