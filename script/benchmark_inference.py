"""Compare time, memory and results of inference options on a full-size model with random weights.

The plain path computes in float32, materializes all attention scores, encodes image and prompt
separately, and encodes the empty caption in every call. The others are `MattePredictor`, loaded
from a file of float32 weights like the published ones. Each case runs in a separate process, and
its peak memory includes loading (on a GPU, a process measures all sizes and batches of a case, and
memory does not include loading). Images are noise; prompts are boxes that cover 30 % of them::

    python script/benchmark_inference.py                      # 512 and 1024 pixels
    python script/benchmark_inference.py --model lite --batches 1 4
    python script/benchmark_inference.py --sizes 512 --cases plain float32 "bfloat16, compiled"
    python script/benchmark_inference.py --tiny               # the small model: a quick check
    python script/benchmark_inference.py --cases float32 onnx # the exported model
    python script/benchmark_inference.py --cases onnx "onnx, OpenVINO"  # with onnxruntime-openvino
    python script/benchmark_inference.py --start-up           # import and command line
    python script/benchmark_inference.py --types MODEL IMAGES # what bfloat16 changes

IMAGES is a folder with ``image/`` and ``alpha/``; the prompts are the boxes of the alphas.
"""

import argparse
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_common import (
    PlainLite,
    PlainModel,
    Point,
    allow_tf32,
    build,
    case_parser,
    measure_in_subprocess,
    point_groups,
    print_measurements,
    record,
    synchronize,
)
from PIL import Image

from SDMatte import MattePredictor
from SDMatte.cli.common import integer, run_command
from SDMatte.images.io import read_alpha
from SDMatte.images.resize import to_tensor
from SDMatte.inference.export import export_model
from SDMatte.modeling import LiteSDMatte
from SDMatte.modeling import SDMatte as Model
from SDMatte.modeling.hub import WEIGHTS_FILE
from SDMatte.modeling.weights import load_checkpoint, read_model_card
from SDMatte.prompts.maps import extent
from SDMatte.prompts.pixels import read_prompts
from SDMatte.runtime.devices import choose_device, peak_memory

CASES = {  # dtype of the weights, and keyword arguments of torch.compile (None: not compiled)
    "plain": ("float32", None),
    "float32": ("float32", None),
    "TF32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    "float16": ("float16", None),
    "float32, compiled": ("float32", {}),
    "bfloat16, compiled": ("bfloat16", {}),
    "bfloat16, CUDA graphs": ("bfloat16", {"mode": "reduce-overhead"}),
    "onnx": ("float32", None),
    "onnx, OpenVINO": ("float32", None),
}
MODELS = {"sdmatte": Model, "lite": LiteSDMatte}
EXPORTED = "exported"  # sub-folder with the ONNX graphs
TOLERANCE = 1e-4  # largest difference of a float32 alpha from the plain path's


@dataclass(frozen=True)
class Measurement:
    """Cost and result of one case.

    Attributes:
        first: Median seconds per image with its first prompt.
        second: Median seconds for another prompt on the same image; None for the plain path, which
            encodes the image again.
        loading: Seconds to load the model.
        memory: Peak memory of the process (of the device, on a GPU) in GiB.
        alpha: Result of the first prompt, float32 `[size, size]`.
    """

    first: float
    second: float | None
    loading: float
    memory: float
    alpha: np.ndarray


def image_and_boxes(size: int) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """Make a noise image, uint8 `[size, size, 3]`, and two boxes of 30 % of it."""
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    low, side = round(0.226 * size), round(0.548 * size)
    return image, [(low, low, low + side, low + side), (0, low, side, low + side)]


@functools.lru_cache(1)
def load(case: str, folder: Path, device: torch.device) -> tuple[Any, float]:
    """Load the model saved in `folder` for one of `CASES`; return it and the seconds it took."""
    dtype, compile_options = CASES[case]
    start = time.perf_counter()
    if case.startswith("onnx"):
        provider = "openvino" if "OpenVINO" in case else device.type
        model = MattePredictor.from_pretrained(folder / EXPORTED, device=provider).model
    elif case == "plain":
        lite = read_model_card(folder)["model"] == "LiteSDMatte"
        plain_class = PlainLite if lite else PlainModel
        model = plain_class(folder, load_weight=False, aux_input="bbox_mask").eval()
        load_checkpoint(model, folder / WEIGHTS_FILE)
        model.to(device)
    else:
        model = MattePredictor.from_pretrained(folder, dtype=dtype, device=device).model
        if compile_options is not None:
            model.compile(**compile_options)
    return model, time.perf_counter() - start


def measure(
    case: str, folder: Path, size: int, runs: int, device: torch.device, count: int = 1
) -> Measurement:
    """Run one of `CASES` in this process on batches of `count` images."""
    allow_tf32(case == "TF32")
    image, boxes = image_and_boxes(size)
    model, loading = load(case, folder, device)
    predictor = MattePredictor(model, resolution=size, batch_size=count, device=device)

    def first() -> np.ndarray:
        if case == "plain":
            return plain_alpha(model, image, boxes[0], count)
        for _ in range(count):
            predictor.set_image(image)
        return predictor.predict(box=[boxes[0]] * count)[-1].alpha

    if CASES[case][1] is not None or device.type == "cuda":
        first()  # warm up
    firsts, seconds = [], []
    for _ in range(runs):
        first_seconds, alpha = timed(first)
        firsts.append(first_seconds / count)
        if case != "plain":
            second = timed(lambda: predictor.predict(box=[boxes[1]] * count))[0]
            seconds.append(second / count)
    median = statistics.median(seconds) if seconds else None
    return Measurement(statistics.median(firsts), median, loading, peak_memory(device), alpha)


@torch.no_grad()
def plain_alpha(
    model: Model, image: np.ndarray, box: tuple[int, int, int, int], count: int = 1
) -> np.ndarray:
    """Predict a batch of `count` equal images with the plain path, and return one alpha."""
    prompt = read_prompts(image.shape[:2], box=box)[0][0].draw(image.shape[:2], radius=0)
    batch = {
        "image": to_tensor(image / np.float32(255)),
        "bbox_mask": to_tensor(prompt.mask),
        "bbox_coords": torch.from_numpy(prompt.coords),
    }
    batch = {key: torch.stack([value] * count) for key, value in batch.items()}
    return model(batch)[-1, 0].cpu().numpy()


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call takes, and its result."""
    start = time.perf_counter()
    result = function()
    synchronize()
    return time.perf_counter() - start, result


def run_in_subprocess(
    case: str, folder: str, points: Sequence[Point], args: argparse.Namespace
) -> list[Measurement | None]:
    """Measure one case in a separate process; None where it ran out of memory."""
    with tempfile.TemporaryDirectory() as scratch:
        options = ["--runs", str(args.runs), "--device", args.device, "--child", folder, scratch]
        measured = measure_in_subprocess(__file__, case, points, *options)
        return [
            m and Measurement(**m, alpha=np.load(f"{scratch}/{size}-{count}.npy"))
            for (size, count), m in zip(points, measured, strict=True)
        ]


def table(size: int, found: dict[str, Measurement | None], count: int = 1) -> Iterable[str]:
    """Yield the lines of the table of one size and batch."""
    plain = found.get("plain")
    yield f"{size} x {size}" + (f", batch {count}" if count > 1 else "")
    heads = ("s/image", "faster", "s/2nd prompt", "of 1st", "GiB", "load s", "alpha: mean, max")
    yield f"  {'case':22}" + "".join(f"{head:>13}" for head in heads[:-1]) + f"  {heads[-1]}"
    for case, m in found.items():
        if m is None:
            yield f"  {case:22} out of memory"
            continue
        cells = [_seconds(m.first), f"{plain.first / m.first:.2f}x" if plain else ""]
        cells += [_seconds(m.second), f"{m.second / m.first:.0%}"] if m.second else ["", ""]
        cells += [f"{m.memory:.2f}", f"{m.loading:.1f}"]
        difference = ""
        if plain:
            error = np.abs(m.alpha - plain.alpha)
            difference = f"{255 * error.mean():.4f}/255, {error.max():.1e}"
        yield f"  {case:22}" + "".join(f"{cell:>13}" for cell in cells) + f"  {difference}"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def check(found: dict[str, Measurement | None]) -> None:
    """Exit with an error if a case in float32 differs from the plain path."""
    plain = found.get("plain")
    for case, m in found.items():
        if plain is None or m is None or CASES[case][0] != "float32" or case == "TF32":
            continue
        error = float(np.abs(m.alpha - plain.alpha).max())
        if not error <= TOLERANCE:
            raise SystemExit(f"{case} differs by {error:.1e} from the plain path.")


def compare_types(model: str, folder: Path, device: torch.device) -> None:
    """Print how much alpha changes from float32 to bfloat16 on real images."""
    predictors = [
        MattePredictor.from_pretrained(model, dtype=dtype, device=device)
        for dtype in ("float32", "bfloat16")
    ]
    differences = []
    for path in sorted((folder / "image").iterdir()):
        alpha = read_alpha(next((folder / "alpha").glob(f"{path.stem}.*")))
        x0, y0, x1, y1 = extent(alpha > 0)
        mattes = []
        for predictor in predictors:
            predictor.set_image(path)
            mattes.append(predictor.predict(box=(x0, y0, x1 + 1, y1 + 1)).alpha)
        differences.append(255 * float(np.abs(mattes[0] - mattes[1]).mean()))
        print(f"{path.name:30} {differences[-1]:.3f}/255")
    print(f"{f'mean of {len(differences)}':30} {statistics.mean(differences):.3f}/255")


def start_up(runs: int) -> None:
    """Print the median time of an import, and of a command until its first line of output."""
    with tempfile.TemporaryDirectory() as folder:
        build(Model, tiny=True).save_pretrained(folder, inference={"resolution": 64})
        Image.fromarray(image_and_boxes(64)[0]).save(f"{folder}/image.png")
        matte = ["matte", "--auto", f"{folder}/image.png", "--model", folder]
        commands = {
            "import SDMatte": [sys.executable, "-c", "import SDMatte; print()"],
            "sdmatte matte, first line": [sys.executable, "-m", "SDMatte", *matte],
        }
        for name, command in commands.items():
            seconds = []
            for _ in range(runs):
                start = time.perf_counter()
                with subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                ) as process:
                    process.stdout.readline()
                    seconds.append(time.perf_counter() - start)
                    process.communicate()
            print(f"{name:30} {statistics.median(seconds):.2f} s (median of {runs})")


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = case_parser(__doc__, CASES, ["plain", "float32", "bfloat16"], "512 1024")
    parser.add_argument("--model", choices=MODELS, default="sdmatte")
    parser.add_argument(
        "--runs", type=integer(1), default=1, help="repetitions to take the median of"
    )
    parser.add_argument("--start-up", action="store_true")
    parser.add_argument("--types", nargs=2, metavar=("MODEL", "IMAGES"))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Measure and print."""
    sizes = args.sizes or ([64] if args.tiny else [512, 1024])
    device = choose_device(args.device)
    groups = point_groups(sizes, args.batches, device.type == "cuda")
    if args.child:
        folder, results = args.child

        def measure_point(size: int, count: int) -> dict[str, Any]:
            found = vars(measure(args.cases[0], Path(folder), size, args.runs, device, count))
            np.save(f"{results}/{size}-{count}.npy", found.pop("alpha"))
            return found

        print_measurements(measure_point, [p for group in groups for p in group], device)
        return
    threads = f"{torch.get_num_threads()} threads"
    print(f"{args.model} on {device}, {threads}, torch {torch.__version__}")
    if args.start_up:
        start_up(max(3, args.runs))
    elif args.types:
        compare_types(args.types[0], Path(args.types[1]), device)
    else:
        with tempfile.TemporaryDirectory() as folder:
            weights_device = device if device.type == "cuda" else None  # a GPU draws them faster
            build(MODELS[args.model], args.tiny, weights_device).save_pretrained(folder)
            if any(case.startswith("onnx") for case in args.cases):
                export_model(folder, Path(folder, EXPORTED))
            for group in groups:
                compare(group, folder, args)


def compare(points: Sequence[Point], folder: str, args: argparse.Namespace) -> None:
    """Measure all cases, print a table per point, and check them."""
    found: dict[Point, dict[str, Measurement | None]] = {point: {} for point in points}
    for case in args.cases:
        for point, m in zip(points, run_in_subprocess(case, folder, points, args), strict=True):
            found[point][case] = m
            values = {"memory": None}
            if m:
                values = {k: v for k, v in vars(m).items() if k != "alpha" and v is not None}
            plain = found[point].get("plain")
            if m and plain:
                values["largest_difference"] = float(np.abs(m.alpha - plain.alpha).max())
            point_values = dict(zip(("size", "batch"), point, strict=True))
            record(args.json, model=args.model, case=case, **point_values, **values)
    for (size, count), cases in found.items():
        print("\n".join(table(size, cases, count)), flush=True)
        check(cases)


if __name__ == "__main__":
    sys.exit(run_command(main, parse_args()))
