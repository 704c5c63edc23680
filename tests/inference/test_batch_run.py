"""Running batches: threads beside the model, interrupts, and several processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from models import tiny_model
from PIL import Image
from scripts import load_script

from SDMatte.images.decode import read_metadata
from SDMatte.images.io import write_image
from SDMatte.inference.batch import Batch
from SDMatte.inference.predictor import MattePredictor
from SDMatte.inference.result import OutputSettings
from SDMatte.prompts.requests import PromptRequest

AUTO = PromptRequest("auto")
BOX = PromptRequest("box", [5, 5, 30, 30])
NUM_IMAGES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of several sizes, formats and resolutions; one has alpha."""
    path, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        shape = (40 + 5 * i, 60, 4 if i == 3 else 3)
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        suffix = "jpg" if i % 2 == 0 else "png"
        write_image(path / f"{i:02}.{suffix}", image, {"dpi": (100 + i, 100 + i)})
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_model(aux_input=None).save_pretrained(path, inference={"resolution": 64})
    return path


def plan(folder, output, *prompts, settings=None):
    batch = Batch(settings or OutputSettings(), output)
    batch.add_inputs([folder], prompts or [AUTO])
    batch.check()
    return batch


def contents(folder):
    """The pixels and metadata of each file, which must be complete."""
    found = {}
    for path in sorted(Path(folder).iterdir()):
        with Image.open(path) as image:
            found[path.name] = image.size, image.tobytes(), image.info, dict(image.getexif())
    return found


def test_files_are_those_of_a_plain_loop(predictor, folder, tmp_path):
    batch = plan(folder, tmp_path / "batch", AUTO, BOX)
    for job in batch.jobs:
        encoded = predictor.encode(job.image)
        result = predictor.predict(**job.prompt.load(job.image), image=encoded)
        path = tmp_path / "loop" / job.output.name
        write_image(path, result.cutout(), read_metadata(job.image))
    jobs = batch.jobs
    batch.run(predictor)
    assert batch.done == [job.output for job in jobs]
    expected = contents(tmp_path / "loop")
    assert contents(tmp_path / "batch") == expected and len(expected) == 2 * NUM_IMAGES


def test_failures_while_running(predictor, folder, tmp_path, caplog):
    class Settings(OutputSettings):
        def render(self, result):
            if result.image.shape[0] == 40 + 5 * 7:
                raise RuntimeError("a bug")
            return super().render(result)

    class Unreadable(PromptRequest):
        def load(self, image):
            if image.stem == "05":
                raise MemoryError
            return super().load(image)

    batch = plan(folder, tmp_path / "out", AUTO, BOX, settings=Settings())
    first = batch.jobs[10]
    assert first.image.stem == "05"
    batch.jobs[10] = type(first)(first.image, Unreadable("auto"), first.output)
    batch.run(predictor)
    reasons = {job.output.name: reason for job, reason in batch.failed}
    assert reasons == {
        "05_1.png": "Out of memory: use a lower resolution.",
        "07_1.png": "RuntimeError: a bug",
        "07_2.png": "RuntimeError: a bug",
    }
    assert len(batch.done) == 2 * NUM_IMAGES - 3 == len(contents(tmp_path / "out"))


def test_few_images_are_in_memory(predictor, folder, tmp_path):
    lock, counts = threading.Lock(), [0, 0]  # now, most

    class Counted(PromptRequest):
        def load(self, image):
            with lock:
                counts[0] += 1
                counts[1] = max(counts)
            return super().load(image)

    class Slow(OutputSettings):
        def render(self, result):
            time.sleep(0.05)
            with lock:
                counts[0] -= 1
            return super().render(result)

    batch = plan(folder, tmp_path / "out", settings=Slow())
    batch.jobs = [type(job)(job.image, Counted("auto"), job.output) for job in batch.jobs]
    batch.run(predictor)
    assert len(batch.done) == NUM_IMAGES and 2 <= counts[1] <= 7 and counts[0] == 0


def test_an_interrupt_leaves_whole_files(tiny, predictor, folder, tmp_path):
    class Interrupted(MattePredictor):
        calls = 0

        def predict(self, **arguments):
            Interrupted.calls += 1
            if Interrupted.calls == 6:
                raise KeyboardInterrupt
            return super().predict(**arguments)

    batch = plan(folder, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        batch.run(Interrupted(tiny, resolution=64))
    written = contents(tmp_path / "out")
    assert sorted(written) == [path.name for path in batch.done] and 1 <= len(written) <= 5
    rest = plan(folder, tmp_path / "out")
    rest.run(predictor)
    assert (len(rest.done), len(rest.skipped)) == (NUM_IMAGES - len(written), len(written))
    plan(folder, tmp_path / "whole").run(predictor)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_parts_keep_the_prompts_of_an_image_together(folder, tmp_path):
    batch = plan(folder, tmp_path / "out", AUTO, BOX)
    parts = [batch.share(rank, 5) for rank in range(5)]
    images = [{job.image for job in part.jobs} for part in parts]
    assert [len(part.jobs) for part in parts] == [6, 6, 4, 4, 4]
    assert sum(map(len, images)) == len(set().union(*images)) == NUM_IMAGES
    assert {job.output for part in parts for job in part.jobs} == {j.output for j in batch.jobs}


@pytest.mark.slow
def test_the_benchmark_compares_files(monkeypatch, capsys):
    script = load_script("script/benchmark_matte.py")
    monkeypatch.setattr(sys, "argv", ["benchmark_matte.py", "--number", "3", "--size", "96", "64"])
    script.main(script.parse_args())
    assert capsys.readouterr().out.endswith("times as fast; all files are equal\n")

    def batch(predictor, jobs):
        for job in jobs:
            write_image(job.output, np.zeros((64, 96, 4), np.uint8))

    monkeypatch.setattr(script, "batch", batch)
    with pytest.raises(SystemExit, match="0.jpg: the files differ"):
        script.main(script.parse_args())


# ----------------------------------------------------------------- command line


def command(folder, model, output, *options):
    words = ["matte", folder, "--auto", "-o", output, "--model", model, "--device", "cpu"]
    return [sys.executable, "-m", "SDMatte", *map(str, words), *options]


def run(*arguments):
    """Run with one thread: rounding depends on the number of threads."""
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=environ)


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(folder, model, tmp_path):
    (tmp_path / "in").mkdir()
    for path in folder.iterdir():
        (tmp_path / "in" / path.name).symlink_to(path)
    one = run(tmp_path / "in", model, tmp_path / "one")
    assert (one.returncode, one.stdout) == (0, f"{NUM_IMAGES} mattes written.\n"), one.stderr
    (tmp_path / "in" / "bad.png").write_bytes(b"not an image")
    two = tmp_path / "two"
    two.mkdir()
    os.link(tmp_path / "one" / "02.png", two / "02.png")
    first = run(tmp_path / "in", model, two, "--num-processes", "2")
    expected = f"{NUM_IMAGES - 1} mattes written, 1 already existed, 1 failed.\n"
    assert (first.returncode, first.stdout) == (1, expected), first.stderr
    assert "it is not an image" in first.stderr and "Traceback" not in first.stderr
    assert contents(tmp_path / "one") == contents(two)
    again = run(tmp_path / "in", model, two, "--num-gpus", "2")
    expected = f"0 mattes written, {NUM_IMAGES} already existed, 1 failed.\n"
    assert (again.returncode, again.stdout) == (1, expected), again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--num-processes", "2")])
def test_a_stopped_command_is_resumed(folder, model, tmp_path, options):
    (tmp_path / "in").mkdir()
    for i in range(400):
        (tmp_path / "in" / f"{i:03}.png").symlink_to(folder / "01.png")
    start = command(tmp_path / "in", model, tmp_path / "out", *options)
    process = subprocess.Popen(start, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("out/*.png")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "Stopped by SIGTERM" in err and "Traceback" not in err
    written = contents(tmp_path / "out")  # no temporary files
    assert 1 <= len(written) < 400
    size = next(iter(written.values()))[0]
    assert all(content[0] == size for content in written.values())
