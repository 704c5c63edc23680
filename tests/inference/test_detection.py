"""Text prompts: tiny random detectors of transformers, and one with known boxes."""

import json
import shutil

import numpy as np
import pytest
import torch
from detectors import grounding_dino, owlv2
from hub_server import Hub, hub, use_environ  # noqa: F401

from SDMatte import MattePredictor
from SDMatte.cli.main import main
from SDMatte.errors import CheckpointError, ConfigError, MissingCheckpointError, PromptError
from SDMatte.images.io import write_image
from SDMatte.inference.detection import Detector, FoundBox
from SDMatte.prompts.requests import PromptRequest, read_prompt_file

RED, BLUE = (10, 20, 40, 60), (50, 5, 80, 25)


def find_colors(image, text):
    """A detector that knows two colors, and returns the worse box first."""
    found = []
    for score, channel, word in ((0.3, 2, "blue"), (0.9, 0, "red")):
        ys, xs = np.nonzero((image[..., channel] > 200) & (image[..., 1] < 50))
        if (word in text or "square" in text) and len(xs):
            box = tuple(int(n) for n in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
            found.append(FoundBox(box, score))
    return found


@pytest.fixture(scope="module")
def squares():
    image = np.full((70, 90, 3), 128, np.uint8)
    for (x0, y0, x1, y1), color in ((RED, (255, 0, 0)), (BLUE, (0, 0, 255))):
        image[y0:y1, x0:x1] = color
    return image


@pytest.fixture(scope="module")
def seeing(tiny):
    return MattePredictor(tiny, resolution=64, detector=find_colors)


@pytest.fixture(scope="module", params=[grounding_dino, owlv2], ids=lambda make: make.__name__)
def folder(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("detector") / "detector")


@pytest.fixture(scope="module")
def owl(tmp_path_factory):
    return owlv2(tmp_path_factory.mktemp("owl") / "owl")


def test_the_best_box_is_the_prompt(seeing, squares):
    seeing.set_image(squares)
    result = seeing.predict(text="a square", transparent=True)
    assert (result.box, result.score, result.prompt) == (RED, 0.9, "box")
    expected = seeing.predict(box=RED, transparent=True)
    np.testing.assert_array_equal(result.alpha, expected.alpha)
    assert expected.box is None and expected.score is None
    assert seeing.predict(text="the blue one").box == BLUE


def test_all_boxes_from_the_threshold_on(seeing, tiny, squares):
    seeing.set_image(squares)
    results = seeing.predict(text="square", find_all=True)
    assert [(r.box, r.score) for r in results] == [(RED, 0.9), (BLUE, 0.3)]
    assert [r.box for r in seeing.predict(text="red", find_all=True)] == [RED]
    strict = MattePredictor(tiny, resolution=64, detector=find_colors, detector_threshold=0.5)
    assert [
        r.box for r in strict.predict(text="square", find_all=True, image=strict.encode(squares))
    ] == [RED]


def test_batches(seeing, squares):
    results = seeing.predict_batch([squares, squares], [{"text": "blue"}, {"points": [(3, 3)]}])
    assert [r.box for r in results] == [BLUE, None]


def test_transparent_pixels_are_not_searched(seeing, squares):
    hidden = np.dstack([squares, np.where(squares[..., 0] == 255, 0, 255).astype(np.uint8)])
    assert seeing.predict(text="square", image=seeing.encode(hidden)).box == BLUE


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"text": "a green"}, "Nothing found for 'a green' .* at least 0.25"),
        ({"text": ""}, "must describe the object, such as \"the dog on the left\"; got ''"),
        ({"text": " . "}, "must describe the object"),
        ({"text": ["red"]}, "must describe the object"),
        ({"text": "red", "box": RED}, "Give one type of prompt: .*text, or none; got box, text"),
        ({"find_all": True}, "find_all needs a text"),
        ({"find_all": True, "box": RED}, "find_all needs a text"),
    ],
)
def test_refused_texts(seeing, squares, prompt, message):
    seeing.set_image(squares)
    with pytest.raises(PromptError, match=message):
        seeing.predict(**prompt)


def test_nothing_found_names_the_best_score(tiny, squares):
    strict = MattePredictor(tiny, resolution=64, detector=find_colors, detector_threshold=0.5)
    with pytest.raises(PromptError, match=r"'blue' with a score of at least 0.5; .* has 0.3\. Use"):
        strict.predict(text="blue", image=strict.encode(squares))


def test_a_model_without_boxes_refuses_texts_before_searching(tiny, squares):
    predictor = MattePredictor(tiny, resolution=64, prompts=["mask"], detector="nowhere")
    with pytest.raises(PromptError, match="does not accept box prompts"):
        predictor.predict(text="red", image=predictor.encode(squares))


def test_invalid_thresholds(tiny):
    with pytest.raises(ConfigError, match=r"detector_threshold must be from 0 to 1; got 30"):
        MattePredictor(tiny, resolution=64, detector_threshold=30)


def test_detectors_of_transformers(folder, tiny, squares):
    detector = Detector(folder, "cpu")
    found = detector(squares, "The red square on the left.")
    assert found == detector(squares, "The red square on the left")
    assert found and [one.score for one in found] == sorted((f.score for f in found), reverse=True)
    for x0, y0, x1, y1 in (one.box for one in found):
        assert 0 <= x0 < x1 <= 90 and 0 <= y0 < y1 <= 70
    assert detector(squares, "a dog. a cat")
    with pytest.raises(PromptError, match=r"too long for the detector: \d+ tokens; at most 32"):
        detector(squares, "a dog and a cat " * 9)
    predictor = MattePredictor(tiny, resolution=64, detector=str(folder), detector_threshold=0)
    result = predictor.predict(text="the red square on the left", image=predictor.encode(squares))
    assert result.box == found[0].box and result.score == pytest.approx(found[0].score)


def test_boxes_are_in_pixels_of_the_image(owl, squares):
    """The tiny OWLv2 finds cells of the square that it pads the image to."""
    found = [one.box for one in Detector(owl, "cpu")(squares, "red")]
    edges = 90 / 8 * np.arange(1, 8, 2)  # edges of the cells, [k / 8, (k + 2) / 8]
    for x0, y0, x1, y1 in found:
        assert np.abs(edges - x0).min() <= 0.51 and np.abs(edges - y0).min() <= 0.51
        assert abs(min(90, x0 + 22.5) - x1) <= 1 and abs(min(70, y0 + 22.5) - y1) <= 1
    assert len(found) == len(set(found)) == 12  # the lowest row of cells is padding


def test_folders_without_a_detector(tmp_path, folder):
    with pytest.raises(MissingCheckpointError, match="not found"):
        Detector(tmp_path / "nowhere", "cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty is not a transformers detector.*model"):
        Detector(tmp_path / "empty", "cpu")
    broken = shutil.copytree(folder, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(CheckpointError, match="broken is a model of type bert, not a zero-shot"):
        Detector(broken, "cpu")
    (broken / "config.json").write_text(json.dumps(config))
    (broken / "model.safetensors").write_bytes(b"0123456789")
    with pytest.raises(CheckpointError, match=r"Cannot load the detector .*broken: "):
        Detector(broken, "cpu")


def test_weights_that_would_be_unpickled_are_refused(tmp_path, owl):
    path = shutil.copytree(owl, tmp_path / "pickled")
    (path / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="must have config.json and model.safetensors"):
        Detector(path, "cpu")


def test_detectors_on_the_hub(hub: Hub, owl, squares, monkeypatch):  # noqa: F811
    (owl / "pytorch_model.bin").write_text("never fetched")
    hub.repos["someone/owl"] = owl
    found = Detector("someone/owl", "cpu")(squares, "red")
    assert found == Detector(owl, "cpu")(squares, "red")
    assert not any(name.endswith(".bin") for name in hub.fetched())
    use_environ(monkeypatch, {"HF_HUB_OFFLINE": "1"})
    assert Detector("someone/owl", "cpu")(squares, "red") == found
    with pytest.raises(MissingCheckpointError, match="someone/else not found .* HF_HUB_OFFLINE"):
        Detector("someone/else", "cpu")


def test_prompt_files_have_texts(tmp_path):
    (tmp_path / "p.json").write_text('{"a.png": {"text": "a dog", "transparent": true}}')
    (tmp_path / "p.csv").write_text('image,text,transparent\na.png," a dog",1\n')
    for name in ("p.json", "p.csv"):
        expected = {"a.png": [PromptRequest("text", "a dog", True)]}
        assert read_prompt_file(tmp_path / name) == expected


@pytest.fixture
def matte(tiny, owl, squares, tmp_path, monkeypatch, capsys, caplog):
    """Run the command beside an image; return status, output and log."""
    tiny.save_pretrained(tmp_path / "model", inference={"resolution": 64})
    write_image(tmp_path / "in" / "a.png", squares)
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")

    def run(*words):
        caplog.clear()
        options = ("--model", "model", "--device", "cpu", "--detector", str(owl))
        status = main(["matte", *options, *words])
        captured = capsys.readouterr()
        logged = [record.getMessage() for record in caplog.records]
        return status, captured.out.strip(), "\n".join([*logged, captured.err.strip()]).strip()

    return run


def test_command(matte, owl, squares, tmp_path):
    status, out, log = matte("in/a.png", "--text", "red", "-o", "x.png", "--alpha-only")
    assert (status, out) == (0, "Written: x.png")
    found = Detector(owl, "cpu")(squares, "red")
    box = found[0].box
    where = " ".join(map(str, box))
    assert f"in/a.png: 'red' found at {where}, score {found[0].score:.2f}." in log
    assert matte("in/a.png", "--box", *map(str, box), "-o", "y.png", "--alpha-only")[0] == 0
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "y.png").read_bytes()


def test_command_for_all(matte, owl, squares, tmp_path):
    words = ("in", "--text", "red", "--all", "-o", "out", "--alpha-only")
    status, out, log = matte(*words, "--detector-threshold", "0.3")
    count = sum(one.score >= 0.3 for one in Detector(owl, "cpu")(squares, "red"))
    names = [f"a_{n}.png" for n in range(1, count + 1)]
    assert count > 1 and (status, out) == (0, f"{count} mattes written.")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    assert len({line for line in log.splitlines() if "'red' found at" in line}) == count
    assert matte(*words)[1] == "0 mattes written, 1 already existed."
    (tmp_path / "out" / "a_1.png").unlink()  # written last, so the image is not complete
    assert matte(*words, "--detector-threshold", "0.3")[1] == f"{count} mattes written."


def test_mattes_of_all_never_replace_an_image(matte, squares, tmp_path):
    write_image(tmp_path / "in" / "a_2.png", squares)
    before = (tmp_path / "in" / "a_2.png").read_bytes()
    words = ("in/a.png", "in/a_2.png", "--text", "red", "--all", "-o", "in")
    status, out, log = matte(*words, "--detector-threshold", "0.01")
    assert status == 1 and out.endswith("1 failed.") and "a_2.png" in log
    assert (tmp_path / "in" / "a_2.png").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", "red", "--detector-threshold", "1"], "in/a.png: Nothing found for 'red'"),
        (["--text", " "], "The text must describe the object"),
        (["--text", "red", "--detector", "none/such/folder"], "none/such/folder not found"),
        (["--text", "red", "--detector", "model"], "model is not a transformers detector"),
        (["--text", "red", "--detector-threshold", "2"], "must be from 0 to 1; got 2"),
        (["--text", "red", "--all", "-o", "x.png"], "Finding all objects needs an output folder"),
        (["--auto", "--all"], "--all needs --text"),
    ],
)
def test_errors_of_the_command(matte, tmp_path, words, message):
    before = sorted(tmp_path.rglob("*"))
    status, out, log = matte("in/a.png", *words)
    assert status == 2 and not out and message in log and "Traceback" not in log
    assert len({line for line in log.splitlines() if line.startswith("error: ")}) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_text_and_box_are_two_kinds_of_prompts(matte):
    with pytest.raises(SystemExit):
        matte("in/a.png", "--text", "red", "--box", "1", "2", "30", "40")
