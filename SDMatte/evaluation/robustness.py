"""Robustness: how scores change when boxes, points, masks or the opacity flag are perturbed."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from SDMatte.errors import ConfigError
from SDMatte.evaluation.methods import Method
from SDMatte.evaluation.plan import SetTest, files_read, plan_test
from SDMatte.evaluation.run import run_plan
from SDMatte.prompts.perturb import PromptPerturbation
from SDMatte.runtime.files import check_not_read, replace_file, write_text
from SDMatte.scoring.document import Section, render
from SDMatte.scoring.protocols import get_protocol
from SDMatte.scoring.report import UNITS
from SDMatte.scoring.tables import metrics_table

_METRIC = "SAD"  # the metric to plot
PLOT, TABLE, NUMBERS = "robustness.png", "robustness.md", "robustness.json"

Level = float | int | bool


@dataclass(frozen=True)
class Sweep:
    """The levels of one setting of `SDMatte.prompts.perturb.PromptPerturbation`."""

    prompt: str  # short name of the perturbed prompt; "": any, the first of test.prompts
    levels: tuple[Level, ...]  # values of the setting
    meaning: str  # what a level stands for


SWEEPS = {
    "box": Sweep(
        "box",
        (-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.4),
        "sides moved outwards, fraction of width or height",
    ),
    "points": Sweep("point", (10, 7, 5, 3, 2, 1), "number of points"),
    "mask": Sweep(
        "mask",
        (-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2),
        "outline moved outwards, fraction of the square root of its area",
    ),
    "opacity": Sweep("", (False, True), "opacity flag"),
}
"""Sweeps by the name of their setting."""


def plan_robustness(
    method: Method, output_dir: str | Path, restart: bool = False
) -> list[tuple[str, Level, SetTest]]:
    """Plan all levels of the sweeps whose prompts a method supports.

    See `SDMatte.evaluation.plan.plan_test`. Scores of each level are written to ``output_dir``, but
    no mattes.

    Returns:
        Name of the sweep, level and test of each step.

    Raises:
        ConfigError: The method supports none of the prompts, or its config perturbs them.
        DataError: A data set is unusable, or the folder holds results of another identity.
        OutputError: The output is not writable, or would overwrite files of a data set.
    """
    kinds = [name for name, sweep in SWEEPS.items() if sweep.prompt in method.supported_prompts]
    if method.checkpoint is not None:  # baselines ignore the opacity
        kinds.append("opacity")
    if not kinds:
        raise ConfigError(f"{method.name} supports none of the prompts box, point and mask.")
    perturb = method.config.dataloader.test.dataset.get("perturb")
    if PromptPerturbation.of(perturb) != PromptPerturbation():
        raise ConfigError(
            "robustness sets dataloader.test.dataset.perturb itself; remove it from the config and "
            "the command."
        )
    steps = []
    for kind in kinds:
        prompt = SWEEPS[kind].prompt or method.prompts[0]
        for level in SWEEPS[kind].levels:
            config = copy.deepcopy(method.config)
            config.dataloader.test.dataset.perturb = {kind: level}
            config.test.save_mattes = False
            plan = plan_test(config, output_dir, [prompt], method.identity, restart)
            steps += [(kind, level, test) for test in plan]
    outputs = [Path(output_dir), *(Path(output_dir) / name for name in (PLOT, TABLE, NUMBERS))]
    for dataset in {test.name: test.loader.dataset for _, _, test in steps}.values():
        check_not_read(outputs, files_read(dataset))
    return steps


def measure_robustness(
    method: Method, steps: Sequence[tuple[str, Level, SetTest]]
) -> list[dict[str, Any]]:
    """Run the steps of `plan_robustness`; a test shared by several sweeps runs once.

    Returns:
        An entry of ``robustness.json`` for each step; empty in all processes but the main one.
    """
    tests: dict[str, SetTest] = {}
    for _, _, test in steps:
        tests.setdefault(test.key, test)
    scores = run_plan(list(tests.values()), method.load(), method.name, method.info)
    return [
        {
            "method": method.name,
            "dataset": test.name,
            "kind": kind,
            "level": level,
            "prompt": test.prompt.alias,
            "protocol": test.config.test.protocol,
            "scores": scores[test.key],
        }
        for kind, level, test in steps
        if test.key in scores  # only in the main process
    ]


def write_robustness(measured: Sequence[dict[str, Any]], output_dir: str | Path) -> list[Path]:
    """Write ``robustness.png`` (a plot), ``robustness.md`` and ``robustness.json``."""
    paths = plot, table, numbers = [Path(output_dir) / name for name in (PLOT, TABLE, NUMBERS)]
    write_text(numbers, f"{json.dumps(measured, indent=1)}\n")
    _draw(measured, plot)
    tables: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for m in measured:
        title = f"{m['dataset']}, {SWEEPS[m['kind']].meaning} ({m['prompt']} prompt)"
        rows = tables.setdefault((title, m["protocol"]), {})
        rows[f"{m['method']}, {_level_name(m['level'])}"] = m["scores"]
    sections = [Section(text=UNITS, image=plot, caption=f"{_METRIC} at each level")]
    for (title, protocol), rows in tables.items():
        text = f"Protocol {protocol} ({get_protocol(protocol).description})."
        sections.append(Section(title, text, [metrics_table(rows)]))
    write_text(table, render("report.md", "Robustness to the prompt", sections))
    return paths


def _level_name(level: Level) -> str | float:
    if isinstance(level, bool):
        return "wrong" if level else "right"
    return level


def _draw(measured: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a panel for each data set (down) and sweep (across), with a line for each method."""
    rows = list(dict.fromkeys(m["dataset"] for m in measured))
    columns = list(dict.fromkeys(m["kind"] for m in measured))
    figure = Figure(figsize=(4.8 * len(columns), 3.8 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    lines: dict[tuple, list[tuple]] = {}
    for m in measured:
        axes = grid[rows.index(m["dataset"])][columns.index(m["kind"])]
        meaning = SWEEPS[m["kind"]].meaning
        axes.set(title=f"{m['dataset']}, {m['prompt']}", xlabel=meaning, ylabel=_METRIC)
        points = lines.setdefault((axes, f"{m['method']}, {m['protocol']}"), [])
        points.append((_level_name(m["level"]), m["scores"][_METRIC]))
    for (axes, label), points in lines.items():
        axes.plot(*zip(*points, strict=True), marker=".", label=label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    with replace_file(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
