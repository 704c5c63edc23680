"""Configs load without touching the disk and reject unknown settings."""

import builtins
import shutil
from pathlib import Path

import pytest
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.solver import WarmupParamScheduler
from detectron2.utils.registry import locate
from fvcore.common.param_scheduler import CosineParamScheduler

from SDMatte.engine.options import adamw
from SDMatte.errors import ConfigError, MissingFileError
from SDMatte.modeling.losses import MattingCriterion
from SDMatte.runtime.config import build, load_config

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = ["SDMatte", "SDMatte_star", "LiteSDMatte", "SDMatte_small"]


@pytest.mark.parametrize("name", NAMES)
def test_configs_load(name):
    config = load_config(CONFIGS / f"{name}.py")
    assert isinstance(build(config.criterion), MattingCriterion)
    assert build(config.lr_multiplier, max_iter=100)(0.5) > 0


@pytest.mark.parametrize("name", NAMES)
def test_loading_reads_no_data(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # no file that a config names exists here
    opened = []
    original = builtins.open

    def spy(file, *args, **kwargs):
        opened.append(str(file))
        return original(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", spy)
    load_config(CONFIGS / f"{name}.py")
    assert all(path.endswith((".py", ".pyc")) for path in opened), opened


def test_schedules_of_detectron2_work():
    node = L(WarmupParamScheduler)(
        scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
        warmup_factor=0.0,
        warmup_length=0.5,
    )
    schedule = build(node, max_iter=100)
    assert schedule(0.25) == pytest.approx(schedule(0.5) / 2)
    assert schedule(1 - 1e-6) == pytest.approx(0, abs=1e-5)


def test_published_recipe():
    config = load_config(CONFIGS / "SDMatte.py")
    schedule = build(config.lr_multiplier, max_iter=30_501)
    assert schedule(0.0) == pytest.approx(0.001)
    assert schedule(0.5) == pytest.approx(0.005**0.5)
    assert schedule(1.0) == pytest.approx(0.005)
    assert schedule(100 / 30_501) == pytest.approx(0.5, abs=0.02)
    optimizer, train = config.optimizer, config.train
    assert optimizer._target_ is adamw and list(optimizer.betas) == [0.9, 0.999]
    assert (optimizer.lr, optimizer.weight_decay) == (5e-5, 0.1)
    assert optimizer.params.weight_decay_norm == 0
    assert (train.epochs, train.checkpoints, train.evaluations) == (10, 10, 10)
    assert train.ddp.fp16_compression and not train.amp.enabled and train.accumulate == 1
    assert not train.ema.enabled and train.clip_grad_norm is None
    losses = {f"{where}_{what}_loss" for where in ("known", "unknown") for what in ("l1", "lap")}
    assert set(config.criterion.losses) == losses and len(config.criterion.losses) == 4
    data = config.dataloader
    assert data.train.batch_size == 1
    assert (data.train.dataset.size, data.test.dataset.size) == (512, 1024)
    sets = ["Composition-1K", "DIS-646", "AM-2K", "RefMatte", "UHRSD"]
    assert list(data.train.dataset.names) == sets
    model = config.model
    assert model.aux_input is None and model.conv_scale == 3 and not model.residual_connection
    assert list(model.aux_input_list) == ["point_mask", "bbox_mask", "mask"]
    assert list(model.attn_mask_aux_input) == ["point_mask", "bbox_mask", "mask"]
    assert model.use_coor_input and model.use_attention_mask and model.use_encoder_hidden_states
    assert list(model.use_attention_mask_list) == [True, True, True]
    assert list(model.use_encoder_hidden_states_list) == [False, True, False]
    star = load_config(CONFIGS / "SDMatte_star.py")
    assert star.model.aux_input == "bbox_mask"
    assert list(star.dataloader.train.dataset.names) == [*sets[:3], "COCO-Matting"]
    lite = load_config(CONFIGS / "LiteSDMatte.py")
    assert list(lite.model.aux_input_list).count("point_mask") == 3
    assert lite.distillation.teacher.pretrained_model_name_or_path == "pretrained/SDMatte"
    assert list(lite.distillation.criterion.losses) == ["mse"]


def test_overrides_reach_references():
    config = load_config(CONFIGS / "SDMatte.py", ["dataloader.train.dataset.size=256"])
    assert build(config.criterion).size == 256
    config = load_config(CONFIGS / "SDMatte.py", ["dataloader.train.dataset.root=/elsewhere"])
    assert config.dataloader.test.dataset.root == "/elsewhere"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "Unknown setting train.epoch; did you mean epochs"),
        ("trian.epochs=3", "Unknown setting trian; did you mean train"),
        ("model.use_coord_input=True", "setting model.use_coord_input; did you mean use_coor_inp"),
        ("dataloader.test.dataset.worsen.box=1", "now called dataloader.test.dataset.perturb.box."),
        ("train.num_pictures=3", "The setting train.num_pictures is now called train.num_images."),
        ("train.compile.backend=eager", "was removed; its value is always inductor"),
        ("train.epochs.x=3", "train.epochs is a value"),
        ("train.epochs", "written key=value"),
        ("dataloader.train.dataset.names=[a", r"names=\[a' is invalid.*quote"),
        ("dataloader.train.dataset.names=a,b", r"names=a,b' is invalid.*\[a, b\]"),
        ("~train.epochs=1", "not deleted"),
    ],
)
def test_unknown_and_malformed_overrides_are_named(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(CONFIGS / "SDMatte.py", [override])
    assert "\n" not in str(caught.value)


def test_arguments_missing_from_the_config_can_be_set():
    config = load_config(
        CONFIGS / "SDMatte.py", ["model.attention_mask_mode=log", "optimizer.eps=1e-6"]
    )
    assert config.model.attention_mask_mode == "log" and config.optimizer.eps == 1e-6


def test_configs_of_earlier_versions(tmp_path):
    config = load_config(CONFIGS / "SDMatte.py")
    config.train.ddp.broadcast_buffers = False
    config.dataloader.test.dataset.worsen = {"box": 0.1}
    del config.dataloader.test.dataset["perturb"]
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    config = load_config(tmp_path / "config.yaml")
    assert config.dataloader.test.dataset.perturb == {"box": 0.1}
    assert "broadcast_buffers" not in config.train.ddp and "worsen" not in config.dataloader.test
    shutil.copytree(CONFIGS, tmp_path / "configs")
    with open(tmp_path / "configs" / "SDMatte.py", "a") as mine:
        mine.write("train.compile.backend = 'eager'\n")
    with pytest.raises(ConfigError, match="train.compile.backend was removed"):
        load_config(tmp_path / "configs" / "SDMatte.py")


@pytest.mark.parametrize(
    "target",
    [
        "SDMatte.data.dataset.MattingDataset",
        "SDMatte.data.loader.build_test_loader",
        "SDMatte.data.loader.build_train_loader",
        "SDMatte.engine.options.adamw",
        "SDMatte.engine.schedule.exponential_schedule",
        "SDMatte.modeling.losses.DistillationCriterion",
        "SDMatte.modeling.losses.MattingCriterion",
        "SDMatte.modeling.lite.LiteSDMatte",
        "SDMatte.modeling.sdmatte.SDMatte",
    ],
)
def test_targets_of_saved_configs_exist(target):
    assert callable(locate(target))


def test_bad_files_are_named(tmp_path):
    with pytest.raises(MissingFileError, match="nowhere.py not found"):
        load_config(tmp_path / "nowhere.py")
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\ntrain = dict(")
    before = builtins.__import__
    with pytest.raises(ConfigError, match=r"does not load: SyntaxError.* Line 2: '\(' was never"):
        load_config(broken)
    broken.write_text("import nowhere_to_be_found")
    with pytest.raises(ConfigError, match="does not load: ModuleNotFoundError"):
        load_config(broken)
    assert builtins.__import__ is before
    broken.write_text("train = dict()")
    with pytest.raises(ConfigError, match="not the config of a run: model, criterion"):
        load_config(broken)
    config = load_config(CONFIGS / "SDMatte.py")
    config.criterion.sizes = 3
    with pytest.raises(ConfigError, match="MattingCriterion has no setting sizes; known are"):
        build(config.criterion)


@pytest.mark.parametrize("target", ["nowhere.Model", "SDMatte.modeling.Nope", "SDMatte..x"])
def test_classes_that_cannot_be_imported_are_named(target):
    config = load_config(CONFIGS / "SDMatte.py")
    config.model._target_ = target
    with pytest.raises(ConfigError, match=f"uses {target}, which .* on PYTHONPATH") as caught:
        build(config.model)
    assert "\n" not in str(caught.value)
    config.model._target_ = "SDMatte.modeling"
    with pytest.raises(ConfigError, match="SDMatte.modeling, which must be a class or a function"):
        build(config.model)


# ------------------------------------------------------------------------- paths

AWKWARD = [
    "/x/My Runs (1)/y", "/x/a=b", "/x/a,b", "/x/[a]/{b}: c", "C:\\x\\new", "2024", "/x/é", "x#y'z",
]  # fmt: skip


@pytest.mark.parametrize("path", AWKWARD)
def test_strings_need_no_quotes(path):
    words = [f"train.output_dir={path}", f"dataloader.train.dataset.root={path}", "train.epochs=3"]
    config = load_config(CONFIGS / "SDMatte.py", words)
    assert config.train.output_dir == config.dataloader.test.dataset.root == path
    assert config.train.epochs == 3
    quoted = load_config(CONFIGS / "SDMatte.py", ['train.output_dir="/x (1)"'])
    assert quoted.train.output_dir == "/x (1)"


def test_home_and_variables_are_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNS", "/my runs")
    monkeypatch.delenv("NOT_SET", raising=False)

    def output_dir(text):
        return load_config(CONFIGS / "SDMatte.py", [f"train.output_dir={text}"]).train.output_dir

    assert output_dir("~/runs/x") == f"{tmp_path}/runs/x"
    assert output_dir("$RUNS/x") == output_dir("${RUNS}/x") == "/my runs/x"
    assert output_dir("${train.seed}/x") == "42/x"
    with pytest.raises(ConfigError, match="The environment variable NOT_SET in the path"):
        output_dir("$NOT_SET/x")
    with pytest.raises(ConfigError, match="The environment variable NOT_SET in the path"):
        output_dir("${NOT_SET}/x")
    (tmp_path / "a$NOT_SET").mkdir()  # an existing name is kept
    assert output_dir(tmp_path / "a$NOT_SET" / "x") == f"{tmp_path}/a$NOT_SET/x"

    shutil.copytree(CONFIGS, tmp_path / "configs")
    with open(tmp_path / "configs" / "SDMatte_star.py", "a") as mine:
        mine.write("train.output_dir = '~/runs'\ntrain.init_checkpoint = '${RUNS}/a.pth'\n")
    config = load_config("~/configs/SDMatte_star.py")
    assert config.train.output_dir == f"{tmp_path}/runs"
    assert config.train.init_checkpoint == "/my runs/a.pth"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[{image: ~/x, alpha: $RUNS/y}]", [{"image": "/home/me/x", "alpha": "/my runs/y"}]),
        ("[{image: /a (1)/x, alpha: /b=c/y}]", [{"image": "/a (1)/x", "alpha": "/b=c/y"}]),
        ("[{image:C:\\x,alpha:${RUNS}/y}]", [{"image": "C:\\x", "alpha": "/my runs/y"}]),
        ("[{image: /é, alpha: '/a, b (2)', weight: 2}]",
         [{"image": "/é", "alpha": "/a, b (2)", "weight": 2}]),
        ("[AIM-500, {image: ~/a b, alpha: c, holdout: 0.1}]",
         ["AIM-500", {"image": "/home/me/a b", "alpha": "c", "holdout": 0.1}]),
    ],
)  # fmt: skip
def test_paths_of_folder_pairs(text, value, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("RUNS", "/my runs")
    config = load_config(CONFIGS / "SDMatte.py", [f"dataloader.train.dataset.names={text}"])
    assert config.dataloader.train.dataset.names == value


def test_only_the_invalid_override_is_named():
    with pytest.raises(ConfigError) as caught:
        load_config(CONFIGS / "SDMatte.py", ["train.epochs=2", "test.prompts=[a(", "train.seed=1"])
    assert "test.prompts=[a(" in str(caught.value) and "train.epochs" not in str(caught.value)
