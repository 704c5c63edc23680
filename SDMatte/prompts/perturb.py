"""Perturbed prompts, to measure how robust a model is (``robustness`` on the command line)."""

from collections.abc import Mapping

import cv2
import numpy as np
from pydantic import Field

from SDMatte.prompts.maps import Prompt, clip_box, prompt_of_box, prompt_of_mask, prompt_of_points
from SDMatte.prompts.types import NUM_POINTS
from SDMatte.runtime.schema import Settings


class PromptPerturbation(Settings):
    """``dataloader.test.dataset.perturb``: deterministic changes to the prompts of a test set.

    The defaults change nothing.
    """

    box: float = Field(
        default=0.0,
        gt=-0.5,
        le=10,
        description="Move each side of the box outwards by this fraction of its width or height, "
        "within the image; inwards if negative.",
    )
    points: int = Field(
        default=NUM_POINTS, ge=1, le=NUM_POINTS, description="Keep only this many points, in order."
    )
    mask: float = Field(
        default=0.0,
        ge=-1,
        le=1,
        description="Move the outline of the mask outwards by this fraction of the square root of "
        "its area; inwards if negative, which may erase a thin mask.",
    )
    opacity: bool = Field(default=False, description="Invert the opacity flag.")

    def describe(self, prompt: str) -> str:
        """Return a label of the changes to a prompt, safe in file names; "" if unchanged."""
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
        """Perturb the box, the points and the mask of a sample.

        Args:
            prompts: Prompts of the sample, by the names of their maps.
            radius: Sigma or radius of the points.
            psm: Shape of the points, ``"gauss"`` or ``"circle"``.

        Returns:
            The changed prompts. Prompts of empty alphas are not changed.
        """
        changed = {}
        if self.box and prompts["bbox_mask"].mask.any():
            changed["bbox_mask"] = _move_sides(prompts["bbox_mask"], self.box)
        if self.points < NUM_POINTS and prompts["point_mask"].mask.any():
            changed["point_mask"] = _keep_points(prompts["point_mask"], self.points, radius, psm)
        if self.mask and prompts["mask"].mask.any():
            changed["mask"] = _move_outline(prompts["mask"], self.mask)
        return changed


def _move_sides(prompt: Prompt, fraction: float) -> Prompt:
    height, width = prompt.mask.shape
    x0, y0, x1, y1 = prompt.coords.astype(np.float64) * (width, height, width, height)
    across, down = fraction * (x1 - x0), fraction * (y1 - y0)
    moved = np.rint([x0 - across, y0 - down, x1 + across, y1 + down]).astype(int)
    return prompt_of_box(clip_box(moved, (height, width)), (height, width))


def _keep_points(prompt: Prompt, number: int, radius: float, psm: str) -> Prompt:
    height, width = prompt.mask.shape
    pixels = np.rint(prompt.coords.reshape(-1, 2).astype(np.float64) * (width, height)).astype(int)
    drawn = 1 + np.flatnonzero(pixels.any(axis=1)).max(initial=0)  # the rest is padding
    points = [tuple(point) for point in pixels[: min(number, drawn)].tolist()]
    return prompt_of_points(points, (height, width), radius, psm)


def _move_outline(prompt: Prompt, fraction: float) -> Prompt:
    mask = (prompt.mask > 0).astype(np.uint8)
    distance = abs(fraction) * np.sqrt(np.count_nonzero(mask))
    # Unlike a dilation, a distance transform takes the same time for every distance.
    source = 1 - mask if fraction > 0 else mask
    away = cv2.distanceTransform(source, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return prompt_of_mask(away <= distance if fraction > 0 else away > distance)
