"""Training runs of a tiny model in processes that can fail at a chosen moment."""

import json
import multiprocessing
import os
import resource
import signal
import socket
import time
from pathlib import Path

import torch
from models import tiny_folder

import SDMatte as package

CONFIG = str(Path(package.__file__).parents[1] / "configs" / "SDMatte_small.py")
TIMINGS = ("time", "data_time", "eta_seconds", "samples_per_second", "peak_memory_gib")

# Forks of a server that has imported everything start fast.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    ["SDMatte.engine.train", "SDMatte.runtime.launch", "diffusers", "transformers"]
)


def settings(root: Path, output: Path, *more: str) -> list[str]:
    """Six steps; checkpoints after steps 2, 4 and 6, evaluations after steps 3 and 6."""
    return [
        f"train.output_dir={output}",
        f"dataloader.train.dataset.root={root}",
        f"model.pretrained_model_name_or_path={tiny_folder()}",
        "model.load_weight=False",
        "train.init_checkpoint=''",
        "model.image_prior=null",
        "train.device=cpu",
        "train.max_iter=6",
        "train.checkpoints=3",
        "train.evaluations=2",
        "train.log_period=2",
        "train.num_images=1",
        "dataloader.train.batch_size=2",
        "dataloader.train.dataset.size=64",
        "dataloader.test.dataset.size=64",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
        *more,
    ]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    """Send the signal to all processes, including loader workers, as schedulers do."""
    for process in (*multiprocessing.active_children(), multiprocessing.current_process()):
        os.kill(process.pid, signal.SIGTERM)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fill_disk() -> None:
    """Limit the size of files to 400 KB, which logs do not reach."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))


def hang() -> None:
    """Make every sample block."""
    from SDMatte.data.dataset import MattingDataset

    MattingDataset.__getitem__ = lambda *_: time.sleep(1000)


def pause() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def kill_workers() -> None:
    for worker in multiprocessing.active_children():
        worker.kill()


def make_nan() -> None:
    """Make the next loss NaN."""
    from SDMatte.engine.trainer import TrainingModel

    original = TrainingModel.forward

    def forward(*args):
        TrainingModel.forward = original
        return {name: value * torch.nan for name, value in original(*args).items()}

    TrainingModel.forward = forward


class Run:
    """A command in one or several processes, as torchrun starts them.

    Args:
        words: Arguments after ``command``; by default the settings of a training.
        log: File for the output.
        at: When to call ``action``: a name of `MOMENTS` and a step; None: never.
        action: The failure.
        rank: The process that fails.
        num_processes: Number of processes.
        command: The first arguments.
    """

    def __init__(
        self,
        words,
        log,
        at=None,
        action=kill,
        rank=0,
        num_processes=1,
        command=("train", CONFIG),
    ):
        self.log = Path(log)
        environ = [{}]
        if num_processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            common = {"WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
            common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environ = [{**common, "RANK": r, "LOCAL_RANK": r} for r in range(num_processes)]
        self.processes = [
            _processes.Process(
                target=_run,
                args=([*command, *words], self.log, env, at if r == rank else None, action),
            )
            for r, env in enumerate(environ)
        ]
        for process in self.processes:
            process.start()

    def wait(self) -> list[int]:
        """Wait for all processes and return their exit codes."""
        for process in self.processes:
            process.join(120)
            assert process.exitcode is not None, self.log.read_text()
        return [process.exitcode for process in self.processes]


def finish(*args, **kwargs) -> str:
    """Run a command to its end and return its output."""
    run = Run(*args, **kwargs)
    codes = run.wait()
    assert not any(codes), run.log.read_text()
    return run.log.read_text()


def _run(words, log, environ, at, action) -> None:
    from SDMatte.cli.main import main

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.pop("SDMATTE_DATA_ROOT", None)
    os.environ.update({name: str(value) for name, value in environ.items()})
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # as in a new process
    if at is not None:
        moment, step = at
        MOMENTS[moment](step, action)
    raise SystemExit(main(words))


def _before(owner, name, condition, act) -> None:
    """Patch a function to call ``act`` first if a condition holds."""
    original = getattr(owner, name)

    def changed(*args, **kwargs):
        if condition(*args):
            act()
        return original(*args, **kwargs)

    setattr(owner, name, changed)


def _before_step(step, act):
    from SDMatte.engine.trainer import MatteTrainer

    _before(MatteTrainer, "run_step", lambda trainer: trainer.iter == step, act)


def _in_step(step, act):
    from SDMatte.engine.trainer import MatteTrainer

    _before(MatteTrainer, "_record", lambda trainer, *_: trainer.iter == step, act)


def _in_checkpoint(step, act):
    """When half of the file is written."""
    from SDMatte.engine import checkpoint

    original = torch.save

    def save(content, file):
        original(content, file)
        if f"{step:07d}" in str(file.name):
            file.flush()
            os.truncate(file.name, os.path.getsize(file.name) // 2)
            act()

    checkpoint.torch.save = save


def _in_evaluation(step, act):
    from detectron2.utils.events import get_event_storage

    from SDMatte.evaluation.evaluator import MatteEvaluator

    _before(MatteEvaluator, "evaluate", lambda *_: get_event_storage().iter == step, act)


def _in_record(step, act):
    """When half of a line is written."""
    from detectron2.utils.events import JSONWriter, get_event_storage

    original = JSONWriter.write

    def write(writer):
        if get_event_storage().iter == step:
            writer._file_handle.write('{"iteration": ')
            writer._file_handle.flush()
            act()
        original(writer)

    JSONWriter.write = write


MOMENTS = {
    "before step": _before_step,
    "step": _in_step,
    "checkpoint": _in_checkpoint,
    "evaluation": _in_evaluation,
    "record": _in_record,
}


def records(output: Path) -> list[dict]:
    """Return the lines of ``metrics.json`` without timings."""
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    return [{key: v for key, v in line.items() if key not in TIMINGS} for line in lines]


def assert_equal(one, other, path: str = "") -> None:
    """Compare nested states bit by bit."""
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() - set(TIMINGS) == other.keys() - set(TIMINGS), path
        for key in one.keys() - set(TIMINGS):
            assert_equal(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{path}/{index}")
    else:
        assert one == other, path


def checkpoints(output: Path) -> list[str]:
    """List the checkpoint files of a run."""
    return sorted(path.name for path in output.glob("*.pth*"))


def assert_same_run(one: Path, other: Path) -> None:
    """Compare weights, states and records of two runs."""
    from SDMatte.engine.checkpoint import read_run

    for name in ("model_final.pth", "model_best.pth"):
        assert_equal(*(torch.load(folder / name) for folder in (one, other)))
    last = (one / "last_checkpoint").read_text()
    assert (other / "last_checkpoint").read_text() == last
    assert_equal(read_run(one / last), read_run(other / last))
    assert records(one) == records(other)
