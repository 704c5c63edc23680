"""Log lines, records, images and evaluations of a run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import CONFIG, tiny_settings

from SDMatte.engine.output import open_output, record_start
from SDMatte.engine.train import train
from SDMatte.evaluation.methods import load_trained
from SDMatte.evaluation.run import run_test
from SDMatte.images.io import read_alpha
from SDMatte.runtime.config import load_config
from SDMatte.runtime.devices import peak_memory


@pytest.fixture(scope="module")
def run(tmp_path_factory, sample_root) -> Path:
    """A run with two test sets, a known one and a folder pair, and two prompts each."""
    folder = sample_root / "AIM-500"
    pair = f"{{name: pair, image: {folder / 'original'}, alpha: {folder / 'mask'}}}"
    output = tmp_path_factory.mktemp("run") / "run"
    words = tiny_settings(
        f"train.output_dir={output}",
        f"dataloader.train.dataset.root={sample_root}",
        f"dataloader.test.dataset.names=[AIM-500, {pair}]",
        "test.prompts=[box,point]",
        *("train.max_iter=4", "train.log_period=2", "train.checkpoints=1", "train.evaluations=2"),
        "train.num_images=2",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SDMATTE_DATA_ROOT", raising=False)
        train(CONFIG, words)
    return output


@pytest.fixture(scope="module")
def records(run):
    return [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]


def test_evaluations_score_every_set_and_prompt_at_full_size(
    run, records, sample_root, tmp_path, no_data_root
):
    names = {f"{part}/{prompt}" for part in ("AIM-500", "pair") for prompt in ("box", "point")}
    found = {r["iteration"]: r for r in records if any(name.count("/") == 2 for name in r)}
    assert list(found) == [1, 4]  # after two steps, and at the end
    config = load_config(run / "config.yaml")
    scores = run_test(config, load_trained(config, run / "model_final.pth"), tmp_path)
    assert scores.keys() == names
    for name, values in scores.items():
        for metric, value in values.items():
            assert found[4][f"{name}/{metric}"] == pytest.approx(value, rel=1e-3), (name, metric)
    # The model sees 64 pixels; mattes have the size of the ground truth.
    for truth in (sample_root / "AIM-500" / "mask").iterdir():
        matte = read_alpha(tmp_path / "pair" / "box" / "mattes" / truth.name)
        assert matte.shape == read_alpha(truth).shape != (64, 64)


def test_records_hold_losses_speed_and_memory(records):
    steps = [record for record in records if "total_loss" in record]
    assert [record["iteration"] for record in steps] == [1, 3]
    last = steps[-1]
    parts = ("unknown_l1_loss", "known_l1_loss", "known_lap_loss", "unknown_lap_loss")
    assert all(last["total_loss"] > last[name] > 0 for name in parts)
    assert last["lr"] > 0 and 0 <= last["data_time"] < last["time"]
    assert last["epoch"] == pytest.approx(4 * 2 / 18)
    assert last["samples_per_second"] > 0
    assert 0.1 < last["peak_memory_gib"] <= peak_memory(torch.device("cpu"))


def test_tensorboard_gets_scalars_and_image_strips(run):
    events = EventAccumulator(str(run)).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"total_loss", "lr", "time", "data_time", "samples_per_second"} <= scalars
    assert {"peak_memory_gib", "AIM-500/box/SAD", "pair/point/MSE"} <= scalars
    names = [name for name in events.Tags()["images"] if name.startswith("images/")]
    assert len(names) == 2
    for name in names:
        strips = events.Images(name)
        assert [strip.step for strip in strips] == [1, 3]
        assert (strips[0].width, strips[0].height) == (4 * 64, 64)


def test_strips_of_images_of_any_shape(tmp_path, sample_root):
    sizes = {"wide.png": (192, 48), "high.png": (48, 192)}
    for name, size in sizes.items():
        for folder, mode in (("image", "RGB"), ("alpha", "L")):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new(mode, size, "white").save(tmp_path / folder / name)
    pair = f"{{image: {tmp_path / 'image'}, alpha: {tmp_path / 'alpha'}}}"
    words = tiny_settings(
        f"train.output_dir={tmp_path / 'run'}",
        f"dataloader.train.dataset.root={sample_root}",
        f"dataloader.test.dataset.names=[{pair}]",
        *("dataloader.test.dataset.settings.keep_aspect=True", "dataloader.test.batch_size=1"),
        *("train.max_iter=1", "train.checkpoints=1", "train.evaluations=1"),
    )
    train(CONFIG, words)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    strips = {name: events.Images(f"images/{name}")[0] for name in sizes}
    shapes = {name: (strip.width, strip.height) for name, strip in strips.items()}
    assert shapes == {"wide.png": (4 * 128, 64), "high.png": (4 * 64, 128)}


def test_the_log_has_progress_lines_and_the_test_command(run):
    log = (run / "log.txt").read_text()
    lines = re.findall(r" iter: (\d+) .* total_loss: .* lr: ", log)
    assert lines == ["1", "3"]
    assert f"Done. To test: bash script/test.sh {run}/config.yaml {run}/model_final.pth" in log


def test_the_environment_is_recorded(run):
    environment = json.loads((run / "environment.json").read_text())
    assert environment["torch"] == torch.__version__.split("+")[0]
    assert environment["numpy"] == np.__version__
    assert environment["processes"] == 1 and environment["device"] == "cpu"
    assert {"python", "detectron2", "diffusers", "command", "system"} <= environment.keys()


def test_changed_settings_are_logged(tmp_path):
    starts = [("lr=0.5", False), ("lr=0.25", True), ("lr=0.25", True), ("eps=1e-6", True)]
    for word, resumed in starts:
        config = load_config(CONFIG, [f"train.output_dir={tmp_path}", f"optimizer.{word}"])
        with open_output(config):
            record_start(config, CONFIG, torch.device("cpu"), resumed)
    logged = re.findall(
        "Settings changed since the last start: (.*)", (tmp_path / "log.txt").read_text()
    )
    assert logged == [
        "optimizer.lr was 0.5, is 0.25.",
        "optimizer.eps was None, is 1e-06; optimizer.lr was 0.25, is 0.0002. No effect on a "
        "resumed run: optimizer.eps.",
    ]
