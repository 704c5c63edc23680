"""What can be tested: checkpoints and baselines, each with the config that says on what."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import SDMatte.compat  # noqa: F401

import torch
from omegaconf import DictConfig, OmegaConf

from SDMatte.errors import ConfigError
from SDMatte.evaluation.baselines import get_baseline
from SDMatte.evaluation.run import choose_test_sets, file_hash, load_trained
from SDMatte.modeling import hub
from SDMatte.prompts.types import PROMPT_TYPES, get_prompt_type
from SDMatte.runtime.config import load_config
from SDMatte.runtime.devices import choose_device
from SDMatte.runtime.launch import run_on_main

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TestedModel:
    """A model, or another method, under test.

    Attributes:
        name: Different from that of all others in the run.
        config: The whole config.
        load: Gives what `SDMatte.evaluation.run.run_plan` takes as a model.
        prompts: Short names of the prompts to test it with, of test.prompts.
        usable: Short names of all prompts that it can use.
        identity: What makes it what it is, for results to be gone on with.
        info: What reports say of it.
        checkpoint: Its file, None for a baseline.
        home: Where the folders of its results go by default: beside a checkpoint, except beside
            one in the hub's cache.
    """

    name: str
    config: DictConfig
    load: Callable[[], Any]
    prompts: tuple[str, ...]
    usable: tuple[str, ...]
    identity: Mapping[str, Any]
    info: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    home: Path = Path("output")


def find_tested_models(
    runs: Sequence[tuple[str, str | None]],
    baselines: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> list[TestedModel]:
    """Finds what is to be tested; whatever is missing is noticed before anything is loaded.

    Args:
        runs: Config files, each with a checkpoint (a file, a folder or a hub id) or None. None is
            the last checkpoint of the config's output folder; if there are baselines, it is no
            checkpoint at all.
        baselines: Names of baselines, each tested on the sets of the first config.
        overrides: ``key=value`` settings for all configs.

    Raises:
        ConfigError: A config or a baseline is not there, or a baseline has no use for any of the
            prompts.
        DependencyError: A baseline's package is not installed.
        CheckpointError: A checkpoint is not there.
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
    names = _names(tested, baselines)
    tested_models = [
        _of_checkpoint(name, configs[file], file, path, is_local=Path(checkpoint).exists())
        for name, (file, checkpoint), path in zip(names, tested, paths, strict=True)
    ]
    return tested_models + [_of_baseline(name, configs[runs[0][0]]) for name in baselines]


def _names(runs: Sequence[tuple[str, str | Path]], taken: Sequence[str]) -> list[str]:
    """Name configs with checkpoints: by as much of their paths as tells them apart."""
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
    raise ConfigError("A config and a checkpoint are named twice.")


def _of_checkpoint(
    name: str, config: DictConfig, config_file: str, path: Path, is_local: bool
) -> TestedModel:
    digest = run_on_main(lambda: file_hash(path))
    device = choose_device(config.train.device, "train.device")
    return TestedModel(
        name,
        config,
        load=lambda: load_trained(config, path).to(device),
        prompts=tuple(config.test.prompts),
        usable=tuple(prompt.alias for prompt in PROMPT_TYPES.values()),
        identity={"model sha256": digest, "model settings": _model_settings(config)},
        info={
            "config": config_file,
            "checkpoint": str(path),
            "model sha256": digest,
            "device": _device_name(device),
        },
        checkpoint=path,
        home=path.parent if is_local else Path("output") / name,
    )


def _of_baseline(name: str, config: DictConfig) -> TestedModel:
    method = get_baseline(name)
    wanted = [get_prompt_type(prompt).alias for prompt in config.test.prompts]
    prompts = tuple(prompt for prompt in wanted if prompt in method.prompts)
    if not prompts:
        raise ConfigError(
            f"The baseline {name} takes {', '.join(method.prompts)}, none of test.prompts "
            f"({', '.join(wanted)})."
        )
    method(prompts[0])  # finds out what is not installed
    if len(prompts) < len(wanted):
        logger.info("The baseline %s is tested with %s alone.", name, ", ".join(prompts))
    return TestedModel(name, config, lambda: method, prompts, method.prompts, {"baseline": name})


def _model_settings(config: DictConfig) -> str:
    """A hash of what, beside the weights, a model's output follows from."""
    settings = OmegaConf.to_container(config.model, resolve=True)
    folder = settings.pop("pretrained_model_name_or_path")
    settings.pop("load_weight", None)  # the checkpoint has all weights
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    if Path(folder).is_dir():
        for path in sorted(Path(folder).glob("*/config.json")):
            digest.update(path.read_bytes())
    else:
        digest.update(str(folder).encode())
    return digest.hexdigest()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device.type} ({torch.cuda.get_device_name(device)})"
    return device.type
