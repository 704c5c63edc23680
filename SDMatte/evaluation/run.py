"""Testing a model on sets and prompts: the one path of ``test``, and of training's evaluations."""

import contextlib
import copy
import hashlib
import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import SDMatte.compat  # noqa: F401

import torch
from accelerate import init_empty_weights
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf

from SDMatte.data import MattingDataset
from SDMatte.data.catalog import Sample, data_root, is_there
from SDMatte.data.listing import files_of
from SDMatte.data.mix import without_weight
from SDMatte.errors import CheckpointError, ConfigError, DataError, MissingCheckpointError
from SDMatte.evaluation.evaluator import MatteEvaluator
from SDMatte.evaluation.progress_log import ProgressLog, clear_results
from SDMatte.modeling import SDMatte, hub, weights
from SDMatte.prompts.frozen import PromptFile, freeze
from SDMatte.prompts.types import PromptType, get_prompt_type
from SDMatte.runtime.config import build
from SDMatte.runtime.files import check_not_read, stem_key
from SDMatte.runtime.launch import run_on_main
from SDMatte.scoring.protocols import get_protocol
from SDMatte.scoring.results import (
    ERRORS,
    MATTES,
    SCORES,
    SUMMARY,
    ImageScore,
    code_hash,
)
from SDMatte.scoring.workers import Target

logger = logging.getLogger(__name__)

HOW_TO_NAME_A_SET = (
    "Name a test set with 'dataloader.test.dataset.names=[{image: DIR, alpha: DIR}]', or hold out "
    "a part of a training pair: {image: DIR, alpha: DIR, holdout: 0.1}."
)


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
    """Build a config's model from a full checkpoint, in evaluation mode.

    Args:
        config: The whole config.
        checkpoint: A file, a folder or a hub id; see `SDMatte.modeling.hub.resolve_checkpoint`.

    Raises:
        CheckpointError: The checkpoint is missing, damaged or does not fit.
    """
    with init_empty_weights(include_buffers=False):
        model = build(config.model, load_weight=False)
    weights.assign_checkpoint(model, hub.resolve_checkpoint(checkpoint))
    return model.eval()


def dataset_names(config: DictConfig, part: str = "test") -> list[Any]:
    """The sets of a config's part, ``"train"`` or ``"test"``, as names or folder pairs."""
    names = config.dataloader[part].dataset.names
    names = OmegaConf.to_container(names, resolve=True) if OmegaConf.is_config(names) else names
    return names if isinstance(names, list) else [names]


def choose_test_sets(config: DictConfig, training: bool) -> list[str]:
    """Settle which sets are tested: those to use replace the names in the config.

    Optional sets that are not there are left out, with a line that says how to name one. What
    training sets hold out is added: for the evaluations of a training always, for a test unless the
    config names sets that are not optional, as the config.yaml of a run does.

    Args:
        config: The whole config; ``dataloader.test.dataset.names`` is changed.
        training: Whether for the evaluations of a training.

    Returns:
        The names of the sets that are left out.

    Raises:
        DataError: A set is unknown or has no such setting.
    """
    dataset = config.dataloader.test.dataset
    chosen, left_out, named = [], [], False
    for item in dataset_names(config):
        if not isinstance(item, Mapping) or not item.get("optional"):
            named = True
        else:
            item = {key: value for key, value in item.items() if key != "optional"}
            if not is_there(item, dataset.get("root")):
                left_out.append(str(item.get("name", "pair")))
                continue
            item = item["name"] if item.keys() == {"name"} else item
        chosen.append(item)
    if training or not named:
        for item in dataset_names(config, "train"):
            if isinstance(item, Mapping) and item.get("holdout") is not None:
                bare = without_weight(item)
                chosen += [] if bare in chosen else [bare]
    dataset.names = chosen
    if left_out and comm.is_main_process():
        logger.warning(
            "%s: not found in %s, so it is not tested. %s",
            ", ".join(left_out),
            data_root(dataset.get("root")),
            HOW_TO_NAME_A_SET,
        )
    return left_out


def test_loaders(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yields name and loader of each test set.

    Raises:
        ConfigError: The config names no test set.
        DataError: A set cannot be used.
    """
    names = dataset_names(config)
    if not names:
        raise ConfigError(f"There is no test set. {HOW_TO_NAME_A_SET}")
    for name in names:
        node = copy.deepcopy(config.dataloader.test)
        node.dataset.names = [name]
        loader = build(node)
        yield loader.dataset.samples[0].dataset, loader


@dataclass(frozen=True)
class SetTest:
    """One set under one prompt: what there is to do, and what is done of it.

    Attributes:
        name: The set.
        prompt: The prompt.
        loader: The loader of all its pictures.
        label: The prompt in results.
        folder: Where mattes and reports go, None for nowhere.
        progress_log: What is done there; None: everything is done anew.
        done: The pictures predicted earlier, by name; those without scores are to be scored.
    """

    name: str
    prompt: PromptType
    loader: Any
    label: str
    folder: Path | None = None
    progress_log: ProgressLog | None = None
    done: Mapping[str, ImageScore] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """``"AIM-500/box"``: what its scores are filed under."""
        return f"{self.name}/{self.label}"

    @property
    def missing(self) -> dict[int, Sample]:
        """The samples that are not predicted yet, by their index in the set."""
        samples = enumerate(self.loader.dataset.samples)
        return {i: s for i, s in samples if stem_key(s.alpha) not in self.done}


def plan_test(
    config: DictConfig,
    output_dir: str | Path | None = None,
    prompts: Iterable[str] | None = None,
    identity: Mapping[str, Any] | None = None,
    restart: bool = False,
) -> list[SetTest]:
    """Lists what a test does; what can be wrong before a picture is read is found here.

    Args:
        config: The whole config.
        output_dir: Where mattes and reports go, ``set/prompt/`` each; None: nowhere.
        prompts: Short names of prompts; None: ``test.prompts``.
        identity: What makes the model what it is. Results in ``output_dir`` of the same model,
            protocol, prompts and pictures are gone on with; None: all is done anew.
        restart: Whether the results there, whatever made them, are deleted.

    Raises:
        ConfigError: No prompts, no sets, two sets of one name, or one without the trimaps that
            ``test.use_trimap`` needs.
        DataError: A set cannot be used, two of its pictures have one name, or the folder holds
            other results.
        OutputError: Files of a set are where the results are to go.
    """
    types = [get_prompt_type(name) for name in (prompts or config.test.prompts)]
    if not types:
        raise ConfigError("test.prompts names no prompt.")
    get_protocol(config.test.protocol)
    plan: list[SetTest] = []
    for name, loader in test_loaders(config):
        if any(test.name == name for test in plan):
            raise ConfigError(f"There are two test sets {name}: give folder pairs a name.")
        stems = Counter(stem_key(sample.alpha) for sample in loader.dataset.samples)
        twice = [stem for stem, number in stems.items() if number > 1]
        if twice:
            raise DataError(
                f"Mattes of {name} could not be told apart: there are several {twice[0]}."
            )
        if config.test.use_trimap and not all(s.trimap for s in loader.dataset.samples):
            raise ConfigError(f"test.use_trimap=True needs trimaps, and {name} has none.")
        for prompt in types:
            test = SetTest(name, prompt, loader, _label(loader.dataset, prompt))
            if output_dir is not None:
                folder = Path(output_dir) / name / test.label.replace(" ", "_")
                test = replace(test, folder=folder)
                check_not_read(
                    [folder, *(folder / name for name in (SCORES, SUMMARY))],
                    _files_read(loader.dataset),
                    emptied=[folder / MATTES, folder / ERRORS],
                )
            if test.folder is not None and identity is not None:
                test = _look_up(test, config, identity, restart)
            plan.append(test)
    return plan


def _files_read(dataset: MattingDataset) -> Iterator[Path]:
    """All that a test reads of a set."""
    yield from files_of(dataset.samples, dataset.root)
    if dataset.frozen is not None:
        yield Path(dataset.frozen.path)


def _label(dataset: MattingDataset, prompt: PromptType) -> str:
    worse = dataset.perturb.describe(prompt.mask_key)
    return f"{prompt.alias} {worse}" if worse else prompt.alias


def _look_up(test: SetTest, config: DictConfig, model: Mapping[str, Any], restart: bool) -> SetTest:
    """Finds out what is done; only the main process reads, so that all see the same."""
    dataset, settings = test.loader.dataset, config.test
    progress_log = ProgressLog(test.folder, {**model, **_identity(dataset, test.prompt, settings)})

    def read() -> dict[str, ImageScore]:
        done = {} if restart else progress_log.read()
        return {n: p for n, p in done.items() if p.pred_path or not settings.save_mattes}

    return replace(test, progress_log=progress_log, done=run_on_main(read))


def _identity(dataset: MattingDataset, prompt: PromptType, settings: DictConfig) -> dict[str, Any]:
    """What, beside the model, the results of a set and prompt follow from."""
    knobs = asdict(dataset.settings)
    del knobs["cache_mb"]  # changes nothing
    samples = [asdict(sample) for sample in dataset.samples]
    samples = unicodedata.normalize("NFC", json.dumps(samples, ensure_ascii=False))
    return {
        "code": code_hash(),
        "protocol": settings.protocol,
        "use_trimap": settings.use_trimap,
        "use_captions": settings.use_captions,
        "set": dataset.samples[0].dataset,
        "pictures": hashlib.sha256(samples.encode("utf-8", "surrogateescape")).hexdigest(),
        **{f"{role} files": _fingerprint(dataset, role) for role in ("image", "alpha", "trimap")},
        "prompt": prompt.alias,
        "prompt seed": dataset.seed,
        "prompts sha256": file_hash(dataset.frozen.path) if dataset.frozen is not None else None,
        "prompts made worse": asdict(dataset.perturb),
        "size": dataset.size,
        "settings": knobs,
    }


def _fingerprint(dataset: MattingDataset, role: str) -> str:
    """A hash of a set's images, alphas or trimaps, the same on each machine that has them.

    Of images, which are large, only the sizes count.
    """
    digest = hashlib.sha256()
    for path in filter(None, (getattr(sample, role) for sample in dataset.samples)):
        try:
            status = (dataset.root / path).stat()
        except OSError:  # the reader says what it is
            continue
        content = str(status.st_size)
        if role != "image":
            content = _hash_unchanged(dataset.root / path, status.st_size, status.st_mtime_ns)
        digest.update(f"{content}\n".encode())
    return digest.hexdigest()


@cache  # once, for all prompts and models
def _hash_unchanged(path: Path, size: int, time: int) -> str:
    return file_hash(path)


def file_hash(path: str | Path) -> str:
    """The SHA-256 of a file, as ``sha256sum`` prints it.

    Raises:
        MissingCheckpointError: It does not exist.
        CheckpointError: It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            return digest.hexdigest()
    except FileNotFoundError as error:
        raise MissingCheckpointError(f"File {path} not found.") from error
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error


def run_test(
    config: DictConfig,
    model: Callable[..., torch.Tensor],
    output_dir: str | Path | None = None,
    model_name: str = "",
    prompts: Iterable[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Predicts and scores every test set of a config with every prompt, from the beginning.

    Args:
        config: The whole config.
        model: See `run_plan`.
        output_dir: Where mattes and reports go, ``set/prompt/`` each; None: nowhere.
        model_name: For the reports.
        prompts: Short names of prompts; None: ``test.prompts``.

    Returns:
        Metrics by ``set/prompt``, raw; empty in all processes but the first.

    Raises:
        ConfigError: No prompts.
        DataError: A set or a picture cannot be used.
    """
    plan = plan_test(config, output_dir, prompts)
    return run_plan(config, plan, model, model_name)


def run_plan(
    config: DictConfig,
    plan: Sequence[SetTest],
    model: Callable[..., torch.Tensor] | None,
    model_name: str = "",
    info: Mapping[str, Any] | None = None,
    only: str | None = None,
) -> dict[str, dict[str, float]]:
    """Does what `plan_test` has listed.

    Args:
        config: The whole config.
        plan: What to do.
        model: An `SDMatte.modeling.SDMatte`, left in the mode that it is in; or a baseline, which
            takes the batch alone, or its class, which is made for each prompt. None where nothing
            is predicted.
        model_name: For the reports.
        info: More for the reports.
        only: ``"predict"``: mattes are written and not scored; ``"score"``: mattes that have been
            written are scored; None: both.

    Returns:
        Metrics by ``set/prompt``, raw; empty in all processes but the first.

    Raises:
        ConfigError: Mattes are to be predicted alone, but not to be written.
        DataError: A picture cannot be used, or is not predicted yet where only scores are wanted.
    """
    if only is not None and not config.test.save_mattes:
        raise ConfigError("To predict and to score apart needs test.save_mattes=True.")
    if only == "score":
        _check_predicted(plan)
    results: dict[str, dict[str, float]] = {}
    with _evaluating(model):
        for test in plan:
            _begin(test)
            evaluator = _evaluator(config, test, model_name, dict(info or {}), only)
            if only == "score":
                results |= evaluator.evaluate()
                continue
            loader, missing = test.loader, test.missing
            if len(missing) < len(loader.dataset):
                dataset = loader.dataset
                loader = build(config.dataloader.test, dataset=dataset, wanted=list(missing))
            predict = _with_prompt(model, test.prompt, config.test.use_captions)
            results |= inference_on_dataset(predict, loader, evaluator)
    return results


def _check_predicted(plan: Sequence[SetTest]) -> None:
    missing = {t.folder: t.missing for t in plan if t.missing}
    if missing:
        lines = (
            f"{folder}: {len(samples)} of them, such as "
            f"{stem_key(next(iter(samples.values())).alpha)}"
            for folder, samples in missing.items()
        )
        raise DataError("There are no mattes to score:\n  " + "\n  ".join(lines))


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Puts a network into evaluation mode for a while."""
    if not isinstance(model, torch.nn.Module):
        yield
        return
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _with_prompt(model: Any, prompt: PromptType, use_captions: bool) -> Callable:
    if isinstance(model, torch.nn.Module):
        return _Prompted(model, prompt, use_captions)
    return model(prompt.alias) if isinstance(model, type) else model


def _begin(test: SetTest) -> None:
    """Clears the folder of what is not gone on with, and opens the progress_log."""
    if test.folder is None:
        return

    def begin() -> None:
        if not test.done:
            clear_results(test.folder)
        if test.progress_log is not None:
            test.progress_log.begin(test.done.values())

    run_on_main(begin)
    if test.done:
        number = len(test.loader.dataset)
        logger.info("%s: %d of %d pictures are done already.", test.folder, len(test.done), number)


def _evaluator(
    config: DictConfig, test: SetTest, model_name: str, info: dict[str, Any], only: str | None
) -> MatteEvaluator:
    settings, dataset = config.test, test.loader.dataset
    targets = _targets(dataset, settings.use_trimap)
    ready, unscored = [], []
    for name, picture in test.done.items():
        if picture.scores or only == "predict":
            ready.append(_placed(picture, targets[name]))
        else:
            unscored.append((targets[name], Path(picture.pred_path)))
    return MatteEvaluator(
        test.name,
        test.label,
        protocol=settings.protocol,
        output_dir=test.folder,
        use_trimap=settings.use_trimap,
        num_images=len(dataset),
        num_workers=settings.num_workers,
        save_mattes=settings.save_mattes,
        error_maps=settings.error_maps,
        scoring=only != "predict",
        progress_log=test.progress_log,
        done=ready,
        written=unscored,
        model=model_name,
        **_prompt_origin(dataset, test.prompt, info),
    )


def _targets(dataset: MattingDataset, use_trimap: bool) -> dict[str, Target]:
    """What the mattes of a set are scored against, by picture."""
    found = {}
    for sample in dataset.samples:
        trimap = (
            (str(dataset.root / sample.trimap) if sample.trimap else "") if use_trimap else None
        )
        image = "" if sample.background else str(dataset.root / sample.image)
        target = Target(str(dataset.root / sample.alpha), trimap, image)
        found[target.name] = target
    return found


def _placed(picture: ImageScore, target: Target) -> ImageScore:
    """A picture done earlier with today's paths: the data may have been moved."""
    return replace(picture, alpha_path=target.alpha_path, image_path=target.image_path)


def _prompt_origin(
    dataset: MattingDataset, prompt: PromptType, info: dict[str, Any]
) -> dict[str, Any]:
    """Says, for the report, where the prompts come from: a file, or a seed."""
    if dataset.frozen is None or prompt.fixed:
        return {"prompt_seed": dataset.seed, "info": info}
    path = dataset.frozen.path
    return {"info": {**info, "prompts from": path, "prompts sha256": file_hash(path)}}


def save_prompts(config: DictConfig, path: str | Path) -> None:
    """Writes the boxes, points and masks of a config's test sets to a file.

    It is for ``dataloader.test.dataset.prompts_from`` of other runs. The pictures are read for it
    once more, by all processes together.

    Args:
        config: The whole config.
        path: Where to.

    Raises:
        DataError: Two sets have the same name, or a picture cannot be read.
        OutputError: The file cannot be written, or is one of those that are read.
    """
    frozen: PromptFile | None = None
    for _, loader in test_loaders(config):
        dataset = loader.dataset  # all sets of a config share their settings
        check_not_read([path], _files_read(dataset))
        if frozen is None:
            frozen = PromptFile(dataset.size, dataset.settings.radius(False), dataset.settings.psm)
        for (name, key), entry in _collect_prompts(loader).items():
            if key in frozen.sets.setdefault(name, {}):
                raise DataError(f"Prompts are not saved: there are two sets {name} with {key}.")
            frozen.sets[name][key] = entry
    if frozen is not None and comm.is_main_process():
        frozen.write(path)
        logger.info("The prompts are in %s.", path)


def _collect_prompts(loader: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """The prompts of a set, read by all processes together, by the names of prompt files."""
    dataset = loader.dataset
    keys = {str(dataset.root / s.alpha): dataset.prompt_key(s) for s in dataset.samples}
    entries = {}
    for batch in loader:
        for index, path in enumerate(batch["alpha_path"]):
            entries[keys[path]] = freeze({name: values[index] for name, values in batch.items()})
    return {key: entry for part in comm.all_gather(entries) for key, entry in part.items()}
