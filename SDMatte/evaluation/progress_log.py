"""The progress log, from which an interrupted test resumes."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

from SDMatte.errors import DataError, OutputError
from SDMatte.runtime.files import clear_leftovers, write_text
from SDMatte.scoring.metrics import METRICS
from SDMatte.scoring.results import (
    ERRORS,
    MATTES,
    PROGRESS,
    SCORES,
    SHEET,
    SUMMARY,
    SUMMARY_PAGE,
    ImageScore,
)

_PNG_END = b"IEND\xae\x42\x60\x82"
_PARTS = "progress.*.jsonl"
_REPORTS = (SCORES, SUMMARY, SUMMARY_PAGE, SHEET)


class ProgressLog:
    """A log of the images done for one data set and prompt, with one line of JSON per image.

    The first line of ``progress.jsonl`` holds the identity of the test: model, protocol, prompts,
    images. During a test, each process appends the images it has done to its own file,
    ``progress.0.jsonl`` and so on; the next start merges them.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any]) -> None:
        """Initialize without reading or writing files."""
        self.folder = Path(folder)
        self.identity = json.loads(json.dumps(dict(identity), default=str))
        self._part: TextIO | None = None

    def read(self) -> dict[str, ImageScore]:
        """Return the images that are done by name, except those without a whole matte.

        Raises:
            DataError: The folder holds results of another identity; the message shows how it
                differs.
        """
        path = self.folder / PROGRESS
        if not path.is_file():
            if any((self.folder / name).exists() for name in (*_REPORTS, MATTES)):
                raise self._refusal(f"without a {PROGRESS}")
            return {}
        lines = _read_lines(path)
        identity = lines[0].get("identity") if lines else None
        if not isinstance(identity, dict):
            raise self._refusal(f"with an unreadable {PROGRESS}")
        if identity != self.identity:
            raise self._refusal(f"with {self._describe_difference(identity)}")
        parts = (line for part in sorted(self.folder.glob(_PARTS)) for line in _read_lines(part))
        done: dict[str, ImageScore] = {}
        for line in (*lines[1:], *parts):
            try:
                image = ImageScore(**line)
                complete = not image.scores or METRICS.keys() <= image.scores.keys()
            except (TypeError, AttributeError):
                complete = False
            if not complete:  # damaged, or of another version
                continue
            matte = self.matte(image.name)
            if not image.pred_path:
                done[image.name] = image
            elif _is_complete_png(matte):
                done[image.name] = replace(image, pred_path=str(matte))
            else:
                done.pop(image.name, None)
        return done

    def begin(self, done: Iterable[ImageScore]) -> None:
        """Write the identity and the done images, and remove other log files; for one process.

        Raises:
            OutputError: The folder is not writable.
        """
        lines = [{"identity": self.identity}, *map(asdict, done)]
        write_text(self.folder / PROGRESS, "".join(f"{json.dumps(line)}\n" for line in lines))
        clear_leftovers(os.path.abspath(self.folder / MATTES))
        for part in self.folder.glob(_PARTS):
            part.unlink()

    def add(self, image: ImageScore, rank: int = 0) -> None:
        """Append an image done by the process ``rank``.

        Raises:
            OutputError: The file is not writable.
        """
        try:
            if self._part is None:
                path = self.folder / _PARTS.replace("*", str(rank))
                self._part = open(path, "a", encoding="utf-8")
            self._part.write(f"{json.dumps(asdict(image))}\n")
            self._part.flush()
        except OSError as error:
            raise OutputError(f"Cannot write to {self.folder}: {error.strerror}.") from error

    def close(self) -> None:
        """Close the file of this process."""
        if self._part is not None:
            self._part.close()
            self._part = None

    def matte(self, name: str) -> Path:
        """Return the path of an image's matte."""
        return self.folder / MATTES / f"{name}.png"

    def _describe_difference(self, identity: Mapping[str, Any]) -> str:
        then, now = dict(_flatten(identity)), dict(_flatten(self.identity))
        return ", ".join(
            f"{key} {_shorten(then.get(key))} (now {_shorten(now.get(key))})"
            for key in dict.fromkeys((*now, *then))
            if then.get(key) != now.get(key)
        )

    def _refusal(self, made: str) -> DataError:
        return DataError(
            f"{self.folder} holds results made {made}. Choose another folder (--output), or "
            "delete these results (--restart)."
        )


def clear_results(folder: str | Path) -> None:
    """Delete the results of a test from its folder; other files are kept."""
    folder = Path(folder)
    for name in (MATTES, ERRORS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in (*(folder / name for name in (PROGRESS, *_REPORTS)), *folder.glob(_PARTS)):
        path.unlink(missing_ok=True)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a file; the last one may be truncated."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            found.append(content)
    return found


def _is_complete_png(path: Path) -> bool:
    """Return whether a PNG file exists and has its last chunk."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:  # missing, or shorter than the chunk
        return False


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings under names such as ``settings.psm``."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]}..."
