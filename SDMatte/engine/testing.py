"""Testing a model on sets and prompts: the one path of ``test``, and of training's evaluations."""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import SDMatte.compat  # noqa: F401

import torch
from accelerate import init_empty_weights
from detectron2.evaluation import inference_on_dataset
from omegaconf import DictConfig, OmegaConf

from SDMatte.engine.config import build
from SDMatte.errors import ConfigError
from SDMatte.evaluation.evaluator import MatteEvaluator
from SDMatte.modeling import SDMatte, weights
from SDMatte.prompts import PromptType, get_prompt_type

logger = logging.getLogger(__name__)


class _Prompted:
    """Makes a model of batches out of a model of batches and prompts."""

    def __init__(self, model, prompt: PromptType, use_captions: bool):
        self.model = model
        self.prompt = prompt
        self.use_captions = use_captions

    def __call__(self, batch: Mapping[str, Any]) -> torch.Tensor:
        if not self.use_captions:
            batch = {key: value for key, value in batch.items() if key != "caption"}
        return self.model(batch, aux_input=self.prompt.mask_key)


def load_trained(config: DictConfig, checkpoint: str | Path) -> SDMatte:
    """Builds a config's model from a full checkpoint, in evaluation mode.

    Raises:
        CheckpointError: The checkpoint is missing, damaged or does not fit.
    """
    tensors = weights.read_tensors(checkpoint)  # before the model: a wrong path should not wait
    with init_empty_weights(include_buffers=False):
        model = build(config.model, load_weight=False)
    weights.load_strict(model, tensors, str(checkpoint), assign=True)
    return model.eval()


def dataset_names(config: DictConfig) -> list[Any]:
    """The test sets of a config, as names or folder pairs."""
    names = OmegaConf.to_container(config.dataloader.test.dataset.names, resolve=True)
    return names if isinstance(names, list) else [names]


def test_loaders(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yields name and loader of each test set."""
    for name in dataset_names(config):
        node = copy.deepcopy(config.dataloader.test)
        node.dataset.names = [name]
        loader = build(node)
        yield loader.dataset.samples[0].dataset, loader


def run_test(
    config: DictConfig,
    model: Callable[..., torch.Tensor],
    output_dir: str | Path | None = None,
    model_name: str = "",
    prompts: Iterable[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Predicts and scores every test set of a config with every prompt.

    Args:
        config: The whole config.
        model: An `SDMatte.modeling.SDMatte`, left in the mode that it is in; or a baseline, which
            takes the batch alone.
        output_dir: Where mattes and reports go, ``set/prompt/`` each; None: nowhere.
        model_name: For the reports.
        prompts: Short names of prompts; None: ``test.prompts``.

    Returns:
        Metrics by ``set/prompt``, raw; empty in all processes but the first.

    Raises:
        ConfigError: No prompts.
        DataError: A set or a picture cannot be used.
    """
    settings = config.test
    types = [get_prompt_type(name) for name in (prompts or settings.prompts)]
    if not types:
        raise ConfigError("test.prompts names no prompt.")
    training = getattr(model, "training", False)
    if isinstance(model, torch.nn.Module):
        model.eval()
    results: dict[str, dict[str, float]] = {}
    for name, loader in test_loaders(config):
        for prompt in types:
            folder = Path(output_dir) / name / prompt.alias if output_dir is not None else None
            evaluator = MatteEvaluator(
                name,
                prompt.alias,
                protocol=settings.protocol,
                output_dir=folder,
                use_trimap=settings.use_trimap,
                num_pictures=len(loader.dataset),
                model=model_name,
                prompt_seed=loader.dataset.seed,
            )
            predict = model
            if isinstance(model, torch.nn.Module):  # baselines know their prompt
                predict = _Prompted(model, prompt, settings.use_captions)
            results |= inference_on_dataset(predict, loader, evaluator)
    if isinstance(model, torch.nn.Module):
        model.train(training)
    return results
