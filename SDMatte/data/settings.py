"""The knobs of the way from files to a sample; the defaults are the ``official`` preset."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from SDMatte.errors import ConfigError

_TRAIN_RADIUS, _TEST_RADIUS = 25, 35
_TRAIN_JITTER, _TEST_JITTER = 0.01, 0.0


@dataclass(frozen=True)
class DataSettings:
    """How samples are made (data/README.md, steps 2 to 8). Sizes are pixels of the resized picture.

    Attributes:
        duplicate_prob: Probability that a composite shows its object twice.
        blur_prob: Probability that the background of a composite is blurred.
        blur_sizes: The box sizes of that blur, in pixels of the composite before resizing.
        kernel_sizes: Smallest and largest size of the ellipses that make trimaps and masks;
            both can be drawn. A picture much smaller than 512 needs smaller ones.
        mask_threshold: Smallest and largest threshold of the mask prompt.
        box_jitter: Largest shift of a box's sides, as a share of its width and height. None:
            .01 in training, 0 in test.
        point_radius: Sigma of a point's Gaussian, or radius of its disc. None: 25 in training
            (at 512), 35 in test (at 1024). Other sizes want it in proportion.
        psm: ``"gauss"`` or ``"circle"``, the shape of a point in the map.
        gray_prob: Probability that a training picture loses its colours.
    """

    duplicate_prob: float = 1.0
    blur_prob: float = 0.5
    blur_sizes: tuple[int, ...] = (20, 30, 40, 50, 60)
    kernel_sizes: tuple[int, int] = (15, 29)
    mask_threshold: tuple[float, float] = (0.01, 1.0)
    box_jitter: float | None = None
    point_radius: float | None = None
    psm: str = "gauss"
    gray_prob: float = 0.2

    def __post_init__(self) -> None:
        """Checks the values; lists of a config become tuples."""
        for name in ("blur_sizes", "kernel_sizes", "mask_threshold"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("duplicate_prob", "blur_prob", "gray_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a probability, {getattr(self, name)} is not.")
        for name in ("kernel_sizes", "mask_threshold"):
            pair = getattr(self, name)
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise ConfigError(f"{name} must be a smallest and a largest value, not {pair}.")
        if self.psm not in ("gauss", "circle"):
            raise ConfigError(f"psm must be 'gauss' or 'circle', not {self.psm!r}.")
        if self.point_radius is not None and self.point_radius <= 0:
            raise ConfigError(f"point_radius must be larger than 0, not {self.point_radius}.")
        if self.box_jitter is not None and not 0 <= self.box_jitter <= 1:
            raise ConfigError(f"box_jitter must lie in [0, 1], not {self.box_jitter}.")

    @classmethod
    def of(cls, settings: "DataSettings | Mapping[str, Any] | None") -> "DataSettings":
        """Makes settings of a mapping, as a config holds it.

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
                f"Unknown data settings {', '.join(unknown)}; known are {', '.join(known)}."
            )
        return cls(**given)

    def radius(self, training: bool) -> float:
        """The radius of points, in training or in test."""
        if self.point_radius is not None:
            return self.point_radius
        return _TRAIN_RADIUS if training else _TEST_RADIUS

    def jitter(self, training: bool) -> float:
        """The largest shift of a box's sides, in training or in test."""
        if self.box_jitter is not None:
            return self.box_jitter
        return _TRAIN_JITTER if training else _TEST_JITTER
