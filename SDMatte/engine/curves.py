"""The records of a run as a picture."""

import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from SDMatte.runtime.files import replace_file


def draw_curves(metrics_file: str | Path, picture: str | Path) -> None:
    """Draws losses, learning rate and evaluation metrics over the steps of a run.

    Args:
        metrics_file: ``metrics.json`` of a run.
        picture: The PNG to write.
    """
    lines = Path(metrics_file).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
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
    with replace_file(picture) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
