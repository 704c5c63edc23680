"""Interactive matting: encode an image once, then predict mattes for any number of prompts."""

import contextlib
import copy
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import cv2
import numpy as np
from tqdm import tqdm

from SDMatte.errors import ConfigError, DataError, DependencyError, PromptError
from SDMatte.images.arrays import flatten, read_pixels
from SDMatte.images.resize import Window, aspect_shape, resize_alpha, resize_bilinear
from SDMatte.inference.defaults import SMALL_MODEL, InferenceDefaults, Refinement
from SDMatte.inference.detection import Detector, FoundBox, best_boxes
from SDMatte.inference.guided import refine_with_guide
from SDMatte.inference.onnx import OnnxNetwork, load_exported, read_card
from SDMatte.inference.result import MatteResult
from SDMatte.inference.tiles import refine_with_tiles
from SDMatte.prompts.maps import extent
from SDMatte.prompts.pixels import PixelPrompt, check_text, read_prompts, select_prompt
from SDMatte.prompts.types import DETECTOR, DETECTOR_THRESHOLD, PROMPT_TYPES, get_prompt_type

if TYPE_CHECKING:  # torch takes seconds to import, and exported models run without it
    import torch

    from SDMatte.inference.network import TorchNetwork
    from SDMatte.modeling import SDMatte

logger = logging.getLogger(__name__)

_MAX_ASPECT = 16
_PREDICT_KEYS = ("box", "points", "mask", "trimap", "text", "transparent")


@dataclass(frozen=True)
class EncodedImage:
    """An image and its encoding, for any number of prompts.

    Attributes:
        image: uint8 ``[H, W, 3]``, RGB; mid-gray where the image is fully transparent.
        size: Height and width of the model's input.
        encode: Computes ``encoding``.
        opacity: The image's own alpha, float32 ``[H, W]`` in [0, 1]; None if it is opaque.
    """

    image: np.ndarray
    size: tuple[int, int]
    encode: Callable[[], "tuple[Any, tuple[Any, ...]]"] = field(repr=False)
    opacity: np.ndarray | None = None

    @functools.cached_property
    def encoding(self) -> "tuple[Any, tuple[Any, ...]]":
        """The latent, and the residuals of the image prior, if the model has one.

        Models that crop images to prompts compute it only if a prompt needs the whole image.
        """
        return self.encode()

    @property
    def latent(self) -> Any:
        """``[1, C, h, w]``, on the predictor's device; a NumPy array for exported models."""
        return self.encoding[0]


class _Task(NamedTuple):
    """One matte to predict."""

    encoded: EncodedImage
    prompt: PixelPrompt
    transparent: bool
    found: FoundBox | None = None


class MattePredictor:
    """Predict mattes interactively.

    Example::

        predictor = MattePredictor.from_pretrained("LongfeiHuang/SDMatte")
        predictor.set_image("photo.jpg")
        result = predictor.predict(box=(10, 20, 300, 400))
        result.alpha  # float32 [H, W] in [0, 1]

    Args:
        model: A model on its device, which is set to evaluation mode, or an exported model.
        resolution: Side of the square that images are resized to, a multiple of the model's
            ``size_divisor``. None: that of ``defaults``.
        keep_aspect: Keep the aspect ratio of images, up to 16 : 1, with about as many pixels as the
            square. The published models were trained and tested on squares. None: as in
            ``defaults``.
        crop_margin: Crop images to the prompt plus this fraction of its extent on each side, for
            small models, which are trained on such crops. A large value keeps the whole image.
            None: as in ``defaults``.
        prompts: Short names of the allowed prompts. None: those that the model was trained with
            (its ``aux_input_list``), ``auto`` if they include boxes, and ``trimap`` if they include
            masks.
        batch_size: Number of mattes to predict together.
        defaults: How the model processes images.
        device: Device to run on. None: the model's device; required for offloaded models.
        progress: Show the number of tiles of ``refine="tiles"`` on standard error.
        detector: Finds the boxes of text prompts: a folder or hub id of a zero-shot detector
            (Grounding DINO, OWLv2), which is loaded when the first text is given; a `Detector`; or
            a function with the same signature.
        detector_threshold: Lowest score of a box that is used, in [0, 1].

    Raises:
        ConfigError: A setting is invalid.
    """

    def __init__(
        self,
        model: "SDMatte | OnnxNetwork",
        *,
        resolution: int | None = None,
        keep_aspect: bool | None = None,
        crop_margin: float | None = None,
        prompts: Iterable[str] | None = None,
        batch_size: int = 4,
        defaults: InferenceDefaults | None = None,
        device: "torch.device | str | None" = None,
        progress: bool = False,
        detector: str | Path | Callable[[np.ndarray, str], list[FoundBox]] = DETECTOR,
        detector_threshold: float = DETECTOR_THRESHOLD,
    ):
        defaults = defaults or InferenceDefaults()
        self._network = _network_of(model, device)
        self.model: Any = model
        self.device: Any = self._network.device
        self.resolution = defaults.resolution if resolution is None else resolution
        self.keep_aspect = defaults.keep_aspect if keep_aspect is None else keep_aspect
        self.crop_margin = defaults.crop_margin if crop_margin is None else crop_margin
        self.refine = defaults.refine
        self.batch_size = batch_size
        self.progress = progress
        _check_multiple("resolution", self.resolution, self._network.size_divisor)
        _check_multiple("batch_size", batch_size, 1)
        margin = self.crop_margin
        if margin is not None and not 0 <= margin < np.inf:
            raise ConfigError(f"crop_margin must be at least 0; got {margin!r}.")
        if not 0 <= detector_threshold <= 1:
            raise ConfigError(
                f"detector_threshold must be from 0 to 1; got {detector_threshold!r}."
            )
        self.detector = detector
        self.detector_threshold = detector_threshold
        self.point_radius = defaults.radius_at(self.resolution)
        self.psm = defaults.psm
        self.prompts = _allowed_prompts(self._network.trained_prompts, prompts)
        self._current: EncodedImage | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path | None = None,
        checkpoint: str | Path | None = None,
        *,
        device: "str | torch.device" = "auto",
        dtype: "str | torch.dtype" = "auto",
        resolution: int | None = None,
        keep_aspect: bool | None = None,
        crop_margin: float | None = None,
        prompts: Iterable[str] | None = None,
        batch_size: int = 4,
        offload: bool = False,
        progress: bool = False,
        detector: str | Path | Callable[[np.ndarray, str], list[FoundBox]] = DETECTOR,
        detector_threshold: float = DETECTOR_THRESHOLD,
    ) -> "MattePredictor":
        """Load a published model or one trained with this project.

        Args:
            path_or_hub_id: A folder or hub id with component configs and a checkpoint beside them
                (``LongfeiHuang/SDMatte``, ``LongfeiHuang/LiteSDMatte``, or a folder written by
                ``save_pretrained``), the output folder of a training run, or a checkpoint in one of
                these; or a folder written by ``sdmatte export``, which runs without torch. None:
                the bundled small model.
            checkpoint: Name of the checkpoint in the folder, such as ``SDMatte_plus.pth`` for
                SDMatte*. None: the default one.
            device: ``"auto"`` (CUDA, else MPS, else the CPU) or the name of a device.
            dtype: ``"auto"`` (bfloat16 for full-size models where it is fast, else float32) or a
                floating-point type; see `SDMatte.runtime.devices.choose_dtype`.
            resolution: See `MattePredictor`.
            keep_aspect: See `MattePredictor`.
            crop_margin: See `MattePredictor`.
            prompts: See `MattePredictor`.
            batch_size: See `MattePredictor`.
            offload: Keep the model on the CPU and move only the active part to the device, for GPUs
                with little memory.
            progress: See `MattePredictor`.
            detector: See `MattePredictor`.
            detector_threshold: See `MattePredictor`.

        Raises:
            CheckpointError: The model was not found, or its weights do not fit.
            ConfigError: A setting is invalid.
            DependencyError: The model needs a package that is not installed.
        """
        if path_or_hub_id is None:
            path_or_hub_id = SMALL_MODEL
            logger.warning(
                "Using the bundled small model. The published model, LongfeiHuang/SDMatte (5 GB), "
                "is far better."
            )
        folder = Path(path_or_hub_id)
        model: SDMatte | OnnxNetwork
        if read_card(folder):
            model = load_exported(folder, checkpoint, device, dtype, offload)
            defaults, used_device = model.defaults, None
        else:
            model, defaults, used_device = _load(path_or_hub_id, checkpoint, device, dtype, offload)
        return cls(
            model,
            resolution=resolution,
            keep_aspect=keep_aspect,
            crop_margin=crop_margin,
            prompts=prompts,
            batch_size=batch_size,
            defaults=defaults,
            device=used_device,
            progress=progress,
            detector=detector,
            detector_threshold=detector_threshold,
        )

    def at_resolution(self, resolution: int) -> "MattePredictor":
        """Return a predictor with the same model and settings at another resolution.

        Raises:
            ConfigError: ``resolution`` is not a multiple of the model's ``size_divisor``.
        """
        _check_multiple("resolution", resolution, self._network.size_divisor)
        other = copy.copy(self)
        other.resolution = resolution
        other.point_radius = self.point_radius * resolution / self.resolution
        other._current = None
        return other

    def set_image(self, image: Any, *, ignore_alpha: bool = False) -> EncodedImage:
        """Encode the image for the following calls of `predict`.

        Transparent images are composited on mid-gray for the model. Mattes never exceed the image's
        own alpha, and colors where alpha is 0 are never used.

        Args:
            image: A path, a Pillow image, an array ``[H, W, 3]`` or a tensor ``[3, H, W]``, RGB,
                uint8 or floating point in [0, 1]; gray and alpha channels are supported. See
                `SDMatte.images.arrays.read_pixels`.
            ignore_alpha: Treat the image as opaque, with its colors as stored.

        Returns:
            The encoded image, for ``predict(..., image=...)`` if several are in use.

        Raises:
            DataError: ``image`` is not an image or cannot be read. No image is set then.
            ConfigError: Memory is too small for the resolution. For models that crop images to
                prompts, `predict` raises it.
        """
        self._current = None
        self._current = self.encode(image, ignore_alpha=ignore_alpha)
        return self._current

    def encode(self, image: Any, *, ignore_alpha: bool = False) -> EncodedImage:
        """Encode an image like `set_image`, but keep the image that is set."""
        return self.encode_pixels(*read_pixels(image, ignore_alpha))

    def encode_pixels(self, colors: np.ndarray, opacity: np.ndarray | None) -> EncodedImage:
        """Encode the result of `read_pixels`, which may have run in another thread."""
        size = self._model_size(*colors.shape[:2])

        def encode() -> tuple[Any, tuple[Any, ...]]:
            return self._encode(flatten(colors, opacity), size)

        if self.crop_margin is None:
            encoding = encode()
            return EncodedImage(colors, size, lambda: encoding, opacity)
        return EncodedImage(colors, size, encode, opacity)  # perhaps only crops are needed

    def predict(
        self,
        *,
        box: Any = None,
        points: Any = None,
        mask: Any = None,
        trimap: Any = None,
        text: str | None = None,
        find_all: bool = False,
        transparent: bool | None = None,
        refine: str | None = None,
        image: EncodedImage | None = None,
    ) -> MatteResult | list[MatteResult]:
        """Predict the matte of the object that a prompt indicates.

        Give at most one prompt; without one, the salient object is matted. Coordinates are in
        pixels of the image. Prompts that do not fit the image raise an error and are never clipped.

        Args:
            box: x0, y0, x1, y1: the edges of the box, from 0 to the width and the height; or a list
                of boxes. Normalized coordinates raise an error.
            points: One to ten (x, y) on the object.
            mask: ``[H, W]``, a rough mask of the object: bool, 0 and 1, 0 to 255, or floating point
                in [0, 1]; or a list of masks. See `SDMatte.prompts.pixels.read_prompts`.
            trimap: ``[H, W]``: 0 background, 128 unknown, 255 foreground, or 0, 1, 2; or a list of
                trimaps.
            text: Description of the object, such as ``"the dog on the left"``. The detector's best
                box is the prompt; the result contains the box and its score.
            find_all: Predict a matte for every box found for the text, best first.
            transparent: Whether the object is transparent, such as glass or smoke. None: opaque.
            refine: ``"tiles"`` for a second pass over the edges at full resolution (see
                `SDMatte.inference.tiles`), ``"guided"`` for edges that follow the image's (see
                `SDMatte.inference.guided`), or ``"none"``. None: the model's default.
            image: An image from `encode` or `set_image`. None: the one that is set.

        Returns:
            The result, or a list of results for a list of prompts and for ``find_all``.

        Raises:
            PromptError: The prompt does not fit the image or the model, no image is set, or nothing
                is found for the text.
            CheckpointError: The detector was not found, or is not a zero-shot detector.
            DataError: ``image`` is not an `EncodedImage`.
            ConfigError: ``refine`` is unknown, values overflow in the model's ``dtype``, or memory
                is too small for the resolution.
        """
        encoded = self._current if image is None else image
        if encoded is None:
            raise PromptError("No image is set: call set_image first.")
        if not isinstance(encoded, EncodedImage):
            raise DataError("image must come from encode or set_image; pass other images there.")
        given = {"box": box, "points": points, "mask": mask, "trimap": trimap, "text": text}
        tasks, many = self._plan(encoded, transparent, find_all, **given)
        results = self._run(tasks, refine)
        return results if many else results[0]

    def predict_batch(
        self,
        images: Sequence[Any],
        prompts: Sequence[Mapping[str, Any]],
        refine: str | None = None,
        *,
        ignore_alpha: bool = False,
    ) -> list[MatteResult]:
        """Predict one matte for each of several images, in batches.

        Args:
            images: See `set_image`; the image that is set is kept.
            prompts: For each image, the arguments of `predict`, such as
                ``{"box": (10, 20, 300, 400)}``, with a single box, mask or trimap.
            refine: See `predict`.
            ignore_alpha: See `set_image`.

        Returns:
            The results, in the order of the images.

        Raises:
            DataError: One of ``images`` is not an image or cannot be read.
            PromptError: A prompt does not fit its image, or the numbers of images and prompts
                differ.
            ConfigError: See `predict`.
        """
        if len(images) != len(prompts):
            raise PromptError(f"{len(images)} images need as many prompts; got {len(prompts)}.")
        if len(images) == 0:
            return []
        tasks = []
        for image, given in zip(images, prompts, strict=True):
            if not isinstance(given, Mapping) or not set(given) <= set(_PREDICT_KEYS):
                raise PromptError(
                    f"Each prompt must be a mapping with keys of {', '.join(_PREDICT_KEYS)}; got "
                    f"{given!r:.80}."
                )
            encoded = self.encode(image, ignore_alpha=ignore_alpha)
            (task, *_), many = self._plan(encoded, **given)
            if many:
                raise PromptError("Each image takes one box, mask or trimap, not a list.")
            tasks.append(task)
        return self._run(tasks, refine)

    def _plan(
        self,
        encoded: EncodedImage,
        transparent: bool | None = None,
        find_all: bool = False,
        **given: Any,
    ) -> tuple[list[_Task], bool]:
        """Return the tasks of a prompt, and whether to return their results as a list."""
        if transparent is not None and not isinstance(transparent, bool | np.bool_):
            raise PromptError(f"transparent must be True, False or None; got {transparent!r}.")
        transparent = bool(transparent)
        text = select_prompt(**given).get("text")
        if text is None:
            if find_all:
                raise PromptError("find_all needs a text.")
            given.pop("text", None)
            prompts, many = read_prompts(encoded.image.shape[:2], **given)
            self._check_allowed(prompts[0].kind.alias)
            return [_Task(encoded, prompt, transparent) for prompt in prompts], many
        check_text(text)
        self._check_allowed("box")
        if isinstance(self.detector, str | Path):
            self.detector = Detector(self.detector, self.device)
        boxes = self.detector(flatten(encoded.image, encoded.opacity), text)
        kind, hw = get_prompt_type("box"), encoded.image.shape[:2]
        tasks = []
        for found in best_boxes(boxes, text, self.detector_threshold, find_all):
            prompt = PixelPrompt(kind, hw, np.array(found.box, np.float64))
            tasks.append(_Task(encoded, prompt, transparent, found))
        return tasks, find_all

    def _check_allowed(self, alias: str) -> None:
        if alias not in self.prompts:
            raise PromptError(
                f"This predictor does not accept {alias} prompts, but {', '.join(self.prompts)}."
            )

    def _model_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that an image is resized to for the model."""
        if not self.keep_aspect:
            return self.resolution, self.resolution
        limited = min(height, _MAX_ASPECT * width), min(width, _MAX_ASPECT * height)
        return aspect_shape(limited, self.resolution, self._network.size_divisor)

    def _encode(self, image: np.ndarray, size: tuple[int, int]) -> tuple[Any, tuple[Any, ...]]:
        """Return the latent ``[1, C, h, w]`` of an image, and the residuals of the image prior."""
        with self._memory_checked(size):
            if self.crop_margin is not None and image[..., 0].size > size[0] * size[1]:
                small = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
            else:
                small = resize_bilinear(image, size)  # as published, without smoothing
            return self._network.encode(small / np.float32(255))  # [0, 255] -> [0, 1]

    def _crop_to_prompt(self, task: _Task) -> tuple[_Task, Window]:
        """Crop the image of a task to its prompt, if the model works on crops."""
        encoded, prompt = task.encoded, task.prompt
        whole = Window.whole(encoded.image.shape)
        window = whole if self.crop_margin is None else prompt.window_around(self.crop_margin)
        if window == whole:
            return task, whole
        opacity = None if encoded.opacity is None else window.cut(encoded.opacity)
        crop = self.encode_pixels(window.cut(encoded.image), opacity)
        return task._replace(encoded=crop, prompt=prompt.cropped(window)), window

    def _run(self, tasks: Sequence[_Task], refine: str | None) -> list[MatteResult]:
        refine = self.refine if refine is None else refine
        if refine not in get_args(Refinement):
            raise ConfigError(
                f"refine must be one of {', '.join(get_args(Refinement))}; got {refine!r}."
            )
        cropped, windows = zip(*map(self._crop_to_prompt, tasks), strict=True)
        results = []
        mattes = zip(tasks, cropped, windows, self._infer(cropped), strict=True)
        for task, crop, window, coarse in mattes:
            image = crop.encoded.image
            if refine == "none":
                part = resize_alpha(coarse, image.shape[:2])
            else:
                image = flatten(image, crop.encoded.opacity)
                part = self._refine(image, coarse, refine, task.transparent)
            alpha = part
            if crop is not task:  # the object is inside the crop
                alpha = np.zeros(task.encoded.image.shape[:2], np.float32)
                window.cut(alpha)[...] = part
            opacity = task.encoded.opacity
            if opacity is not None:
                alpha = np.minimum(alpha, opacity)
            box, score = (task.found.box, task.found.score) if task.found else (None, None)
            alias = task.prompt.kind.alias
            results.append(MatteResult(task.encoded.image, alpha, alias, opacity, box, score))
        return results

    def _infer(self, tasks: Sequence[_Task]) -> list[np.ndarray]:
        """Predict all tasks; return float32 ``[h, w]`` in [0, 1] each, at the model's size."""
        groups: dict[tuple, list[int]] = {}
        for index, task in enumerate(tasks):
            groups.setdefault((task.prompt.kind.alias, task.encoded.size), []).append(index)
        mattes: dict[int, np.ndarray] = {}
        for indices in groups.values():
            for start in range(0, len(indices), self.batch_size):
                batch = indices[start : start + self.batch_size]
                mattes |= zip(batch, self._infer_batch([tasks[i] for i in batch]), strict=True)
        return [mattes[index] for index in range(len(tasks))]

    def _infer_batch(self, tasks: Sequence[_Task]) -> np.ndarray:
        """Predict tasks of one prompt type and size; return float32 ``[B, h, w]`` in [0, 1]."""
        size, kind = tasks[0].encoded.size, tasks[0].prompt.kind
        encodings = [task.encoded.encoding for task in tasks]
        with self._memory_checked(size, len(tasks)):
            alpha = self._network.predict(
                encodings,
                [task.prompt.draw(size, self.point_radius, self.psm) for task in tasks],
                kind,
                [task.transparent for task in tasks],
            )
        if not np.isfinite(alpha).all():
            network = self._network
            raise ConfigError(f"Values overflow in {network.dtype}: {network.if_overflow}.")
        return alpha

    @contextlib.contextmanager
    def _memory_checked(self, size: tuple[int, int], count: int = 1) -> Iterator[None]:
        """Raise a `ConfigError` with advice if memory runs out."""
        try:
            yield
            return
        except Exception as error:
            cv2_ran_out = isinstance(error, cv2.error) and error.code == cv2.Error.STS_NO_MEM
            if not cv2_ran_out and not self._network.is_out_of_memory(error):
                raise
        # Raised outside the handler, whose exception would keep the tensors of all frames alive.
        raise ConfigError(
            f"Out of memory on {self.device} at a resolution of {size[1]}x{size[0]} and a batch of "
            f"{count}: {self._network.if_out_of_memory}."
        )

    def _refine(
        self, image: np.ndarray, coarse: np.ndarray, refine: str, transparent: bool
    ) -> np.ndarray:
        """Refine a matte at its image's size; return float32 ``[H, W]`` in [0, 1]."""
        if refine == "guided":
            return refine_with_guide(image, coarse)
        divisor = self._network.size_divisor
        with tqdm(unit="tile", leave=False, disable=not self.progress) as bar:

            def predict(crops: Sequence[np.ndarray], mattes: Sequence[np.ndarray]) -> Any:
                tasks = []
                for crop, matte in zip(crops, mattes, strict=True):
                    height, width = (-(-n // divisor) * divisor for n in crop.shape[:2])
                    encode = functools.partial(self._encode, crop, (height, width))
                    encoded = EncodedImage(crop, (height, width), encode)
                    tasks.append(_Task(encoded, self._prompt_from_matte(matte), transparent))
                pairs = zip(self._infer(tasks), crops, strict=True)
                refined = [resize_alpha(small, crop.shape[:2]) for small, crop in pairs]
                bar.update(len(crops))
                return refined

            return refine_with_tiles(image, coarse, predict, self.resolution, self.batch_size)

    def _prompt_from_matte(self, matte: np.ndarray) -> PixelPrompt:
        """Return the matte as a mask prompt, or as a box if the model takes no masks."""
        if "mask" in self.prompts:
            return PixelPrompt(get_prompt_type("mask"), matte.shape, matte)
        bounds = extent(matte >= min(0.5, float(matte.max())))
        assert bounds is not None  # the maximum always reaches the threshold
        x0, y0, x1, y1 = bounds
        box = np.array([x0, y0, x1 + 1, y1 + 1], np.float64)
        return PixelPrompt(get_prompt_type("box"), matte.shape, box)


def _check_multiple(name: str, value: Any, divisor: int) -> None:
    if type(value) is not int or value < 1 or value % divisor:
        kind = "integer" if divisor == 1 else f"multiple of {divisor}"
        raise ConfigError(f"{name} must be a positive {kind}; got {value!r}.")


def _network_of(
    model: "SDMatte | OnnxNetwork", device: "torch.device | str | None"
) -> "TorchNetwork | OnnxNetwork":
    if isinstance(model, OnnxNetwork):
        return model
    from SDMatte.inference.network import TorchNetwork

    return TorchNetwork(model, device)


def _load(
    path_or_hub_id: str | Path,
    checkpoint: str | Path | None,
    device: "str | torch.device",
    dtype: "str | torch.dtype",
    offload: bool,
) -> "tuple[SDMatte, InferenceDefaults, torch.device]":
    """Load a model for torch, its defaults and its device."""
    if str(device) == "openvino":
        raise ConfigError(
            f"device=openvino needs a model exported by `sdmatte export`, not {path_or_hub_id}."
        )
    try:
        from SDMatte.inference.loading import find_model, offload_model
        from SDMatte.runtime.devices import choose_device

        device = choose_device(device)
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"{path_or_hub_id} is not a model exported by `sdmatte export`; other models need "
            f"{error.name}, which is not installed: pip install -r requirements.txt."
        ) from error
    source = find_model(path_or_hub_id, checkpoint)
    model = source.load(device, dtype)
    if offload:
        offload_model(model, device)
    else:
        model.to(device)
    model.release_text_encoder()  # only the empty caption is used
    return model, source.defaults, device


def _allowed_prompts(
    trained_prompts: Iterable[str], names: Iterable[str] | None
) -> tuple[str, ...]:
    """Return the short names of the given prompts, or of those that the model supports."""
    if names is not None:
        names = [names] if isinstance(names, str) else names
        allowed = tuple(dict.fromkeys(get_prompt_type(name).alias for name in names))
        if not allowed:
            raise ConfigError("prompts must name at least one prompt.")
        return allowed
    trained = {get_prompt_type(name).alias for name in trained_prompts}
    known = trained | ({"auto"} if "box" in trained else set())
    known |= {"trimap"} if "mask" in trained else set()
    return tuple(kind.alias for kind in PROMPT_TYPES.values() if kind.alias in known)
