"""The knobs of the way from files to a sample; the defaults are the ``official`` preset."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from SDMatte.errors import ConfigError

_TRAIN_RADIUS, _TEST_RADIUS = 25, 35
_TRAIN_JITTER, _TEST_JITTER = 0.01, 0.0


_PROBABILITIES = (
    "duplicate_prob",
    "blur_prob",
    "gray_prob",
    "flip_prob",
    "soften_prob",
    "jpeg_prob",
)
_PAIRS = {  # largest value allowed
    "kernel_sizes": 1000,
    "mask_threshold": 1,
    "soften_sigma": 1000,
    "jpeg_quality": 100,
}
_LARGEST_BLUR = 10_000
_LARGEST_RADIUS = 10_000
_SHARES = {  # likewise
    "box_jitter": 1,
    "box_loosen": 10,
    "brightness": 1,
    "contrast": 1,
    "saturation": 1,
    "hue": 0.5,
}


@dataclass(frozen=True)
class DataSettings:
    """How samples are made (data/README.md, steps 1 to 8). Sizes are pixels of the resized picture.

    The second half is not in the paper's code and off by default; all of it but ``box_loosen``,
    ``keep_aspect``, ``decode`` and ``cache_mb`` is for training alone. Each choice has a random
    stream of its own: to switch one on leaves all others as they were.

    Attributes:
        duplicate_prob: Probability that a composite shows its object twice.
        blur_prob: Probability that the background of a composite is blurred.
        blur_sizes: The box sizes of that blur, in pixels of the composite before resizing.
        kernel_sizes: Smallest and largest size of the ellipses that make trimaps and masks;
            both can be drawn. A picture much smaller than 512 needs smaller ones.
        mask_threshold: Smallest and largest threshold of the mask prompt.
        box_jitter: Largest shift of a box's sides, in or out, as a share of its width and height.
            None: .01 in training, 0 in test.
        point_radius: Sigma of a point's Gaussian, or radius of its disc. None: 25 in training
            (at 512), 35 in test (at 1024). Other sizes want it in proportion.
        psm: ``"gauss"`` or ``"circle"``, the shape of a point in the map.
        gray_prob: Probability that a training picture loses its colours.
        box_loosen: Each side of a box moves outwards by its own share, up to this, of the box's
            width or height; after the jitter. For training with loose boxes, and for testing how
            robust a model is to them.
        keep_aspect: Keeps the proportions of pictures. Training cuts a random square that holds
            the object, as far as one can; test resizes to about as many pixels as the square has,
            sides in multiples of ``size_multiple``. Off, pictures are squashed.
        size_multiple: See ``keep_aspect``: what the model wants (64 for the published ones).
        flip_prob: Probability of a left-right flip, of everything together.
        brightness: Largest change of a factor on the brightness: .2 draws from .8 to 1.2.
        contrast: The same for the contrast.
        saturation: The same for the saturation.
        hue: Largest shift of the hue, as a share of the colour circle, at most .5.
        soften_prob: Probability of a Gaussian blur of the whole picture.
        soften_sigma: Smallest and largest sigma of that blur.
        jpeg_prob: Probability of JPEG artifacts.
        jpeg_quality: Smallest and largest JPEG quality, 1 to 100.
        decode: ``"full"``, or ``"reduced"``: pictures are read at a half, a quarter or an eighth
            of their size where that is still enough, and composited there. Much faster with large
            files; docs/data_fast_mode.md shows what it changes.
        cache_mb: Megabytes of read pictures that each loader process may keep; samples are the
            same with and without. For sets that fit.
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
    box_loosen: float = 0.0
    keep_aspect: bool = False
    size_multiple: int = 64
    flip_prob: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    soften_prob: float = 0.0
    soften_sigma: tuple[float, float] = (0.5, 2.0)
    jpeg_prob: float = 0.0
    jpeg_quality: tuple[int, int] = (50, 95)
    decode: str = "full"
    cache_mb: float = 0.0

    def __post_init__(self) -> None:
        """Checks the values; lists of a config become tuples."""
        for name in ("blur_sizes", *_PAIRS):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        for name in _PROBABILITIES:
            if not is_number(getattr(self, name)) or not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a probability, {getattr(self, name)!r} is not.")
        for name, largest in _PAIRS.items():
            pair = getattr(self, name)
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= largest:
                raise ConfigError(
                    f"{name} must be a smallest and a largest value, above 0 and at most "
                    f"{largest}, not {pair}."
                )
        check_whole("blur_sizes", self.blur_sizes, 1, _LARGEST_BLUR)
        check_whole("kernel_sizes", self.kernel_sizes, 1)
        check_whole("jpeg_quality", self.jpeg_quality, 1)
        check_whole("size_multiple", (self.size_multiple,), 1)
        for name, largest in _SHARES.items():
            value = getattr(self, name)
            if value is None and name == "box_jitter":
                continue
            if not is_number(value) or not 0 <= value <= largest:
                raise ConfigError(f"{name} must lie in [0, {largest}], not {value!r}.")
        if self.psm not in ("gauss", "circle"):
            raise ConfigError(f"psm must be 'gauss' or 'circle', not {self.psm!r}.")
        if self.decode not in ("full", "reduced"):
            raise ConfigError(f"decode must be 'full' or 'reduced', not {self.decode!r}.")
        if not isinstance(self.keep_aspect, bool):
            raise ConfigError(f"keep_aspect must be true or false, not {self.keep_aspect!r}.")
        radius = self.point_radius
        if radius is not None and not (is_number(radius) and 0 < radius <= _LARGEST_RADIUS):
            raise ConfigError(
                f"point_radius must be larger than 0 and at most {_LARGEST_RADIUS}, not {radius!r}."
            )
        if not is_number(self.cache_mb) or self.cache_mb < 0:
            raise ConfigError(f"cache_mb must be at least 0, not {self.cache_mb!r}.")

    @classmethod
    def of(cls, settings: "DataSettings | Mapping[str, Any] | None") -> "DataSettings":
        """Makes settings of a mapping, as a config holds it.

        Raises:
            ConfigError: A key is unknown or a value cannot be.
        """
        if isinstance(settings, cls):
            return settings
        if not isinstance(settings, Mapping | None):
            raise ConfigError(f"The data settings are a mapping of names to values: {settings!r}.")
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


def check_whole(
    name: str, values: Iterable[Any], smallest: int, largest: float = float("inf")
) -> None:
    """Sees that values are whole numbers of a range.

    Raises:
        ConfigError: One is not.
    """
    for value in values:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or not smallest <= value <= largest:
            allowed = f"of at least {smallest}"
            if isfinite(largest):
                allowed = f"from {smallest} to {largest}"
            raise ConfigError(f"{name} takes whole numbers {allowed}, not {value!r}.")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _numbers(name: str, values: Any) -> tuple[Any, ...]:
    """Makes a tuple of a setting that is a list of numbers."""
    values = tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else ()
    if not values or not all(map(is_number, values)):
        raise ConfigError(f"{name} must be a list of numbers.")
    return values
