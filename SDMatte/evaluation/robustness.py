"""Robustness: how scores change when boxes, points, masks or the opacity flag are perturbed."""

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from SDMatte.errors import ConfigError
from SDMatte.evaluation.methods import Method
from SDMatte.evaluation.plan import SetTest, files_read, plan_test
from SDMatte.evaluation.run import run_plan
from SDMatte.runtime.files import check_not_read, replace_file, write_text
from SDMatte.scoring.document import Section, render
from SDMatte.scoring.protocols import get_protocol
from SDMatte.scoring.report import UNITS
from SDMatte.scoring.tables import metrics_table

_METRIC = "SAD"  # in the plot
PLOT, TABLE, NUMBERS = "robustness.png", "robustness.md", "robustness.json"


@dataclass(frozen=True)
class Sweep:
    """One setting of `SDMatte.prompts.perturb.PromptPerturbation`, at several levels.

    Attributes:
        prompt: Short name of the perturbed prompt; "": any, the first of ``test.prompts``.
        levels: Values of the setting.
        meaning: What a level means.
    """

    prompt: str
    levels: tuple[float | int | bool, ...]
    meaning: str


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
"""Name of the setting to its sweep."""


@dataclass(frozen=True)
class Measurement:
    """Raw scores of one method on one data set at one level of a sweep, an entry of `SWEEPS`."""

    method: str
    dataset: str
    kind: str
    level: float | int | bool
    prompt: str
    protocol: str
    scores: dict[str, float]

    @property
    def level_name(self) -> str | float:
        """The level in tables and plots."""
        if isinstance(self.level, bool):
            return "wrong" if self.level else "right"
        return self.level


@dataclass(frozen=True)
class Step:
    """One data set at one level of a sweep, planned."""

    kind: str
    level: float | int | bool
    test: SetTest


def plan_robustness(method: Method, output_dir: str | Path, restart: bool = False) -> list[Step]:
    """Plan all levels of the sweeps whose prompts a method supports.

    See `SDMatte.evaluation.plan.plan_test`. Scores of each level are written to ``output_dir``, but
    no mattes.

    Raises:
        ConfigError: The method supports none.
        DataError: A data set is unusable, or the folder holds results of another identity.
        OutputError: The output would overwrite files of a data set.
    """
    kinds = [name for name, sweep in SWEEPS.items() if sweep.prompt in method.supported_prompts]
    if method.checkpoint is not None:  # baselines ignore the opacity
        kinds.append("opacity")
    if not kinds:
        raise ConfigError(f"{method.name} supports none of the prompts box, point and mask.")
    steps = []
    for kind in kinds:
        prompt = SWEEPS[kind].prompt or method.prompts[0]
        for level in SWEEPS[kind].levels:
            config = copy.deepcopy(method.config)
            config.dataloader.test.dataset.perturb = {kind: level}
            config.test.save_mattes = False
            plan = plan_test(config, output_dir, [prompt], method.identity, restart)
            steps += [Step(kind, level, test) for test in plan]
    outputs = [Path(output_dir), *(Path(output_dir) / name for name in (PLOT, TABLE, NUMBERS))]
    for dataset in {step.test.name: step.test.loader.dataset for step in steps}.values():
        check_not_read(outputs, files_read(dataset))
    return steps


def measure_robustness(method: Method, steps: Sequence[Step]) -> list[Measurement]:
    """Run the steps of `plan_robustness`; a test shared by several sweeps runs once.

    The result is empty in all processes but the main one.
    """
    tests: dict[str, SetTest] = {}
    for step in steps:
        tests.setdefault(step.test.key, step.test)
    scores = run_plan(list(tests.values()), method.load(), method.name, method.info)
    return [
        Measurement(
            method.name,
            step.test.name,
            step.kind,
            step.level,
            step.test.prompt.alias,
            step.test.config.test.protocol,
            scores[step.test.key],
        )
        for step in steps
        if step.test.key in scores  # only in the main process
    ]


def write_robustness(measurements: Sequence[Measurement], output_dir: str | Path) -> list[Path]:
    """Write ``robustness.png`` (a plot), ``robustness.md`` and ``robustness.json``."""
    paths = plot, table, numbers = [Path(output_dir) / name for name in (PLOT, TABLE, NUMBERS)]
    content = json.dumps([asdict(measurement) for measurement in measurements], indent=1)
    write_text(numbers, f"{content}\n")
    _draw(measurements, plot)
    tables: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for m in measurements:
        title = f"{m.dataset}, {SWEEPS[m.kind].meaning} ({m.prompt} prompt)"
        rows = tables.setdefault((title, m.protocol), {})
        rows[f"{m.method}, {m.level_name}"] = m.scores
    sections = [Section(text=UNITS, image=plot, caption=f"{_METRIC} at each level")]
    for (title, protocol), rows in tables.items():
        text = f"Protocol {protocol} ({get_protocol(protocol).description})."
        sections.append(Section(title, text, [metrics_table(rows)]))
    write_text(table, render("report.md", "Robustness to the prompt", sections))
    return paths


def _draw(measurements: Sequence[Measurement], path: Path) -> None:
    """Draw a panel for each data set (down) and sweep (across), with a line for each method."""
    rows = list(dict.fromkeys(m.dataset for m in measurements))
    columns = list(dict.fromkeys(m.kind for m in measurements))
    figure = Figure(figsize=(4.8 * len(columns), 3.8 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    lines: dict[tuple[str, str, str], list[tuple]] = {}
    for m in measurements:
        points = lines.setdefault((m.dataset, m.kind, f"{m.method}, {m.protocol}"), [])
        points.append((m.level_name, m.scores[_METRIC]))
        axes = grid[rows.index(m.dataset)][columns.index(m.kind)]
        axes.set(title=f"{m.dataset}, {m.prompt}", xlabel=SWEEPS[m.kind].meaning, ylabel=_METRIC)
    for (dataset, kind, label), points in lines.items():
        axes = grid[rows.index(dataset)][columns.index(kind)]
        axes.plot(*zip(*points, strict=True), marker=".", label=label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    with replace_file(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
