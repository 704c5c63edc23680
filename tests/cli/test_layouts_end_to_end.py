"""Train and test on every known data set through the command line, on miniature trees."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tiny_folder

from SDMatte.cli.main import main
from SDMatte.data.catalog import TEST_SETS, TRAIN_SETS, list_samples
from SDMatte.images.io import read_alpha

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = str(CONFIGS / "SDMatte_small.py")


@pytest.fixture(autouse=True, scope="module")
def _surroundings(layout_root):
    """The trees as data root; one thread, since a second does not help with images this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDMATTE_DATA_ROOT", str(layout_root))
        yield
    torch.set_num_threads(threads)


def settings(output: Path, *more: str) -> list[str]:
    """A tiny model on images of 64 pixels; a bad sample ends the run."""
    return [
        f"model.pretrained_model_name_or_path={tiny_folder()}",
        "model.load_weight=False",
        "train.init_checkpoint=",
        "model.image_prior=null",
        f"train.output_dir={output}",
        "train.evaluations=0",
        "train.checkpoints=1",
        "train.device=cpu",
        "train.log_period=1",
        "dataloader.train.dataset.size=64",
        "dataloader.test.dataset.size=64",
        "dataloader.train.dataset.max_bad_samples=0",
        "dataloader.train.dataset.settings.kernel_sizes=[3,6]",
        "dataloader.test.dataset.settings.kernel_sizes=[3,6]",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
        *more,
    ]


def losses(output: Path) -> list[float]:
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    return [line["total_loss"] for line in lines if "total_loss" in line]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, layout_root) -> Path:
    """A run that has used each sample of each training set once, in two steps."""
    output = tmp_path_factory.mktemp("run") / "run"
    names = ",".join(TRAIN_SETS)
    count = len(list_samples(list(TRAIN_SETS), layout_root))
    assert count % 2 == 0
    words = settings(
        output,
        f"dataloader.train.dataset.names=[{names}]",
        f"dataloader.train.batch_size={count // 2}",
        "train.epochs=1",
    )
    assert main(["train", SMALL, *words]) == 0
    return output


def test_train_on_a_mix_of_all_sets(trained):
    assert len(losses(trained)) == 2 and np.isfinite(losses(trained)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAIN_SETS)
def test_train_on_a_single_set(tmp_path, name):
    more = [f"dataloader.train.dataset.names=[{name}]", "train.max_iter=1"]
    words = settings(tmp_path, *more, "dataloader.train.batch_size=2")
    assert main(["train", SMALL, *words]) == 0
    assert np.isfinite(losses(tmp_path)).all() and (tmp_path / "model_final.pth").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("config", ["SDMatte", "SDMatte_star"])
def test_train_on_the_published_mixes(tmp_path, config):
    words = settings(tmp_path, "train.max_iter=1", "dataloader.train.batch_size=2")
    assert main(["train", str(CONFIGS / f"{config}.py"), *words]) == 0
    assert len(losses(tmp_path)) == 1


def test_test_on_all_sets(trained, layout_root, tmp_path, capsys):
    words = settings(trained, f"dataloader.test.dataset.names=[{','.join(TEST_SETS)}]")
    checkpoint = str(trained / "model_final.pth")
    assert main(["test", SMALL, checkpoint, "--output", str(tmp_path), *words]) == 0
    printed = capsys.readouterr().out
    for name in TEST_SETS:
        assert f"{name}/box" in printed
        samples = list_samples(name, layout_root, training=False)
        folder = tmp_path / name / "box"
        with (folder / "scores.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["name"] for row in rows] == [Path(s.alpha).stem for s in samples]
        assert np.isfinite([float(row["SAD"]) for row in rows]).all()
        for sample in samples:
            matte = read_alpha(folder / "mattes" / Path(sample.alpha).name)
            assert matte.shape == read_alpha(layout_root / sample.alpha).shape


@pytest.mark.parametrize("prompt", ["point", "mask", "trimap"])
def test_test_with_other_prompts_and_trimaps(trained, tmp_path, capsys, prompt):
    more = ["dataloader.test.dataset.names=[Composition-1K]", f"test.prompts=[{prompt}]"]
    words = settings(trained, *more, "test.use_trimap=True")
    checkpoint = str(trained / "model_final.pth")
    assert main(["test", SMALL, checkpoint, "--output", str(tmp_path), *words]) == 0
    assert f"Composition-1K/{prompt}" in capsys.readouterr().out
