"""Prompts of many pictures: from the command line, from a JSON or CSV file, or as folders of maps.

A JSON file gives each picture a prompt, or a list of prompts for several mattes::

    {"a.jpg": {"box": [10, 20, 300, 400]},
     "b.jpg": [{"points": [[50, 60], [70, 80]]}, {"mask": "masks/b.png", "transparent": true}],
     "c.jpg": {"auto": true}}

A CSV file has a column ``image`` and any of the others, a line a matte::

    image,box,points,mask,trimap,auto,transparent
    a.jpg,10 20 300 400,,,,,
    b.jpg,,50 60 70 80,,,,1

Images are named relative to their folder, mask and trimap files relative to the prompt file; how
a name is spelled does not matter (`SDMatte.runtime.files.name_key`).
"""

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from SDMatte.errors import DataError, PromptError
from SDMatte.images.decode import read_hw
from SDMatte.images.io import read_mask, read_trimap
from SDMatte.images.listing import find_partner
from SDMatte.prompts.values import read_values
from SDMatte.runtime.files import NameLookup, read_error

KINDS = ("box", "points", "mask", "trimap", "auto")
MAPS = ("mask", "trimap")
_COLUMNS = ("image", *KINDS, "transparent")
_TRUE, _FALSE = ("1", "true", "yes"), ("", "0", "false", "no")


@dataclass(frozen=True)
class PromptRequest:
    """One prompt, whose maps are still files.

    Attributes:
        kind: One of `KINDS`.
        value: Of a box or of points, numbers as `MattePredictor.predict` takes them; of a mask or
            a trimap, a file, or a folder in which the picture has a partner; None of ``auto``.
        transparent: Whether the object is transparent.
    """

    kind: str
    value: Any = None
    transparent: bool = False

    def located(
        self, image: Path, place: str = "", lookup: NameLookup | None = None
    ) -> "PromptRequest":
        """Return the request for one image: with the map's own file, not a folder of maps.

        Args:
            image: The image.
            place: Sub-folder that the image is in; its map is in the folder's sub-folder of
                that name.
            lookup: Remembers what is in the folders, for many calls.

        Raises:
            DataError: The folder holds no map of the image, or several.
        """
        if self.kind not in MAPS:
            return self
        lookup = lookup or NameLookup()
        path = lookup.find(self.value)
        if path.is_dir():
            path = find_partner(image, lookup.find(path / place), lookup)
        return replace(self, value=path)

    def load(self, image: Path) -> dict[str, Any]:
        """Return the arguments of `MattePredictor.predict` for an image.

        Raises:
            DataError: The map is missing or is not an image.
        """
        arguments: dict[str, Any] = {"transparent": self.transparent}
        if self.kind == "auto":
            return arguments
        value = self.value
        if self.kind in MAPS:
            path = self.located(image).value
            value = read_mask(path) if self.kind == "mask" else read_trimap(path)
        return {**arguments, self.kind: value}

    def check(self, image: Path) -> None:
        """Check the prompt against an image, of which only the header is read.

        Raises:
            DataError: The image or the map is missing, or not an image.
            PromptError: The prompt does not fit.
        """
        arguments = self.load(image)
        del arguments["transparent"]
        try:
            read_values(read_hw(image), **arguments)
        except PromptError:
            read_values(read_hw(image, exact=True), **arguments)


def read_prompt_file(path: str | Path) -> dict[str, list[PromptRequest]]:
    """Reads a JSON or CSV file of prompts, as the module's text describes them.

    Returns:
        The prompts of each picture, by its name in the file.

    Raises:
        DataError: The file is missing, damaged, or an entry is not understood.
    """
    path = Path(path)
    readers = {".json": _read_json, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise DataError(f"The prompts in {path} are to be a .json or a .csv file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise read_error(path, error) from error
    except ValueError as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    found: dict[str, list[PromptRequest]] = {}
    for name, entry in readers[path.suffix.lower()](path, text):
        place = PurePosixPath(name)
        if not place.name or place.is_absolute() or ".." in place.parts:
            raise DataError(f"{path}, {name}: pictures are named relative to their folder.")
        request = _read_entry(entry, path.parent, f"{path}, {name}")
        found.setdefault(name, []).append(request)
    if not found:
        raise DataError(f"{path} holds no prompt.")
    return found


def _read_json(path: Path, text: str) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must map the names of pictures to prompts.")
    entries = []
    for name, value in content.items():
        for entry in value if isinstance(value, list) else [value]:
            if not isinstance(entry, dict):
                raise DataError(f'{path}, {name}: a prompt is written {{"box": [...]}}.')
            entries.append((name, entry))
    return entries


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice; several prompts are a list")
    return content


def _read_csv(path: Path, text: str) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        return _read_rows(path, csv.DictReader(text.splitlines()))
    except csv.Error as error:
        raise DataError(f"{path} is not valid CSV: {error}.") from error


def _read_rows(path: Path, rows: csv.DictReader) -> list[tuple[str, Mapping[str, Any]]]:
    columns = rows.fieldnames or []
    unknown = [name for name in columns if name not in _COLUMNS]
    if "image" not in columns or unknown:
        raise DataError(
            f"{path} must have a first line with the column image and any of "
            f"{', '.join(_COLUMNS[1:])}; it has {', '.join(columns) or 'none'}."
        )
    entries = []
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        if not row["image"] or None in row:
            raise DataError(f"{where}: there must be a picture and no more values than columns.")
        entry = {key: value.strip() for key, value in row.items() if value and value.strip()}
        entries.append((entry.pop("image"), {k: _parse(k, v, where) for k, v in entry.items()}))
    return entries


def _parse(column: str, text: str, where: str) -> Any:
    """Reads a cell: numbers are parted by spaces, commas or semicolons."""
    if column in ("auto", "transparent"):
        if text.lower() not in (*_TRUE, *_FALSE):
            raise DataError(f"{where}: {column} is 1 or 0, not {text!r}.")
        return text.lower() in _TRUE
    if column in MAPS:
        return text
    try:
        numbers = [float(number) for number in re.split(r"[\s,;]+", text)]
    except ValueError as error:
        raise DataError(f"{where}: {column} is a list of numbers, not {text!r}.") from error
    return as_pairs(numbers, where) if column == "points" else numbers


def as_pairs(numbers: list[float], where: str) -> list[list[float]]:
    """Pairs up x y x y ...

    Raises:
        DataError: One is left over; ``where`` begins the message.
    """
    if len(numbers) % 2:
        raise DataError(f"{where}: points are pairs x y; got {len(numbers)} numbers.")
    return [numbers[i : i + 2] for i in range(0, len(numbers), 2)]


def _read_entry(entry: Mapping[str, Any], folder: Path, where: str) -> PromptRequest:
    unknown = sorted(entry.keys() - {*KINDS, "transparent"})
    kinds = [kind for kind in KINDS if entry.get(kind) not in (None, False)]
    transparent = entry.get("transparent", False)
    if unknown or len(kinds) != 1 or not isinstance(transparent, bool):
        raise DataError(
            f"{where}: a prompt has one of {', '.join(KINDS)}, and transparent, true or false; "
            f"got {', '.join(f'{k}={v!r}' for k, v in entry.items()) or 'none'}."
        )
    kind, value = kinds[0], entry[kinds[0]]
    if kind == "auto":
        return PromptRequest(kind, None, transparent)
    if kind in MAPS:
        if not isinstance(value, str):
            raise DataError(f"{where}: {kind} is a file, not {value!r}.")
        value = folder / value
    if kind == "box" and not _is_flat(value):
        raise DataError(f"{where}: box is a list of four numbers, not {value!r:.80}.")
    return PromptRequest(kind, value, transparent)


def _is_flat(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(one, list) for one in value)
