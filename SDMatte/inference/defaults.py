"""Inference defaults that are stored with a model."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from SDMatte.runtime.schema import Settings

Refinement = Literal["none", "guided", "tiles"]

SMALL_MODEL = Path(__file__).parents[1] / "assets" / "small"
"""The small model that is bundled with the package."""


class InferenceDefaults(Settings):
    """How a model processes images, unless the caller overrides it."""

    resolution: int = Field(
        1024, gt=0, description="Side of the square that images are resized to, in pixels."
    )
    keep_aspect: bool = Field(
        False, description="Keep the aspect ratio, with about as many pixels as the square."
    )
    point_radius: float | None = Field(
        None,
        gt=0,
        description="Sigma of a point's Gaussian, or radius of its disc, in pixels at that "
        "resolution. None: 35/1024 of the resolution.",
    )
    psm: Literal["gauss", "circle"] = Field("gauss", description="Shape of a point in the map.")
    crop_margin: float | None = Field(
        None,
        ge=0,
        description="Crop images to the prompt plus this fraction of its extent on each side, for "
        "small models. None: use the whole image, as published.",
    )
    refine: Refinement = Field(
        "none", description="How to refine mattes of large images: none, guided or tiles."
    )

    def radius_at(self, resolution: int) -> float:
        """Return the `point_radius` at another resolution, in pixels."""
        radius = 35 / 1024 * self.resolution if self.point_radius is None else self.point_radius
        return radius * resolution / self.resolution
