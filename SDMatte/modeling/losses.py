"""Losses of training and distillation.

Each matting loss covers a region of the trimap: *unknown*, *known* or the whole image. Losses of a
region are divided by its fraction of the pixels, so that they do not depend on its size (paper,
Sec. 3.5).
"""

from collections.abc import Callable, Collection, Sequence

import torch
import torch.nn.functional as F

from SDMatte.errors import ConfigError

LAPLACIAN_LEVELS = 5
LAPLACIAN_MIN_SIZE = 4 * 2 ** (LAPLACIAN_LEVELS - 1)
"""Levels have even sizes, and the filter reflects two pixels at the border: the last needs four."""
DICE_SMOOTHING = 1e-3
DISTILLATION_WEIGHT = 0.01


def _check_names(setting: str, names: Sequence[str], known: Collection[str]) -> None:
    if names is None or isinstance(names, str) or not names or set(names) - set(known):
        raise ConfigError(
            f"{setting} must be a non-empty list of {', '.join(known)}; got {names!r}."
        )


class MattingCriterion:
    """Matting losses between predicted and true alpha.

    Args:
        losses: Names from `MATTING_LOSSES`.
        size: Height and width of the images. The scale of a region's loss is
            `B * size**2 / pixels of the region`.

    Raises:
        ConfigError: A name is unknown, or the size is invalid or too small for a loss.
    """

    def __init__(self, losses: Sequence[str], size: int = 512):
        _check_names("criterion.losses", losses, MATTING_LOSSES)
        if not isinstance(size, int) or size < 1:
            raise ConfigError(f"criterion.size must be a positive number of pixels; got {size!r}.")
        pyramids = [name for name in losses if MATTING_LOSSES[name][1] is laplacian_loss]
        if pyramids and size < LAPLACIAN_MIN_SIZE:
            raise ConfigError(
                f"{pyramids[0]} needs images of at least {LAPLACIAN_MIN_SIZE} pixels; "
                f"criterion.size (dataloader.train.dataset.size) is {size}."
            )
        self.losses = tuple(losses)
        self.size = size

    def __call__(
        self, pred: torch.Tensor, label: torch.Tensor, trimap: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Compute the losses, always in float32.

        Args:
            pred: Predicted alpha, `[B, 1, H, W]` in [0, 1].
            label: True alpha, `[B, 1, H, W]` in [0, 1].
            trimap: `[B, 1, H, W]`: -1 background, 0 unknown, 1 foreground.

        Returns:
            A scalar per loss name.
        """
        pred, label = pred.float(), label.float()
        unknown = (trimap == 0).to(pred)
        regions = {"unknown": unknown, "known": 1 - unknown}
        result = {}
        # Half precision is too coarse for Laplacian pyramids and pixel counts.
        with torch.autocast(pred.device.type, enabled=False):
            for name in self.losses:
                region_name, function = MATTING_LOSSES[name]
                if region_name == "all":
                    result[name] = function(pred, label)
                    continue
                region = regions[region_name]
                pixels = region.sum()
                scale = torch.where(pixels > 0, len(pred) * self.size**2 / pixels.clamp(min=1), 0.0)
                if function is gradient_penalty:
                    value = gradient_penalty(pred, label, region)
                else:
                    value = function(pred * region, label * region)
                result[name] = value * scale
        return result


def dice_loss(pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Compute one minus the Dice coefficient of the batch, with the label thresholded at 0.5."""
    label = (label > 0.5).to(pred)
    overlap = (pred * label).sum()
    return 1 - (2 * overlap + DICE_SMOOTHING) / (pred.sum() + label.sum() + DICE_SMOOTHING)


def gradient_penalty(pred: torch.Tensor, label: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Compute the L1 of Sobel gradient differences, plus 0.01 times that of `pred`'s gradients.

    Gradients are computed on the whole image and then restricted to the region. Masking the image
    first would add gradients along the outline of the region.
    """
    sobel = torch.tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = _upload(torch.stack([sobel, sobel.T]).unsqueeze(1), pred)  # [2, 1, 3, 3]: x, y
    pred_grad = F.conv2d(pred, kernels, padding=1) * region
    label_grad = F.conv2d(label, kernels, padding=1) * region
    per_direction = (pred_grad - label_grad).abs() + 0.01 * pred_grad.abs()
    return per_direction.mean(dim=(0, 2, 3)).sum()


def laplacian_loss(pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Compute the weighted L1 between the Laplacian pyramids of two images `[B, 1, H, W]`."""
    row = torch.tensor([1, 4, 6, 4, 1])
    kernel = _upload((row[:, None] * row[None, :] / 256)[None, None], pred)  # [1, 1, 5, 5]
    pairs = zip(_laplacian_pyramid(pred, kernel), _laplacian_pyramid(label, kernel), strict=True)
    total = sum(2**level * F.l1_loss(p, t) for level, (p, t) in enumerate(pairs))
    return total / LAPLACIAN_LEVELS


def _upload(kernel: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Copy a kernel to the device and dtype of an image, without blocking."""
    return kernel.to(image.device, image.dtype, non_blocking=True)


def _laplacian_pyramid(image: torch.Tensor, kernel: torch.Tensor) -> list[torch.Tensor]:
    def blur(image: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), kernel)

    differences = []
    for _ in range(LAPLACIAN_LEVELS):
        image = image[..., : image.shape[-2] // 2 * 2, : image.shape[-1] // 2 * 2]
        down = blur(image)[..., ::2, ::2]
        up = torch.zeros_like(image)
        up[..., ::2, ::2] = down * 4
        differences.append(image - blur(up))
        image = down
    return differences


MATTING_LOSSES: dict[str, tuple[str, Callable]] = {
    "unknown_l1_loss": ("unknown", F.l1_loss),
    "known_l1_loss": ("known", F.l1_loss),
    "unknown_lap_loss": ("unknown", laplacian_loss),
    "known_lap_loss": ("known", laplacian_loss),
    "loss_gradient_penalty": ("unknown", gradient_penalty),
    "l1_loss": ("all", F.l1_loss),
    "mse_loss": ("all", F.mse_loss),
    "lap_loss": ("all", laplacian_loss),
    "dice_loss": ("all", dice_loss),
    "bce_loss": ("all", F.binary_cross_entropy),
}
"""Region and function of each loss, by published name."""

DISTILLATION_LOSSES: dict[str, Callable] = {
    "mse": F.mse_loss,
    "mse_loss": F.mse_loss,
    "l1": F.l1_loss,
    "l1_loss": F.l1_loss,
}


class DistillationCriterion:
    """Loss between the features of student and teacher (paper, Sec. 4.4).

    Args:
        losses: `"mse"`, `"l1"` or both, which are summed.

    Raises:
        ConfigError: A name is unknown.
    """

    def __init__(self, losses: Sequence[str] = ("mse",)):
        _check_names("distillation.criterion.losses", losses, DISTILLATION_LOSSES)
        self.losses = tuple(losses)

    def __call__(
        self, student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Compute the loss, always in float32.

        Args:
            student: Features as returned by `SDMatte.modeling.SDMatte`.
            teacher: Features of the teacher, of the same shapes; they get no gradient.

        Returns:
            A scalar: 0.01 times the sum of the losses over the features.

        Raises:
            ConfigError: The shapes differ: student and teacher have different widths.
        """
        shapes = [[tuple(f.shape) for f in features] for features in (student, teacher)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"Student and teacher must have features of the same shapes; got {shapes[0]} and "
                f"{shapes[1]}."
            )
        with torch.autocast(student[0].device.type, enabled=False):
            total = sum(
                DISTILLATION_LOSSES[name](s.float(), t.detach().float())
                for s, t in zip(student, teacher, strict=True)
                for name in self.losses
            )
            return DISTILLATION_WEIGHT * total
