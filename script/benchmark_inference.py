"""Compares ways to predict with a full-size model of random weights: time, memory, result.

The plain path keeps float32, materialises all attention scores, encodes picture and prompt one
after the other and whole, in the layout that they have, and encodes the empty caption at each
call. The others are `MattePredictor`, loaded from a file of float32 weights as the published ones
are. Each case has a process of its own, so that the peak of memory, loading included, is its own.
The picture is noise, prompted with a box of 30 % of it; batch 1::

    python script/benchmark_inference.py                      # 512 and 1024 pixels
    python script/benchmark_inference.py --model lite
    python script/benchmark_inference.py --sizes 512 --cases plain float32 "bfloat16, compiled"
    python script/benchmark_inference.py --tiny               # the small model: does it work?
    python script/benchmark_inference.py --start-up           # import and command line
    python script/benchmark_inference.py --types MODEL PICTURES  # what bfloat16 changes

PICTURES is a folder with ``image/`` and ``alpha/`` of the same names; boxes are the alphas'.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from full_size import PlainLite, PlainModel, build

from SDMatte import MattePredictor
from SDMatte.engine.progress import peak_memory
from SDMatte.images.io import read_alpha
from SDMatte.images.resize import to_tensor
from SDMatte.modeling import LiteSDMatte
from SDMatte.modeling import SDMatte as Model
from SDMatte.modeling.saving import WEIGHTS_FILE, read_model_card
from SDMatte.modeling.weights import load_checkpoint
from SDMatte.prompts.maps import extent
from SDMatte.prompts.pixels import read_prompts
from SDMatte.runtime.devices import choose_device

CASES = {  # type of the weights, and what torch.compile is given; None: it is not called
    "plain": ("float32", None),
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    "float16": ("float16", None),
    "float32, compiled": ("float32", {}),
    "bfloat16, compiled": ("bfloat16", {}),
    "bfloat16, CUDA graphs": ("bfloat16", {"mode": "reduce-overhead"}),
}
MODELS = {"sdmatte": Model, "lite": LiteSDMatte}
TOLERANCE = 1e-4  # of alpha in float32, to the plain path's


@dataclass(frozen=True)
class Measurement:
    """What one case took.

    Attributes:
        first: Seconds of a picture with its first prompt, median.
        second: Seconds of another prompt on the same picture, median; None of the plain path,
            which starts anew.
        loading: Seconds to load the model.
        memory: Peak of the process (of the device, on a GPU), loading included, in GiB.
        alpha: The first prompt's, float32 ``[size, size]``.
    """

    first: float
    second: float | None
    loading: float
    memory: float
    alpha: np.ndarray


def picture_and_boxes(size: int) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """Draws a picture of noise, uint8 ``[size, size, 3]``, and two boxes of 30 % of it."""
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    low, side = round(0.226 * size), round(0.548 * size)
    return image, [(low, low, low + side, low + side), (0, low, side, low + side)]


def measure(case: str, folder: Path, size: int, runs: int, device: torch.device) -> Measurement:
    """Runs one case in this process.

    Args:
        case: Of `CASES`.
        folder: A model folder with its weights.
        size: Height and width of the picture.
        runs: How often it is timed.
        device: Where to compute.
    """
    dtype, compile_options = CASES[case]
    image, boxes = picture_and_boxes(size)
    start = time.perf_counter()
    if case == "plain":
        card = read_model_card(folder)
        plain_class = PlainLite if card["model"] == "LiteSDMatte" else PlainModel
        model = plain_class(folder, load_weight=False, aux_input="bbox_mask").eval()
        load_checkpoint(model, folder / WEIGHTS_FILE)
        model.to(device)
    else:
        predictor = MattePredictor.from_pretrained(
            folder, dtype=dtype, device=device, resolution=size
        )
        if compile_options is not None:
            predictor.model.compile(**compile_options)
    loading = time.perf_counter() - start

    def first() -> np.ndarray:
        if case == "plain":
            return plain_alpha(model, image, boxes[0])
        predictor.set_image(image)
        return predictor.predict(box=boxes[0]).alpha

    if compile_options is not None or device.type == "cuda":
        first()  # compiles
    firsts, seconds = [], []
    for _ in range(runs):
        seconds_taken, alpha = timed(first)
        firsts.append(seconds_taken)
        if case != "plain":
            seconds.append(timed(lambda: predictor.predict(box=boxes[1]))[0])
    second = statistics.median(seconds) if seconds else None
    return Measurement(statistics.median(firsts), second, loading, peak_memory(device), alpha)


@torch.no_grad()
def plain_alpha(model: Model, image: np.ndarray, box) -> np.ndarray:
    """Predicts as the plain path does."""
    size = image.shape[:2]
    prompt = read_prompts(size, box=box)[0][0].draw(size, radius=0)
    batch = {
        "image": to_tensor(image / np.float32(255))[None],
        "bbox_mask": to_tensor(prompt.mask)[None],
        "bbox_coords": torch.from_numpy(prompt.coords)[None],
    }
    return model(batch)[0, 0].cpu().numpy()


def timed(function):
    """Seconds of a call, and what it gives."""
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def run_apart(case: str, folder: Path, size: int, arguments) -> Measurement:
    """Measures one case in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "alpha.npy"
        command = [sys.executable, __file__, "--cases", case, "--sizes", str(size)]
        command += ["--runs", str(arguments.runs), "--device", arguments.device]
        done = subprocess.run(
            [*command, "--apart", str(folder), str(result)], capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{case} at {size} pixels failed:\n{done.stderr}")
        return Measurement(**json.loads(done.stdout.splitlines()[-1]), alpha=np.load(result))


def table(size: int, found: dict[str, Measurement]) -> Iterable[str]:
    """Makes the lines of one size's table."""
    plain = found.get("plain")
    yield f"{size} x {size}"
    heads = ("s/picture", "faster", "s/2nd prompt", "of 1st", "GiB", "load s", "alpha: mean, max")
    yield f"  {'case':22}" + "".join(f"{head:>13}" for head in heads[:-1]) + f"  {heads[-1]}"
    for case, m in found.items():
        cells = [f"{m.first:.2f}", f"{plain.first / m.first:.2f}x" if plain else ""]
        cells += [f"{m.second:.2f}", f"{m.second / m.first:.0%}"] if m.second else ["", ""]
        cells += [f"{m.memory:.2f}", f"{m.loading:.1f}"]
        difference = ""
        if plain:
            error = np.abs(m.alpha - plain.alpha)
            difference = f"{255 * error.mean():.4f}/255, {error.max():.1e}"
        yield f"  {case:22}" + "".join(f"{cell:>13}" for cell in cells) + f"  {difference}"


def check(found: dict[str, Measurement]) -> None:
    """Sees that all cases in float32 gave the plain path's alpha."""
    plain = found.get("plain")
    for case, measured in found.items():
        if plain is None or CASES[case][0] != "float32":
            continue
        error = float(np.abs(measured.alpha - plain.alpha).max())
        if not error <= TOLERANCE:
            raise SystemExit(f"{case} differs by {error:.1e} from the plain path.")


def compare_types(model: str, pictures: Path, device: torch.device) -> None:
    """Prints how much alpha changes from float32 to bfloat16 on pictures."""
    predictors = [
        MattePredictor.from_pretrained(model, dtype=dtype, device=device)
        for dtype in ("float32", "bfloat16")
    ]
    differences = []
    for path in sorted((pictures / "image").iterdir()):
        alpha = read_alpha(next((pictures / "alpha").glob(f"{path.stem}.*")))
        x0, y0, x1, y1 = extent(alpha > 0)
        mattes = []
        for predictor in predictors:
            predictor.set_image(path)
            mattes.append(predictor.predict(box=(x0, y0, x1 + 1, y1 + 1)).alpha)
        differences.append(255 * float(np.abs(mattes[0] - mattes[1]).mean()))
        print(f"{path.name:30} {differences[-1]:.3f}/255")
    print(f"{'mean of ' + str(len(differences)):30} {statistics.mean(differences):.3f}/255")


def start_up(runs: int) -> None:
    """Prints how long the import and the command line's first line take."""
    medians = {}
    with tempfile.TemporaryDirectory() as scratch:
        build(Model, tiny=True).save_pretrained(scratch, inference={"resolution": 64})
        commands = {
            "import SDMatte": [sys.executable, "-c", "import SDMatte; print()"],
            "sdmatte matte, first line": [sys.executable, "-m", "SDMatte", "matte", "--auto"]
            + [str(example_picture(Path(scratch))), "--model", scratch],
        }
        for name, command in commands.items():
            taken = []
            for _ in range(runs):
                start = time.perf_counter()
                with subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                ) as process:
                    process.stdout.readline()
                    taken.append(time.perf_counter() - start)
                    process.communicate()
            medians[name] = statistics.median(taken)
    for name, value in medians.items():
        print(f"{name:30} {value:.2f} s (median of {runs})")


def example_picture(folder: Path) -> Path:
    """Writes a picture."""
    from PIL import Image

    path = folder / "picture.png"
    Image.fromarray(picture_and_boxes(64)[0]).save(path)
    return path


def main(arguments: argparse.Namespace) -> None:
    """Measures and prints."""
    device = choose_device(arguments.device)
    if arguments.apart:
        folder, result = arguments.apart
        size = arguments.sizes[0]
        m = measure(arguments.cases[0], Path(folder), size, arguments.runs, device)
        np.save(result, m.alpha)
        numbers = ("first", "second", "loading", "memory")
        print(json.dumps({name: getattr(m, name) for name in numbers}))
        return
    threads = f"{torch.get_num_threads()} threads"
    print(f"{arguments.model} on {device}, {threads}, torch {torch.__version__}; batch 1")
    if arguments.start_up:
        return start_up(max(3, arguments.runs))
    if arguments.types:
        return compare_types(arguments.types[0], Path(arguments.types[1]), device)
    with tempfile.TemporaryDirectory() as folder:
        build(MODELS[arguments.model], arguments.tiny).save_pretrained(folder)
        for size in arguments.sizes:
            found = {c: run_apart(c, Path(folder), size, arguments) for c in arguments.cases}
            print("\n".join(table(size, found)), flush=True)
            check(found)


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", type=int, nargs="+", help="multiples of 64 (default: 512 1024)")
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=["plain", "float32", "bfloat16"]
    )
    parser.add_argument("--model", choices=MODELS, default="sdmatte")
    parser.add_argument("--runs", type=int, default=1, help="to take the median of")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="the small model, at 64 pixels")
    parser.add_argument("--start-up", action="store_true")
    parser.add_argument("--types", nargs=2, metavar=("MODEL", "PICTURES"))
    parser.add_argument("--apart", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.sizes = arguments.sizes or ([64] if arguments.tiny else [512, 1024])
    return arguments


if __name__ == "__main__":
    main(parse())
