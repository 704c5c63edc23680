"""The U-Net of SDMatte: diffusers' own, with coordinate embeddings and prompt-aware attention."""

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding

from SDMatte.modeling.attention import MattingAttnProcessor
from SDMatte.modeling.embeddings import embed_box_coords, embed_point_coords

SECTIONS = ("down", "mid", "up")

COORDINATE_SETTINGS = {
    "bbox_time_embed_dim": 320,
    "point_embeddings_input_dim": 1680,
    "bbox_embeddings_input_dim": 1280,
}
"""Settings that `process_weight.py` adds to `unet/config.json`, with their published values."""


class SDMatteUNet(UNet2DConditionModel):
    """A `UNet2DConditionModel` that also embeds the prompt's coordinates.

    The opacity replaces the timestep. The coordinates are added to its embedding (paper, Sec. 3.3)
    through diffusers' hook for additional embeddings. The input for the prompt's latent is added
    later, by `SDMatte.modeling.surgery.add_visual_prompt_input`.

    Args:
        bbox_time_embed_dim: Channels of the sinusoidal embedding of one box coordinate.
        point_embeddings_input_dim: Width of the sinusoidal embedding of all points.
        bbox_embeddings_input_dim: Width of the sinusoidal embedding of a box.
        **kwargs: Passed to `UNet2DConditionModel`.
    """

    def __init__(
        self,
        bbox_time_embed_dim: int = COORDINATE_SETTINGS["bbox_time_embed_dim"],
        point_embeddings_input_dim: int = COORDINATE_SETTINGS["point_embeddings_input_dim"],
        bbox_embeddings_input_dim: int = COORDINATE_SETTINGS["bbox_embeddings_input_dim"],
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.register_to_config(
            bbox_time_embed_dim=bbox_time_embed_dim,
            point_embeddings_input_dim=point_embeddings_input_dim,
            bbox_embeddings_input_dim=bbox_embeddings_input_dim,
        )
        embed_dim = 4 * self.config.block_out_channels[0]
        self.bbox_embedding = TimestepEmbedding(bbox_embeddings_input_dim, embed_dim)
        self.point_embedding = TimestepEmbedding(point_embeddings_input_dim, embed_dim)

    @staticmethod
    def _get_init_keys(input_class):
        # diffusers keeps only config keys that the constructor's signature names. Ours takes
        # **kwargs, so without this all keys of the base class would fall back to their defaults.
        keys = UNet2DConditionModel._get_init_keys(input_class)
        if issubclass(input_class, SDMatteUNet):
            keys |= UNet2DConditionModel._get_init_keys(UNet2DConditionModel)
        return keys

    def set_matting_processors(
        self, masked_sections: Sequence[bool], visual_sections: Sequence[bool]
    ) -> None:
        """Choose the sections (down, mid, up) that mask self-attention or read visual tokens."""
        masked = dict(zip(SECTIONS, masked_sections, strict=True))
        visual = dict(zip(SECTIONS, visual_sections, strict=True))
        self.set_attn_processor(
            {
                name: MattingAttnProcessor(
                    masked=".attn1." in name and masked[name.split("_")[0]],
                    visual=".attn2." in name and visual[name.split("_")[0]],
                )
                for name in self.attn_processors
            }
        )

    def get_aug_embed(
        self,
        emb: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        added_cond_kwargs: dict[str, torch.Tensor] | None,
    ) -> torch.Tensor | None:
        """Embed `bbox_coords` `[B, 4]` or `point_coords` `[B, N]` of `added_cond_kwargs`.

        If both are given, the tensor `is_point` selects one, so that an exported graph serves both.
        """
        coords = added_cond_kwargs or {}
        if "is_point" in coords:
            box, points = (
                self.get_aug_embed(emb, encoder_hidden_states, {name: coords[name]})
                for name in ("bbox_coords", "point_coords")
            )
            return torch.where(coords["is_point"], points, box)
        if "bbox_coords" in coords:
            sinusoid = embed_box_coords(
                coords["bbox_coords"],
                self.config.bbox_time_embed_dim,
                self.config.flip_sin_to_cos,
                self.config.freq_shift,
            )
            return self.bbox_embedding(sinusoid.to(emb.dtype))
        if "point_coords" in coords:
            sinusoid = embed_point_coords(
                coords["point_coords"], self.config.point_embeddings_input_dim
            )
            return self.point_embedding(sinusoid.to(emb.dtype))
        return None
