"""SDMatte.compat, and all that this project uses of detectron2, on a CPU."""

import argparse
import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import SDMatte.compat

import pytest
import torch
from torch import nn

from SDMatte.errors import SDMatteError

ROOT = Path(__file__).resolve().parents[1]

# What the design names, whether or not the project's files import it yet.
USED = {
    "detectron2.checkpoint": {"DetectionCheckpointer", "PeriodicCheckpointer"},
    "detectron2.config": {"LazyCall", "LazyConfig", "instantiate"},
    "detectron2.engine": {
        "AMPTrainer",
        "SimpleTrainer",
        "default_argument_parser",
        "default_setup",
        "default_writers",
        "hooks",
        "launch",
    },
    "detectron2.engine.defaults": {"create_ddp_model"},
    "detectron2.evaluation": {"DatasetEvaluator", "inference_on_dataset", "print_csv_format"},
    "detectron2.solver": {"LRMultiplier", "WarmupParamScheduler"},
    "detectron2.solver.build": {"get_default_optimizer_params"},
    "detectron2.utils": {"comm"},
    "detectron2.utils.collect_env": {"collect_env_info"},
    "detectron2.utils.env": {"seed_all_rng"},
    "detectron2.utils.events": {"EventStorage", "EventWriter", "get_event_storage"},
    "detectron2.utils.logger": {"setup_logger"},
    "fvcore.common.param_scheduler": {"ExponentialParamScheduler", "ParamScheduler"},
}


def project_files():
    for folder in ("SDMatte", "configs", "script", "tools", "tests"):
        yield from sorted((ROOT / folder).rglob("*.py"))
    yield from sorted(ROOT.glob("*.py"))


def imports(path):
    """The absolute imports of a file: (module, names) pairs; no names for `import module`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module, tuple(alias.name for alias in node.names)


def run(code, *argv, path=()):
    """Runs code in a fresh interpreter, with folders put before everything else on its path."""
    paths = [*map(str, path), str(ROOT)]
    return subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", textwrap.dedent(code)]
        + list(map(str, argv)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,  # a busy machine takes minutes to import torch
    )


# --- the modules


def test_all_that_is_used_of_detectron2_imports_and_sets_up(tmp_path):
    wanted = {module: set(names) for module, names in USED.items()}
    for path in project_files():
        for module, names in imports(path):
            if module.split(".")[0] == "detectron2":
                wanted.setdefault(module, set()).update(names)
    result = run(
        """
        import importlib, json, sys
        import SDMatte.compat
        for module, names in json.loads(sys.argv[1]).items():
            loaded = importlib.import_module(module)
            for name in names:
                if not hasattr(loaded, name):
                    importlib.import_module(f"{module}.{name}")

        # Here, since it sets up loggers and seeds the global generators.
        from detectron2.config import LazyConfig
        from detectron2.engine import default_argument_parser, default_setup
        from omegaconf import OmegaConf
        cfg = OmegaConf.create({"train": {"output_dir": sys.argv[2], "seed": 0}})
        default_setup(cfg, default_argument_parser().parse_args([]))
        """,
        json.dumps({module: sorted(names) for module, names in wanted.items()}),
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    assert "Environment info" in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "config.yaml").is_file()


def test_the_package_loads_compat_before_detectron2():
    for path in sorted((ROOT / "SDMatte").rglob("*.py")):
        modules = [module for module, _ in imports(path)]
        if not any(module.split(".")[0] == "detectron2" for module in modules):
            continue
        packages = [p / "__init__.py" for p in path.parents if (p / "__init__.py").is_file()]
        assert any(
            "SDMatte.compat" in [module, *(f"{module}.{name}" for name in names)]
            for file in [path, *packages]
            for module, names in imports(file)
        ), f"{path.relative_to(ROOT)} imports detectron2 without SDMatte.compat"


def test_importing_the_package_stays_light():
    result = run(
        """
        import sys
        import SDMatte
        heavy = {"torch", "detectron2", "diffusers", "cv2", "SDMatte.compat"} & set(sys.modules)
        assert not heavy, heavy
        """
    )
    assert result.returncode == 0, result.stderr


# --- the gaps


@pytest.fixture
def fake(tmp_path):
    """Makes a folder with a detectron2 of the given (empty) files, to be put on the path."""

    def make(*files):
        for name in ("__init__.py", *files):
            file = tmp_path / "detectron2" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        return tmp_path

    return make


def test_operators_say_that_they_are_not_compiled(fake):
    result = run(
        """
        import SDMatte.compat
        from SDMatte.errors import SDMatteError
        from detectron2 import _C
        import detectron2._C as same
        assert same is _C and not hasattr(_C, "roi_align") and not _C.has_cuda()
        try:
            _C.deform_conv_forward
        except SDMatteError as error:
            print(error)
        SDMatte.compat.apply()
        from detectron2 import _C as again
        assert again is _C
        """,
        path=[fake("config/lazy.py")],
    )
    assert result.returncode == 0, result.stderr
    assert "'deform_conv_forward' needs the compiled build" in result.stdout


@pytest.mark.parametrize("file", ["_C.py", "utils/develop.py"])
def test_no_placeholder_beside_compiled_operators_or_where_none_is_needed(fake, file):
    result = run(
        """
        import sys
        import SDMatte.compat
        assert "detectron2._C" not in sys.modules
        """,
        path=[fake("config/lazy.py", file)],
    )
    assert result.returncode == 0, result.stderr


def test_removed_pillow_names_are_back():
    from PIL import Image

    assert Image.LINEAR == Image.BILINEAR


@pytest.mark.parametrize("module", ["None", "types.ModuleType('detectron2')"])
def test_without_detectron2(module):
    result = run(
        f"""
        import sys, types
        sys.modules["detectron2"] = {module}
        from SDMatte.errors import DependencyError
        try:
            import SDMatte.compat
        except DependencyError as error:
            print(error)
        """
    )
    assert result.returncode == 0, result.stderr
    assert "not installed" in result.stdout and "script/setup.sh" in result.stdout


def test_with_a_detectron2_that_is_too_old(fake):
    result = run("import SDMatte.compat", path=[fake("config/config.py")])
    assert "DependencyError: the detectron2 in" in result.stderr
    assert "older than 0.6" in result.stderr


def test_apply_twice_is_apply_once():
    before = sys.modules.get("detectron2._C")
    SDMatte.compat.apply()
    assert sys.modules.get("detectron2._C") is before
    assert issubclass(SDMatte.compat.CompiledOpError, SDMatteError)


# --- detectron2 at work


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 1)

    def forward(self, x):
        y = self.linear(self.norm(x))  # [N, 4] -> [N, 1]
        return {"loss_y": (y - 1).square().mean()} if self.training else y


def batches(n=20):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, generator=generator) for _ in range(n)]


def test_lazy_config_with_overrides(tmp_path):
    from detectron2.config import LazyConfig, instantiate

    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "train.py").write_text("train = dict(width=5, output_dir='')\n")
    (tmp_path / "config.py").write_text(
        "from detectron2.config import LazyCall as L\n"
        "from torch import nn\n"
        "from .common.train import train\n"
        "model = L(nn.Linear)(in_features=4, out_features='${..train.width}')\n"
    )
    cfg = LazyConfig.load(str(tmp_path / "config.py"))
    assert LazyConfig.apply_overrides(cfg, ["train.width=7", "model.bias=false"]) is cfg
    layer = instantiate(cfg.model)
    assert layer.weight.shape == (7, 4) and layer.bias is None

    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    layer = instantiate(LazyConfig.load(str(tmp_path / "config.yaml")).model)
    assert layer.weight.shape == (7, 4)


def make_trainer(folder, data):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.engine import SimpleTrainer, default_writers, hooks
    from detectron2.solver import LRMultiplier, WarmupParamScheduler
    from detectron2.solver.build import get_default_optimizer_params
    from fvcore.common.param_scheduler import ExponentialParamScheduler

    torch.manual_seed(0)
    model = Toy()
    params = get_default_optimizer_params(model, weight_decay_norm=0.0)
    optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.1)
    schedule = WarmupParamScheduler(ExponentialParamScheduler(1.0, 5e-3), 0.001, 0.3)
    trainer = SimpleTrainer(model, data, optimizer)
    checkpointer = DetectionCheckpointer(model, str(folder), trainer=trainer)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=LRMultiplier(optimizer, schedule, 6)),
            hooks.PeriodicCheckpointer(checkpointer, 3),
            hooks.EvalHook(3, lambda: {"toy": {"mse": 0.5}}),
            hooks.CallbackHook(
                after_step=lambda t: t.storage.put_image("strip", torch.rand(3, 8, 8))
            ),
            hooks.PeriodicWriter(default_writers(str(folder), 6), period=1),
        ]
    )
    return trainer, checkpointer


def test_trainer_hooks_writers_and_resume(tmp_path):
    whole, _ = make_trainer(tmp_path / "whole", batches())
    whole.train(0, 6)
    first, _ = make_trainer(tmp_path / "halves", batches())
    first.train(0, 3)
    second, checkpointer = make_trainer(tmp_path / "halves", batches()[3:])
    checkpointer.resume_or_load("", resume=True)
    assert second.iter == 2  # the iteration that the checkpoint followed
    second.train(second.iter + 1, 6)

    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    groups = whole.optimizer.param_groups
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.1]
    lines = [json.loads(x) for x in (tmp_path / "whole/metrics.json").read_text().splitlines()]
    assert lines[0]["lr"] < lines[1]["lr"] > lines[5]["lr"]
    assert any(line.get("toy/mse") == 0.5 for line in lines)
    assert list((tmp_path / "whole").glob("events.out.tfevents.*"))


def test_inference_on_dataset():
    from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format

    class Mean(DatasetEvaluator):
        def reset(self):
            self.outputs = []

        def process(self, inputs, outputs):
            self.outputs.append(outputs)

        def evaluate(self):
            return {"toy": {"mean": torch.cat(self.outputs).mean().item()}}

    model = Toy().train()
    scores = inference_on_dataset(model, batches(), Mean())
    print_csv_format(scores)
    expected = model.eval()(torch.cat(batches())).mean().item()
    assert scores["toy"]["mean"] == pytest.approx(expected, abs=1e-5)


def test_launch_of_one_process_calls_the_function():
    from detectron2.engine import launch

    args = argparse.Namespace(seen=None)
    launch(setattr, 1, args=(args, "seen", True))
    assert args.seen


def test_two_processes_on_gloo(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            import torch
            import torch.distributed as dist
            import SDMatte.compat
            from detectron2.utils import comm


            def work(rank, url):
                dist.init_process_group("gloo", init_method=url, world_size=2, rank=rank)
                comm._LOCAL_PROCESS_GROUP = dist.new_group([0, 1])
                comm.synchronize()
                assert comm.all_gather({"rank": rank, "text": "x" * rank}) == [
                    {"rank": 0, "text": ""}, {"rank": 1, "text": "x"}
                ]
                assert comm.gather(rank) == ([0, 1] if rank == 0 else [])
                assert len(set(comm.all_gather(comm.shared_random_seed()))) == 1
                assert (comm.get_local_rank(), comm.get_local_size()) == (rank, 2)
                dist.barrier()
                comm._LOCAL_PROCESS_GROUP = None  # gloo aborts if a group outlives the others
                dist.destroy_process_group()


            if __name__ == "__main__":
                torch.multiprocessing.spawn(work, nprocs=2, args=(sys.argv[1],))
            """
        )
    )
    result = subprocess.run(
        [sys.executable, script, f"file://{tmp_path}/rendezvous"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,  # a busy machine takes minutes to import torch
    )
    assert result.returncode == 0, result.stderr
    assert "TypedStorage" not in result.stderr
