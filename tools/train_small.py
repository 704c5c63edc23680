"""Train the small model that ships, `SDMatte/assets/small/model.safetensors`.

It starts from an image classifier's weights (`--prior`) and the small autoencoder
(`tools/train_small_vae.py`), and learns from scenes that are composited on the fly
(`tools/small_scenes.py`). docs/small_model.md has the sources of the objects and the commands. A
run stops after `--minutes`, saves its state every few minutes, and resumes from it. On a GPU,
everything but the decoder and the losses computes in bfloat16::

    python tools/train_small.py --objects POOL --backgrounds PHOTOS --prior lite0.pth --minutes 60
"""

import argparse
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from small_scenes import Scene, SceneMaker, draw_prompt, read_backgrounds, read_cutouts
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

import SDMatte
from SDMatte.data.transforms import make_trimap
from SDMatte.images.resize import to_tensor
from SDMatte.modeling import SDMatte as Model
from SDMatte.modeling.losses import MattingCriterion
from SDMatte.modeling.weights import load_checkpoint, read_tensors, write_tensors
from SDMatte.prompts.types import PROMPT_TYPES
from SDMatte.runtime.files import replace_file

logger = logging.getLogger("train_small")
SMALL = Path(SDMatte.__file__).parent / "assets" / "small"
# Each scene is used twice, the second time mirrored: composing a scene is slower than a prompt.
PROMPTS = (("bbox_mask", "mask"), ("bbox_mask", "point_mask"))
CLOSE = (0.9, 0.5)  # for each pair of PROMPTS, the probability that a scene is a close-up
LOSSES = ["unknown_l1_loss", "known_l1_loss", "known_lap_loss", "unknown_lap_loss"]
BCE_WEIGHT = 0.5
SAVE_EVERY = 240  # seconds


class Clock:
    """Seconds of training, over all runs, out of a total."""

    def __init__(self, total: float, earlier: float = 0.0):
        self.total, self.earlier, self.start = total, earlier, time.time()

    def seconds(self) -> float:
        """Return the seconds so far."""
        return self.earlier + time.time() - self.start

    def progress(self) -> float:
        """Return the fraction of the total."""
        return self.seconds() / self.total


class Batches(IterableDataset):
    """Endless batches of composited scenes, each with one kind of prompt."""

    def __init__(self, maker: SceneMaker, clock: "Clock", sizes: list, pixels: int, seed: int):
        self.maker, self.clock, self.sizes = maker, clock, sizes
        self.pixels, self.seed = pixels, seed

    def __iter__(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """Draw a batch: the prompt and the tensors of the loader."""
        cv2.setNumThreads(0)
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            progress = self.clock.progress()
            size = next(size for size, until in self.sizes if progress <= until or until == 1)
            kind = rng.integers(len(PROMPTS))
            count = max(1, round(self.pixels / size**2))
            scenes = [self.maker.draw(size, rng.random() < CLOSE[kind], rng) for _ in range(count)]
            for prompt in PROMPTS[kind]:
                samples = [self._sample(scene, prompt, rng) for scene in scenes]
                yield prompt, {key: torch.stack([s[key] for s in samples]) for key in samples[0]}
                scenes = [scene.mirrored() for scene in scenes]

    def _sample(
        self, scene: Scene, prompt: str, rng: np.random.Generator
    ) -> dict[str, torch.Tensor]:
        size, drawn = len(scene.alpha), draw_prompt(scene, prompt, rng)
        return {
            "image": to_tensor(scene.image),
            "alpha": torch.from_numpy(scene.alpha)[None],
            "trimap": to_tensor(make_trimap(scene.alpha, rng, (2, max(3, size // 20)))),
            prompt: to_tensor(drawn.mask),
            PROMPT_TYPES[prompt].coords_key: torch.from_numpy(drawn.coords),
            "is_trans": torch.tensor(int(scene.transparent)),
        }


def build(args: argparse.Namespace) -> Model:
    """Build the model: random U-Net, pretrained autoencoder, and the classifier's weights."""
    torch.manual_seed(args.seed)
    model = Model(
        args.model,
        load_weight=[] if args.random else ["vae"],
        aux_input=None,
        image_prior=args.encoder,
        **dict.fromkeys(args.without, False),
    )
    assert model.image_prior is not None
    if args.start is not None:
        start = read_tensors(args.start)
        missing, _ = model.load_state_dict(start, strict=False)
        if any(name.startswith("unet.") for name in missing):
            raise SystemExit(f"{args.start} has no U-Net of this model.")
        if any(name.startswith("image_prior.") for name in missing):
            with torch.no_grad():  # a new prior must not disturb the trained U-Net too much
                for projection in model.image_prior.projections:
                    projection[-1].weight.mul_(0.3)
    if args.prior is not None:
        # The package's names differ from timm's, but not its order.
        own = model.image_prior.encoder.state_dict()
        given = torch.load(args.prior, weights_only=True).values()
        for (name, value), tensor in zip(own.items(), given, strict=False):
            if value.shape != tensor.shape:
                raise SystemExit(f"{args.prior}: {name} is {list(tensor.shape)}.")
            value.copy_(tensor)
    if args.decoder_factor:
        model.vae.decoder.requires_grad_(True)
    # On CPUs this is faster than channels_last for the small U-Net, and slower for the encoder.
    model.to(args.device).image_prior.to(memory_format=torch.channels_last)
    return model


def predict(model: Model, prompt: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Predict alpha `[B, 1, H, W]`, not clipped: pixels beyond 0 and 1 keep their gradient."""
    image = batch["image"]
    kind = PROMPT_TYPES[prompt]
    with torch.autocast("cuda", torch.bfloat16, enabled=image.is_cuda):
        latent, _ = model.predict_latent(
            model.encode(image),
            batch[prompt],
            batch[kind.coords_key],
            kind,
            is_trans=batch["is_trans"],
            residuals=model.encode_prior(image),
        )
    decoded = model.vae.decode((latent / model.vae.config.scaling_factor).float()).sample
    return (decoded.mean(dim=1, keepdim=True) + 1) / 2  # [-1, 1] -> [0, 1]


def loss_of(alpha: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute the matting losses, and cross-entropy where alpha is known."""
    size = alpha.shape[-1]
    losses = MattingCriterion(LOSSES, size)(alpha, batch["alpha"], batch["trimap"])
    known = (batch["trimap"] != 0).float()
    inside = alpha.clamp(1e-3, 1 - 1e-3)
    entropy = F.binary_cross_entropy(inside, batch["alpha"], reduction="none")
    return sum(losses.values()) + BCE_WEIGHT * (entropy * known).sum() / known.sum().clamp(min=1)


def train(args: argparse.Namespace) -> None:
    """Train until the clock ends; write the averaged weights and the state."""
    objects = [(w, read_cutouts([Path(folder)])) for w, folder in args.objects]
    logger.info("objects: %s", [len(group) for _, group in objects])
    maker = SceneMaker(objects, read_backgrounds(args.backgrounds))
    model = build(args)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    factors = {
        "unet.": 1.0,
        "image_prior.projections.": 1.0,
        "image_prior.encoder.": args.encoder_factor,
        "vae.decoder.": args.decoder_factor,
    }
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in parameters.items() if n.startswith(part)], "rate": args.lr * f}
        for part, f in factors.items()
        if f
    ]
    optimizer = torch.optim.AdamW(groups, args.lr, (0.9, 0.99), weight_decay=0.02, fused=True)
    trained = torch.nn.ParameterDict({n.replace(".", "/"): p for n, p in parameters.items()})
    average = AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(args.ema))
    samples, earlier = 0, 0.0
    state_path = args.output.with_suffix(".state")
    if state_path.exists():
        state = torch.load(state_path, map_location="cpu", weights_only=True)
        load_checkpoint(model, args.output)  # buffers; the parameters follow
        trained.load_state_dict(state["trained"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(optimizer.param_groups, groups, strict=True):
            group["rate"] = rate["rate"]
        earlier, samples = state["seconds"], state["samples"]
        logger.info("resumed after %.0f s, %d samples", earlier, samples)
    clock = Clock(60 * args.minutes, earlier)
    batches = Batches(maker, clock, args.sizes, args.pixels, args.seed + samples)
    device = torch.device(args.device)
    loader = DataLoader(
        batches, batch_size=None, num_workers=args.workers, pin_memory=device.type == "cuda"
    )

    def save() -> None:
        tensors = dict(model.state_dict())
        shadow = {n.replace("/", "."): v for n, v in average.module.state_dict().items()}
        tensors |= shadow
        for name in ("vae.decoder.conv_out.weight", "vae.decoder.conv_out.bias"):
            tensors[name] = tensors[name] * args.stretch
        halves = {n: v.half() if v.is_floating_point() else v for n, v in tensors.items()}
        write_tensors(halves, args.output)
        state = {
            "trained": trained.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "seconds": clock.seconds(),
            "samples": samples,
        }
        with replace_file(state_path) as temporary:
            torch.save(state, temporary)

    saved, step = time.time(), 0
    losses: list[torch.Tensor] = []
    waited, before = 0.0, time.time()
    for prompt, batch in loader:
        if clock.progress() >= 1:
            break
        waited += time.time() - before
        step += 1
        decay = 0.5 * (1 + np.cos(np.pi * clock.progress())) * min(1, step / 100)
        for group in optimizer.param_groups:
            group["lr"] = float(group["rate"] * max(0.01, decay))
        batch = {n: v.to(device, non_blocking=True) for n, v in batch.items()}
        loss = loss_of(predict(model, prompt, batch), batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(trained)
        losses.append(loss.detach())
        samples += len(batch["image"])
        if step % 25 == 0:
            mean = torch.stack(losses).mean().item()
            logger.info(
                "%.0f s  %d samples  loss %.4f  waited %.1f s for data",
                *(clock.seconds(), samples, mean, waited),
            )
            losses.clear()
            waited = 0.0
        if time.time() - saved > SAVE_EVERY:
            save()
            saved = time.time()
        before = time.time()
    save()


def weighted(text: str) -> tuple[float, str]:
    """Parse WEIGHT:FOLDER."""
    weight, _, folder = text.partition(":")
    return float(weight), folder


def sized(text: str) -> tuple[int, float]:
    """Parse SIZE:UNTIL."""
    size, _, until = text.partition(":")
    return int(size), float(until)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=weighted, nargs="+", required=True, metavar="W:FOLDER")
    parser.add_argument("--backgrounds", type=Path, nargs="+", required=True)
    parser.add_argument("--start", type=Path, help="weights of a model, with or without a prior")
    parser.add_argument("--prior", type=Path, help="the encoder's pretrained weights")
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--model", type=Path, default=SMALL, help="folder of the component configs")
    parser.add_argument("--without", nargs="*", default=[], help="settings of the model to disable")
    parser.add_argument("--random", action="store_true", help="a random autoencoder, for tests")
    parser.add_argument("--output", type=Path, default=SMALL / "model.safetensors")
    parser.add_argument("--minutes", type=float, default=60, help="total of all runs")
    parser.add_argument(
        "--sizes",
        type=sized,
        nargs="+",
        default=[(128, 0.6), (192, 0.8), (256, 1.0)],
        metavar="SIZE:UNTIL",
        help="side of the images until a fraction of the time, which ends with 1",
    )
    parser.add_argument("--pixels", type=int, default=16 * 128**2, help="pixels per batch")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--encoder-factor", type=float, default=0.1)
    parser.add_argument("--decoder-factor", type=float, default=0.0, help="0: freeze it")
    parser.add_argument(
        "--stretch",
        type=float,
        default=1.0,
        help="factor on the last layer of the saved weights: the loss penalizes values beyond 0 "
        "and 1, which mattes clip, so outputs do not reach 0 and 1 (needs --decoder-factor)",
    )
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = make_parser()
    options = parser.parse_args()
    if options.stretch != 1 and not options.decoder_factor:
        parser.error("--stretch needs --decoder-factor, else every resumed run stretches further")
    train(options)
