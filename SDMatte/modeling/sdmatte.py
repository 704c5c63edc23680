"""SDMatte: a Stable Diffusion that gives an alpha matte in one step (paper section 3)."""

import contextlib
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from SDMatte.errors import CheckpointError, ConfigError, DataError, PromptError
from SDMatte.modeling import hub, saving, surgery, weights
from SDMatte.modeling.attention import AttentionContext, build_key_selections
from SDMatte.modeling.cpu import autoencoder, bands
from SDMatte.modeling.hub import COMPONENTS
from SDMatte.modeling.settings import IDLE_SETTINGS, check_settings
from SDMatte.modeling.unet import COORDINATE_SETTINGS, SDMatteUNet
from SDMatte.prompts.types import PROMPT_TYPES, PromptType

logger = logging.getLogger(__name__)


class SDMatte(nn.Module):
    """Predicts the alpha matte of the object that a visual prompt points at.

    Args:
        pretrained_model_name_or_path: A Stable Diffusion v2 folder prepared by
            ``process_weight.py``, or a hub id; see `SDMatte.modeling.hub`.
        conv_scale: 3, for image, prompt and an unused noise channel; ``conv_in`` is widened by
            ``conv_scale - 1``.
        aux_input: The prompt in use, a name of `SDMatte.prompts.types.PROMPT_TYPES`. None: one of
            ``aux_input_list`` drawn per training step; points in evaluation.
        use_aux_input: Must be True; the network has no meaning without a prompt.
        use_coor_input: False: boxes are embedded as 0, 0, 1, 1 and points as zeros.
        use_attention_mask: False: self-attention is never masked.
        attn_mask_aux_input: Prompts that mask self-attention.
        aux_input_list: What to draw from; a list with repeats is a weighting.
        use_encoder_hidden_states: False: cross-attention reads the text everywhere.
        residual_connection: Give the self-attentions of the first level a residual of their own.
        use_attention_mask_list: Masked self-attention in the down, mid and up section.
        use_encoder_hidden_states_list: Visual instead of text tokens in each section.
        load_weight: True: load the folder's weights; False: build from its config files alone, for
            a full checkpoint to be loaded after; or the names of the components to load (the
            others are drawn at random, to be trained from scratch).
        use_opacity_input: False: every object is embedded as opaque.
        attention_mask_mode: How the map masks; see `SDMatte.modeling.attention.score_bias`.
        dtype: Type of the weights, as a `torch.dtype` or its name.
        **idle: Settings that do nothing in the reference (``add_noise=True``,
            ``num_inference_steps``, ``use_dis_loss``, ``use_encoder_attention_mask``); accepted
            and warned about.

    Raises:
        ConfigError: Settings that are unknown or cannot work together.
        CheckpointError: The folder or its weights do not fit.
    """

    vae_class: type[nn.Module] = AutoencoderKL
    default_aux_input_list: tuple[str, ...] = ("point_mask", "bbox_mask", "mask")

    def __init__(
        self,
        pretrained_model_name_or_path: str | Path,
        conv_scale: int = 3,
        aux_input: str | None = "bbox_mask",
        use_aux_input: bool = True,
        use_coor_input: bool = True,
        use_attention_mask: bool = True,
        attn_mask_aux_input: Sequence[str] = ("point_mask", "bbox_mask", "mask"),
        aux_input_list: Sequence[str] | None = None,
        use_encoder_hidden_states: bool = True,
        residual_connection: bool = False,
        use_attention_mask_list: Sequence[bool] = (True, True, True),
        use_encoder_hidden_states_list: Sequence[bool] = (False, True, False),
        load_weight: bool | Sequence[str] = True,
        use_opacity_input: bool = True,
        attention_mask_mode: str = "bias",
        dtype: torch.dtype | str = torch.float32,
        **idle: Any,
    ):
        super().__init__()
        if aux_input_list is None:
            aux_input_list = self.default_aux_input_list
        settings = {
            "conv_scale": conv_scale,
            "aux_input": aux_input,
            "use_coor_input": use_coor_input,
            "use_opacity_input": use_opacity_input,
            "use_attention_mask": use_attention_mask,
            "attn_mask_aux_input": attn_mask_aux_input,
            "aux_input_list": aux_input_list,
            "use_encoder_hidden_states": use_encoder_hidden_states,
            "residual_connection": residual_connection,
            "use_attention_mask_list": use_attention_mask_list,
            "use_encoder_hidden_states_list": use_encoder_hidden_states_list,
            "attention_mask_mode": attention_mask_mode,
        }
        check_settings({**settings, "use_aux_input": use_aux_input}, idle)
        self._arguments = {
            name: value if isinstance(value, bool | int | str | None) else list(value)
            for name, value in settings.items()
        }
        self.aux_input = aux_input
        self.aux_input_list = tuple(aux_input_list)
        self.attn_mask_aux_input = tuple(attn_mask_aux_input)
        self.use_coor_input = use_coor_input
        self.use_opacity_input = use_opacity_input
        self.use_attention_mask = use_attention_mask
        self.attention_mask_mode = attention_mask_mode

        folder = hub.resolve_folder(pretrained_model_name_or_path, load_weight)
        self._build_components(folder, load_weight, as_dtype(dtype))
        surgery.add_visual_prompt_input(self.unet, conv_scale - 1)
        surgery.set_attention_residual(self.unet, residual_connection)
        self.unet.set_matting_processors(
            use_attention_mask_list,
            use_encoder_hidden_states_list if use_encoder_hidden_states else (False,) * 3,
        )
        if isinstance(self.vae, AutoencoderKL):
            autoencoder.optimize_for_cpu(self.vae)
        self.vae.requires_grad_(False)
        self.text_encoder.requires_grad_(False)
        self._empty_caption: tuple[Any, torch.Tensor] | None = None
        self._all_keys = False

        self.register_state_dict_post_hook(_publish_names)
        self.register_load_state_dict_pre_hook(_accept_names)
        self.train()

    def _build_components(self, folder: Path, load_weight, dtype: torch.dtype) -> None:
        """Builds U-Net, autoencoder, text encoder and tokenizer from a pretrained folder."""
        if isinstance(load_weight, bool):
            load_weight = COMPONENTS if load_weight else ()
        unknown = sorted(set(load_weight) - set(COMPONENTS))
        if unknown:
            raise ConfigError(
                f"load_weight is True, False or some of {', '.join(COMPONENTS)}; got {unknown}."
            )
        configs = {name: weights.component_config(folder, name) for name in COMPONENTS}
        lacking = [name for name in COORDINATE_SETTINGS if name not in configs["unet"]]
        if lacking and "unet" in load_weight:
            raise CheckpointError(
                f"{folder / 'unet' / 'config.json'} lacks {', '.join(lacking)}: "
                f"run process_weight.py on the pretrained folder first."
            )
        expected = self.vae_class.__name__
        actual = configs["vae"].get("_class_name", expected)
        if actual != expected:
            raise CheckpointError(
                f"{folder / 'vae'} holds an {actual}, but {type(self).__name__} needs an "
                f"{expected}."
            )
        builders = {
            "unet": (SDMatteUNet, lambda: SDMatteUNet.from_config(configs["unet"])),
            "vae": (self.vae_class, lambda: self.vae_class.from_config(configs["vae"])),
            "text_encoder": (
                CLIPTextModel,
                lambda: CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"])),
            ),
        }
        for name, (cls, build) in builders.items():
            if name in load_weight:
                component = weights.load_component(cls, folder, name, dtype)
            else:
                # Not component.to(dtype): diffusers' own warns of modules to keep in float32.
                component = nn.Module.to(build(), dtype)
            self.add_module(name, component)
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder / 'tokenizer'} holds no CLIP tokenizer.") from error

    @classmethod
    def setting_names(cls) -> list[str]:
        """List the settings that the constructor takes."""
        names = inspect.signature(cls.__init__).parameters
        return [*(n for n in names if n not in ("self", "idle")), *IDLE_SETTINGS]

    @property
    def size_divisor(self) -> int:
        """What picture heights and widths must be multiples of (64 in the published models)."""
        return self.latent_stride * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def latent_stride(self) -> int:
        """How many pixels one latent covers in each direction (8 in the published models)."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def train(self, mode: bool = True) -> "SDMatte":
        """Sets the training mode of the U-Net; the frozen parts stay in evaluation mode."""
        super().train(mode)
        self.vae.eval()
        self.text_encoder.eval()
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Trades time for memory in training: U-Net and decoder are recomputed backwards."""
        self.unet.enable_gradient_checkpointing()
        self.vae.enable_gradient_checkpointing()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles U-Net and autoencoder in place; arguments are those of `torch.compile`.

        What is between them depends on strings and caches and stays Python. Masked keys are no
        longer left out of the self-attention, for their number differs from picture to picture.
        """
        for part in (self.unet, self.vae.encoder, self.vae.decoder):
            part.compile(*args, **kwargs)
        self._all_keys = True

    def forward(
        self,
        batch: Mapping[str, Any],
        aux_input: str | None = None,
        return_features: bool = False,
        generator: np.random.Generator | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, list[torch.Tensor]]:
        """Predicts alpha in a single pass.

        Args:
            batch: ``image`` [B, 3, H, W] and the prompt's map [B, 1, H, W], both in [-1, 1], the
                prompt's coordinates, and optionally ``is_trans`` [B] (1: transparent; default
                opaque) and ``caption`` (B strings; default empty). H and W are multiples of
                `size_divisor`. Tensors on another device are moved.
            aux_input: The prompt to use; default: the constructor's.
            return_features: Also give the hidden states that the distillation compares.
            generator: Draws the prompt in training when neither names one.

        Returns:
            Alpha [B, 1, H, W] in [0, 1]; with ``return_features`` also three hidden states: after
            the last down block, the mid block, and the last up block.

        Raises:
            PromptError: The prompt is unknown or not in the batch.
            DataError: Shapes do not fit.
        """
        prompt_type = self.choose_prompt(aux_input, generator)
        image, prompt, coords = self._read_batch(batch, prompt_type)
        image_latent = self.encode(image)
        latent, features = self.predict_latent(
            image_latent,
            prompt,
            coords,
            prompt_type,
            is_trans=batch.get("is_trans"),
            caption=batch.get("caption"),
            return_features=return_features,
        )
        alpha = self.decode(latent)
        return (alpha, features) if return_features else alpha

    def choose_prompt(
        self, aux_input: str | None = None, generator: np.random.Generator | None = None
    ) -> PromptType:
        """Says which prompt a forward pass reads; see `forward`.

        Raises:
            PromptError: The name is unknown.
        """
        name = aux_input or self.aux_input
        if name is None:
            if self.training:
                generator = generator or np.random.default_rng()
                name = self.aux_input_list[generator.integers(len(self.aux_input_list))]
            else:
                name = "point_mask"
        if name not in PROMPT_TYPES:
            raise PromptError(f"Unknown prompt {name!r}; known are {', '.join(PROMPT_TYPES)}.")
        return PROMPT_TYPES[name]

    def _read_batch(self, batch, prompt_type: PromptType):
        """Takes image, prompt and coordinates out of a batch, checked and on our device."""
        needed = ("image", prompt_type.mask_key, prompt_type.coords_key)
        missing = [key for key in needed if key not in batch]
        if missing:
            raise PromptError(
                f"The {prompt_type.alias} prompt needs {', '.join(missing)} in the batch, which "
                f"has {', '.join(batch)}."
            )
        device = self.unet.device
        image, prompt, coords = (batch[key].to(device) for key in needed)
        height, width = image.shape[-2:]
        if prompt.shape != (len(image), 1, height, width):
            raise DataError(
                f"{prompt_type.mask_key} is {list(prompt.shape)}; for this image it must be "
                f"{[len(image), 1, height, width]}."
            )
        if height % self.size_divisor or width % self.size_divisor:
            raise DataError(
                f"The image is {width}x{height}; width and height must be multiples of "
                f"{self.size_divisor}."
            )
        return image, prompt, coords

    @torch.no_grad()
    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Encodes pictures [B, 3, H, W] in [-1, 1] to scaled latents [B, C, h, w], no sampling."""
        image = image.to(self.vae.dtype, memory_format=torch.channels_last)
        posterior = self.vae.encode(image).latent_dist
        return posterior.mean * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_prompt(self, prompt: torch.Tensor) -> torch.Tensor:
        """Encodes prompts' maps [B, 1, H, W] in [-1, 1] as `encode` does, boxes in less time."""
        pictures = prompt.expand(-1, 3, -1, -1)
        offloaded = getattr(self.vae, "_hf_hook", None) is not None  # moved by its own calls alone
        if self.training or offloaded:
            return self.encode(pictures)
        means = [bands.encode_bands(self.vae, picture[None]) for picture in pictures]
        if any(mean is None for mean in means):
            return self.encode(pictures)
        return torch.cat(means) * self.vae.config.scaling_factor

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Decodes latents [B, C, h, w] to alpha [B, 1, H, W] in [0, 1]."""
        latent = latent / self.vae.config.scaling_factor
        latent = latent.to(self.vae.dtype, memory_format=torch.channels_last)
        decoded = self.vae.decode(latent).sample
        alpha = decoded.float().mean(dim=1, keepdim=True).clip(-1, 1)
        return (alpha + 1) / 2  # [-1, 1] -> [0, 1]

    def predict_latent(
        self,
        image_latent: torch.Tensor,
        prompt: torch.Tensor,
        coords: torch.Tensor,
        prompt_type: PromptType,
        is_trans: torch.Tensor | None = None,
        caption: Sequence[str] | None = None,
        return_features: bool = False,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Runs the U-Net on an encoded image and a prompt.

        Args:
            image_latent: ``[B, C, h, w]``, from `encode`; it can be used again for other prompts.
            prompt: The prompt's map, ``[B, 1, H, W]`` in [-1, 1].
            coords: Its coordinates, ``[B, 4]`` or ``[B, 20]``, fractions.
            prompt_type: Which prompt that is.
            is_trans: ``[B]``, 1 where the object is transparent; None: opaque.
            caption: B strings; None: empty.
            return_features: See `forward`.

        Returns:
            The latent of alpha ``[B, C, h, w]``, and the features (empty if not asked for).
        """
        size, device = len(image_latent), image_latent.device
        image_latent = image_latent.to(self.unet.dtype)  # the autoencoder may have another type
        prompt_latent = self.encode_prompt(prompt).to(self.unet.dtype)
        grid = prompt_latent.shape[-2:]
        visual = self.unet.aux_conv_in(prompt_latent).flatten(2).transpose(1, 2)  # [B, h*w, C]
        keys = {}
        if self.use_attention_mask and prompt_type.mask_key in self.attn_mask_aux_input:
            if not prompt_type.fixed:
                levels = len(self.unet.config.block_out_channels)
                keys = build_key_selections(
                    prompt, grid, levels, self.attention_mask_mode, all_keys=self._all_keys
                )
        if is_trans is None or not self.use_opacity_input:
            is_trans = torch.zeros(size, dtype=torch.long)
        collected: list[torch.Tensor] = []
        with self._collect_features(collected if return_features else None):
            latent = self.unet(
                torch.cat([image_latent, prompt_latent], dim=1),
                timestep=1 - is_trans.to(device),
                encoder_hidden_states=self.encode_caption(caption, size).to(device),
                cross_attention_kwargs={"context": AttentionContext(visual, keys)},
                added_cond_kwargs=self._coordinates(coords, prompt_type),
            ).sample
        return latent, collected

    def _coordinates(self, coords: torch.Tensor, prompt_type: PromptType) -> dict:
        if prompt_type.is_point:
            return {"point_coords": coords if self.use_coor_input else torch.zeros_like(coords)}
        if prompt_type.fixed or not self.use_coor_input:
            coords = coords.new_tensor([0, 0, 1, 1]).expand(len(coords), 4)
        return {"bbox_coords": coords}

    def encode_caption(self, caption: Sequence[str] | None, size: int) -> torch.Tensor:
        """Encodes captions with CLIP; the empty caption's embedding is computed only once.

        Args:
            caption: ``size`` strings, or None for empty ones.
            size: Number of pictures.

        Returns:
            ``[size, 77, C]``, the text encoder's last hidden state.
        """
        if caption is not None and len(caption) != size:
            raise DataError(f"There are {len(caption)} captions for {size} pictures.")
        if caption is not None and any(caption):
            return self._run_text_encoder(list(caption))
        key = self._text_encoder_state()
        if self._empty_caption is None or self._empty_caption[0] != key:
            self._empty_caption = (key, self._run_text_encoder([""]))
        return self._empty_caption[1].expand(size, -1, -1)

    def _text_encoder_state(self) -> tuple:
        """Tells weights that were loaded, moved or cast from those before."""
        parameters = list(self.text_encoder.parameters())
        places = tuple((p.data_ptr(), p._version) for p in parameters)
        return (parameters[0].device, parameters[0].dtype, places)

    def release_text_encoder(self) -> None:
        """Keeps the empty caption's embedding and gives the text encoder's memory back.

        A quarter of a full-size model is needed only for captions. Afterwards there are none, and
        the model can be neither saved nor moved.
        """
        embedding = self._run_text_encoder([""])
        self.text_encoder.to("meta")
        self._empty_caption = (self._text_encoder_state(), embedding)

    @torch.no_grad()
    def _run_text_encoder(self, captions: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(
            captions,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        device = self.text_encoder.device
        if device.type == "meta":
            raise ConfigError(
                "This model was loaded without its text encoder: it takes no captions."
            )
        # Never in mixed precision, or what is kept would depend on who asked for it first.
        with torch.autocast(device.type, enabled=False):
            return self.text_encoder(tokens.input_ids.to(device)).last_hidden_state

    @contextlib.contextmanager
    def _collect_features(self, into: list[torch.Tensor] | None) -> Iterator[None]:
        """Records the distillation features of the U-Net calls inside, without keeping them."""
        if into is None:
            yield
            return

        def record(module, args, output):
            into.append(output[0] if isinstance(output, tuple) else output)

        unet = self.unet
        handles = [
            block.register_forward_hook(record)
            for block in (unet.down_blocks[-1], unet.mid_block, unet.up_blocks[-1])
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def save_pretrained(
        self, folder: str | Path, inference: Mapping[str, Any] | None = None
    ) -> None:
        """Writes a folder that `from_pretrained` reads: weights, arguments, component configs.

        Args:
            folder: Where to.
            inference: How the model wants its pictures, for instance ``{"resolution": 512}``; see
                `SDMatte.inference.loading.InferenceDefaults`.
        """
        saving.save_model(self, Path(folder), self._arguments, inference)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        checkpoint: str | Path | None = None,
        dtype: torch.dtype | str = torch.float32,
        **arguments: Any,
    ) -> "SDMatte":
        """Loads a trained model, ours or published, without first drawing random weights.

        Args:
            path_or_hub_id: A folder of `save_pretrained`, or a folder or hub id with component
                configs and a checkpoint beside them, as the authors published theirs.
            checkpoint: Which checkpoint: a file, or a file name in that folder. Default: the
                folder's own.
            dtype: Type of the weights; a narrow autoencoder stays in float32, see
                `SDMatte.modeling.saving.WIDE`.
            **arguments: Override the constructor arguments saved with the model.

        Returns:
            The model in evaluation mode, on the CPU.

        Raises:
            CheckpointError: The folder, the model or the checkpoint are not there or do not fit.
        """
        return saving.load_model(cls, path_or_hub_id, checkpoint, as_dtype(dtype), arguments)


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Reads a floating-point type given as such or by name.

    Raises:
        ConfigError: It is not one.
    """
    value = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise ConfigError(f"dtype is float32, bfloat16 or float16; got {dtype!r}.")
    return value


def _publish_names(module: SDMatte, state_dict: dict, prefix: str, local_metadata) -> None:
    weights.rename_text_encoder(state_dict, prefix, with_level=True)


def _accept_names(module: SDMatte, state_dict: dict, prefix: str, *args) -> None:
    with_level = hasattr(module.text_encoder, "text_model")
    weights.rename_text_encoder(state_dict, prefix, with_level=with_level)
