"""Trains the small autoencoder that ships in SDMatte/assets/small/vae.

It draws its own sample set (of which it sees the training part: none of the test part's kinds or
photographs), and learns to carry mattes, photographs and prompt maps. The shipped weights come
from ``python tools/train_small_vae.py`` with its defaults, on two CPU cores in ten minutes.
"""

import argparse
import json
import logging
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL

from SDMatte.images.io import read_alpha, read_image
from SDMatte.modeling.losses import laplacian_loss
from SDMatte.samples import make_sample_set

logger = logging.getLogger("train_small_vae")
TRAIN = Path("Combined_Dataset/Training_set")


def load_pictures(root: Path) -> dict[str, list[np.ndarray]]:
    """Reads the training part into memory: mattes, foregrounds and backgrounds, uint8 RGB."""
    names = sorted(path.name for path in (root / TRAIN / "combined_alpha").glob("*.png"))
    mattes = [(read_alpha(root / TRAIN / "combined_alpha" / n) * 255).round() for n in names]
    foregrounds = sorted((root / TRAIN / "combined_fg").iterdir())
    return {
        "matte": [np.repeat(m[..., None], 3, axis=2).astype(np.uint8) for m in mattes],
        "foreground": [read_image(path) for path in foregrounds],
        "background": [read_image(path) for path in sorted((root / "BG-20K").rglob("*.jpg"))],
    }


def random_crop(image: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Scales a picture so that a crop shows a random part of it, or all."""
    side = int(random.integers(size, max(size + 1, min(image.shape[:2]))))
    image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    top, left = random.integers(0, side - size + 1, 2)
    crop = image[top : top + size, left : left + size]
    return crop[:, ::-1] if random.random() < 0.5 else crop


def draw(pictures: dict, kind: str, size: int, random: np.random.Generator) -> np.ndarray:
    """Draws one training picture, uint8 [size, size, 3]."""
    if kind == "composite":
        index = int(random.integers(len(pictures["matte"])))
        height, width = pictures["matte"][index].shape[:2]
        background = pictures["background"][int(random.integers(len(pictures["background"])))]
        background = cv2.resize(background, (width, height), interpolation=cv2.INTER_AREA)
        alpha = pictures["matte"][index] / 255
        image = pictures["foreground"][index] * alpha + background * (1 - alpha)
        return random_crop(image.round().astype(np.uint8), size, random)
    if kind == "prompt":  # boxes and heat maps
        image = np.zeros((size, size, 3), np.uint8)
        x0, y0 = random.integers(0, size - 8, 2)
        if random.random() < 0.5:
            x1, y1 = random.integers([x0 + 4, y0 + 4], size + 1)
            image[y0:y1, x0:x1] = 255
        else:
            for x, y in random.integers(0, size, (10, 2)):
                image[y, x] = 255
            image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), random.uniform(3, 9))
            image = (image / image.max() * 255).astype(np.uint8)
        return image
    source = pictures[kind]
    crop = random_crop(source[int(random.integers(len(source)))], size, random)
    return 255 - crop if kind == "matte" and random.random() < 0.3 else crop


def train(args: argparse.Namespace) -> None:
    """Trains, whitens the latents, and writes config and float16 weights."""
    make_sample_set(args.samples, num_train=args.num_train, num_test=8, seed=args.seed)
    pictures = load_pictures(args.samples)
    random = np.random.default_rng(args.seed)
    torch.manual_seed(args.seed)
    config = json.loads((args.output / "config.json").read_text())
    model = AutoencoderKL.from_config({**config, "scaling_factor": 1.0})
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.steps, pct_start=0.05
    )
    kinds = ["matte"] * 3 + ["composite"] * 3 + ["background", "prompt"]
    start = time.time()
    for step in range(1, args.steps + 1):
        batch = np.stack([draw(pictures, kind, args.size, random) for kind in kinds])
        image = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1  # -> [-1, 1]
        # The mean, as the model reads it: sampling would only drown what is faint, first of all
        # the colours. A weak pull towards zero keeps the scale.
        latent = model.encode(image).latent_dist.mean
        decoded = model.decode(latent).sample
        l1 = torch.nn.functional.l1_loss(decoded, image)
        lap = laplacian_loss(decoded.flatten(0, 1)[:, None], image.flatten(0, 1)[:, None])
        # Most of the pictures are gray, so to L1 alone no colour is a good answer for long.
        colour, true_colour = (x - x.mean(dim=1, keepdim=True) for x in (decoded, image))
        chroma = torch.nn.functional.mse_loss(colour, true_colour)
        loss = l1 + lap + 20 * chroma + args.decay * latent.pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            matte = (decoded[:3].mean(1) - image[:3].mean(1)).pow(2).mean().item() / 4
            logger.info(
                "step %d/%d  l1 %.4f  lap %.4f  chroma %.4f  matte MSE %.5f  std %.2f  %.0f s",
                step,
                args.steps,
                l1,
                lap,
                chroma,
                matte,
                latent.std(),
                time.time() - start,
            )
    whiten(model, pictures, args.size, random)
    save(model, args.output, {**config, "scaling_factor": 1.0})


@torch.no_grad()
def whiten(
    model: AutoencoderKL, pictures: dict, size: int, random: np.random.Generator, batches: int = 50
) -> None:
    """Gives the latents mean 0 and covariance 1, without changing what the autoencoder rebuilds.

    Trained without sampling, the latents have directions a hundred times fainter than others,
    and outlines lie in the faint ones: a network that writes latents would learn those last. The
    change of coordinates goes into the 1 x 1 convolutions on both sides of the latents.
    """
    kinds = ("matte", "composite", "background", "prompt")
    channels = model.config.latent_channels
    latents = []
    for _ in range(batches):
        batch = np.stack([draw(pictures, kind, size, random) for kind in kinds])
        image = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1  # -> [-1, 1]
        latent = model.encode(image).latent_dist.mean
        latents.append(latent.movedim(1, -1).reshape(-1, channels).double())
    latents = torch.cat(latents)
    mean = latents.mean(dim=0)
    variances, axes = torch.linalg.eigh(torch.cov(latents.T))
    forward = axes * variances.rsqrt() @ axes.T
    backward = axes * variances.sqrt() @ axes.T
    # Of the encoder's output the first half is the mean, the second the unused log-variance.
    before, after = model.quant_conv, model.post_quant_conv
    weight, bias = before.weight[:channels, :, 0, 0], before.bias[:channels]
    bias.copy_(forward @ (bias.double() - mean))
    weight.copy_(forward @ weight.double())
    weight = after.weight[:, :, 0, 0]
    after.bias += (weight.double() @ mean).float()
    weight.copy_(weight.double() @ backward)
    logger.info("whitened; the latents' standard deviations were %s", variances.sqrt().tolist())


def save(model: AutoencoderKL, output: Path, config: dict) -> None:
    """Writes the weights in float16, and the config with its scaling factor."""
    copy = AutoencoderKL.from_config(config)
    copy.load_state_dict(model.state_dict())
    copy.half().save_pretrained(output)
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=Path, default=Path("data/samples_vae"))
    parser.add_argument("--output", type=Path, default=Path("SDMatte/assets/small/vae"))
    parser.add_argument("--num-train", type=int, default=400)
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=77)
    train(parser.parse_args())
