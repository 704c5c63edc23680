"""How a model's scores change when its prompts get worse: boxes, points, masks, opacity."""

import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import SDMatte.compat  # noqa: F401

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import DictConfig

from SDMatte.data.listing import files_of
from SDMatte.errors import ConfigError
from SDMatte.evaluation.methods import TestedModel
from SDMatte.evaluation.run import SetTest, plan_test, run_plan
from SDMatte.runtime.files import check_not_read, replace_file, write_text
from SDMatte.scoring.document import Heading, Paragraph, Picture, to_markdown
from SDMatte.scoring.protocols import get_protocol
from SDMatte.scoring.report import metrics_table

logger = logging.getLogger(__name__)

PLOT, TABLE, NUMBERS = "robustness.png", "robustness.md", "robustness.json"


@dataclass(frozen=True)
class Kind:
    """A way for prompts to be worse.

    Attributes:
        prompt: Short name of the prompt that gets worse; "": any, the first of test.prompts.
        levels: How much; values of the setting of `SDMatte.prompts.perturb.PromptPerturbation` that
            has the kind's name.
        meaning: What a level says.
    """

    prompt: str
    levels: tuple[float | int | bool, ...]
    meaning: str


KINDS = {
    "box": Kind(
        "box",
        (-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.4),
        "sides moved outwards, share of width or height",
    ),
    "points": Kind("point", (10, 7, 5, 3, 2, 1), "number of points"),
    "mask": Kind(
        "mask",
        (-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2),
        "outline moved outwards, share of the root of its area",
    ),
    "opacity": Kind("", (False, True), "opacity flag"),
}


@dataclass(frozen=True)
class Measurement:
    """The scores of one set at one level.

    Attributes:
        tested_model: Name of the model or method.
        dataset: Name of the set.
        kind: Of `KINDS`.
        level: Of its levels.
        prompt: Short name of the prompt.
        protocol: Name of the protocol.
        scores: Metric -> raw mean.
    """

    tested_model: str
    dataset: str
    kind: str
    level: float | int | bool
    prompt: str
    protocol: str
    scores: dict[str, float]

    @property
    def meaning(self) -> str:
        """What a level says, and of which prompt."""
        return f"{KINDS[self.kind].meaning} ({self.prompt} prompt)"

    @property
    def shown_level(self) -> str | float:
        """The level for people."""
        if isinstance(self.level, bool):
            return "wrong" if self.level else "right"
        return self.level


@dataclass(frozen=True)
class _Step:
    """One level of one kind, ready to be run."""

    kind: str
    level: float | int | bool
    prompt: str
    config: DictConfig
    plan: list[SetTest]


def plan_robustness(
    tested_model: TestedModel,
    output_dir: str | Path,
    kinds: Sequence[str] = (),
    restart: bool = False,
) -> list[_Step]:
    """Lists what is to be measured; see `SDMatte.evaluation.run.plan_test`.

    Args:
        tested_model: What is tested.
        output_dir: Gets the scores of each level, but no mattes.
        kinds: Of `KINDS`; none: all that the tested_model has prompts for.
        restart: Whether the results there, whatever made them, are deleted.

    Raises:
        ConfigError: A kind is unknown, or the tested_model cannot use its prompt.
        DataError: A set cannot be used, or the folder holds other results.
        OutputError: Files of a set are where the results are to go.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ConfigError(f"Unknown kinds {', '.join(unknown)}; known are {', '.join(KINDS)}.")
    fit = [name for name, kind in KINDS.items() if kind.prompt in tested_model.usable]
    if tested_model.checkpoint is not None:  # baselines know nothing of opacity
        fit.append("opacity")
    chosen = [kind for kind in fit if not kinds or kind in kinds]
    if not chosen or set(kinds) - set(chosen):
        raise ConfigError(
            f"{tested_model.name} can be measured with {', '.join(fit) or 'no kind of prompt'}, "
            f"not with {', '.join(kinds or KINDS)}."
        )
    steps = []
    for kind in chosen:
        prompt = KINDS[kind].prompt or tested_model.prompts[0]
        for level in KINDS[kind].levels:
            config = copy.deepcopy(tested_model.config)
            config.dataloader.test.dataset.perturb = {kind: level}
            config.test.save_mattes = False
            plan = plan_test(config, output_dir, [prompt], tested_model.identity, restart)
            steps.append(_Step(kind, level, prompt, config, plan))
    outputs = [Path(output_dir), *(Path(output_dir) / name for name in (PLOT, TABLE, NUMBERS))]
    for test in steps[0].plan:  # all are of the same sets
        dataset = test.loader.dataset
        check_not_read(outputs, files_of(dataset.samples, dataset.root))
    return steps


def measure_robustness(tested_model: TestedModel, steps: Sequence[_Step]) -> list[Measurement]:
    """Does what `plan_robustness` has listed; what is the same in two kinds is done once.

    Returns:
        The measurements; none in all processes but the main one.

    Raises:
        SDMatteError: See `SDMatte.evaluation.run.run_plan`.
    """
    model = tested_model.load()
    seen: set[str] = set()
    known: dict[str, dict[str, float]] = {}
    found = []
    for step in steps:
        todo = [test for test in step.plan if test.key not in seen]
        seen |= {test.key for test in todo}
        known |= run_plan(step.config, todo, model, tested_model.name, tested_model.info)
        about = {"kind": step.kind, "level": step.level, "prompt": step.prompt}
        about |= {"tested_model": tested_model.name, "protocol": step.config.test.protocol}
        found += [
            Measurement(dataset=test.name, scores=known[test.key], **about)
            for test in step.plan
            if test.key in known  # in the main process alone
        ]
    return found


def write_robustness(
    measurements: Sequence[Measurement], output_dir: str | Path, metric: str = "SAD"
) -> list[Path]:
    """Writes ``robustness.json``, ``robustness.md`` and the plot ``robustness.png``.

    Args:
        measurements: Of one or more tested_models.
        output_dir: Where to.
        metric: What the plot shows.

    Raises:
        OutputError: They cannot be written.
    """
    output_dir = Path(output_dir)
    content = json.dumps([asdict(measurement) for measurement in measurements], indent=1)
    write_text(output_dir / NUMBERS, f"{content}\n")
    _draw(measurements, output_dir / PLOT, metric)
    blocks = [
        Heading("Robustness to the prompt", 1),
        Paragraph("MSE and MAD plain; SAD, Grad and Conn / 1000; lower is better."),
        Picture(output_dir / PLOT, f"{metric} at each level"),
    ]
    tables: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
    for m in measurements:
        rows = tables.setdefault((m.dataset, m.meaning, m.protocol), {})
        rows[f"{m.tested_model}, {m.shown_level}"] = m.scores
    for (dataset, meaning, protocol), rows in tables.items():
        blocks.append(Heading(f"{dataset}, {meaning}"))
        blocks.append(Paragraph(f"Protocol {protocol} ({get_protocol(protocol).description})."))
        blocks.append(metrics_table(rows))
    write_text(output_dir / TABLE, to_markdown(blocks))
    return [output_dir / name for name in (PLOT, TABLE, NUMBERS)]


def _draw(measurements: Sequence[Measurement], picture: Path, metric: str) -> None:
    """Draws a panel for each set (down) and kind (across), with a line for each tested_model."""
    rows = list(dict.fromkeys(m.dataset for m in measurements))
    columns = list(dict.fromkeys(m.kind for m in measurements))
    figure = Figure(figsize=(4.8 * len(columns), 3.8 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    lines: dict[tuple[str, str, str], list[tuple]] = {}
    for m in measurements:
        points = lines.setdefault((m.dataset, m.kind, f"{m.tested_model}, {m.protocol}"), [])
        points.append((m.shown_level, m.scores[metric]))
        axes = grid[rows.index(m.dataset)][columns.index(m.kind)]
        axes.set(title=f"{m.dataset}, {m.prompt}", xlabel=KINDS[m.kind].meaning, ylabel=metric)
    for (dataset, kind, label), points in lines.items():
        axes = grid[rows.index(dataset)][columns.index(kind)]
        axes.plot(*zip(*points, strict=True), marker=".", label=label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    with replace_file(picture) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
