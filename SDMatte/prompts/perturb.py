"""Prompts that are worse than those of the published tests, to see what a model makes of them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np

from SDMatte.errors import ConfigError
from SDMatte.prompts.maps import Prompt, prompt_of_box, prompt_of_mask, prompt_of_points
from SDMatte.prompts.types import NUM_POINTS


@dataclass(frozen=True)
class PromptPerturbation:
    """How the prompts of a test set are changed, drawn ones and those of a prompt file alike.

    Nothing here is random. The defaults change nothing.

    Attributes:
        box: By what share of the box's width or height each of its sides moves outwards, as far as
            the picture goes; below 0 inwards. Above -0.5, up to 10.
        points: How many points there are, 1 to 10: the first ones of those drawn.
        mask: By what share of the square root of its area the mask's outline moves outwards; below
            0 inwards, where a thin mask may vanish. -1 to 1.
        opacity: True: objects are said to be transparent where they are opaque, and the reverse.
    """

    box: float = 0.0
    points: int = NUM_POINTS
    mask: float = 0.0
    opacity: bool = False

    def __post_init__(self) -> None:
        """Checks the values."""
        limits = {"box": (-0.5, 10), "mask": (-1, 1), "points": (1, NUM_POINTS)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            kind = int if name == "points" else (int, float)
            fits = isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high
            if not fits or value == -0.5:
                raise ConfigError(
                    f"perturb.{name} cannot be {value!r}: from {low} to {high} it is."
                )
        if not isinstance(self.opacity, bool):
            raise ConfigError(f"perturb.opacity is true or false, not {self.opacity!r}.")

    @classmethod
    def of(cls, settings: "PromptPerturbation | Mapping[str, Any] | None") -> "PromptPerturbation":
        """Makes it of a mapping, as a config holds it.

        Raises:
            ConfigError: A key is unknown or a value cannot be.
        """
        if isinstance(settings, cls):
            return settings
        given = dict(settings or {})
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ConfigError(
                f"Prompts cannot be made worse by {', '.join(unknown)}, but by {', '.join(known)}."
            )
        return cls(**given)

    def describe(self, prompt: str) -> str:
        """Says how a prompt is changed, in a form fit for file names; "" if it is not.

        Args:
            prompt: The name of its map, such as ``"bbox_mask"``.
        """
        changes = []
        if prompt == "bbox_mask" and self.box:
            changes.append(f"sides{self.box:+g}")
        if prompt == "point_mask" and self.points < NUM_POINTS:
            changes.append(f"points={self.points}")
        if prompt == "mask" and self.mask:
            changes.append(f"outline{self.mask:+g}")
        if self.opacity:
            changes.append("opacity=wrong")
        return ",".join(changes)

    def change(self, prompts: Mapping[str, Prompt], radius: float, psm: str) -> dict[str, Prompt]:
        """Makes box, points and mask worse.

        Args:
            prompts: The prompts of a sample, by the names of their maps.
            radius: Sigma or radius of the points.
            psm: Their shape, ``"gauss"`` or ``"circle"``.

        Returns:
            Those that change; prompts of empty alphas stay empty.
        """
        changed = {}
        if self.box and prompts["bbox_mask"].mask.any():
            changed["bbox_mask"] = _move_sides(prompts["bbox_mask"], self.box)
        if self.points < NUM_POINTS and prompts["point_mask"].mask.any():
            changed["point_mask"] = _keep_points(prompts["point_mask"], self.points, radius, psm)
        if self.mask and prompts["mask"].mask.any():
            changed["mask"] = _move_outline(prompts["mask"], self.mask)
        return changed


def _move_sides(prompt: Prompt, share: float) -> Prompt:
    height, width = prompt.mask.shape
    x0, y0, x1, y1 = prompt.coords.astype(np.float64) * (width, height, width, height)
    across, down = share * (x1 - x0), share * (y1 - y0)
    moved = np.rint([x0 - across, y0 - down, x1 + across, y1 + down]).astype(int)
    moved = np.clip(moved, 0, (width - 1, height - 1, width - 1, height - 1))
    return prompt_of_box(tuple(moved.tolist()), (height, width))


def _keep_points(prompt: Prompt, number: int, radius: float, psm: str) -> Prompt:
    height, width = prompt.mask.shape
    pixels = np.rint(prompt.coords.reshape(-1, 2).astype(np.float64) * (width, height)).astype(int)
    there = 1 + np.flatnonzero(pixels.any(axis=1)).max(initial=0)  # the rest is padding
    points = [tuple(point) for point in pixels[: min(number, there)].tolist()]
    return prompt_of_points(points, (height, width), radius, psm)


def _move_outline(prompt: Prompt, share: float) -> Prompt:
    mask = (prompt.mask > 0).astype(np.uint8)
    distance = abs(share) * np.sqrt(np.count_nonzero(mask))
    # Distances, not a dilation: its time does not grow with how far the outline moves.
    source = 1 - mask if share > 0 else mask
    away = cv2.distanceTransform(source, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return prompt_of_mask(away <= distance if share > 0 else away > distance)
