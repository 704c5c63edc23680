"""The quickstart with a tiny sample set and two iterations."""

import json
from pathlib import Path

import pytest

from SDMatte.cli.quickstart_run import quickstart
from SDMatte.errors import SDMatteError
from SDMatte.images.io import read_image

CONFIG = str(Path(__file__).parents[2] / "configs" / "SDMatte_small.py")
SETTINGS = [
    "train.max_iter=2",
    "train.evaluations=0",
    "train.checkpoints=1",
    "dataloader.train.batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "dataloader.train.dataset.size=64",
    "dataloader.test.dataset.size=64",
]
SAMPLES = {"num_train": 4, "num_test": 3, "size": 96, "num_workers": 1, "progress": False}


@pytest.mark.slow
def test_quickstart_writes_scores_curves_and_images(tmp_path, monkeypatch):
    monkeypatch.setenv("SDMATTE_DATA_ROOT", "nowhere")  # set by the user for other data
    output, samples = tmp_path / "out", tmp_path / "samples"
    result = quickstart(CONFIG, output, samples, overrides=SETTINGS, sample_settings=SAMPLES)
    names = [
        *(f"trained, AIM-500/{prompt}" for prompt in ("box", "point", "mask")),
        "before training, AIM-500/box",
        "untrained, AIM-500/box",
        "box as alpha, AIM-500/box",
    ]
    assert list(result.scores) == names
    assert json.loads((output / "scores.json").read_text()) == result.scores
    table = (output / "scores.md").read_text()
    assert "protocol official" in table and all(name in table for name in names)
    assert (output / "train" / "curves.png").is_file()
    image = read_image(output / "results.png")
    assert image.shape[1] == 4 * 192 and image.std() > 20
    photographs = read_image(output / "photographs.png")
    assert photographs.shape[1] == 6 * 256 and photographs.std() > 20
    trained, _, *baselines = (s for name, s in result.scores.items() if name.endswith("box"))
    better = all(trained[m] < s[m] for s in baselines for m in ("MSE", "SAD"))
    assert result.beats_baselines == better

    before = (output / "train" / "model_final.pth").stat().st_mtime_ns
    again = quickstart(CONFIG, output, samples, overrides=SETTINGS, sample_settings=SAMPLES)
    assert (output / "train" / "model_final.pth").stat().st_mtime_ns == before
    for name, values in result.scores.items():
        assert again.scores[name] == pytest.approx(values, rel=1e-3)


@pytest.mark.parametrize(
    "override, message",
    [
        ("bogus.key=1", "bogus"),
        ("train.max_iter=abc", "train.max_iter"),
        ("train.max_iter=2", "is not empty"),
    ],
)
def test_invalid_arguments_are_rejected_before_anything_is_written(tmp_path, override, message):
    samples = tmp_path / "samples"
    samples.mkdir()
    (samples / "notes.txt").touch()
    with pytest.raises(SDMatteError, match=message):
        quickstart(CONFIG, tmp_path / "out", samples, [override])
    assert sorted(tmp_path.rglob("*")) == [samples, samples / "notes.txt"]
