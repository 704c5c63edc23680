"""What a test has done so far, on disk: it goes on from there after an interruption."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from SDMatte.errors import DataError, OutputError
from SDMatte.runtime.files import clear_leftovers, write_text
from SDMatte.scoring.results import ERRORS, MATTES, PROGRESS, SCORES, SUMMARY, ImageScore

_PARTS = "progress.*.jsonl"
_REPORTS = (SCORES, SUMMARY, "summary.md", "worst_and_best.png")


class ProgressLog:
    """The pictures done of one set under one prompt, a line of JSON each.

    ``progress.jsonl`` in the folder of the results says on its first line what made them: model,
    protocol, prompts, pictures. While a test runs, each process adds the pictures that it has
    done to a file of its own, ``progress.0.jsonl`` and so on; the next start puts them together.

    Attributes:
        folder: The folder of the results.
        identity: What makes the results what they are; results of another identity are not
            gone on with. Whatever JSON can say.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any]) -> None:
        """Prepares; nothing is read or written yet."""
        self.folder = Path(folder)
        self.identity = json.loads(json.dumps(dict(identity), default=str))
        self._part: TextIO | None = None

    def read(self) -> dict[str, ImageScore]:
        """Reads what is done, by picture; mattes that are gone again are not.

        Raises:
            DataError: The folder holds results of something else; the message says of what.
        """
        path = self.folder / PROGRESS
        if not path.is_file():
            if any((self.folder / name).exists() for name in (*_REPORTS, MATTES)):
                raise self._refusal("by something that left no record of it")
            return {}
        lines = _read_lines(path)
        identity = lines[0].get("identity") if lines else None
        if identity != self.identity:
            raise self._refusal(self._difference(identity))
        parts = (line for part in sorted(self.folder.glob(_PARTS)) for line in _read_lines(part))
        done: dict[str, ImageScore] = {}
        for line in (*lines[1:], *parts):
            try:
                picture = ImageScore(**line)
            except TypeError:  # cut short, or of another version
                continue
            matte = self.matte(picture.name)
            if picture.pred_path and not matte.is_file():
                done.pop(picture.name, None)
                continue
            done[picture.name] = replace(picture, pred_path=str(matte) if picture.pred_path else "")
        return done

    def begin(self, done: Iterable[ImageScore]) -> None:
        """Write down what is done, and clear up after a kill; called by one process.

        Raises:
            OutputError: The folder cannot be written to.
        """
        lines = [{"identity": self.identity}, *(picture.as_dict() for picture in done)]
        write_text(self.folder / PROGRESS, "".join(f"{json.dumps(line)}\n" for line in lines))
        clear_leftovers(os.path.abspath(self.folder / MATTES))
        for leftover in self.folder.glob(_PARTS):
            leftover.unlink()

    def add(self, picture: ImageScore, rank: int = 0) -> None:
        """Adds a picture that process ``rank`` has done.

        Raises:
            OutputError: The file cannot be written.
        """
        try:
            if self._part is None:
                path = self.folder / _PARTS.replace("*", str(rank))
                self._part = open(path, "a", encoding="utf-8")
            self._part.write(f"{json.dumps(picture.as_dict())}\n")
            self._part.flush()
        except OSError as error:
            raise OutputError(f"Cannot write to {self.folder}: {error.strerror}.") from error

    def close(self) -> None:
        """Closes the file of this process."""
        if self._part is not None:
            self._part.close()
            self._part = None

    def matte(self, name: str) -> Path:
        """Where the matte of a picture is."""
        return self.folder / MATTES / f"{name}.png"

    def _difference(self, other: Any) -> str:
        if not isinstance(other, dict):
            return "by something that left no readable record of it"
        then, now = dict(_flat(other)), dict(_flat(self.identity))
        keys = [key for key in dict.fromkeys((*now, *then)) if then.get(key) != now.get(key)]
        return "with " + ", ".join(
            f"{key} {_shown(then.get(key))} (now {_shown(now.get(key))})" for key in keys
        )

    def _refusal(self, made: str) -> DataError:
        return DataError(
            f"{self.folder} holds results made {made}. Choose another folder (--output), or "
            "start over there (--restart)."
        )


def clear_results(folder: str | Path) -> None:
    """Deletes the results of a test from its folder, and nothing else."""
    folder = Path(folder)
    for name in (MATTES, ERRORS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in (*(folder / name for name in (PROGRESS, *_REPORTS)), *folder.glob(_PARTS)):
        path.unlink(missing_ok=True)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that are whole; the last one may have been cut short."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            found.append(content)
    return found


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, with names such as ``settings.psm``."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]}..."
