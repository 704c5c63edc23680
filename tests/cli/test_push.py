"""``push``: models on the hub with their cards; huggingface_hub's client, a local server."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import LazyConfig
from hub_server import Hub, hub, use_environ  # noqa: F401
from models import ROUNDING, tiny_folder, tiny_model
from omegaconf import OmegaConf
from tiny_runs import CONFIG, tiny_settings

from SDMatte import MattePredictor
from SDMatte.cli.main import main
from SDMatte.runtime.config import load_config
from SDMatte.scoring.metrics import METRICS
from SDMatte.scoring.results import EvaluationResult, ImageScore, write_result

REPO = "someone/my-matte"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder as training and testing leave it."""
    folder = tmp_path_factory.mktemp("private place") / "run"
    folder.mkdir()
    model = tiny_model(aux_input=None)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    root = f"dataloader.train.dataset.root={folder}"
    config = load_config(CONFIG, tiny_settings(f"train.output_dir={folder}", root))
    LazyConfig.save(config, str(folder / "config.yaml"))  # as the trainer does
    digest = hashlib.sha256((folder / "model_final.pth").read_bytes()).hexdigest()
    for name, sha, prompt in (("test", digest, "box"), ("other", "0" * 64, "mask")):
        scores = dict.fromkeys(METRICS, 0.125)
        image = ImageScore("a", 4, 5, scores, f"{folder}/a.png")
        info = {"checkpoint": str(folder / "model_final.pth"), "model sha256": sha}
        result = EvaluationResult(
            "AIM-500", "official", [image], prompt, "model_final", 0, info=info
        )
        write_result(result, folder / name)
    return folder


@pytest.fixture
def writable(hub: Hub, tmp_path) -> Hub:  # noqa: F811
    hub.created = tmp_path / "created"
    return hub


def push(capsys, *words):
    status = main(["push", *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out.strip(), captured.err.strip()


def split_card(text):
    start, metadata, body = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(metadata), body


def test_a_run_is_loaded_from_the_hub(writable, trained, capsys, rgb):
    status, out, err = push(capsys, trained, REPO, "--license", "openrail++")
    assert (status, out[:10]) == (0, "Uploaded: "), err
    ((message, files),) = writable.commits
    assert message == "Upload SDMatte"
    assert {"README.md", "model.safetensors", "sdmatte.json", "unet/config.json"} <= set(files)
    expected = MattePredictor.from_pretrained(trained, device="cpu")
    loaded = MattePredictor.from_pretrained(REPO, device="cpu")
    assert loaded.resolution == expected.resolution == 64
    assert (loaded.prompts, loaded.point_radius) == (expected.prompts, expected.point_radius)
    mattes = []
    for predictor in (expected, loaded):
        predictor.set_image(rgb)
        mattes.append(predictor.predict(box=(9, 7, 72, 63)).alpha)
    np.testing.assert_allclose(*mattes, **ROUNDING)  # the weights are aligned differently
    for part in ("unet", "vae"):
        before, after = (p.model.get_submodule(part).state_dict() for p in (expected, loaded))
        assert all(torch.equal(before[name], after[name]) for name in before | after)


def test_no_path_of_this_machine_is_uploaded(writable, trained, capsys):
    assert push(capsys, trained, REPO)[0] == 0
    for path in writable.repos[REPO].rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for private in (trained, tiny_folder()):
                assert str(private).encode() not in content, path


def test_the_card(writable, trained, capsys):
    assert push(capsys, trained, REPO, "--license", "openrail++")[0] == 0
    data, body = split_card((writable.repos[REPO] / "README.md").read_text())
    assert (data["license"], data["pipeline_tag"]) == ("openrail++", "image-segmentation")
    assert "base_model" not in data  # a local folder
    (entry,) = data["model-index"]
    (result,) = entry["results"]  # that of other weights is left out
    assert entry["name"] == "my-matte" and "AIM-500/box" in result["dataset"]["name"]
    assert {m["name"]: m["value"] for m in result["metrics"]} == dict.fromkeys(METRICS, 0.125)
    for line in (
        f"# {REPO}",
        "- data sets: Composition-1K",
        "- resolution: 64",
        "- optimizer: adamw",
        "- learning rate: 0.002",
        "- prompts: point_mask, bbox_mask, mask",
        "The license is openrail++.",
        f'predictor = MattePredictor.from_pretrained("{REPO}")',
    ):
        assert line in body
    assert "AIM-500/mask" not in body and "- LoRA" not in body
    (row,) = (line for line in body.splitlines() if line.startswith("| AIM-500/box"))
    assert [cell.strip() for cell in row.strip("|").split("|")][1:3] == ["0.12500", "0.12500"]


def test_a_dry_run_prints_the_card(hub, trained, capsys):  # noqa: F811
    status, out, _ = push(capsys, trained, REPO, "--dry-run")
    data, body = split_card(out + "\n")
    assert status == 0 and "license" not in data and "No license is stated." in body
    assert not hub.requests


def test_base_models_of_the_hub_are_named(hub, trained, tmp_path, capsys):  # noqa: F811
    hub.repos["someone/sd2"] = tiny_folder()
    folder = shutil.copytree(trained, tmp_path / "run")
    config = OmegaConf.load(folder / "config.yaml")
    config.model.pretrained_model_name_or_path = "someone/sd2@v1"
    OmegaConf.save(config, folder / "config.yaml")
    data, body = split_card(push(capsys, folder, REPO, "--dry-run")[1] + "\n")
    assert data["base_model"] == "someone/sd2" and "- pretrained: someone/sd2@v1" in body


def test_saved_models_and_another_folder_of_results(writable, trained, tmp_path, capsys):
    tiny_model(aux_input="bbox_mask", aux_input_list=["bbox_mask"]).save_pretrained(tmp_path / "m")
    status, _, err = push(capsys, tmp_path / "m", REPO, "--results", trained, tmp_path)
    assert status == 2 and f"model.safetensors in {trained}, {tmp_path}: name folders with" in err
    status, _, err = push(capsys, tmp_path / "m", REPO)
    assert status == 0, err
    _, body = split_card((writable.repos[REPO] / "README.md").read_text())
    assert "Not tested." in body and "## Training" not in body
    assert MattePredictor.from_pretrained(REPO, device="cpu").prompts == ("box", "auto")


def test_a_second_upload_is_a_second_commit(writable, trained, capsys):
    for _ in range(2):
        assert push(capsys, trained, REPO)[0] == 0
    assert len(writable.commits) == 2


def test_private_repositories(writable, trained, tmp_path, capsys):
    assert push(capsys, trained, REPO, "--private")[0] == 0
    assert writable.private == {REPO}
    assert push(capsys, trained, REPO, "--private")[0] == 0
    writable.repos["someone/public"] = tmp_path
    status, _, err = push(capsys, trained, "someone/public", "--private")
    assert (
        status == 2 and "error: someone/public exists on the Hugging Face hub and is public." in err
    )
    assert not list(tmp_path.glob("*.md"))


def test_a_failed_upload_leaves_nothing(writable, trained, capsys):
    writable.no_commits = True
    status, out, err = push(capsys, trained, REPO)
    assert (status, out) == (2, "") and f"error: Uploading to {REPO} failed" in err
    assert writable.blobs and not list(writable.repos[REPO].iterdir())
    writable.no_commits = False
    assert push(capsys, trained, REPO)[0] == 0


def test_an_empty_license_is_refused(trained, capsys):
    with pytest.raises(SystemExit) as ended:
        push(capsys, trained, REPO, "--license", "", "--dry-run")
    assert ended.value.code == 2
    assert "error: argument --license: it must not be empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["my-matte"], "A repository on the Hugging Face hub is OWNER/NAME; got 'my-matte'."),
        (["a/b/c.pth"], "is OWNER/NAME; got 'a/b/c.pth'"),
        (["someone/model@v1"], "is OWNER/NAME; got 'someone/model@v1'"),
        (["other/model"], "does not accept uploads to other/model"),
        ([REPO, "--checkpoint", "none.pth"], "none.pth"),
        ([REPO, "--results", "nowhere"], "nowhere"),
    ],
)
def test_errors(writable, trained, capsys, words, message):
    writable.read_only.add("other/model")
    status, out, err = push(capsys, trained, *words)
    assert (status, out) == (2, "") and message in err and "Traceback" not in err
    assert not writable.commits and not writable.repos


def test_a_hub_that_fails_or_is_offline(writable, trained, capsys, monkeypatch):
    writable.broken = 503
    status, _, err = push(capsys, trained, REPO)
    assert status == 2 and f"error: Uploading to {REPO} failed" in err
    use_environ(monkeypatch, {"HF_HUB_OFFLINE": "1"})
    status, _, err = push(capsys, trained, REPO)
    assert status == 2 and "error: HF_HUB_OFFLINE is set: nothing is uploaded" in err


def test_the_description_of_the_model_has_no_training_state(writable, trained, capsys):
    assert push(capsys, trained, REPO)[0] == 0
    card = json.loads((writable.repos[REPO] / "sdmatte.json").read_text())
    assert card["model"] == "SDMatte" and card["inference"]["resolution"] == 64
    assert not list(writable.repos[REPO].rglob("*.pth"))
