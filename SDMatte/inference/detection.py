"""Text prompts: a zero-shot detector of transformers finds the boxes of the described objects."""

import json
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SDMatte.errors import CheckpointError, DependencyError, PromptError

if TYPE_CHECKING:  # exported models run without torch
    import torch

_OLDEST = "4.51"  # the first version whose processors share the arguments used here
_MAX_OVERLAP = 0.5  # intersection over union of two boxes of different objects


@dataclass(frozen=True)
class FoundBox:
    """A box that a detector found.

    Attributes:
        box: x0, y0, x1, y1: the edges of the box in pixels, within the image.
        score: The detector's confidence in [0, 1].
    """

    box: tuple[int, int, int, int]
    score: float


class Detector:
    """Find the objects that a text describes, by a detector such as Grounding DINO or OWLv2.

    Args:
        name: Folder or hub id of a zero-shot detector, with weights as ``.safetensors``.
        device: Device to run on; see `choose_device`.

    Raises:
        CheckpointError: The detector was not found, or is not a zero-shot detector.
        DependencyError: The version of transformers is too old.
    """

    def __init__(self, name: str | Path, device: "str | torch.device" = "auto"):
        from SDMatte.runtime.devices import choose_device

        self.device = choose_device(device)
        self._processor, self._model = _load(name)
        self._model.to(self.device)

    def __call__(self, image: np.ndarray, text: str) -> list[FoundBox]:
        """Return the boxes of the described objects, best first, whatever their scores.

        Of boxes that overlap by more than half, only the best is kept.

        Args:
            image: uint8 ``[H, W, 3]``, RGB.
            text: What to find; a period separates several descriptions.

        Raises:
            PromptError: The text is longer than the detector accepts.
        """
        import torch
        from torchvision.ops import clip_boxes_to_image, nms, remove_small_boxes

        height, width = image.shape[:2]
        labels = [[part.strip() for part in text.split(".") if part.strip()]]
        self._check_length(labels[0])
        inputs = self._processor(images=image, text=labels, return_tensors="pt").to(self.device)
        with torch.no_grad():
            output = self._model(**inputs)
        (found,) = self._processor.post_process_grounded_object_detection(
            output, threshold=0.0, target_sizes=[(height, width)], text_labels=labels
        )
        boxes, scores = found["boxes"].float(), found["scores"].float()
        boxes = clip_boxes_to_image(boxes, (height, width))
        inside = remove_small_boxes(boxes, 1.0)  # OWLv2 may find boxes in its padding
        best = inside[nms(boxes[inside], scores[inside], _MAX_OVERLAP)]  # best first
        edges = torch.floor(boxes[best] + 0.5).int().tolist()
        pairs = zip(edges, scores[best].tolist(), strict=True)
        return [FoundBox((x0, y0, x1, y1), score) for (x0, y0, x1, y1), score in pairs]

    def _check_length(self, labels: list[str]) -> None:
        # Grounding DINO reads all descriptions as one text; others read each separately.
        limit = getattr(self._model.config, "max_text_len", None)
        texts = labels if limit is None else [". ".join(labels) + "."]
        tokenizer = self._processor.tokenizer
        limit = min(limit or tokenizer.model_max_length, tokenizer.model_max_length)
        for text in texts:
            length = len(tokenizer(text, truncation=False, verbose=False)["input_ids"])
            if length > limit:
                raise PromptError(
                    f"The text is too long for the detector: {length} tokens; at most {limit} are "
                    f"allowed."
                )


def best_boxes(
    found: list[FoundBox], text: str, threshold: float, find_all: bool = False
) -> list[FoundBox]:
    """Return the best box with a score of at least ``threshold``, or all such boxes.

    Raises:
        PromptError: No box has such a score.
    """
    found = sorted(found, key=lambda box: -box.score)
    chosen = [box for box in found if box.score >= threshold]
    if not chosen:
        best = f"; the best box has {floor(100 * found[0].score) / 100:g}" if found else ""
        raise PromptError(
            f"Nothing found for {text!r} with a score of at least {threshold:g}{best}. Use other "
            f"words or a lower detector threshold."
        )
    return chosen if find_all else chosen[:1]


def _load(name: str | Path) -> tuple[Any, Any]:
    """Load the processor and the model of a detector, onto the CPU in float32."""
    import torch
    import transformers
    from packaging.version import Version
    from transformers.models.auto import modeling_auto

    from SDMatte.modeling import hub

    if Version(transformers.__version__) < Version(_OLDEST):
        raise DependencyError(
            f"Text prompts need transformers {_OLDEST} or later; {transformers.__version__} is "
            f"installed."
        )
    folder = hub.resolve_detector(name)
    known = modeling_auto.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{name} is not a transformers model: {error!r}.") from error
    if kind not in known:
        raise CheckpointError(
            f"{name} is a model of type {kind}, not a zero-shot detector ({', '.join(known)})."
        )
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = transformers.AutoProcessor.from_pretrained(folder, **options)
        model, info = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(
            folder,
            use_safetensors=True,  # other formats would be unpickled
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # on arbitrary files, transformers raises arbitrary errors
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"Cannot load the detector {name}: {reason}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CheckpointError(
            f"The weights of the detector {name} do not fit its config.json: {len(missing)} "
            f"missing, such as {missing[0]}."
        )
    return processor, model.eval()
