"""SDMatte: Stable Diffusion turned into a one-step matting network (paper, Sec. 3)."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from SDMatte.errors import CheckpointError, ConfigError, DataError, PromptError
from SDMatte.modeling import hub, surgery, weights
from SDMatte.modeling.attention import AttentionContext, KeySelection, build_key_selections
from SDMatte.modeling.cpu import encode_bands, optimize_for_cpu
from SDMatte.modeling.hub import COMPONENTS
from SDMatte.modeling.prior import ImagePrior
from SDMatte.modeling.settings import IGNORED_SETTINGS, ModelSettings
from SDMatte.modeling.unet import COORDINATE_SETTINGS, SDMatteUNet
from SDMatte.prompts.types import PROMPT_TYPES, PromptType

MIN_WIDTH_FOR_LOW_PRECISION = 128
"""Narrower autoencoders stay in float32. In bfloat16 they are slower on CPUs, and too coarse for
the small model's whitened latents."""


class SDMatte(nn.Module):
    """Predict the alpha matte of the object that a visual prompt points at.

    Args:
        pretrained_model_name_or_path: A Stable Diffusion v2 folder prepared by
            `process_weight.py`, or a hub id; see `SDMatte.modeling.hub`.
        load_weight: True: load the folder's weights. False: build from its configs only, for a full
            checkpoint to be loaded later. Names of components: load only these, and initialize the
            others at random for training from scratch.
        dtype: Type of the weights, as a `torch.dtype` or its name.
        **settings: See `SDMatte.modeling.settings.ModelSettings`.

    Attributes:
        new_layers: Name prefixes of the layers that a subclass adds. They may be missing in a
            checkpoint that training starts from, and then keep their initial values. LoRA trains
            them in full.

    Raises:
        ConfigError: A setting is unknown or not allowed.
        CheckpointError: The folder or its weights do not fit the model.
    """

    vae_class: type[nn.Module] = AutoencoderKL
    settings_class: type[ModelSettings] = ModelSettings
    new_layers: tuple[str, ...] = ()

    def __init__(
        self,
        pretrained_model_name_or_path: str | Path,
        load_weight: bool | Sequence[str] = True,
        dtype: torch.dtype | str = torch.float32,
        **settings: Any,
    ):
        super().__init__()
        self.settings = self.settings_class.of(settings)
        folder = hub.resolve_folder(pretrained_model_name_or_path, load_weight)
        self._build_components(folder, load_weight, as_dtype(dtype))
        surgery.add_visual_prompt_input(self.unet, self.settings.conv_scale - 1)
        surgery.set_attention_residual(self.unet, self.settings.residual_connection)
        visual = self.settings.use_encoder_hidden_states_list
        self.unet.set_matting_processors(
            self.settings.use_attention_mask_list,
            visual if self.settings.use_encoder_hidden_states else (False,) * 3,
        )
        self.image_prior: ImagePrior | None = None
        if self.settings.image_prior is not None:
            self.image_prior = ImagePrior(
                self.settings.image_prior, self.unet.config, self.latent_stride
            )
            nn.Module.to(self.image_prior, self.unet.dtype)
        optimize_for_cpu(self.vae)
        self.vae.requires_grad_(False)
        self.text_encoder.requires_grad_(False)
        self._empty_caption: tuple[Any, torch.Tensor] | None = None
        self._all_keys = False

        self.register_state_dict_post_hook(_publish_names)
        self.register_load_state_dict_pre_hook(_accept_names)
        self.train()

    def _build_components(
        self, folder: Path, load_weight: bool | Sequence[str], dtype: torch.dtype
    ) -> None:
        """Build U-Net, autoencoder, text encoder and tokenizer from a pretrained folder."""
        if isinstance(load_weight, bool):
            load_weight = COMPONENTS if load_weight else ()
        unknown = sorted(set(load_weight) - set(COMPONENTS))
        if unknown:
            raise ConfigError(
                f"load_weight must be True, False or a list of {', '.join(COMPONENTS)}; got "
                f"{unknown}."
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
        classes = {"unet": SDMatteUNet, "vae": self.vae_class, "text_encoder": CLIPTextModel}
        for name, cls in classes.items():
            if name in load_weight:
                self.add_module(name, weights.load_component(cls, folder, name, dtype))
                continue
            if name == "text_encoder":
                component = CLIPTextModel(CLIPTextConfig.from_dict(configs[name]))
            else:
                component = cls.from_config(configs[name])
            # diffusers overrides `to` to warn about modules to keep in float32.
            self.add_module(name, nn.Module.to(component, dtype))
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder / 'tokenizer'} holds no CLIP tokenizer.") from error

    @classmethod
    def setting_names(cls) -> list[str]:
        """Return the names of the constructor's arguments."""
        own = ("pretrained_model_name_or_path", "load_weight", "dtype")
        return [*own, *cls.settings_class.model_fields, *IGNORED_SETTINGS]

    @property
    def size_divisor(self) -> int:
        """Divisor of image heights and widths (64 in the published models)."""
        return self.latent_stride * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def latent_stride(self) -> int:
        """Image pixels per latent pixel in each direction (8 in the published models)."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def train(self, mode: bool = True) -> "SDMatte":
        """Set the training mode of the U-Net; the frozen parts stay in evaluation mode."""
        super().train(mode)
        self.vae.eval()
        self.text_encoder.eval()
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Recompute U-Net and decoder in the backward pass, trading time for memory."""
        self.unet.enable_gradient_checkpointing()
        self.vae.enable_gradient_checkpointing()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile U-Net and autoencoder in place; the arguments are those of `torch.compile`.

        The code between them depends on strings and caches and is not compiled. Afterwards,
        self-attention also reads masked keys, because their number varies from image to image.
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
        """Predict alpha in a single pass.

        Args:
            batch: `image` `[B, 3, H, W]` and the prompt's map `[B, 1, H, W]`, both in [-1, 1], the
                prompt's coordinates, and optionally `is_trans` `[B]` (1: transparent; default:
                opaque) and `caption` (B strings; default: empty). H and W are multiples of
                `size_divisor`. Tensors on other devices are moved; keep the prompt's map on the
                CPU, see `predict_latent`.
            aux_input: Name of the prompt; None: see `choose_prompt`.
            return_features: Whether to return the hidden states that distillation compares.
            generator: See `choose_prompt`.

        Returns:
            Alpha `[B, 1, H, W]` in [0, 1]. With `return_features`, also three hidden states: after
            the last down block, the mid block and the last up block.

        Raises:
            PromptError: The prompt is unknown or not in the batch.
            DataError: The shapes in the batch do not match.
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
            residuals=self.encode_prior(image),
        )
        alpha = self.decode(latent)
        return (alpha, features) if return_features else alpha

    def choose_prompt(
        self, aux_input: str | None = None, generator: np.random.Generator | None = None
    ) -> PromptType:
        """Return the type of prompt that a forward pass uses.

        Args:
            aux_input: Name of the prompt; None: the setting `aux_input`. If that is also None, the
                prompt is drawn from `aux_input_list` in training, and points in evaluation.
            generator: Random generator for the draw.

        Raises:
            PromptError: The name is unknown.
        """
        name = aux_input or self.settings.aux_input
        if name is None and self.training:
            generator = generator or np.random.default_rng()
            mix = self.settings.aux_input_list
            name = mix[generator.integers(len(mix))]
        name = name or "point_mask"
        if name not in PROMPT_TYPES:
            raise PromptError(f"Unknown prompt {name!r}; known prompts: {', '.join(PROMPT_TYPES)}.")
        return PROMPT_TYPES[name]

    def _read_batch(
        self, batch: Mapping[str, Any], prompt_type: PromptType
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Check a batch; return its image (on the model's device), prompt and coordinates."""
        needed = ("image", prompt_type.mask_key, prompt_type.coords_key)
        missing = [key for key in needed if key not in batch]
        if missing:
            raise PromptError(
                f"The {prompt_type.alias} prompt needs {', '.join(missing)} in the batch, which "
                f"has {', '.join(batch)}."
            )
        image, prompt, coords = (batch[key] for key in needed)
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
        return image.to(self.unet.device, non_blocking=True), prompt, coords

    @torch.no_grad()
    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Encode images `[B, 3, H, W]` in [-1, 1] to scaled posterior means `[B, C, h, w]`."""
        image = image.to(self.vae.dtype, memory_format=torch.channels_last)
        posterior = self.vae.encode(image).latent_dist
        return posterior.mean * self.vae.config.scaling_factor

    def to_vae_range(self, image: torch.Tensor) -> torch.Tensor:
        """Convert images in [-1, 1] to the autoencoder's input range, which is the same here."""
        return image

    def encode_prior(self, image: torch.Tensor) -> list[torch.Tensor] | None:
        """Return the prior's residuals for images `[B, 3, H, W]` in [-1, 1]; None without one."""
        if self.image_prior is None:
            return None
        return self.image_prior(image.to(self.unet.dtype))

    @torch.no_grad()
    def encode_prompt(self, prompt: torch.Tensor) -> torch.Tensor:
        """Encode prompt maps like `encode`, with a faster path for boxes on CPUs.

        Args:
            prompt: `[B, 1, H, W]` in [-1, 1], on any device.
        """
        # An offloaded autoencoder moves to its device only when its own methods are called.
        hook = getattr(self.vae, "_hf_hook", None)
        if not self.training and hook is None:
            latent = encode_bands(self.vae, self.to_vae_range(prompt))
            if latent is not None:
                return latent * self.vae.config.scaling_factor
        device = self.vae.device if hook is None else hook.execution_device
        return self.encode(prompt.to(device, non_blocking=True).expand(-1, 3, -1, -1))

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Decode latents `[B, C, h, w]` to alpha `[B, 1, H, W]` in [0, 1]."""
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
        residuals: Sequence[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run the U-Net on an encoded image and a prompt.

        Nothing is read back from the device. If `prompt` is on the CPU, self-attention skips masked
        keys. On another device, it reads all keys with a bias, which is equal up to rounding and
        slower, but keeps shapes independent of the data, as CUDA graphs require.

        Args:
            image_latent: `[B, C, h, w]`, from `encode`; it can be reused for other prompts.
            prompt: Map of the prompt, `[B, 1, H, W]` in [-1, 1], preferably on the CPU.
            coords: Coordinates of the prompt, `[B, 4]` or `[B, 20]`, fractions in [0, 1].
            prompt_type: Type of the prompt.
            is_trans: `[B]`, 1 for transparent objects; None: opaque.
            caption: B strings; None: empty.
            return_features: See `forward`.
            residuals: From `encode_prior`; reusable like `image_latent`.

        Returns:
            The latent of alpha, `[B, C, h, w]`, and the features (empty without `return_features`).
        """
        batch_size, device, settings = len(image_latent), image_latent.device, self.settings
        image_latent = image_latent.to(self.unet.dtype)  # the autoencoder may have another type
        prompt_latent = self.encode_prompt(prompt).to(image_latent)
        keys = {}
        if self.masks_attention(prompt_type):
            grid = prompt_latent.shape[-2:]
            levels = len(self.unet.config.block_out_channels)
            keys = build_key_selections(
                prompt, grid, levels, settings.attention_mask_mode, all_keys=self._all_keys
            )
            keys = {n: [key.to(device) for key in selected] for n, selected in keys.items()}
        if is_trans is None or not settings.use_opacity_input:
            is_trans = torch.zeros(batch_size, dtype=torch.long, device=device)
        unet, features = self.unet, []

        def record(module, args, output):
            features.append(output[0] if isinstance(output, tuple) else output)

        with contextlib.ExitStack() as hooks:
            if return_features:
                for block in (unet.down_blocks[-1], unet.mid_block, unet.up_blocks[-1]):
                    hooks.enter_context(block.register_forward_hook(record))
            latent = self.run_unet(
                image_latent,
                prompt_latent,
                keys,
                self.coordinates(coords, prompt_type, device),
                is_trans.to(device, non_blocking=True),
                self.encode_caption(caption, batch_size).to(device),
                residuals,
            )
        return latent, features

    def run_unet(
        self,
        image_latent: torch.Tensor,
        prompt_latent: torch.Tensor,
        keys: Mapping[int, list[KeySelection]],
        coords: Mapping[str, torch.Tensor],
        is_trans: torch.Tensor,
        text: torch.Tensor,
        residuals: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Run the U-Net on prepared inputs; `predict_latent` and the exported graph call this.

        Args:
            image_latent: `[B, C, h, w]`.
            prompt_latent: `[B, C, h, w]`, latent of the prompt's map.
            keys: See `AttentionContext`.
            coords: See `SDMatteUNet.get_aug_embed`.
            is_trans: `[B]`, 1 for transparent objects.
            text: `[B, 77, C]`, the embedded captions.
            residuals: From `encode_prior`.

        Returns:
            The latent of alpha, `[B, C, h, w]`.
        """
        visual = self.unet.aux_conv_in(prompt_latent).flatten(2).transpose(1, 2)  # [B, h*w, C]
        return self.unet(
            torch.cat([image_latent, prompt_latent], dim=1),
            timestep=1 - is_trans,
            encoder_hidden_states=text,
            cross_attention_kwargs={"context": AttentionContext(visual, keys)},
            added_cond_kwargs=coords,
            down_intrablock_additional_residuals=None if residuals is None else [*residuals],
        ).sample

    def masks_attention(self, prompt_type: PromptType) -> bool:
        """Return whether a type of prompt masks self-attention."""
        is_masked = self.settings.use_attention_mask and not prompt_type.fixed
        return is_masked and prompt_type.mask_key in self.settings.attn_mask_aux_input

    def coordinates(
        self, coords: torch.Tensor, prompt_type: PromptType, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """Return a prompt's coordinates on a device, by the name that the U-Net expects."""
        used = self.settings.use_coor_input
        if prompt_type.is_point:
            name, coords = "point_coords", coords if used else torch.zeros_like(coords)
        else:
            name = "bbox_coords"
            if prompt_type.fixed or not used:
                coords = torch.tensor([0, 0, 1, 1], dtype=coords.dtype).expand(coords.shape[0], 4)
        return {name: coords.to(device, non_blocking=True)}

    def encode_caption(self, caption: Sequence[str] | None, size: int) -> torch.Tensor:
        """Encode captions with CLIP; the embedding of the empty caption is cached.

        Args:
            caption: `size` strings; None: empty ones.
            size: Number of images.

        Returns:
            `[size, 77, C]`, the last hidden state of the text encoder.

        Raises:
            DataError: The number of captions is wrong.
        """
        if caption is not None and len(caption) != size:
            raise DataError(f"Got {len(caption)} captions for {size} images; give one per image.")
        if caption is not None and any(caption):
            return self._run_text_encoder(list(caption))
        key = self._text_encoder_state()
        if self._empty_caption is None or self._empty_caption[0] != key:
            self._empty_caption = (key, self._run_text_encoder([""]))
        return self._empty_caption[1].expand(size, -1, -1)

    def _text_encoder_state(self) -> tuple:
        """Return a key that changes when the weights are loaded, moved or cast."""
        parameters = list(self.text_encoder.parameters())
        versions = tuple((p.data_ptr(), p._version) for p in parameters)
        return (parameters[0].device, parameters[0].dtype, versions)

    def release_text_encoder(self) -> None:
        """Keep the embedding of the empty caption and free the memory of the text encoder.

        The text encoder, a quarter of a full-size model, is only needed for captions. Afterwards,
        the model accepts no captions and can be neither saved nor moved.
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
                "This model was loaded without its text encoder and accepts no captions."
            )
        # Never in mixed precision, or the cached embedding would depend on the first caller.
        with torch.autocast(device.type, enabled=False):
            return self.text_encoder(tokens.input_ids.to(device)).last_hidden_state

    def save_pretrained(
        self, folder: str | Path, inference: Mapping[str, Any] | None = None
    ) -> None:
        """Write a folder that `from_pretrained` reads: weights, settings, component configs.

        Args:
            folder: Folder to write.
            inference: Defaults for prediction, such as `{"resolution": 512}`; see
                `SDMatte.inference.defaults.InferenceDefaults`.

        Raises:
            ConfigError: The text encoder was released.
            OutputError: The folder cannot be written.
        """
        folder = Path(folder)
        if self.text_encoder.device.type == "meta":
            raise ConfigError("A model loaded without its text encoder cannot be saved.")
        weights.write_tensors(self.state_dict(), folder / hub.WEIGHTS_FILE)
        configs = {
            # With the pretrained U-Net's input channels; building the model widens them.
            "unet": {**self.unet.config, "in_channels": self.unet.aux_conv_in.in_channels},
            "vae": self.vae.config,
            "text_encoder": self.text_encoder.config.to_dict(),
        }
        for name, config in configs.items():
            config = {key: value for key, value in config.items() if not key.startswith("_")}
            class_name = type(self.get_submodule(name)).__name__
            weights.write_json(folder / name / "config.json", {**config, "_class_name": class_name})
        self.tokenizer.save_pretrained(folder / "tokenizer")
        arguments = self.settings.model_dump(mode="json")
        card = {"model": type(self).__name__, "arguments": arguments}
        if inference:
            card["inference"] = dict(inference)
        weights.write_json(folder / hub.MODEL_CARD, card)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        checkpoint: str | Path | None = None,
        dtype: torch.dtype | str = torch.float32,
        **settings: Any,
    ) -> "SDMatte":
        """Load a trained model, without initializing random weights first.

        Args:
            path_or_hub_id: A folder written by `save_pretrained`, or a folder or hub id with
                component configs and a checkpoint, as published by the authors.
            checkpoint: A checkpoint file, or the name of one in the folder; None: its default one.
            dtype: Type of the weights, except for autoencoders narrower than
                `MIN_WIDTH_FOR_LOW_PRECISION`.
            **settings: Override settings saved with the model.

        Returns:
            The model in evaluation mode, on the CPU.

        Raises:
            CheckpointError: The folder or the checkpoint is missing or does not fit.
        """
        folder = hub.resolve_folder(path_or_hub_id)
        card = weights.read_model_card(folder)
        if card.get("model", cls.__name__) != cls.__name__:
            raise CheckpointError(f"{folder} holds a {card['model']}, not a {cls.__name__}.")
        path = hub.resolve_checkpoint(path_or_hub_id, checkpoint)
        settings = {**card.get("arguments", {}), **settings, "load_weight": False}
        with init_empty_weights(include_buffers=False):
            model = cls(folder, **settings, dtype=dtype)
        if max(model.vae.config.block_out_channels) < MIN_WIDTH_FOR_LOW_PRECISION:
            nn.Module.to(model.vae, torch.float32)
        weights.assign_checkpoint(model, path)
        return model.eval()


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return the type of a model's weights, given as a `torch.dtype` or its name.

    Raises:
        ConfigError: `dtype` is not float32, bfloat16 or float16.
    """
    value = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if value not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(f"dtype must be float32, bfloat16 or float16; got {dtype!r}.")
    return value


def _publish_names(module: SDMatte, state_dict: dict, prefix: str, local_metadata) -> None:
    weights.rename_text_encoder(state_dict, prefix)


def _accept_names(module: SDMatte, state_dict: dict, prefix: str, *args) -> None:
    with_level = hasattr(module.text_encoder, "text_model")
    weights.rename_text_encoder(state_dict, prefix, with_level)
