"""Train the initial checkpoint of the small model, SDMatte/assets/small/start.safetensors.

It stands in for Stable Diffusion: a long training, done once, that makes later ones short. It
composites in memory, at the resolution of training, which is cruder than the data pipeline and much
faster. Its sample set has other objects than the quickstart's, and none of the test part's kinds or
photographs. The learning rate never decays; trainings that start here do that. The shipped file was
made in an hour on two CPU cores::

    python tools/train_small_unet.py --steps 1900
    python tools/train_small_unet.py --steps 2400 --resume --sizes 64 --pixels 65536
    python tools/train_small_unet.py --steps 1400 --resume
"""

import argparse
import json
import logging
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import SDMatte
from SDMatte.data.transforms import make_trimap, to_gray
from SDMatte.images.io import read_alpha, read_image
from SDMatte.images.resize import to_tensor
from SDMatte.modeling import SDMatte as Model
from SDMatte.modeling.losses import MattingCriterion
from SDMatte.modeling.weights import load_checkpoint
from SDMatte.prompts.maps import box_prompt, mask_prompt, point_prompt
from SDMatte.prompts.types import PROMPT_TYPES
from SDMatte.runtime.files import replace_file
from SDMatte.samples import make_sample_set

logger = logging.getLogger("train_small_unet")
SMALL = Path(SDMatte.__file__).parent / "assets" / "small"
TRAIN = Path("Combined_Dataset/Training_set")
NUM_TRAIN, SEED = 6000, 1234
LEARNING_RATE = 1e-3
LOSSES = ["unknown_l1_loss", "known_l1_loss", "known_lap_loss", "unknown_lap_loss"]


def shrink(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize with area averaging."""
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


class Compositor:
    """Composites training images from foregrounds, alphas and backgrounds in memory."""

    def __init__(self, root: Path, side: int = 128):
        info = json.loads((root / "samples.json").read_text())["samples"]["train"]
        names = sorted(info)
        self.transparent = [info[name]["transparent"] for name in names]
        self.alphas, self.foregrounds = [], []
        for name in tqdm(names, "reading"):
            alpha = read_alpha(root / TRAIN / "combined_alpha" / name)
            fg = read_image((root / TRAIN / "combined_fg" / name).with_suffix(".jpg"))
            self.alphas.append(shrink((alpha * 255).round().astype(np.uint8), side, side))
            self.foregrounds.append(shrink(fg, side, side))
        self.backgrounds = [read_image(p) for p in sorted((root / "BG-20K").rglob("*.jpg"))]

    def background(self, size: int, random: np.random.Generator) -> np.ndarray:
        """Crop a background, float32 `[size, size, 3]` in [0, 1]."""
        image = self.backgrounds[random.integers(len(self.backgrounds))]
        sides = [int(n * random.uniform(0.5, 1)) for n in image.shape[:2]]
        y, x = (int(random.integers(n - s + 1)) for n, s in zip(image.shape, sides, strict=False))
        crop = shrink(image[y : y + sides[0], x : x + sides[1]], size, size)
        if random.random() < 0.3:
            crop = cv2.blur(crop, (int(random.integers(2, 7)),) * 2)
        return crop[:, :: random.choice([-1, 1])].astype(np.float32) / 255

    def draw(self, size: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
        """Compose an image `[size, size, 3]`; return it, its alpha `[size, size]`, and is_trans.

        Half of the images show the object twice, with one of the two as target; half of the others
        have another object beside or behind the target.
        """
        image = self.background(size, random)
        index = int(random.integers(len(self.alphas)))
        if random.random() < 0.5:
            half, kept = size // 2, int(random.integers(2))
            fg, alpha = self._object(index, half, size, random)
            image = image + (np.hstack([fg, fg]) - image) * np.hstack([alpha, alpha])[..., None]
            parts = [alpha, np.zeros_like(alpha)]
            return image, np.hstack(parts[::-1] if kept else parts), self.transparent[index]
        if random.random() < 0.5:
            self._place(image, int(random.integers(len(self.alphas))), random)
        return image, self._place(image, index, random), self.transparent[index]

    def _object(self, index: int, width: int, height: int, random: np.random.Generator):
        fg = shrink(self.foregrounds[index], width, height).astype(np.float32) / 255
        alpha = shrink(self.alphas[index], width, height).astype(np.float32) / 255
        turn = random.choice([-1, 1])
        return fg[:, ::turn], alpha[:, ::turn]

    def _place(self, image: np.ndarray, index: int, random: np.random.Generator) -> np.ndarray:
        """Composite an object at a random position, in place; return its alpha."""
        size = len(image)
        height, width = (int(size * random.uniform(0.5, 1)) for _ in range(2))
        y, x = (int(random.integers(size - n + 1)) for n in (height, width))
        fg, part = self._object(index, width, height, random)
        region = image[y : y + height, x : x + width]
        region += (fg - region) * part[..., None]
        alpha = np.zeros((size, size), np.float32)
        alpha[y : y + height, x : x + width] = part
        return alpha

    def batch(self, prompt: str, size: int, count: int, random: np.random.Generator) -> dict:
        """Draw a batch for a prompt, like those of the loader."""
        sizes = (max(2, size // 32), max(3, size // 16))
        samples = []
        for _ in range(count):
            image, alpha, is_trans = self.draw(size, random)
            image = to_gray(image) if random.random() < 0.1 else image
            drawn = {
                "bbox_mask": lambda a: box_prompt(a, random, 0.01),
                "point_mask": lambda a: point_prompt(a, random, size / 20),
                "mask": lambda a: mask_prompt(a, random, sizes),
            }[prompt](alpha)
            samples.append(
                {
                    "image": to_tensor(image),
                    "alpha": to_tensor(alpha),
                    "trimap": to_tensor(make_trimap(alpha, random, sizes)),
                    prompt: to_tensor(drawn.mask),
                    PROMPT_TYPES[prompt].coords_key: torch.from_numpy(drawn.coords),
                    "is_trans": torch.tensor(int(is_trans)),
                }
            )
        return {key: torch.stack([s[key] for s in samples]) for key in samples[0]}


def train(args: argparse.Namespace) -> None:
    """Train, and write the averaged weights every 100 steps."""
    make_sample_set(args.samples, num_train=NUM_TRAIN, num_test=8, size=176, seed=SEED)
    compositor = Compositor(args.samples)
    random = np.random.default_rng(SEED)
    torch.manual_seed(SEED)
    model = Model(SMALL, load_weight=["vae"], aux_input=None)
    model.to(memory_format=torch.channels_last)
    if args.resume:
        load_checkpoint(model, args.output)
    average = AveragedModel(model.unet, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    optimizer = torch.optim.AdamW(
        model.unet.parameters(), LEARNING_RATE, (0.9, 0.99), weight_decay=0.05
    )
    start, total = time.time(), 0.0
    for step in range(1, args.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, step / 100)
        size = args.sizes[step % len(args.sizes)]
        count = max(1, round(args.pixels / size**2))
        mix = model.settings.aux_input_list
        prompt = mix[random.integers(len(mix))]
        batch = compositor.batch(prompt, size, count, random)
        alpha = model(batch, aux_input=prompt)
        losses = MattingCriterion(LOSSES, size)(alpha, (batch["alpha"] + 1) / 2, batch["trimap"])
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.unet.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model.unet)
        total += loss.item()
        if step % 100 == 0:
            logger.info("step %d  loss %.3f  %.0f s", step, total / 100, time.time() - start)
            total = 0.0
        if step % 100 == 0 or step == args.steps:
            save(model, average.module, args.output)


def save(model: Model, unet: torch.nn.Module, path: Path) -> None:
    """Write a full float16 checkpoint with the given weights of the U-Net."""
    tensors = model.state_dict()
    tensors |= {f"unet.{name}": value for name, value in unet.state_dict().items()}
    tensors = {name: value.half().contiguous() for name, value in tensors.items()}
    with replace_file(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=Path, default=Path("data/samples_unet"))
    parser.add_argument("--output", type=Path, default=SMALL / "start.safetensors")
    parser.add_argument("--steps", type=int, default=1900)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[96, 96, 128], help="resolutions, in turn"
    )
    parser.add_argument(
        "--pixels", type=int, default=8 * 96**2, help="approximate pixels per batch"
    )
    parser.add_argument("--resume", action="store_true", help="start from the weights in --output")
    train(parser.parse_args())
