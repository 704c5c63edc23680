"""The types of visual prompts, in one table for data, modeling and inference.

A prompt is a map of the image's size and a few coordinates (paper, Sec. 3.2). The names of the maps
are the batch keys and the values of ``aux_input`` in the published configs.
"""

from dataclasses import dataclass

from SDMatte.errors import PromptError

NUM_POINTS = 10
"""Points of a point prompt; missing ones are zeros, as in the training of the embedding."""

DETECTOR = "IDEA-Research/grounding-dino-tiny"
"""Default detector for text prompts."""

DETECTOR_THRESHOLD = 0.25
"""Default for the lowest score of a box that is used."""


@dataclass(frozen=True)
class PromptType:
    """What the model and the loader need to know about a type of prompt.

    Attributes:
        mask_key: Batch key of the map, ``[B, 1, H, W]`` in [-1, 1]; also its published name.
        coords_key: Batch key of the coordinates, ``[B, 20]`` for points, else ``[B, 4]``:
            fractions of width (x) and height (y) in [0, 1].
        alias: Short name on the command line and in reports.
        fixed: Whether the coordinates are always 0, 0, 1, 1; self-attention is then never masked.
    """

    mask_key: str
    coords_key: str
    alias: str
    fixed: bool = False

    @property
    def is_point(self) -> bool:
        """Whether the coordinates are points, which have their own embedding, instead of a box."""
        return self.mask_key == "point_mask"


PROMPT_TYPES: dict[str, PromptType] = {
    p.mask_key: p
    for p in (
        PromptType("point_mask", "point_coords", "point"),
        PromptType("bbox_mask", "bbox_coords", "box"),
        PromptType("mask", "mask_coords", "mask"),
        PromptType("auto_mask", "auto_coords", "auto", fixed=True),
        PromptType("trimap", "trimap_coords", "trimap", fixed=True),
    )
}

_BY_ALIAS = {p.alias: p for p in PROMPT_TYPES.values()}


def get_prompt_type(name: str) -> PromptType:
    """Return a prompt type by its published or short name, such as ``"bbox_mask"`` or ``"box"``.

    Raises:
        PromptError: The name is unknown; the message lists the known ones.
    """
    found = PROMPT_TYPES.get(name) or _BY_ALIAS.get(name)
    if found is None:
        known = ", ".join(f"{p.alias} ({p.mask_key})" for p in PROMPT_TYPES.values())
        raise PromptError(f"Unknown prompt type {name!r}; known types are {known}.")
    return found
