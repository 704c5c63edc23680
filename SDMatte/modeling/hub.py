"""Models by path or by hub id: what a name stands for, and fetching no more than is needed of it.

A name is a local path, or ``OWNER/NAME`` on the Hugging Face hub, with a revision as
``OWNER/NAME@REVISION`` and one of its files as ``OWNER/NAME/FILE``. What exists locally wins; a
`pathlib.Path` is always local.
"""

import errno
import glob
import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import (
    HfApi,
    ModelInfo,
    constants,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from SDMatte.errors import CheckpointError, MissingCheckpointError, OutputError

logger = logging.getLogger(__name__)

CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
COMPONENTS = ("unet", "vae", "text_encoder")
MODEL_CARD = "sdmatte.json"
FINAL_CHECKPOINT = "model_final.pth"
"""The weights alone that a training run leaves in its output folder."""

CHECKPOINTS = ("model.safetensors", "SDMatte.pth", "LiteSDMatte.pth", FINAL_CHECKPOINT)
"""Names of a model's checkpoint, preferred in this order where there are several files."""

SECONDS = 4.0
"""How long the hub may take to answer, unless HF_HUB_ETAG_TIMEOUT says otherwise."""

# The second is the base of all errors of the HTTP client, which is not the same in all releases.
_NETWORK_ERRORS = (OSError, HfHubHTTPError.__bases__[0])
_DISK_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w.-]+))?(?:/(.+))?")
_STEMS = {"text_encoder": {".safetensors": "model", ".bin": "pytorch_model"}}
_STEM = "diffusion_pytorch_model"

Chooser = Callable[[Sequence[str], str], Iterable[str]]
"""Takes the names of all files and what to call their place; returns the names of those needed."""


@dataclass(frozen=True)
class HubName:
    """What a name means on the hub.

    Attributes:
        repo: ``OWNER/NAME``.
        revision: A branch, tag or commit; None for the main branch.
        file: One of its files, None for the whole.
    """

    repo: str
    revision: str | None = None
    file: str | None = None

    @property
    def model(self) -> str:
        """The name without its file."""
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    @classmethod
    def parse(cls, name: str | Path) -> "HubName | None":
        """Return what a name means on the hub, or None where it can only be a local path."""
        match = None if isinstance(name, Path) else _ID.fullmatch(name.rstrip("/"))
        if match is None or any(mark in match[1] for mark in ("--", "..")):
            return None
        repo, revision, file = match.groups()
        is_checkpoint = (file or repo).endswith(CHECKPOINT_SUFFIXES)
        if is_checkpoint != (file is not None):
            return None  # FOLDER/model.pth, FOLDER/FOLDER/FOLDER
        if file is not None and revision is None and Path(repo).parent.is_dir():
            return None  # output/run/model.pth with a folder output: nobody is asked for that
        return cls(repo, revision, file)


def resolve_folder(name: str | Path, load: bool | Collection[str] = False) -> Path:
    """Find a model folder, fetching its configs and tokenizer from the hub if it is there.

    Args:
        name: A folder or a hub id.
        load: The components whose weights are wanted as well; True for all.

    Raises:
        MissingCheckpointError: The folder does not exist, or the hub cannot provide it.
        CheckpointError: It lacks weights that are wanted, or access to it is restricted.
    """
    wanted = [part for part in COMPONENTS if load is True or part in (load or ())]
    return _resolve(name, lambda names, where: choose_model_files(names, where, wanted))


def resolve_checkpoint(name: str | Path, file: str | Path | None = None) -> Path:
    """Find a checkpoint, fetching it from the hub if it is there.

    Args:
        name: A checkpoint file, a folder that holds one, or a hub id.
        file: Which of the folder's files, or the path of another; None for the folder's usual or
            only one.

    Raises:
        MissingCheckpointError: The file does not exist, or the hub cannot provide it.
        CheckpointError: Access to it is restricted, or it is ambiguous.
    """
    path, hub_name = Path(name), HubName.parse(name)
    if path.is_file():
        return path
    for candidate in (path / file, Path(file)) if file is not None else ():
        if candidate.is_file():
            return candidate
    if not path.is_dir() and hub_name is None:
        raise MissingCheckpointError(f"Checkpoint file {path} not found.")
    if hub_name is not None and hub_name.file is not None:
        file = hub_name.file
    chosen: list[str] = []

    def choose(names: Sequence[str], where: str) -> list[str]:
        chosen[:] = [choose_checkpoint(names, where, file and str(file))]
        return chosen

    return _resolve(name, choose) / chosen[0]


def _resolve(name: str | Path, choose: Chooser) -> Path:
    """Return the local folder that holds the chosen files of a folder or a hub repository."""
    path = Path(name)
    if path.is_dir():
        choose(_list_files(path), str(path))
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; a model folder or a hub id is needed.")
    hub_name = HubName.parse(name)
    if hub_name is None:
        raise MissingCheckpointError(
            f"Model folder {path} not found. (An id on the Hugging Face hub is OWNER/NAME.)"
        )
    return _fetch(hub_name, str(name), choose)


def _list_files(folder: Path) -> list[str]:
    """List a model folder's files and those of its sub-folders, not any deeper."""
    paths = [*folder.iterdir(), *folder.glob("*/*")]
    return sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())


def resolve_pretrained(name: str | Path, replaced: Collection[str] = ()) -> Path:
    """Find Stable Diffusion's weights: a folder in diffusers layout, or the original single file.

    Args:
        name: A folder, a file, a hub id or one of its files.
        replaced: Components whose weights are not needed.

    Raises:
        MissingCheckpointError: It does not exist, or the hub cannot provide it.
        CheckpointError: A component has no weights, or access to it is restricted.
    """
    hub_name = HubName.parse(name)
    if Path(name).is_file() or (hub_name is not None and hub_name.file is not None):
        return resolve_checkpoint(name)
    return resolve_folder(name, [part for part in COMPONENTS if part not in replaced])


def resolve_component(name: str | Path) -> Path:
    """Find the folder of a single component, such as TAESD.

    Raises:
        MissingCheckpointError: It does not exist, or the hub cannot provide it.
        CheckpointError: It is none, or access to it is restricted.
    """

    def choose(names: Sequence[str], where: str) -> list[str]:
        files = choose_weights(names, "")
        if not files or "config.json" not in names:
            raise CheckpointError(
                f"{where} is not a component in diffusers layout: it has no "
                f"{'weights' if 'config.json' in names else 'config.json'}."
            )
        return ["config.json", *files]

    return _resolve(name, choose)


def choose_model_files(names: Sequence[str], where: str, load: Collection[str]) -> list[str]:
    """Choose the configs and tokenizer of a model folder, and the weights of components.

    Args:
        names: The folder's files.
        where: What messages call the folder.
        load: The components whose weights are wanted.

    Raises:
        CheckpointError: A component lacks its config, or the weights that are wanted.
    """
    configs = {f"{name}/config.json" for name in COMPONENTS}
    configs |= {"scheduler/scheduler_config.json", "model_index.json", MODEL_CARD}
    lacking = [f"{name}/config.json" for name in COMPONENTS if f"{name}/config.json" not in names]
    if lacking:
        raise MissingCheckpointError(
            f"{where} is not a Stable Diffusion folder in diffusers layout: it has no {lacking[0]}."
        )
    chosen = [name for name in names if name in configs or re.fullmatch(r"tokenizer/[^/]+", name)]
    for component in load:
        files = choose_weights(names, component)
        if not files:
            raise CheckpointError(
                f"{where} has no weights in {component}/, only a config. To start from a "
                f"checkpoint that holds all parts, set model.load_weight=False and "
                f"train.init_checkpoint."
            )
        chosen += files
    return chosen


def choose_weights(names: Collection[str], component: str) -> list[str]:
    """Choose a component's weights: full before half precision, safetensors before .bin.

    Args:
        names: The folder's files.
        component: Its sub-folder; empty for the folder itself.

    Returns:
        One file, or the index and the shards; empty if there are none.
    """
    prefix = f"{component}/" if component else ""
    for variant in ("", ".fp16"):
        for suffix in (".safetensors", ".bin"):
            stem = prefix + _STEMS.get(component, {}).get(suffix, _STEM)
            if (single := f"{stem}{variant}{suffix}") in names:
                return [single]
            indices = (f"{single}.index.json", f"{stem}{suffix}.index{variant}.json")
            shard = re.compile(
                rf"{re.escape(stem + variant)}-\d+-of-\d+{re.escape(suffix)}|"
                rf"{re.escape(stem)}-\d+-of-\d+{re.escape(variant + suffix)}"
            )
            for index in filter(names.__contains__, indices):
                return [index, *sorted(filter(shard.fullmatch, names))]
    return []


def choose_checkpoint(names: Sequence[str], where: str, file: str | None = None) -> str:
    """Choose a model folder's checkpoint.

    Args:
        names: The folder's files.
        where: What messages call the folder.
        file: Which one; None for the usual or the only one.

    Raises:
        MissingCheckpointError: There is none.
        CheckpointError: There are several, of unusual names.
    """
    found = [n for n in names if "/" not in n and n.endswith(CHECKPOINT_SUFFIXES)]
    listed = f"; it has {', '.join(found)}" if found else ""
    if file is not None:
        if file not in names:
            raise MissingCheckpointError(f"{where} has no checkpoint named {file}{listed}.")
        return file
    usual = [name for name in CHECKPOINTS if name in found]
    if usual or len(found) == 1:
        return (usual or found)[0]
    if found:
        raise CheckpointError(f"{where} has several checkpoints ({', '.join(found)}): name one.")
    raise MissingCheckpointError(
        f"{where} has no checkpoint: expected are {', '.join(CHECKPOINTS[:3])} or one file of "
        f"another name."
    )


def _fetch(hub_name: HubName, name: str, choose: Chooser) -> Path:
    """Fetch the chosen files of a repository into the hub's cache, unless they are there."""
    repo, revision = hub_name.repo, hub_name.revision
    try:
        info = _ask_hub(hub_name)
    except CheckpointError as error:
        return _find_cached(hub_name, name, choose, error)
    names = [file.rfilename for file in info.siblings or ()]
    wanted = list(choose(names, f"{repo} on the Hugging Face hub"))
    cached = [try_to_load_from_cache(repo, file, revision=revision) for file in wanted]
    if all(isinstance(path, str) and info.sha in Path(path).parts for path in cached):
        return Path(cached[0]).parents[wanted[0].count("/")]
    logger.info("Fetching %d files of %s from %s ...", len(wanted), repo, constants.ENDPOINT)
    patterns = [glob.escape(file) for file in wanted]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise _refusal(hub_name, error) from error
    except _NETWORK_ERRORS as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise OutputError(
                f"{name} cannot be saved in the hub's cache {constants.HF_HUB_CACHE} "
                f"({error.strerror}); HF_HOME names another folder for it."
            ) from error
        raise CheckpointError(
            f"Fetching {name} from the Hugging Face hub failed ({_first_line(error)}). The same "
            f"command resumes it."
        ) from error


def _ask_hub(hub_name: HubName) -> ModelInfo:
    """Ask the hub for the commit of a repository's revision and its files."""
    where = f"The Hugging Face hub ({constants.ENDPOINT})"
    if constants.HF_HUB_OFFLINE:
        raise MissingCheckpointError(
            "HF_HUB_OFFLINE is set: nothing is fetched from the Hugging Face hub."
        )
    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or SECONDS)
    api, repo, revision = HfApi(), hub_name.repo, hub_name.revision
    try:
        return _call_within(
            seconds, lambda: api.model_info(repo, revision=revision, timeout=seconds)
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403, 404):
            raise _refusal(hub_name, error) from error
        raise MissingCheckpointError(
            f"{where} answers with status {status}: try again later."
        ) from error
    except _NETWORK_ERRORS as error:
        raise MissingCheckpointError(
            f"{where} cannot be reached ({_first_line(error)}): check the network and the proxy "
            f"settings."
        ) from error


def _call_within(seconds: float, function: Callable[[], Any]) -> Any:
    """Call a function that may hang: the look-up of a host's name has no time limit of its own."""
    outcome: queue.SimpleQueue = queue.SimpleQueue()

    def call() -> None:
        try:
            outcome.put((function(), None))
        except Exception as error:
            outcome.put((None, error))

    threading.Thread(target=call, daemon=True).start()
    try:
        value, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} seconds") from None
    if error is not None:
        raise error
    return value


def _find_cached(hub_name: HubName, name: str, choose: Chooser, problem: CheckpointError) -> Path:
    """Find the chosen files in the hub's cache when the hub does not provide them.

    Raises:
        CheckpointError: They are not all there; of the problem's type, and with its message.
    """
    try:
        folder = Path(
            snapshot_download(
                hub_name.repo,
                revision=hub_name.revision,
                local_files_only=True,
                allow_patterns=[],  # otherwise it insists on all files of the repository
            )
        )
    except LocalEntryNotFoundError:
        raise type(problem)(
            f"{name} was not found locally or in the hub's cache {constants.HF_HUB_CACHE}. "
            f"{problem}"
        ) from problem
    try:
        choose(_list_files(folder), f"The cached copy of {hub_name.repo}")
    except CheckpointError as error:
        raise type(error)(f"{error} {problem}") from problem
    if not constants.HF_HUB_OFFLINE:
        logger.warning("%s The cached copy of %s is used.", problem, hub_name.repo)
    return folder


def _refusal(hub_name: HubName, error: HfHubHTTPError) -> CheckpointError:
    """Put the hub's refusal into words."""
    repo = hub_name.repo
    if isinstance(error, GatedRepoError):
        return CheckpointError(
            f"{repo} is gated on the Hugging Face hub: accept its terms at "
            f"{constants.ENDPOINT}/{repo} and log in with `hf auth login`, or set HF_TOKEN."
        )
    if isinstance(error, RevisionNotFoundError):
        return MissingCheckpointError(
            f"{repo} on the Hugging Face hub has no revision {hub_name.revision}."
        )
    if not isinstance(error, RepositoryNotFoundError):
        return CheckpointError(
            f"The Hugging Face hub denies access to {repo} ({_first_line(error)}). Check the "
            f"access token: `hf auth login`, or HF_TOKEN."
        )
    if repo.startswith("stabilityai/stable-diffusion-2"):
        hint = (
            'Stability AI removed Stable Diffusion 2 in November 2025; README.md, "Pretrained '
            'model", lists mirrors, and how to start from LongfeiHuang/SDMatte alone.'
        )
    else:
        hint = (
            "Check the spelling; a private repository needs `hf auth login` or HF_TOKEN. "
            'README.md, "Pretrained model", says where weights come from.'
        )
    return MissingCheckpointError(f"The Hugging Face hub has no repository {repo}. {hint}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
