"""Settings of the data pipeline; the defaults follow the paper."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from SDMatte.runtime.schema import Settings

_Fraction = Annotated[float, Field(ge=0, le=1)]
_Size = Annotated[int, Field(ge=1, le=1000)]
_Threshold = Annotated[float, Field(gt=0, le=1)]
_BlurSize = Annotated[int, Field(ge=1, le=10_000)]


class DataSettings(Settings):
    """Settings that control how files become samples (data/README.md, "From files to samples").

    Sizes are in pixels of the resized image. Settings from ``box_loosen`` on go beyond the paper
    and are off by default. Each random choice has its own stream, so enabling one does not change
    the others.
    """

    duplicate_prob: _Fraction = Field(
        1.0, description="Probability that a composite shows its object twice."
    )
    blur_prob: _Fraction = Field(
        0.5, description="Probability that the background of a composite is blurred."
    )
    blur_sizes: tuple[_BlurSize, ...] = Field(
        (20, 30, 40, 50, 60),
        min_length=1,
        strict=False,
        description="Kernel sizes of the box blur, in pixels of the composite before resizing.",
    )
    kernel_sizes: tuple[_Size, _Size] = Field(
        (15, 29),
        strict=False,
        description="Smallest and largest elliptical kernel for trimaps and masks. Images much "
        "smaller than 512 need smaller kernels.",
    )
    mask_threshold: tuple[_Threshold, _Threshold] = Field(
        (0.01, 1.0),
        strict=False,
        description="Smallest and largest alpha threshold of the mask prompt.",
    )
    box_jitter: _Fraction | None = Field(
        None,
        description="Largest shift of a box's sides, inward or outward, as a fraction of its width "
        "or height. None: 0.01 for training, 0 for testing.",
    )
    point_radius: float | None = Field(
        None,
        gt=0,
        le=10_000,
        description="Sigma of a point's Gaussian, or radius of its disc; scale it with the "
        "resolution. None: 25 for training (at 512), 35 for testing (at 1024).",
    )
    psm: Literal["gauss", "circle"] = Field("gauss", description="Shape of a point in the map.")
    gray_prob: _Fraction = Field(
        0.2, description="Probability that a training image is converted to gray."
    )
    box_loosen: float = Field(
        0.0,
        ge=0,
        le=10,
        description="After the jitter, each side of a box moves outward by a random fraction of "
        "the width or height, up to this value. Training and testing.",
    )
    keep_aspect: bool = Field(
        False,
        description="Keep the aspect ratio. Training crops a random square around the object, and "
        "composites get a square background. Testing resizes to about `size`² pixels, with sides "
        "that are multiples of `size_multiple`; images of different shapes need `batch_size=1`.",
    )
    size_multiple: int = Field(
        64, ge=1, description="See `keep_aspect`; the published models need 64."
    )
    flip_prob: _Fraction = Field(
        0.0, description="Probability of a horizontal flip before prompts are drawn. Training only."
    )
    brightness: _Fraction = Field(
        0.0,
        description="Largest change of the brightness factor: 0.2 draws from 0.8 to 1.2. Training "
        "only.",
    )
    contrast: _Fraction = Field(0.0, description="Like `brightness`, for contrast.")
    saturation: _Fraction = Field(0.0, description="Like `brightness`, for saturation.")
    hue: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Largest shift of the hue, as a fraction of the color wheel. Training only.",
    )
    decode: Literal["full", "reduced"] = Field(
        "full",
        description="`reduced` decodes and composites images at 1/2, 1/4 or 1/8 of their size "
        "where that is large enough; see docs/data_fast_mode.md.",
    )
    cache_mb: float = Field(
        0.0,
        ge=0,
        description="Megabytes of decoded images that each loader worker caches; does not change "
        "samples.",
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_removed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Drop removed augmentations that are off, which the config.yaml of older runs lists."""
        values = dict(values)
        for prob, amount in (("soften_prob", "soften_sigma"), ("jpeg_prob", "jpeg_quality")):
            if values.pop(prob, 0) != 0:
                raise ValueError(f"no longer has {prob}: remove it, or set it to 0")
            values.pop(amount, None)
        return values

    @field_validator("kernel_sizes", "mask_threshold")
    @classmethod
    def _check_order(cls, pair: tuple[float, float]) -> tuple[float, float]:
        if pair[0] > pair[1]:
            raise ValueError("must be in ascending order: the smallest and the largest value")
        return pair

    def radius(self, training: bool) -> float:
        """Return the point radius for training or testing."""
        published = 25 if training else 35
        return published if self.point_radius is None else self.point_radius

    def jitter(self, training: bool) -> float:
        """Return the largest shift of a box's sides for training or testing."""
        published = 0.01 if training else 0.0
        return published if self.box_jitter is None else self.box_jitter
