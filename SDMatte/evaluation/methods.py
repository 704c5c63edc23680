"""The methods to test: checkpoints and baselines, each with its config."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from omegaconf import DictConfig, OmegaConf

from SDMatte import modeling
from SDMatte.errors import ConfigError
from SDMatte.evaluation.baselines import BASELINES
from SDMatte.evaluation.identity import file_hash
from SDMatte.evaluation.plan import choose_test_sets
from SDMatte.modeling import hub, weights
from SDMatte.prompts.types import PROMPT_TYPES, get_prompt_type
from SDMatte.runtime.config import build, load_config
from SDMatte.runtime.devices import choose_device
from SDMatte.runtime.ranks import run_on_main

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Method:
    """A method to test; prompts are given by their short names."""

    name: str  # unique in the run
    config: DictConfig  # the whole config
    load: Callable[[], Any]  # returns what `SDMatte.evaluation.run.run_plan` takes as a model
    prompts: tuple[str, ...]  # those to test, a subset of test.prompts
    supported_prompts: tuple[str, ...]
    identity: Mapping[str, Any]  # what its predictions depend on; must match to resume results
    info: Mapping[str, Any] = field(default_factory=dict)  # for the reports
    checkpoint: Path | None = None  # None for a baseline
    # Default parent of the output folder: the folder of a local checkpoint, else one in output/.
    home: Path = Path("output")


def find_methods(
    runs: Sequence[tuple[str, str | None]],
    baselines: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> list[Method]:
    """Find the methods to test; report missing files before loading anything.

    Args:
        runs: Config files, each with a checkpoint (a file, a folder or a hub id) or None. None
            stands for the final checkpoint of the config's output folder or, if there are
            baselines, for no checkpoint.
        baselines: Names of baselines, tested on the data sets of the first config.
        overrides: ``key=value`` settings for all configs.
    """
    configs = {file: load_config(file, overrides) for file, _ in runs}
    for config in configs.values():
        choose_test_sets(config, training=False)
    baselines = list(dict.fromkeys(baselines))
    tested = [
        (file, checkpoint or Path(configs[file].train.output_dir) / hub.FINAL_CHECKPOINT)
        for file, checkpoint in runs
        if checkpoint is not None or not baselines
    ]
    paths = [hub.resolve_checkpoint(checkpoint) for _, checkpoint in tested]
    names = _choose_names(tested, baselines)
    methods = [
        _checkpoint_method(name, configs[file], file, path, is_local=Path(checkpoint).exists())
        for name, (file, checkpoint), path in zip(names, tested, paths, strict=True)
    ]
    return methods + [_baseline_method(name, configs[runs[0][0]]) for name in baselines]


def build_model(node: DictConfig, **extra: Any) -> modeling.SDMatte:
    """Build the model that a part of a config describes; see `build`.

    Raises:
        ConfigError: It is not an SDMatte.
    """
    model = build(node, **extra)
    if not isinstance(model, modeling.SDMatte):
        raise ConfigError(
            f"The config's model is of the class {type(model).__name__}; it must be SDMatte or a "
            f"subclass of it."
        )
    return model


def check_sizes(config: DictConfig, model: modeling.SDMatte, parts: Sequence[str]) -> None:
    """Ensure that the model accepts the image sizes of parts of the config.

    Raises:
        ConfigError: A size is not a multiple of the model's divisor.
    """
    for part in parts:
        dataset = config.dataloader[part].dataset
        squared = part == "train" or not dataset.settings.get("keep_aspect")
        if squared and dataset.size % model.size_divisor:
            raise ConfigError(
                f"dataloader.{part}.dataset.size must be a multiple of {model.size_divisor} for "
                f"this model; got {dataset.size}."
            )


def load_trained(config: DictConfig, checkpoint: str | Path) -> modeling.SDMatte:
    """Load a config's model for evaluation from a full checkpoint (see `resolve_checkpoint`)."""
    with init_empty_weights(include_buffers=False):
        model = build_model(config.model, load_weight=False)
    check_sizes(config, model, ["test"])
    weights.assign_checkpoint(model, hub.resolve_checkpoint(checkpoint))
    return model.eval()


def _choose_names(runs: Sequence[tuple[str, str | Path]], taken: Sequence[str]) -> list[str]:
    """Name checkpoints by the shortest unique ends of their paths, and by config if needed."""
    paths = []
    for _, checkpoint in runs:
        path = Path(checkpoint)
        path = path.absolute() if path.exists() else Path("/", checkpoint)
        if path.suffix in hub.CHECKPOINT_SUFFIXES:
            path = path.with_suffix("")
        paths.append(path.parts[1:])
    for length in range(1, max(map(len, paths), default=1) + 1):
        names = ["_".join(parts[-length:]) for parts in paths]
        with_configs = [
            f"{Path(config).stem}_{name}" for (config, _), name in zip(runs, names, strict=True)
        ]
        for found in (names, with_configs):
            if max(Counter((*found, *taken)).values(), default=1) == 1:
                return found
    raise ConfigError("The same config and checkpoint are given twice.")


def _checkpoint_method(
    name: str, config: DictConfig, config_file: str, path: Path, is_local: bool
) -> Method:
    digest = run_on_main(lambda: file_hash(path))
    device = choose_device(config.train.device, "train.device")
    device_name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return Method(
        name,
        config,
        load=lambda: load_trained(config, path).to(device),
        prompts=tuple(config.test.prompts),
        supported_prompts=tuple(prompt.alias for prompt in PROMPT_TYPES.values()),
        identity={"model sha256": digest, "model settings": _hash_model_settings(config)},
        info={
            "config": config_file,
            "checkpoint": str(path),
            "model sha256": digest,
            "device": f"{device.type}{device_name}",
        },
        checkpoint=path,
        home=path.parent if is_local else Path("output") / name,
    )


def _baseline_method(name: str, config: DictConfig) -> Method:
    if name not in BASELINES:
        raise ConfigError(f"Unknown baseline {name!r}; choose from {', '.join(BASELINES)}.")
    baseline = BASELINES[name]
    wanted = [get_prompt_type(prompt).alias for prompt in config.test.prompts]
    prompts = tuple(prompt for prompt in wanted if prompt in baseline.prompts)
    if not prompts:
        raise ConfigError(
            f"The baseline {name} supports {', '.join(baseline.prompts)}, but test.prompts is "
            f"{', '.join(wanted)}."
        )
    baseline(prompts[0])  # raises if a package is not installed
    if len(prompts) < len(wanted):
        logger.info("The baseline %s is tested with %s only.", name, ", ".join(prompts))
    return Method(name, config, lambda: baseline, prompts, baseline.prompts, {"baseline": name})


def _hash_model_settings(config: DictConfig) -> str:
    """Hash the settings that affect a model's predictions, except for its weights."""
    settings: Any = OmegaConf.to_container(config.model, resolve=True)
    folder = settings.pop("pretrained_model_name_or_path")
    settings.pop("load_weight", None)  # the checkpoint has all weights
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    if Path(folder).is_dir():
        for path in sorted(Path(folder).glob("*/config.json")):
            digest.update(path.read_bytes())
    else:
        digest.update(str(folder).encode())
    return digest.hexdigest()
