"""Prompts for many images: from the command line, a JSON or CSV file, or folders of maps.

A JSON file maps each image to a prompt, or to a list of prompts for several mattes::

    {"a.jpg": {"box": [10, 20, 300, 400]},
     "b.jpg": [{"points": [[50, 60], [70, 80]]}, {"mask": "masks/b.png", "transparent": true}],
     "c.jpg": {"auto": true},
     "d.jpg": {"text": "the dog on the left"}}

A CSV file has a column ``image``, any of the other columns, and a line per matte::

    image,box,points,mask,trimap,text,auto,transparent
    a.jpg,10 20 300 400,,,,,,
    b.jpg,,50 60 70 80,,,,,1
    d.jpg,,,,,the dog on the left,,

Image names are relative to the image folder, and masks and trimaps to the prompt file, in any
spelling (`SDMatte.runtime.files.name_key`).
"""

import csv
import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from SDMatte.errors import DataError, PromptError
from SDMatte.images.decode import read_hw
from SDMatte.images.io import read_mask, read_trimap
from SDMatte.images.listing import find_partner
from SDMatte.prompts.pixels import check_text, read_prompts
from SDMatte.runtime.files import NameLookup, read_error

MAPS = ("mask", "trimap")
_TYPES = ("box", "points", *MAPS, "text", "auto")
_COLUMNS = ("image", *_TYPES, "transparent")
_TRUE, _FALSE = ("1", "true", "yes"), ("", "0", "false", "no")


@dataclass(frozen=True)
class PromptRequest:
    """A prompt as specified by a user, whose map is not read yet.

    Attributes:
        kind: ``"box"``, ``"points"``, ``"mask"``, ``"trimap"``, ``"text"`` or ``"auto"``.
        value: For a box, points or a text, the argument of `MattePredictor.predict`; for a mask or
            a trimap, a file, or a folder with a file of the image's name; None for ``auto``.
        transparent: Whether the object is transparent.
        find_all: Whether to predict a matte of every object that a text describes.
    """

    kind: str
    value: Any = None
    transparent: bool = False
    find_all: bool = False

    def located(
        self, image: Path, sub_folder: str = "", lookup: NameLookup | None = None
    ) -> "PromptRequest":
        """Return the request for one image, with the file of its map in place of a folder.

        The map of an image in a sub-folder is in the same sub-folder of the folder of maps.

        Raises:
            DataError: The folder has no map for the image, or several.
        """
        if self.kind not in MAPS:
            return self
        lookup = lookup or NameLookup()
        path = lookup.find(self.value)
        if os.path.isdir(path):
            path = find_partner(image, lookup.find(path / sub_folder), lookup)
        return replace(self, value=path)

    def load(self, image: Path) -> dict[str, Any]:
        """Return the arguments of `MattePredictor.predict` for an image."""
        arguments: dict[str, Any] = {"transparent": self.transparent}
        if self.kind in MAPS:
            read = read_mask if self.kind == "mask" else read_trimap
            arguments[self.kind] = read(self.located(image).value)
        elif self.kind != "auto":
            arguments[self.kind] = self.value
        if self.find_all:
            arguments["find_all"] = True
        return arguments

    def check(self, image: Path) -> None:
        """Check the prompt against an image, usually reading only the image's header."""
        if self.kind == "text":
            check_text(self.value)
            return
        arguments = self.load(image)
        del arguments["transparent"]
        try:
            read_prompts(read_hw(image), **arguments)
        except PromptError:
            read_prompts(read_hw(image, exact=True), **arguments)


def read_prompt_file(path: str | Path) -> dict[str, list[PromptRequest]]:
    """Read a JSON or CSV file of prompts; see the module's docstring.

    Returns:
        The prompts of each image, by its name in the file.

    Raises:
        DataError: The file is missing or damaged, or an entry is not valid.
    """
    path = Path(path)
    readers = {".json": _read_json, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise DataError(f"The prompt file {path} must be a .json or a .csv file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise read_error(path, error) from error
    except ValueError as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    found: dict[str, list[PromptRequest]] = {}
    for name, entry in readers[path.suffix.lower()](path, text):
        image = PurePosixPath(name)
        if not image.name or image.is_absolute() or ".." in image.parts:
            raise DataError(f"{path}, {name}: image names must be relative to the image folder.")
        found.setdefault(name, []).append(_read_entry(entry, path.parent, f"{path}, {name}"))
    if not found:
        raise DataError(f"{path} has no prompts.")
    return found


def _read_json(path: Path, text: str) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        content = json.loads(text, object_pairs_hook=_refuse_repeats)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must map image names to prompts.")
    entries: list[tuple[str, Mapping[str, Any]]] = []
    for name, value in content.items():
        for entry in value if isinstance(value, list) else [value]:
            if not isinstance(entry, dict):
                raise DataError(f'{path}, {name}: a prompt must be like {{"box": [...]}}.')
            entries.append((name, entry))
    return entries


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"{name!r} occurs twice; write several prompts as a list")
        content[name] = value
    return content


def _read_csv(path: Path, text: str) -> list[tuple[str, Mapping[str, Any]]]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    entries: list[tuple[str, Mapping[str, Any]]] = []
    try:
        columns = rows.fieldnames or []
        known = set(columns) <= set(_COLUMNS) and len(set(columns)) == len(columns)
        if "image" not in columns or not known:
            raise DataError(
                f"{path} must have a header with the column image and any of "
                f"{', '.join(_COLUMNS[1:])}, each once; got {', '.join(columns) or 'none'}."
            )
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if not row["image"] or None in row:
                raise DataError(f"{where} must have an image, and no more values than columns.")
            entry = {key: value.strip() for key, value in row.items() if value and value.strip()}
            name = entry.pop("image")
            entries.append((name, {key: _parse(key, text, where) for key, text in entry.items()}))
    except csv.Error as error:
        raise DataError(f"{path} is not valid CSV: {error}.") from error
    return entries


def _parse(column: str, text: str, where: str) -> Any:
    """Parse a cell; numbers are separated by spaces, commas or semicolons."""
    if column in ("auto", "transparent"):
        if text.lower() not in (*_TRUE, *_FALSE):
            raise DataError(f"{where}: {column} must be 1 or 0; got {text!r}.")
        return text.lower() in _TRUE
    if column in (*MAPS, "text"):
        return text
    try:
        numbers = [float(number) for number in re.split(r"[\s,;]+", text)]
    except ValueError as error:
        raise DataError(f"{where}: {column} must be a list of numbers; got {text!r}.") from error
    return as_pairs(numbers, where) if column == "points" else numbers


def as_pairs(numbers: list[float], where: str) -> list[list[float]]:
    """Group x y x y ... into pairs; ``where`` begins the error message for an odd count."""
    if len(numbers) % 2:
        raise DataError(f"{where}: points must be pairs x y; got {len(numbers)} numbers.")
    return [numbers[i : i + 2] for i in range(0, len(numbers), 2)]


def _read_entry(entry: Mapping[str, Any], folder: Path, where: str) -> PromptRequest:
    unknown = entry.keys() - {*_TYPES, "transparent"}
    kinds = [kind for kind in _TYPES if entry.get(kind) not in (None, False)]
    transparent = entry.get("transparent", False)
    flags = transparent, entry.get("auto", False)
    if unknown or len(kinds) != 1 or not all(isinstance(flag, bool) for flag in flags):
        given = ", ".join(f"{key}={value!r}" for key, value in entry.items()) or "nothing"
        raise DataError(
            f"{where}: a prompt must have one of {', '.join(_TYPES)}, and may have transparent; "
            f"auto and transparent are true or false; got {given}."
        )
    kind, value = kinds[0], entry[kinds[0]]
    if kind == "auto":
        return PromptRequest(kind, None, transparent)
    if kind in MAPS:
        if not isinstance(value, str):
            raise DataError(f"{where}: {kind} must be a file; got {value!r}.")
        value = folder / value
    is_flat = isinstance(value, list) and not any(isinstance(one, list) for one in value)
    if kind == "box" and not is_flat:
        raise DataError(f"{where}: box must be a list of four numbers; got {value!r:.80}.")
    return PromptRequest(kind, value, transparent)
