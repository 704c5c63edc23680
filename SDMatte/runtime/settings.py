"""Settings of a run: their types, ranges and meanings, validated when a config is loaded.

The defaults are those of ``configs/``. ``docs/settings.md`` is generated from this module.
"""

from typing import Annotated, Literal

from omegaconf import DictConfig
from pydantic import ConfigDict, Field

from SDMatte.errors import ConfigError
from SDMatte.runtime.schema import Settings

SECTIONS = ("model", "criterion", "dataloader", "optimizer", "lr_multiplier", "train", "test")

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # the range of numpy's global generator


class AmpSettings(Settings):
    """``train.amp``."""

    enabled: bool = Field(description="Train in mixed precision.")
    dtype: Literal["bfloat16", "float16"] = Field(description="Type of autocast operations.")


class CompileSettings(Settings):
    """``train.compile``."""

    enabled: bool = Field(description="Use `torch.compile`; needs a C++ compiler.")


class LoraSettings(Settings):
    """``train.lora``."""

    enabled: bool = Field(
        description="Train low-rank adapters. Layers that are new in SDMatte are trained in full; "
        "all others are frozen. Checkpoints hold the merged weights."
    )
    rank: AtLeastOne = Field(description="Rank of the adapters.")
    alpha: Positive = Field(description="Adapters are scaled by `alpha / rank`.")
    dropout: Decay = Field(description="Dropout of the adapters' inputs.")
    target_modules: list[Text] = Field(description="Suffixes of the layers that get adapters.")


class EmaSettings(Settings):
    """``train.ema``."""

    enabled: bool = Field(
        description="Keep a moving average of the weights, which is tested and exported."
    )
    decay: Annotated[float, Field(gt=0, lt=1)] = Field(description="Decay of the average.")


class DdpSettings(Settings):
    """``train.ddp``."""

    find_unused_parameters: bool = Field(
        description="Search for parameters without a gradient in each iteration. Needed only for "
        "custom models: the trainer knows which parameters SDMatte does not use."
    )
    fp16_compression: bool = Field(description="Exchange gradients in float16.")
    timeout: Positive = Field(description="Seconds after which a silent process counts as dead.")


class TrainSettings(Settings):
    """``train``."""

    output_dir: Text = Field(description="Output folder of the run.")
    init_checkpoint: str | None = Field(
        description="Checkpoint to start from: a file, a folder or a hub id."
    )
    seed: Seed = Field(
        description="Seed of the model and the iterations; the data has its own seed, "
        "`dataloader.train.dataset.seed`."
    )
    device: Text = Field(description="`auto` (CUDA, else MPS, else the CPU) or a device's name.")
    epochs: Annotated[float, Field(gt=0, le=1_000_000)] = Field(
        description="Length of the run in passes over the data."
    )
    max_iter: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = Field(
        description="Length of the run in iterations; null: derived from `epochs`, the data, the "
        "batch size, `accumulate` and the number of processes."
    )
    accumulate: AtLeastOne = Field(
        description="Batches per iteration. Each loss is normalized by its own batch's trimap, so "
        "8 accumulated images equal 8 GPUs with one image each, unlike a batch of 8."
    )
    amp: AmpSettings
    float32_precision: Literal["highest", "high", "medium"] = Field(
        description="Precision of float32 matrix products; `high` is TF32 on GPUs that have it."
    )
    cudnn_benchmark: bool = Field(description="Let cuDNN benchmark its convolution algorithms.")
    gradient_checkpointing: bool = Field(description="Recompute activations to save memory.")
    channels_last: bool = Field(description="Use the channels-last memory layout.")
    compile: CompileSettings
    lora: LoraSettings
    clip_grad_norm: Positive | None = Field(
        description="Largest norm of the gradient; null: no clipping."
    )
    ema: EmaSettings
    non_finite: Literal["stop", "skip"] = Field(
        description="What to do if a loss or gradient is not finite: stop the run, or skip the "
        "iteration."
    )
    checkpoints: Count = Field(
        description="Checkpoints per run. One is always saved before an evaluation."
    )
    evaluations: Count = Field(description="Evaluations per run.")
    max_to_keep: AtLeastOne | None = Field(description="Checkpoints to keep; null: all.")
    best_metric: str | None = Field(
        description="Metric whose lowest value selects `model_best.pth`, such as `AIM-500/box/SAD`."
    )
    log_period: AtLeastOne = Field(description="Iterations between two log lines.")
    num_images: Count = Field(description="Test images shown in TensorBoard per evaluation.")
    ddp: DdpSettings


class TestSettings(Settings):
    """``test``."""

    prompts: list[Text] = Field(
        description="Prompts to test with: `point`, `box`, `mask`, `auto`, `trimap`."
    )
    protocol: Text = Field(description="Scoring protocol, `official` or `corrected`.")
    use_trimap: bool = Field(description="Score only the unknown pixels of the trimaps.")
    use_captions: bool = Field(description="Pass the images' captions to the model.")
    save_mattes: bool = Field(description="Write the predicted mattes.")
    error_maps: bool = Field(description="Write an error map for each matte.")
    num_workers: Count = Field(
        description="Scoring processes; 0: score in this process; 1: in a second thread."
    )


class _CallSettings(Settings):
    """Settings of a `LazyCall`; its target validates those without a field here."""

    model_config = ConfigDict(extra="ignore")


class DatasetSettings(_CallSettings):
    """``dataloader.train.dataset`` and ``dataloader.test.dataset``."""

    size: AtLeastOne = Field(default=512, description="Side of the samples in pixels.")
    seed: Count = Field(default=0, description="Seed of all random choices for a sample.")
    limit: AtLeastOne | None = Field(default=None, description="Use only the first samples.")
    max_bad_samples: Count = Field(
        default=100, description="Different training samples that may be unreadable."
    )


class TestLoaderSettings(_CallSettings):
    """``dataloader.test``."""

    dataset: DatasetSettings
    batch_size: AtLeastOne = Field(default=1, description="Samples per batch and process.")
    num_workers: Count = Field(default=0, description="Loader processes; 0: load in this process.")
    timeout: NotNegative = Field(
        default=0,
        description="Seconds to wait for a batch before the run fails; 0: no limit.",
    )


class TrainLoaderSettings(TestLoaderSettings):
    """``dataloader.train``."""

    seed: Count = Field(default=0, description="Seed of the order of the samples.")


class LoaderSettings(_CallSettings):
    """``dataloader``."""

    train: TrainLoaderSettings
    test: TestLoaderSettings


GROUPS: dict[str, type[Settings]] = {
    "train": TrainSettings,
    "test": TestSettings,
    "dataloader": LoaderSettings,
}
"""Sections validated when a config is loaded; the targets of `LazyCall` validate their own."""

PATHS = (
    "train.output_dir",
    "train.init_checkpoint",
    "model.pretrained_model_name_or_path",
    "distillation.teacher.pretrained_model_name_or_path",
    "distillation.teacher_checkpoint",
    "dataloader.train.dataset.root",
    "dataloader.test.dataset.root",
    "dataloader.test.dataset.prompts_from",
)
"""Settings that are paths, in addition to those of folder pairs."""

RENAMED = {
    "train.num_pictures": "train.num_images",
    "dataloader.test.dataset.worsen": "dataloader.test.dataset.perturb",
}
"""New names of renamed settings, by old name."""

REMOVED = {
    "train.compile.backend": "inductor",
    "train.ddp.broadcast_buffers": False,
    "dataloader.train.pin_memory": False,
    "dataloader.test.pin_memory": False,
}
"""Removed settings, with the value that is now always used."""

PATH_KEYS = ("image", "alpha", "trimap", "background", "list_file")
"""Keys of a folder pair that are paths."""


def check_settings(config: DictConfig) -> None:
    """Validate the sections that every run's config must have.

    Raises:
        ConfigError: A setting is missing or invalid.
    """
    for name in SECTIONS:
        if not isinstance(config[name], DictConfig):
            raise ConfigError(f"{name} must be a section of the config; got {config[name]!r}.")
    for name, group in GROUPS.items():
        group.of(config[name], name)
