"""The plan of a test: its data sets and prompts, and the images done by earlier runs."""

import copy
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf

from SDMatte.data import MattingDataset
from SDMatte.data.catalog import data_root, is_there
from SDMatte.data.listing import files_of
from SDMatte.errors import ConfigError, DataError
from SDMatte.evaluation.identity import set_identity
from SDMatte.evaluation.progress_log import ProgressLog
from SDMatte.prompts.types import PromptType, get_prompt_type
from SDMatte.runtime.config import build
from SDMatte.runtime.files import check_not_read, check_writable, stem_key
from SDMatte.runtime.ranks import run_on_main
from SDMatte.scoring.protocols import get_protocol
from SDMatte.scoring.results import ERRORS, MATTES, SCORES, SUMMARY, ImageScore
from SDMatte.scoring.workers import Target

logger = logging.getLogger(__name__)

HOW_TO_NAME_A_SET = (
    "Add a test set with 'dataloader.test.dataset.names=[{image: DIR, alpha: DIR}]', or hold out "
    "a part of a training pair: {image: DIR, alpha: DIR, holdout: 0.1}."
)


@dataclass(frozen=True, eq=False)
class SetTest:
    """The test of one data set with one prompt: what to do, and what is already done."""

    name: str  # name of the data set
    prompt: PromptType
    loader: Any  # loads the whole data set
    config: DictConfig  # the whole config
    folder: Path | None = None  # gets mattes and reports; None: nothing is written
    progress_log: ProgressLog | None = None  # log in the folder; None: resuming is off
    # Images predicted by earlier runs, by name; those without scores remain to be scored.
    done: Mapping[str, ImageScore] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The prompt and its perturbation, such as ``"box"`` or ``"box sides+0.1"``."""
        perturbation = self.loader.dataset.perturb.describe(self.prompt.mask_key)
        return f"{self.prompt.alias} {perturbation}" if perturbation else self.prompt.alias

    @property
    def key(self) -> str:
        """Key of the scores, such as ``"AIM-500/box"``."""
        return f"{self.name}/{self.label}"

    @property
    def missing(self) -> dict[int, str]:
        """Names of the images without a prediction, by their index in the data set."""
        return {i: name for i, name in enumerate(self.targets) if name not in self.done}

    @cached_property
    def targets(self) -> dict[str, Target]:
        """Targets of the mattes by image name, in the order of the data set."""
        dataset, use_trimap = self.loader.dataset, self.config.test.use_trimap
        found = {}
        for sample in dataset.samples:
            trimap = None
            if use_trimap:
                trimap = str(dataset.root / sample.trimap) if sample.trimap else ""
            image = "" if sample.background else str(dataset.root / sample.image)
            target = Target(str(dataset.root / sample.alpha), trimap, image)
            found[target.name] = target
        return found


def plan_test(
    config: DictConfig,
    output_dir: str | Path | None = None,
    prompts: Iterable[str] | None = None,
    identity: Mapping[str, Any] | None = None,
    restart: bool = False,
) -> list[SetTest]:
    """Plan a test; raise all errors that can be found without reading an image.

    Args:
        config: The whole config.
        output_dir: Mattes and reports are written to its ``SET/PROMPT/``; None: nowhere.
        prompts: Short names of prompts; None: ``test.prompts``.
        identity: Identity of the model. Results in ``output_dir`` with the same model, protocol,
            prompts and images are resumed. None: start from scratch.
        restart: Whether to delete existing results, whatever their identity.

    Raises:
        ConfigError: There is nothing to test, or trimaps are missing.
        DataError: A data set is unusable, or the folder holds results of another identity.
        OutputError: The output is not writable, or would overwrite files of a data set.
    """
    types = check_test(config, prompts)
    plan: list[SetTest] = []
    for name, loader in build_test_loaders(config):
        if any(test.name == name for test in plan):
            raise ConfigError(f"Two test sets are named {name}. Give folder pairs a name.")
        samples = loader.dataset.samples
        stem, count = Counter(stem_key(s.alpha) for s in samples).most_common(1)[0]
        if count > 1:
            raise DataError(
                f"Mattes of {name} would be ambiguous: {count} alphas are named {stem}."
            )
        if config.test.use_trimap and not all(sample.trimap for sample in samples):
            raise ConfigError(f"test.use_trimap=True needs trimaps, and {name} has none.")
        for prompt in types:
            test = SetTest(name, prompt, loader, config)
            if output_dir is not None:
                folder = Path(output_dir) / name / test.label.replace(" ", "_")
                test = _plan_output(test, folder, identity, restart)
            plan.append(test)
    return plan


def check_test(config: DictConfig, prompts: Iterable[str] | None = None) -> list[PromptType]:
    """Ensure that protocol and prompts of a test exist, and return the prompts; see `plan_test`.

    Raises:
        ConfigError: The protocol is unknown, or there are no prompts.
        PromptError: A prompt is unknown.
    """
    types = [get_prompt_type(name) for name in (prompts or config.test.prompts)]
    if not types:
        raise ConfigError("test.prompts is empty.")
    get_protocol(config.test.protocol)
    return types


def _plan_output(
    test: SetTest, folder: Path, identity: Mapping[str, Any] | None, restart: bool
) -> SetTest:
    """Return the test with its folder and, given an identity, with the images done there."""
    dataset, settings = test.loader.dataset, test.config.test
    check_writable(folder / SUMMARY)
    check_not_read(
        [folder, folder / SCORES, folder / SUMMARY],
        files_read(dataset),
        emptied=[folder / MATTES, folder / ERRORS],
    )
    if identity is None:
        return replace(test, folder=folder)
    identity = {**identity, **set_identity(dataset, test.prompt, settings)}
    progress_log = ProgressLog(folder, identity)

    def read() -> dict[str, ImageScore]:
        done = {} if restart else progress_log.read()
        return {n: i for n, i in done.items() if i.pred_path or not settings.save_mattes}

    # Only the main process reads, so that all processes agree on what is done.
    return replace(test, folder=folder, progress_log=progress_log, done=run_on_main(read))


def files_read(dataset: MattingDataset) -> Iterator[Path]:
    """Yield all files of a data set that a test reads."""
    yield from files_of(dataset.samples, dataset.root)
    if dataset.frozen is not None:
        yield Path(dataset.frozen.path)


def build_test_loaders(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield name and loader of each test set."""
    names = dataset_names(config)
    if not names:
        raise ConfigError(f"No test set. {HOW_TO_NAME_A_SET}")
    for name in names:
        node = copy.deepcopy(config.dataloader.test)
        node.dataset.names = [name]
        loader = build(node)
        yield loader.dataset.samples[0].dataset, loader


def dataset_names(config: DictConfig, part: str = "test") -> list[Any]:
    """Return the data sets of a part of a config, ``"train"`` or ``"test"``: names or pairs."""
    names = config.dataloader[part].dataset.names
    names = OmegaConf.to_container(names, resolve=True) if OmegaConf.is_config(names) else names
    return names if isinstance(names, list) else [names]


def choose_test_sets(config: DictConfig, training: bool) -> list[str]:
    """Replace the test sets of a config by those to use; return the names of those left out.

    Optional sets that do not exist are left out, with a warning. The held-out parts of training
    sets are added: always during training, but in a test only if no required set is given, because
    the config.yaml of a run already lists them.
    """
    dataset = config.dataloader.test.dataset
    chosen, left_out, any_required = [], [], False
    for item in dataset_names(config):
        if not isinstance(item, Mapping) or not item.get("optional"):
            any_required = True
        else:
            item = _without(item, "optional")
            if not is_there(item, dataset.get("root")):
                left_out.append(str(item.get("name", "pair")))
                continue
            item = item["name"] if item.keys() == {"name"} else item
        chosen.append(item)
    if training or not any_required:
        for item in dataset_names(config, "train"):
            if isinstance(item, Mapping) and item.get("holdout") is not None:
                item = _without(item, "weight")
                chosen += [] if item in chosen else [item]
    dataset.names = chosen
    if left_out and comm.is_main_process():
        logger.warning(
            "%s not found in %s, left out of the test. %s",
            ", ".join(left_out),
            data_root(dataset.get("root")),
            HOW_TO_NAME_A_SET,
        )
    return left_out


def _without(item: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name != key}
