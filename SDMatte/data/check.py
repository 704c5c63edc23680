"""Looks data sets through before a training: what is there, and what of it cannot be used."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate
from tqdm import tqdm

from SDMatte.data.catalog import (
    TEST_SETS,
    TRAIN_SETS,
    data_root,
    folders_of,
    is_known,
    resolve_set,
)
from SDMatte.data.listing import BACKGROUNDS, Entry, Sample, list_backgrounds, samples_of_set
from SDMatte.data.mix import Mix, mix_of, without_weight
from SDMatte.data.parallel import map_in_processes
from SDMatte.errors import DataError
from SDMatte.images.io import list_names, read_alpha, read_image, read_trimap

KINDS = {
    "missing": "missing",
    "unreadable": "unreadable",
    "size": "other size",
    "zeros": "alpha all 0",
    "ones": "alpha all 255",
    "spare": "no alpha",
}
"""What is looked for. A sample with a finding of the first three cannot be used; alphas without
an object, or without a background, can, and pictures without an alpha are left out."""

BACKGROUNDS_EXPECTED = 20_000
"""Images of BG-20K, 15,000 for training and 5,000 for test; all of them are used."""

_HARMFUL = ("missing", "unreadable", "size")
_READERS = {
    "alpha": read_alpha,
    "image": read_image,
    "trimap": read_trimap,
    "background": read_image,
}


@dataclass(frozen=True)
class ListedSet:
    """What the folders of a set hold; no picture has been read.

    Attributes:
        item: The set as the config has it.
        name: Name of the set.
        training: Whether it is a training set.
        root: The data root.
        folders: Its folders, as the catalogue has them.
        kind: ``"natural"``, ``"composite"`` or both.
        expected: Samples that it should have as published; None: not known.
        samples: Those found.
        whole: Whether all of its alphas are used, so that a picture left over is one too many.
        state: ``"yes"``: it is there; ``"no"``; ``"incomplete"``: only some of it.
        problem: Why a training or a test with it would not start, "" if it would.
        background: The folder of the backgrounds of its composites, "" if it has none.
    """

    item: str | Mapping[str, Any]
    name: str
    training: bool
    root: Path
    folders: tuple[str, ...]
    kind: str
    expected: int | None
    samples: tuple[Sample, ...]
    whole: bool
    state: str
    problem: str = ""
    background: str = ""

    @property
    def label(self) -> str:
        """Name and part, such as ``AM-2K (training)``."""
        return f"{self.name} ({self.part})"

    @property
    def part(self) -> str:
        """``"training"`` or ``"test"``."""
        return "training" if self.training else "test"


class Finding(NamedTuple):
    """One thing that is not as it should be: its kind (of `KINDS`), and a line of text."""

    kind: str
    text: str


@dataclass(frozen=True)
class SetReport:
    """What came out of reading all files of a set.

    Attributes:
        listed: The set.
        findings: Everything that is not as it should be, a file each, sorted by kind.
        usable: The samples that can be used.
    """

    listed: ListedSet
    findings: tuple[Finding, ...]
    usable: tuple[Sample, ...]

    @property
    def num_bad(self) -> int:
        """How many samples cannot be used."""
        return len(self.listed.samples) - len(self.usable)

    def lines(self) -> Iterator[str]:
        """Yields a line for the set, and one for each finding."""
        expected = self.listed.expected
        text = f"{self.listed.label}: {len(self.listed.samples)} samples"
        yield text if expected is None else f"{text}, {expected} expected"
        for finding in self.findings:
            yield f"  {KINDS[finding.kind]}: {finding.text}"


def catalogue(training: bool) -> list[str]:
    """The names of all known training, or test, sets."""
    return list(TRAIN_SETS if training else TEST_SETS)


def parts_of(item: str | Mapping[str, Any], only: str | None = None) -> list[str]:
    """Says which parts, ``"train"`` and ``"test"``, a name stands for.

    Args:
        item: A name, which may be in both tables; or a folder pair, which is for training, and
            for test what it holds out.
        only: The one part that is wanted.

    Raises:
        DataError: There is no such set, or it has no such setting.
    """
    is_pair = isinstance(item, Mapping) and not {"image", "alpha"}.isdisjoint(item)
    both = not is_pair or item.get("holdout") is not None
    wanted = [only] if only else ["train", "test"] if both else ["train"]
    found, errors = [], []
    for part in wanted:
        try:
            # Only training has weights: a name with one is the training set of that name.
            bare = without_weight(item) if part == "train" else item
            resolve_set(bare, data_root(), part == "train")
            found.append(part)
        except DataError as error:
            errors.append(error)
    if found:
        return found
    name = item["name"] if isinstance(item, Mapping) and "name" in item else item
    if len(wanted) == 2 and not is_known(name):
        raise DataError(
            f"Unknown set {name!r}; known are {', '.join({**TRAIN_SETS, **TEST_SETS})}, and any "
            f"folder pair as {{image: DIR, alpha: DIR}}."
        )
    raise errors[0]


def list_set(
    item: str | Mapping[str, Any], root: str | Path | None = None, training: bool = True
) -> ListedSet:
    """Lists a set without stopping at what is missing.

    Args:
        item: A name or a folder pair, as in a config.
        root: The data root of the config.
        training: Whether as a training set.

    Raises:
        DataError: There is no such set, or it has no such setting.
    """
    base = data_root(root)
    name, entry = resolve_set(without_weight(item) if training else item, base, training)
    samples: tuple[Sample, ...] = ()
    problem = ""
    try:
        samples = tuple(samples_of_set(name, entry, base, training))
        if not samples:
            problem = "There is no picture in it."
    except DataError as error:
        problem = str(error)
        try:
            samples = tuple(samples_of_set(name, entry, base, training, check_files=False))
        except DataError:  # the same one
            pass
    natural, composite = bool(entry.image or entry.files), bool(entry.fg and entry.composites)
    folders = folders_of(entry)
    there = any(os.path.isdir(base / folder) for folder in folders)
    return ListedSet(
        item=item,
        name=name,
        training=training,
        root=base,
        folders=folders,
        kind=" + ".join(["natural"] * natural + ["composite"] * composite),
        expected=_expected(entry),
        samples=samples,
        whole=not (
            entry.files
            or entry.image_stem
            or entry.list_file
            or entry.count is not None
            or entry.holdout is not None
        ),
        state="yes" if not problem else "incomplete" if there else "no",
        problem=problem,
        background=entry.background if composite else "",
    )


def _expected(entry: Entry) -> int | None:
    """Samples that a set should have."""
    alphas = entry.expected if entry.count is None else entry.count
    if alphas is None or entry.list_file:
        return None
    return alphas * (bool(entry.image or entry.files) + entry.composites * bool(entry.fg))


def list_table(listed: Iterable[ListedSet]) -> str:
    """A table of sets and of the backgrounds that they need, a line each.

    Below it stands what is wrong with the sets that are incomplete.
    """
    listed = list(listed)
    rows = [
        (s.name, s.part, s.state, len(s.samples), s.expected, s.kind, ", ".join(s.folders))
        for s in listed
    ]
    for root, folder in dict.fromkeys((s.root, s.background) for s in listed if s.background):
        number = len(list_backgrounds(root, folder))
        expected = BACKGROUNDS_EXPECTED if folder == BACKGROUNDS else None
        there = "yes" if number else "no"
        rows.append((Path(folder).name, "backgrounds", there, number, expected, "", folder))
    heads = ("set", "part", "there", "samples", "expected", "kind", "folder")
    problems = [f"{s.label}: {s.problem}" for s in listed if s.state == "incomplete"]
    return "\n".join([tabulate(rows, heads), *([""] if problems else []), *problems])


class _Look(NamedTuple):
    """What there is to say of a file."""

    shape: tuple[int, ...] = ()
    low: float = 0.0
    high: float = 1.0
    finding: Finding | None = None


def check_set(
    listed: ListedSet, num_workers: int | None = None, progress: bool = False
) -> SetReport:
    """Reads every file of a set, each once.

    Args:
        listed: The set.
        num_workers: Processes that read; None: as many as there are cores, 8 at most.
        progress: Whether to show a progress bar.
    """
    tasks = sorted({task for sample in listed.samples for task in _files(sample)})
    looks = map_in_processes(partial(_look_at, listed.root), tasks, num_workers, chunk=8)
    looks = tqdm(looks, listed.label, len(tasks), unit="file", leave=False, disable=not progress)
    seen = dict(zip(tasks, looks, strict=True))
    findings, usable = set(), []
    for sample in listed.samples:
        found = list(_findings(sample, seen, listed.root))
        findings.update(found)
        if not any(finding.kind in _HARMFUL for finding in found):
            usable.append(sample)
    if listed.whole:
        findings.update(_spare_pictures(listed))
    order = list(KINDS)
    ordered = sorted(findings, key=lambda f: (order.index(f.kind), f.text))
    return SetReport(listed, tuple(ordered), tuple(usable))


def _files(sample: Sample) -> Iterator[tuple[str, str]]:
    """Yields path and role of each file of a sample."""
    for role in _READERS:
        if getattr(sample, role):
            yield getattr(sample, role), role


def _look_at(root: Path, task: tuple[str, str]) -> _Look:
    """Reads a file; runs in a process of its own."""
    path, role = root / task[0], task[1]
    try:
        path.stat()
    except FileNotFoundError:
        return _Look(finding=Finding("missing", f"{path} ({role})"))
    except OSError:
        pass  # the reader says what it is
    try:
        array = _READERS[role](path)
    except DataError as error:
        return _Look(finding=Finding("unreadable", str(error)))
    low, high = (float(array.min()), float(array.max())) if role == "alpha" else (0.0, 1.0)
    return _Look(array.shape[:2], low, high)


def _findings(
    sample: Sample, seen: Mapping[tuple[str, str], _Look], root: Path
) -> Iterator[Finding]:
    """Yields what is wrong with a sample."""
    alpha = seen[sample.alpha, "alpha"]
    for path, role in _files(sample):
        look = seen[path, role]
        if look.finding:
            yield look.finding
        elif role != "background" and alpha.shape and look.shape != alpha.shape:
            (h, w), (ah, aw) = look.shape, alpha.shape
            yield Finding(
                "size", f"{root / path} has {w}x{h} pixels, its alpha {sample.alpha} {aw}x{ah}"
            )
    if alpha.high == 0:
        yield Finding("zeros", str(root / sample.alpha))
    elif alpha.low == 1:
        yield Finding("ones", str(root / sample.alpha))


def _spare_pictures(listed: ListedSet) -> Iterator[Finding]:
    """Yields the pictures in a set's image folders that belong to no alpha."""
    used = {sample.image for sample in listed.samples}
    for folder in sorted({path.rpartition("/")[0] for path in used}):
        directory = listed.root / folder
        for name in list_names(directory) if os.path.isdir(directory) else ():
            if (f"{folder}/{name}" if folder else name) not in used:
                yield Finding("spare", str(directory / name))


def obstacles(reports: Sequence[SetReport], max_bad_samples: int) -> list[str]:
    """Says what keeps a training from running, in sentences; nothing if it can start.

    Args:
        reports: Of the training sets, and of the sets that are tested on the way.
        max_bad_samples: So many training samples may be unreadable, in all.
    """
    found = [f"{r.listed.label}: {r.listed.problem}" for r in reports if r.listed.problem]
    training = [r for r in reports if r.listed.training]
    bad, total = sum(r.num_bad for r in training), sum(len(r.listed.samples) for r in training)
    if bad and (bad > max_bad_samples or bad == total):
        found.append(
            f"{bad} of {total} training samples cannot be used, {max_bad_samples} are left out "
            f"without complaint (max_bad_samples)."
        )
    found += [
        f"{r.listed.label}: {r.num_bad} of {len(r.listed.samples)} samples cannot be used; a "
        f"test stops at the first."
        for r in reports
        if r.num_bad and not r.listed.training and not r.listed.problem
    ]
    return found


def training_mix(listed: Iterable[ListedSet]) -> Mix | None:
    """The weighted mix of the training sets, None where no set has a weight.

    Raises:
        ConfigError: The weights cannot be.
    """
    sets = [s for s in listed if s.training]
    return mix_of([s.item for s in sets], [s.name for s in sets], [len(s.samples) for s in sets])


def summary_table(reports: Iterable[SetReport]) -> str:
    """A table of numbers, a line a set."""
    rows = []
    for report in reports:
        kinds = [finding.kind for finding in report.findings]
        listed = report.listed
        counts = [kinds.count(kind) or "" for kind in KINDS]
        rows.append(
            [listed.name, listed.part, len(listed.samples), listed.expected, *counts]
            + [report.num_bad or ""]
        )
    heads = ["set", "part", "samples", "expected", *KINDS.values(), "bad samples"]
    return tabulate(rows, heads)
