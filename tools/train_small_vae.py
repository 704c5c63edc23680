"""Train the small autoencoder shipped in SDMatte/assets/small/vae.

It learns to reconstruct mattes, photographs and prompt maps, from the training part of a separate
sample set. ``python tools/train_small_vae.py`` made the shipped weights in ten minutes on two CPU
cores.
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
NUM_TRAIN, SEED = 400, 77
SIZE = 64
LEARNING_RATE = 2e-3
DECAY = 1e-4  # weight of the latents' squared magnitude


def load_images(root: Path) -> dict[str, list[np.ndarray]]:
    """Read mattes, foregrounds and backgrounds of the training part into memory, uint8 RGB."""
    names = sorted(path.name for path in (root / TRAIN / "combined_alpha").glob("*.png"))
    mattes = [(read_alpha(root / TRAIN / "combined_alpha" / n) * 255).round() for n in names]
    foregrounds = sorted((root / TRAIN / "combined_fg").iterdir())
    return {
        "matte": [np.repeat(m[..., None], 3, axis=2).astype(np.uint8) for m in mattes],
        "foreground": [read_image(path) for path in foregrounds],
        "background": [read_image(path) for path in sorted((root / "BG-20K").rglob("*.jpg"))],
    }


def random_crop(image: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Crop a random part of an image, up to all of it, at a random scale."""
    side = int(random.integers(size, max(size + 1, min(image.shape[:2]))))
    image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    top, left = random.integers(0, side - size + 1, 2)
    crop = image[top : top + size, left : left + size]
    return crop[:, ::-1] if random.random() < 0.5 else crop


def draw(images: dict, kind: str, size: int, random: np.random.Generator) -> np.ndarray:
    """Draw one training image of a kind, uint8 `[size, size, 3]`."""
    if kind == "composite":
        index = int(random.integers(len(images["matte"])))
        height, width = images["matte"][index].shape[:2]
        background = images["background"][int(random.integers(len(images["background"])))]
        background = cv2.resize(background, (width, height), interpolation=cv2.INTER_AREA)
        alpha = images["matte"][index] / 255
        image = images["foreground"][index] * alpha + background * (1 - alpha)
        return random_crop(image.round().astype(np.uint8), size, random)
    if kind == "prompt":  # a box or a heat map
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
    source = images[kind]
    crop = random_crop(source[int(random.integers(len(source)))], size, random)
    return 255 - crop if kind == "matte" and random.random() < 0.3 else crop


def train(args: argparse.Namespace) -> None:
    """Train, whiten the latents, and write config and float16 weights."""
    make_sample_set(args.samples, num_train=NUM_TRAIN, num_test=8, seed=SEED)
    images = load_images(args.samples)
    random = np.random.default_rng(SEED)
    torch.manual_seed(SEED)
    config = json.loads((args.output / "config.json").read_text())
    model = AutoencoderKL.from_config({**config, "scaling_factor": 1.0})
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=args.steps, pct_start=0.05
    )
    kinds = ["matte"] * 3 + ["composite"] * 3 + ["background", "prompt"]
    start = time.time()
    for step in range(1, args.steps + 1):
        batch = np.stack([draw(images, kind, SIZE, random) for kind in kinds])
        image = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1  # -> [-1, 1]
        # SDMatte reads the mean, too. Sampling would drown faint signals, above all the colors;
        # a weak pull towards zero keeps the scale instead.
        latent = model.encode(image).latent_dist.mean
        decoded = model.decode(latent).sample
        l1 = torch.nn.functional.l1_loss(decoded, image)
        lap = laplacian_loss(decoded.flatten(0, 1)[:, None], image.flatten(0, 1)[:, None])
        # Most of the images are gray, so L1 alone would settle for no color for long.
        color, true_color = (x - x.mean(dim=1, keepdim=True) for x in (decoded, image))
        chroma = torch.nn.functional.mse_loss(color, true_color)
        loss = l1 + lap + 20 * chroma + DECAY * latent.pow(2).mean()
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
    whiten(model, images, random)
    save(model, args.output, {**config, "scaling_factor": 1.0})


@torch.no_grad()
def whiten(model: AutoencoderKL, images: dict, random: np.random.Generator) -> None:
    """Give the latents zero mean and unit covariance without changing reconstructions.

    Trained without sampling, the latents have directions a hundred times fainter than others, and
    outlines lie in the faint ones: a network that predicts latents would learn those last. The
    change of basis is folded into the 1 x 1 convolutions on both sides of the latents.
    """
    kinds = ("matte", "composite", "background", "prompt")
    channels = model.config.latent_channels
    latents = []
    for _ in range(50):
        batch = np.stack([draw(images, kind, SIZE, random) for kind in kinds])
        image = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1  # -> [-1, 1]
        latent = model.encode(image).latent_dist.mean
        latents.append(latent.movedim(1, -1).reshape(-1, channels).double())
    latents = torch.cat(latents)
    mean = latents.mean(dim=0)
    variances, axes = torch.linalg.eigh(torch.cov(latents.T))
    forward = axes * variances.rsqrt() @ axes.T
    backward = axes * variances.sqrt() @ axes.T
    # The encoder outputs the mean, followed by the log-variance, which is not used.
    before, after = model.quant_conv, model.post_quant_conv
    weight, bias = before.weight[:channels, :, 0, 0], before.bias[:channels]
    bias.copy_(forward @ (bias.double() - mean))
    weight.copy_(forward @ weight.double())
    weight = after.weight[:, :, 0, 0]
    after.bias += (weight.double() @ mean).float()
    weight.copy_(weight.double() @ backward)
    logger.info("whitened latents; their standard deviations were %s", variances.sqrt().tolist())


def save(model: AutoencoderKL, output: Path, config: dict) -> None:
    """Write the weights in float16, and the config."""
    copy = AutoencoderKL.from_config(config)
    copy.load_state_dict(model.state_dict())
    copy.half().save_pretrained(output)
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=Path, default=Path("data/samples_vae"))
    parser.add_argument("--output", type=Path, default=Path("SDMatte/assets/small/vae"))
    parser.add_argument("--steps", type=int, default=1300)
    train(parser.parse_args())
