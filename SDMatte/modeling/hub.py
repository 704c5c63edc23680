"""Find models by local path or hub id, fetching only the files that are needed.

A name is a local path, or `OWNER/NAME` on the Hugging Face hub, optionally with a revision
(`OWNER/NAME@REVISION`) or one of its files (`OWNER/NAME/FILE`). Existing local paths take
precedence; a `pathlib.Path` is always local.

The `resolve_*` functions raise a `MissingCheckpointError` if nothing is found locally or on the
hub, and a `CheckpointError` if the files are invalid, ambiguous, or restricted on the hub.
"""

import errno
import glob
import logging
import os
import re
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent import futures
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
    RevisionNotFoundError,
)

from SDMatte.errors import (
    CheckpointError,
    ConfigError,
    MissingCheckpointError,
    OutputError,
    first_line,
)

logger = logging.getLogger(__name__)

COMPONENTS = ("unet", "vae", "text_encoder")
MODEL_CARD = "sdmatte.json"
WEIGHTS_FILE = "model.safetensors"
"""Weights in a folder written by `SDMatte.save_pretrained`."""

FINAL_CHECKPOINT = "model_final.pth"
"""Final weights in the output folder of a training run."""

CHECKPOINTS = (WEIGHTS_FILE, "SDMatte.pth", "LiteSDMatte.pth", FINAL_CHECKPOINT)
"""Usual names of a model's checkpoint, in order of precedence."""

CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")

HUB_TIMEOUT = 4.0
"""Seconds to wait for an answer of the hub, unless HF_HUB_ETAG_TIMEOUT is set."""

# The second is the base class of the HTTP client's errors; clients differ between releases.
_NETWORK_ERRORS = (OSError, HfHubHTTPError.__bases__[0])
_DISK_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w.-]+))?(?:/(.+))?")
_STEMS = {"text_encoder": {".safetensors": "model", ".bin": "pytorch_model"}}
_STEM = "diffusion_pytorch_model"

Chooser = Callable[[Sequence[str], str], list[str]]
"""Chooses the needed files from a folder's file names and the folder's name in messages."""


@dataclass(frozen=True)
class HubName:
    """A name on the hub."""

    repo: str  # OWNER/NAME
    revision: str | None = None  # a branch, tag or commit; None: the main branch
    file: str | None = None  # None: the whole repository

    @property
    def model(self) -> str:
        """The name without its file."""
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    @classmethod
    def parse(cls, name: str | Path) -> "HubName | None":
        """Parse a name; return None if it can only be a local path."""
        match = None if isinstance(name, Path) else _ID.fullmatch(name.rstrip("/"))
        if match is None or any(mark in match[1] for mark in ("--", "..")):
            return None
        repo, revision, file = match.groups()
        is_checkpoint = (file or repo).endswith(CHECKPOINT_SUFFIXES)
        if is_checkpoint != (file is not None):
            return None  # FOLDER/model.pth, FOLDER/FOLDER/FOLDER
        if file is not None and revision is None and Path(repo).parent.is_dir():
            return None  # output/run/model.pth where a folder output exists
        return cls(repo, revision, file)


# ------------------------------------------------------------------- from name to path


def resolve_folder(name: str | Path, load: bool | Collection[str] = False) -> Path:
    """Return the path of a model folder, after fetching its configs and tokenizer if needed.

    `load` names components whose weights are needed as well; True for all.
    """
    needed = [part for part in COMPONENTS if load is True or part in (load or ())]
    return _resolve(name, lambda names, where: _choose_model_files(names, where, needed))[0]


def resolve_checkpoint(name: str | Path, file: str | Path | None = None) -> Path:
    """Return the path of a checkpoint, after fetching it if needed.

    A folder or hub id stands for its default or only checkpoint, or for `file`: a name in the
    folder, or the path of another checkpoint.
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
    folder, chosen = _resolve(
        name, lambda names, where: [_choose_checkpoint(names, where, file and str(file))]
    )
    return folder / chosen[0]


def resolve_pretrained(name: str | Path, replaced: Collection[str] = ()) -> Path:
    """Return the path of Stable Diffusion's weights: a diffusers folder or the original file.

    The weights of the components in `replaced` may be missing.
    """
    hub_name = HubName.parse(name)
    if Path(name).is_file() or (hub_name is not None and hub_name.file is not None):
        return resolve_checkpoint(name)
    return resolve_folder(name, [part for part in COMPONENTS if part not in replaced])


def resolve_component(name: str | Path) -> Path:
    """Return the folder of a single component with its weights, such as TAESD."""

    def choose(names: Sequence[str], where: str) -> list[str]:
        files = choose_weights(names, "")
        if not files or "config.json" not in names:
            raise CheckpointError(
                f"{where} is not a diffusers component: it must have weights and config.json."
            )
        return ["config.json", *files]

    return _resolve(name, choose)[0]


def resolve_detector(name: str | Path) -> Path:
    """Return the folder of a transformers model with its processor, after fetching it if needed.

    Its weights must be safetensors.
    """

    def choose(names: Sequence[str], where: str) -> list[str]:
        files = [n for n in names if re.fullmatch(r"[^/]+\.(json|txt|model)", n)]
        weights = [n for n in names if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", n)]
        if "config.json" not in files or not weights:
            raise CheckpointError(
                f"{where} is not a transformers detector: it must have config.json and "
                f"model.safetensors."
            )
        return [*files, *weights]

    return _resolve(name, choose)[0]


def _resolve(name: str | Path, choose: Chooser) -> tuple[Path, list[str]]:
    """Return the local folder of a model or of its copy from the hub, and the chosen files."""
    path = Path(name)
    if path.is_dir():
        return path, choose(_list_files(path), str(path))
    if path.exists():
        raise CheckpointError(f"{path} is a file; it must be a model folder or a hub id.")
    hub_name = HubName.parse(name)
    if hub_name is None:
        raise MissingCheckpointError(
            f"Model folder {path} not found. (Ids on the Hugging Face hub are OWNER/NAME.)"
        )
    return _fetch(hub_name, str(name), choose)


def _list_files(folder: Path) -> list[str]:
    """List the files of a model folder and of its direct sub-folders."""
    paths = [*folder.iterdir(), *folder.glob("*/*")]
    return sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())


# ------------------------------------------------------------------- which files


def _choose_model_files(names: Sequence[str], where: str, load: Collection[str]) -> list[str]:
    """Choose a model folder's configs and tokenizer, and the weights of the components to load."""
    configs = [f"{component}/config.json" for component in COMPONENTS]
    for config in configs:
        if config not in names:
            raise MissingCheckpointError(
                f"{where} is not a Stable Diffusion folder in diffusers layout: it has no {config}."
            )
    configs += ["scheduler/scheduler_config.json", "model_index.json", MODEL_CARD]
    chosen = [name for name in names if name in configs or re.fullmatch(r"tokenizer/[^/]+", name)]
    for component in load:
        files = choose_weights(names, component)
        if not files:
            raise CheckpointError(
                f"{where} has no weights in {component}/, only a config. To start from a "
                f"checkpoint with all components, set model.load_weight=False and "
                f"train.init_checkpoint."
            )
        chosen += files
    return chosen


def choose_weights(names: Collection[str], component: str) -> list[str]:
    """Choose a component's weights, preferring full precision, then safetensors.

    `component` is the sub-folder, or "". Returns one file, an index and its shards, or nothing.
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


def _choose_checkpoint(names: Sequence[str], where: str, file: str | None) -> str:
    """Return `file` of a model folder; None: its default or only checkpoint."""
    found = [n for n in names if "/" not in n and n.endswith(CHECKPOINT_SUFFIXES)]
    if file is not None:
        if file not in names:
            listed = f"; it has {', '.join(found)}" if found else ""
            raise MissingCheckpointError(f"{where} has no checkpoint named {file}{listed}.")
        return file
    usual = [name for name in CHECKPOINTS if name in found]
    if usual or len(found) == 1:
        return (usual or found)[0]
    if found:
        raise CheckpointError(f"{where} has several checkpoints ({', '.join(found)}): name one.")
    raise MissingCheckpointError(
        f"{where} has no checkpoint: expected {', '.join(CHECKPOINTS[:3])}, or exactly one file "
        f"with another name."
    )


# ------------------------------------------------------------------- fetching


def _fetch(hub_name: HubName, name: str, choose: Chooser) -> tuple[Path, list[str]]:
    """Fetch the chosen files of a repository into the hub's cache if they are not there yet."""
    repo, revision = hub_name.repo, hub_name.revision
    try:
        info = _request_info(hub_name)
    except CheckpointError as error:
        return _find_cached(hub_name, name, choose, error)
    names = [file.rfilename for file in info.siblings or ()]
    needed = choose(names, f"{repo} on the Hugging Face hub")
    cached = [try_to_load_from_cache(repo, file, revision=revision) for file in needed]
    if all(isinstance(path, str) and info.sha in Path(path).parts for path in cached):
        return Path(cached[0]).parents[needed[0].count("/")], needed
    logger.info("Fetching %d files of %s from %s ...", len(needed), repo, constants.ENDPOINT)
    patterns = [glob.escape(file) for file in needed]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns)), needed
    except GatedRepoError as error:
        raise _access_error(hub_name, error) from error
    except _NETWORK_ERRORS as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise OutputError(
                f"Cannot save {name} in the hub's cache {constants.HF_HUB_CACHE} "
                f"({error.strerror}). Set HF_HOME to another folder."
            ) from error
        raise CheckpointError(
            f"Fetching {name} from the Hugging Face hub failed ({first_line(error)}). Run the "
            f"command again to resume."
        ) from error


def _request_info(hub_name: HubName) -> ModelInfo:
    """Request the commit and the file names of a repository's revision."""
    if constants.HF_HUB_OFFLINE:
        raise MissingCheckpointError(
            "HF_HUB_OFFLINE is set: nothing is fetched from the Hugging Face hub."
        )
    timeout = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or HUB_TIMEOUT)
    repo, revision = hub_name.repo, hub_name.revision
    try:
        return _call_with_timeout(
            timeout, lambda: HfApi().model_info(repo, revision=revision, timeout=timeout)
        )
    except _NETWORK_ERRORS as error:
        response = getattr(error, "response", None)
        if response is not None and response.status_code in (401, 403, 404):
            raise _access_error(hub_name, error) from error
        raise MissingCheckpointError(
            f"The Hugging Face hub ({constants.ENDPOINT}) cannot be reached "
            f"({first_line(error)}): check the network and the proxy settings, or try again later."
        ) from error


def _call_with_timeout(seconds: float, function: Callable[[], Any]) -> Any:
    """Call a function that may hang; host name lookups have no timeout of their own."""
    future: futures.Future = futures.Future()

    def call() -> None:
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()  # an executor would wait for it at exit
    if not futures.wait([future], timeout=seconds).done:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return future.result()


def _find_cached(
    hub_name: HubName, name: str, choose: Chooser, problem: CheckpointError
) -> tuple[Path, list[str]]:
    """Find the chosen files in the hub's cache, after a request failed with `problem`."""
    try:
        folder = Path(
            snapshot_download(
                hub_name.repo,
                revision=hub_name.revision,
                local_files_only=True,
                allow_patterns=[],  # otherwise all files of the repository must be cached
            )
        )
    except LocalEntryNotFoundError:
        raise type(problem)(
            f"{name} not found locally or in the hub's cache {constants.HF_HUB_CACHE}. {problem}"
        ) from problem
    try:
        chosen = choose(_list_files(folder), f"The cached copy of {hub_name.repo}")
    except CheckpointError as error:
        raise type(error)(f"{error} {problem}") from problem
    if not constants.HF_HUB_OFFLINE:
        logger.warning("%s Using the cached copy of %s.", problem, hub_name.repo)
    return folder, chosen


def _access_error(hub_name: HubName, error: Exception) -> CheckpointError:
    """Return the error for a repository that is missing or not accessible."""
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
    return MissingCheckpointError(
        f"The Hugging Face hub does not provide {repo} ({first_line(error)}). Check the spelling; "
        f'a private repository needs `hf auth login` or HF_TOKEN. README.md, "Pretrained model", '
        f"lists sources of weights."
    )


# ------------------------------------------------------------------- uploading


def check_repo(repo: str) -> None:
    """Raise a `ConfigError` if a name is not of the form OWNER/NAME."""
    name = HubName.parse(repo)
    if name is None or repo != name.repo:
        raise ConfigError(f"A repository on the Hugging Face hub is OWNER/NAME; got {repo!r}.")


def push_folder(folder: str | Path, repo: str, private: bool, message: str) -> str:
    """Upload a folder in one commit, so that a failed upload leaves the repository unchanged.

    Args:
        folder: Folder to upload.
        repo: `OWNER/NAME`; created if it does not exist.
        private: Whether the repository must be private.
        message: Commit message.

    Returns:
        The URL of the commit.

    Raises:
        ConfigError: `repo` is not of the form OWNER/NAME.
        OutputError: The repository is public despite `private`, or the hub refuses the upload.
    """
    check_repo(repo)
    if constants.HF_HUB_OFFLINE:
        raise OutputError("HF_HUB_OFFLINE is set: nothing is uploaded to the Hugging Face hub.")
    api = HfApi()
    try:
        # None: public, unless the owner is an organization whose repositories are private.
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise OutputError(f"{repo} exists on the Hugging Face hub and is public.")
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except OutputError:  # also an OSError
        raise
    except (*_NETWORK_ERRORS, ValueError) as error:
        response = getattr(error, "response", None)
        if response is not None and response.status_code in (401, 403):
            raise OutputError(
                f"The Hugging Face hub does not accept uploads to {repo} ({first_line(error)}). "
                f"Log in with `hf auth login` and a token with write access, or set HF_TOKEN."
            ) from error
        raise OutputError(
            f"Uploading to {repo} failed ({first_line(error)}). Its files are unchanged; run the "
            f"command again."
        ) from error
    return str(commit.commit_url)
