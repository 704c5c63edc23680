"""Train the small autoencoder shipped in SDMatte/assets/small/vae.

It learns to reconstruct mattes, photographs and prompt maps from the training part of a separate
sample set. ``python tools/train_small_vae.py`` produced the shipped weights in ten minutes on two
CPU cores. Options set the config, the length of the run and the size of the crops
(docs/ablations.md); `--test` scores mattes of data sets after a pass through the autoencoder::

    python tools/train_small_vae.py --config wide.json --output wide --test AIM-500 P3M
    python tools/train_small_vae.py --minutes 0 --start SDMatte/assets/small/model.safetensors \
        --test AIM-500 P3M
"""

import argparse
import json
import logging
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL
from score_small import read_set
from train_small import SMALL, Clock

from SDMatte.images.io import read_alpha, read_image
from SDMatte.modeling.losses import laplacian_loss
from SDMatte.modeling.weights import read_tensors
from SDMatte.samples import make_sample_set
from SDMatte.scoring.protocols import get_protocol, score_pair

logger = logging.getLogger("train_small_vae")
VAE = SMALL / "vae"
TRAIN = Path("Combined_Dataset/Training_set")
NUM_TRAIN, SEED = 400, 77
LEARNING_RATE = 2e-3
WARM_UP = 0.05  # fraction of the time
WHITENED = 64  # side of the images whose latents get unit covariance
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
    """Take a random crop of an image at a random scale; it may show the whole image."""
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


def build(args: argparse.Namespace) -> AutoencoderKL:
    """Build the autoencoder, with random weights or those of `--start`."""
    torch.manual_seed(SEED)
    config = json.loads(args.config.read_text())
    model = AutoencoderKL.from_config({**config, "scaling_factor": 1.0})
    if args.start is not None:
        tensors = read_tensors(args.start).items()
        own = {n.removeprefix("vae."): v for n, v in tensors if n.startswith("vae.")}
        model.load_state_dict(own or dict(tensors))
    return model.to(memory_format=torch.channels_last)


def train(model: AutoencoderKL, args: argparse.Namespace) -> None:
    """Train until the clock ends, whiten the latents, and write config and float16 weights."""
    make_sample_set(args.samples, num_train=NUM_TRAIN, num_test=8, seed=SEED)
    images = load_images(args.samples)
    random = np.random.default_rng(SEED)
    trained = model if args.start is None else model.decoder  # keeps the latents that others read
    model.requires_grad_(False)
    trained.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=args.lr, weight_decay=1e-4)
    kinds = ["matte"] * 3 + ["composite"] * 3 + ["background", "prompt"]
    clock, step = Clock(60 * args.minutes), 0
    while (progress := clock.progress()) < 1:
        step += 1
        decay = 0.5 * (1 + np.cos(np.pi * progress)) * min(1, progress / WARM_UP)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * max(0.01, decay)
        batch = np.stack([draw(images, kind, args.size, random) for kind in kinds])
        image = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1  # -> [-1, 1]
        # SDMatte reads the mean, too. Sampling would drown faint signals, especially colors; a
        # weak pull towards zero limits the scale instead.
        latent = model.encode(image).latent_dist.mean
        decoded = model.decode(latent).sample
        l1 = torch.nn.functional.l1_loss(decoded, image)
        lap = laplacian_loss(decoded.flatten(0, 1)[:, None], image.flatten(0, 1)[:, None])
        # Most of the images are gray, so with L1 alone, reconstructions would long stay gray.
        color, true_color = (x - x.mean(dim=1, keepdim=True) for x in (decoded, image))
        chroma = torch.nn.functional.mse_loss(color, true_color)
        loss = l1 + lap + 20 * chroma + DECAY * latent.pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            matte = (decoded[:3].mean(1) - image[:3].mean(1)).pow(2).mean().item() / 4
            logger.info(
                "step %d  l1 %.4f  lap %.4f  chroma %.4f  matte MSE %.5f  std %.2f  %.0f s",
                step,
                l1,
                lap,
                chroma,
                matte,
                latent.std(),
                clock.seconds(),
            )
    if args.start is None:
        whiten(model, images, random)
    save(model, args.output)


@torch.no_grad()
def whiten(model: AutoencoderKL, images: dict, random: np.random.Generator) -> None:
    """Give the latents zero mean and unit covariance without changing reconstructions.

    Trained without sampling, the latents have directions a hundred times fainter than others, and
    outlines lie in the faint ones, which a network that predicts latents would learn last. The
    change of basis is folded into the 1 x 1 convolutions on both sides of the latents.
    """
    kinds = ("matte", "composite", "background", "prompt")
    channels = model.config.latent_channels
    latents = []
    for _ in range(50):
        batch = np.stack([draw(images, kind, WHITENED, random) for kind in kinds])
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


def save(model: AutoencoderKL, output: Path) -> None:
    """Write the weights in float16, and the config."""
    copy = AutoencoderKL.from_config(model.config)
    copy.load_state_dict(model.state_dict())
    copy.half().save_pretrained(output)


@torch.no_grad()
def test(model: AutoencoderKL | None, folder: Path, size: int) -> None:
    """Print the error of true mattes after the autoencoder or, without a model, only resizing."""
    scores = []
    for _, _, alpha in read_set(folder):
        matte = cv2.resize(alpha, (size, size), interpolation=cv2.INTER_AREA)
        if model is not None:
            image = torch.from_numpy(matte * 2 - 1).expand(1, 3, size, size)  # [0, 1] -> [-1, 1]
            decoded = model.decode(model.encode(image).latent_dist.mean).sample
            matte = (decoded[0].mean(dim=0).numpy() + 1) / 2
        matte = cv2.resize(matte, alpha.shape[::-1], interpolation=cv2.INTER_LINEAR).clip(0, 1)
        pred = (matte * 255).astype(np.uint8)  # [0, 1] -> [0, 255], truncated
        scores.append(score_pair(pred, get_protocol("official").as_scored(alpha)))
    means = {key: np.mean([score[key] for score in scores]) for key in ("MSE", "MAD", "Grad")}
    title = "resized only" if model is None else "through the autoencoder"
    print(
        f"{folder.name} at {size}, {title}: MSE {1000 * means['MSE']:.2f}, "
        f"MAD {1000 * means['MAD']:.2f}, Grad {means['Grad']:.2f}"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=Path, default=Path("data/samples_vae"))
    parser.add_argument("--config", type=Path, default=VAE / "config.json")
    parser.add_argument(
        "--start", type=Path, help="weights to start from; only their decoder is trained"
    )
    parser.add_argument("--output", type=Path, default=VAE)
    parser.add_argument("--minutes", type=float, default=10, help="0: no training")
    parser.add_argument("--size", type=int, default=64, help="side of the crops")
    parser.add_argument("--lr", type=float, default=LEARNING_RATE)
    parser.add_argument(
        "--test", type=Path, nargs="+", default=[], help="folders of image/ and alpha/"
    )
    args = parser.parse_args()
    model = build(args)
    if args.minutes:
        train(model, args)
    for folder in args.test:
        for size in (128, 256):
            test(None, folder, size)
            test(model, folder, size)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()
