"""configs/common/data.py: loads without reading data, and accepts overrides."""

from pathlib import Path

import SDMatte.compat  # noqa: F401

import pytest
from data_trees import write_aim, write_composition, write_pairs

from detectron2.config import LazyConfig, instantiate  # isort: skip

CONFIG = Path(__file__).resolve().parents[2] / "configs/common/data.py"


@pytest.fixture
def config():
    loaded = LazyConfig.load(str(CONFIG)).dataloader
    loaded.train.num_workers = loaded.test.num_workers = 0
    loaded.train.dataset.size = loaded.test.dataset.size = 32
    return loaded


def override(config, *overrides):
    return LazyConfig.apply_overrides(config, list(overrides))


def test_loading_reads_no_data(monkeypatch):
    monkeypatch.setenv("SDMATTE_DATA_ROOT", "/not/there")
    data = LazyConfig.load(str(CONFIG)).dataloader
    assert data.train.dataset.names == [
        "Composition-1K", "DIS-646", "AM-2K", "RefMatte", "UHRSD",
    ]  # fmt: skip
    assert data.train.dataset.size == 512 and data.test.dataset.size == 1024


def test_names_and_settings_from_the_command_line(config, tmp_path):
    write_composition(tmp_path)
    write_aim(tmp_path)
    override(
        config,
        "train.dataset.names=[Composition-1K]",
        f"train.dataset.root={tmp_path}",
        "train.dataset.settings.kernel_sizes=[3,5]",
        "train.dataset.settings.gray_prob=1",
        "train.dataset.seed=7",
    )
    loader = instantiate(config.train)
    assert loader.sampler.seed == loader.dataset.seed == 7
    batch = next(iter(loader))
    assert (batch["image"] == batch["image"][:, :1]).all()
    assert loader.dataset.settings.kernel_sizes == (3, 5)
    # The test part follows the root of the training part.
    assert next(iter(instantiate(config.test)))["image_name"] == ["o_1.png"]


def test_folder_pair_from_the_command_line(config, tmp_path):
    write_pairs(tmp_path / "my data", ["1", "2"])
    image, alpha = tmp_path / "my data/image", tmp_path / "my data/alpha"
    override(config, f"train.dataset.names=[{{image: '{image}', alpha: {alpha}}}]")
    override(config, f"test.dataset.names=[{{image:'{image}',alpha:'{alpha}',name:mine}}]")
    assert len(instantiate(config.train).dataset) == 2
    assert next(iter(instantiate(config.test)))["dataset"] == ["mine"]
