"""Save the drawn prompts of test sets, so that other runs can use the same ones."""

import logging
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from omegaconf import DictConfig

from SDMatte.errors import DataError
from SDMatte.evaluation.plan import build_test_loaders, files_read
from SDMatte.prompts.frozen import PromptFile, freeze
from SDMatte.runtime.files import check_not_read

logger = logging.getLogger(__name__)


def save_prompts(config: DictConfig, path: str | Path) -> None:
    """Write the boxes, points and masks of a config's test sets to a file.

    Other runs read it with ``dataloader.test.dataset.prompts_from``. The processes share the work
    of reading the test sets.

    Raises:
        DataError: Two data sets have the same name, or an image is unreadable.
        OutputError: The file is not writable, or is an input.
    """
    frozen: PromptFile | None = None
    for _, loader in build_test_loaders(config):
        dataset = loader.dataset  # all sets of a config share their settings
        check_not_read([path], files_read(dataset))
        if frozen is None:
            frozen = PromptFile(dataset.size, dataset.settings.radius(False), dataset.settings.psm)
        keys = {str(dataset.root / s.alpha): dataset.prompt_key(s) for s in dataset.samples}
        entries: dict[tuple[str, str], dict[str, Any]] = {}
        for batch in loader:
            for index, alpha in enumerate(batch["alpha_path"]):
                prompts = {name: values[index] for name, values in batch.items()}
                entries[keys[alpha]] = freeze(prompts)
        # Merged in a dict because several processes may have the same sample.
        gathered = {key: entry for part in comm.all_gather(entries) for key, entry in part.items()}
        for (name, key), entry in gathered.items():
            if key in frozen.sets.setdefault(name, {}):
                raise DataError(f"Cannot save prompts: two data sets {name} have the sample {key}.")
            frozen.sets[name][key] = entry
    if frozen is not None and comm.is_main_process():
        frozen.write(path)
        logger.info("Prompts saved to %s.", path)
