"""Check data sets before training: list what exists and report which samples are unusable."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate
from tqdm import tqdm

from SDMatte.data.catalog import (
    TEST_SETS,
    TRAIN_SETS,
    data_root,
    is_known,
    is_pair,
    resolve_set,
)
from SDMatte.data.listing import (
    BACKGROUNDS,
    Entry,
    Sample,
    images_without_alpha,
    list_backgrounds,
    samples_of_set,
)
from SDMatte.errors import ConfigError, DataError
from SDMatte.images.io import read_alpha, read_image, read_trimap
from SDMatte.runtime.parallel import map_in_processes

KINDS = {
    "missing": "missing",
    "unreadable": "unreadable",
    "size": "other size",
    "zeros": "alpha all 0",
    "ones": "alpha all 255",
    "spare": "no alpha",
}
"""Kinds of findings and their headings in tables. The first three make a sample unusable."""

BACKGROUNDS_EXPECTED = 20_000
"""Images of BG-20K: 15,000 for training and 5,000 for testing, all of which are used."""

_HARMFUL = ("missing", "unreadable", "size")
_READERS = {
    "alpha": read_alpha,
    "image": read_image,
    "trimap": read_trimap,
    "background": read_image,
}


class Finding(NamedTuple):
    """A problem with a file: its kind (from `KINDS`) and a line of text."""

    kind: str
    text: str


@dataclass(frozen=True)
class SetReport:
    """The samples of a set, from `list_set`, and the problems of their files, from `check_set`.

    Attributes:
        entry: The set.
        training: Whether it is a training set.
        root: The data root.
        samples: The samples found.
        problem: Why training or testing with the set cannot start, or "".
        findings: Problems of individual files, sorted by kind.
        usable: The usable samples; known only after `check_set`.
    """

    entry: Entry
    training: bool
    root: Path
    samples: tuple[Sample, ...]
    problem: str = ""
    findings: tuple[Finding, ...] = ()
    usable: tuple[Sample, ...] = ()

    @property
    def name(self) -> str:
        """Name of the set."""
        return self.entry.name

    @property
    def part(self) -> str:
        """``"training"`` or ``"test"``."""
        return "training" if self.training else "test"

    @property
    def label(self) -> str:
        """Name and part, such as ``AM-2K (training)``."""
        return f"{self.name} ({self.part})"

    @property
    def kind(self) -> str:
        """``"natural"``, ``"composite"`` or ``"natural + composite"``."""
        kinds = {"natural": self.entry.is_natural, "composite": self.entry.is_composite}
        return " + ".join(kind for kind, used in kinds.items() if used)

    @property
    def expected(self) -> int | None:
        """Number of samples of the published set, if known."""
        entry = self.entry
        alphas = entry.expected if entry.count is None else entry.count
        if alphas is None or entry.list_file:
            return None
        return alphas * (entry.is_natural + entry.composites * entry.is_composite)

    @property
    def state(self) -> str:
        """``"yes"``, ``"incomplete"``, or ``"no"`` if no folder of the set exists."""
        if not self.problem:
            return "yes"
        return "incomplete" if self.entry.exists(self.root) else "no"

    @property
    def num_bad(self) -> int:
        """Number of unusable samples."""
        return len(self.samples) - len(self.usable)

    def lines(self) -> Iterator[str]:
        """Yield a line for the set, and one for each finding."""
        text = f"{self.label}: {len(self.samples)} samples"
        yield text if self.expected is None else f"{text}, {self.expected} expected"
        for finding in self.findings:
            yield f"  {KINDS[finding.kind]}: {finding.text}"


def parts_of(item: str | Mapping[str, Any], only: str | None = None) -> list[str]:
    """Return the parts, ``"train"`` and ``"test"``, in which a set exists.

    Args:
        item: A name in the catalog, or a folder pair: a training set, and also a test set if it
            has a holdout.
        only: The only part to return.

    Raises:
        ConfigError: A setting is unknown or not allowed.
        DataError: The set is unknown.
    """
    both = not is_pair(item) or item.get("holdout") is not None
    parts = [only] if only else ["train", "test"] if both else ["train"]
    found, errors = [], []
    for part in parts:
        try:
            resolve_set(item, data_root(), part == "train")
            found.append(part)
        except (ConfigError, DataError) as error:
            errors.append(error)
    if found:
        return found
    name = item.get("name", "") if isinstance(item, Mapping) else item
    if len(parts) == 2 and not is_pair(item) and not is_known(name):
        raise DataError(
            f"Unknown set {name!r}; known are {', '.join({**TRAIN_SETS, **TEST_SETS})}, and any "
            f"folder pair as {{image: DIR, alpha: DIR}}."
        )
    raise errors[0]


def list_set(
    item: str | Mapping[str, Any], root: str | Path | None = None, training: bool = True
) -> SetReport:
    """List a set without stopping at missing files.

    Args:
        item: A name or a folder pair, as in a config.
        root: The data root of the config.
        training: Whether to list it as a training set.

    Raises:
        ConfigError: A setting is unknown or not allowed.
        DataError: The set is unknown.
    """
    base = data_root(root)
    entry = resolve_set(item, base, training)
    samples: tuple[Sample, ...] = ()
    problem = ""
    for check_files in (True, False):
        try:
            samples = tuple(samples_of_set(entry, base, training, check_files))
            problem = problem or ("" if samples else "No image found.")
            break
        except DataError as error:
            problem = problem or str(error)
    return SetReport(entry, training, base, samples, problem)


def list_table(listed: Sequence[SetReport]) -> str:
    """Return a table of sets and of the backgrounds that they need, one per line.

    The problems of incomplete sets follow the table.
    """
    rows = [
        (s.name, s.part, s.state, len(s.samples), s.expected, s.kind, ", ".join(s.entry.folders))
        for s in listed
    ]
    composites = [s for s in listed if s.entry.is_composite]
    for root, folder in dict.fromkeys((s.root, s.entry.background) for s in composites):
        number = len(list_backgrounds(root, folder))
        expected = BACKGROUNDS_EXPECTED if folder == BACKGROUNDS else None
        found = "yes" if number else "no"
        rows.append((Path(folder).name, "backgrounds", found, number, expected, "", folder))
    heads = ("set", "part", "found", "samples", "expected", "kind", "folder")
    problems = [f"{s.label}: {s.problem}" for s in listed if s.state == "incomplete"]
    return "\n".join([tabulate(rows, heads), *([""] if problems else []), *problems])


class _FileReport(NamedTuple):
    """Height and width, range of values, and problem of a file."""

    shape: tuple[int, ...] = ()
    low: float = 0.0
    high: float = 1.0
    finding: Finding | None = None


def check_set(
    listed: SetReport, num_workers: int | None = None, progress: bool = False
) -> SetReport:
    """Read every file of a set once; return the report with findings and usable samples.

    Args:
        listed: The set.
        num_workers: Reading processes; None: one per core, at most 8.
        progress: Whether to show a progress bar.
    """
    tasks = sorted({task for sample in listed.samples for task in _files(sample)})
    reports = map_in_processes(partial(_check_file, listed.root), tasks, num_workers, chunk=8)
    reports = tqdm(
        reports, listed.label, len(tasks), unit="file", leave=False, disable=not progress
    )
    seen = dict(zip(tasks, reports, strict=True))
    findings, usable = set(), []
    for sample in listed.samples:
        found = list(_findings(sample, seen, listed.root))
        findings.update(found)
        if not any(finding.kind in _HARMFUL for finding in found):
            usable.append(sample)
    if listed.entry.uses_all_images:
        spare = images_without_alpha(listed.samples, listed.root)
        findings.update(Finding("spare", str(listed.root / path)) for path in spare)
    order = list(KINDS)
    ordered = sorted(findings, key=lambda f: (order.index(f.kind), f.text))
    return replace(listed, findings=tuple(ordered), usable=tuple(usable))


def _files(sample: Sample) -> Iterator[tuple[str, str]]:
    """Yield path and role of each file of a sample."""
    for role in _READERS:
        if getattr(sample, role):
            yield getattr(sample, role), role


def _check_file(root: Path, task: tuple[str, str]) -> _FileReport:
    """Read a file; called in a worker process."""
    path, role = root / task[0], task[1]
    try:
        path.stat()
    except FileNotFoundError:
        return _FileReport(finding=Finding("missing", f"{path} ({role})"))
    except OSError:
        pass  # the reader's message is more precise
    try:
        array = _READERS[role](path)
    except DataError as error:
        return _FileReport(finding=Finding("unreadable", str(error)))
    low, high = (float(array.min()), float(array.max())) if role == "alpha" else (0.0, 1.0)
    return _FileReport(array.shape[:2], low, high)


def _findings(
    sample: Sample, seen: Mapping[tuple[str, str], _FileReport], root: Path
) -> Iterator[Finding]:
    """Yield the problems of a sample."""
    alpha = seen[sample.alpha, "alpha"]
    for path, role in _files(sample):
        report = seen[path, role]
        if report.finding:
            yield report.finding
        elif role != "background" and alpha.shape and report.shape != alpha.shape:
            (h, w), (ah, aw) = report.shape, alpha.shape
            yield Finding(
                "size", f"{root / path} has {w}x{h} pixels, its alpha {sample.alpha} {aw}x{ah}"
            )
    if alpha.high == 0:
        yield Finding("zeros", str(root / sample.alpha))
    elif alpha.low == 1:
        yield Finding("ones", str(root / sample.alpha))


def obstacles(reports: Sequence[SetReport], max_bad_samples: int) -> list[str]:
    """Return sentences that say why training cannot start; empty if it can.

    Args:
        reports: Reports of the training sets and of the test sets for evaluation.
        max_bad_samples: Total number of training samples that may be unreadable.
    """
    found = [f"{report.label}: {report.problem}" for report in reports if report.problem]
    training = [report for report in reports if report.training]
    bad = sum(report.num_bad for report in training)
    total = sum(len(report.samples) for report in training)
    if bad and (bad > max_bad_samples or bad == total):
        found.append(
            f"{bad} of {total} training samples are unusable; at most {max_bad_samples} may be "
            f"(max_bad_samples)."
        )
    found += [
        f"{report.label}: {report.num_bad} of {len(report.samples)} samples are unusable; a test "
        f"stops at the first."
        for report in reports
        if report.num_bad and not report.training and not report.problem
    ]
    return found


def summary_table(reports: Iterable[SetReport]) -> str:
    """Return a table with the number of findings of each kind, one set per line."""
    rows = []
    for r in reports:
        kinds = [finding.kind for finding in r.findings]
        counts = [kinds.count(kind) or "" for kind in KINDS]
        rows.append([r.name, r.part, len(r.samples), r.expected, *counts, r.num_bad or ""])
    heads = ["set", "part", "samples", "expected", *KINDS.values(), "bad samples"]
    return tabulate(rows, heads)
