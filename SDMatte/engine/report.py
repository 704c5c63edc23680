"""What a run leaves for people to look at: its environment, its curves as a picture."""

import json
import platform
import sys
from importlib import metadata
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from SDMatte.evaluation.results import versions
from SDMatte.files import write_text

PACKAGES = ("torchvision", "diffusers", "transformers", "accelerate", "detectron2", "peft")


def write_environment(path: str | Path, device: torch.device, num_processes: int) -> None:
    """Writes what a run's numbers may depend on besides its config, as JSON.

    Args:
        path: The file.
        device: Where this process computes.
        num_processes: Of the run, over all machines.

    Raises:
        DataError: The file cannot be written.
    """
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    content = {
        "command": sys.argv,
        **versions(),
        **{name: installed[name] for name in PACKAGES if name in installed},
        "cuda": torch.version.cuda,
        "system": platform.platform(),
        "machine": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "processes": num_processes,
    }
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_records(metrics_file: str | Path) -> list[dict[str, float]]:
    """Reads the JSON lines that detectron2's writer leaves, in the order of their steps.

    A run that was killed and resumed has written some steps twice; the later ones count.
    """
    by_step: dict[int, dict[str, float]] = {}
    for line in Path(metrics_file).read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the line that a kill cut short
            continue
        by_step[record["iteration"]] = {**by_step.get(record["iteration"], {}), **record}
    return [by_step[step] for step in sorted(by_step)]


def draw_curves(metrics_file: str | Path, picture: str | Path) -> None:
    """Draws losses, learning rate and evaluation metrics over the steps of a run.

    Args:
        metrics_file: ``metrics.json`` of a run.
        picture: The PNG to write.
    """
    records = read_records(metrics_file)
    names = {name for record in records for name in record}
    groups = {
        "losses": sorted(n for n in names if n.endswith("loss")),
        "learning rate": ["lr"],
        "MSE, MAD in evaluation": sorted(n for n in names if n.endswith(("/MSE", "/MAD"))),
        "SAD, Grad, Conn in evaluation": sorted(
            n for n in names if n.endswith(("/SAD", "/Grad", "/Conn"))
        ),
    }
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, shown) in zip(figure.subplots(2, 2).flat, groups.items(), strict=True):
        for name in shown:
            points = [(r["iteration"], r[name]) for r in records if name in r]
            if points:
                axes.plot(*zip(*points, strict=True), marker="." if "/" in name else "", label=name)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend(fontsize="small")
    figure.savefig(picture, dpi=100)
