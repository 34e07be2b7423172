"""Folders of sweeps: one folder for each scene, in it the same scene at several strengths of blur.

What a picture was made with is in its name, ``12.png``, ``k12.5.png``, ``fox_K=12.jpg`` (K) or ``f2.8.png`` (f-number),
or in a file ``sweep.json`` beside it::

    {"images": [{"file": "a.png", "k": 0}, {"file": "b.png", "k": 12.5}]}

with ``f_number`` in place of ``k`` for apertures. It may name a map of what is to stay in focus, white where it is, and
the value of the picture that the others were tied to, which is ``pivot.png`` or else the one of that value::

    {"images": [...], "focus": "focus.png", "pivot": 14}
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from bokeh_ops.errors import BokehError
from bokeh_ops.numbers import format_value

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}
KINDS = {"k": "K", "f_number": "f/"}
"""What blur is counted in, and how it is written before a value."""

# A number alone, or one behind a k or an f; not any number, or IMG_0012 would be a K.
_NAME = re.compile(r"(?:(?:.*[_\- ])?(?P<kind>[kf])[=_ ]?)?(?P<value>\d+(?:\.\d+)?)", re.IGNORECASE)


@dataclass(frozen=True)
class Sweep:
    """The pictures of one scene, the sharpest first: K rising, or the f-number falling."""

    name: str
    kind: str
    """A key of :data:`KINDS`."""
    values: tuple[float, ...]
    paths: tuple[Path, ...]
    focus: Path | None = None
    """A map of what is in focus in all of them."""
    pivot: tuple[float, Path] | None = None
    """Value and file of the picture that they were tied to."""

    @property
    def labels(self) -> list[str]:
        return [f"{KINDS[self.kind]}{' ' if self.kind == 'k' else ''}{format_value(v)}" for v in self.values]

    def load(self) -> list[Tensor]:
        """The pictures ``[3, H, W]``, sRGB values 0..1.

        Raises:
            BokehError: a picture cannot be read, or sizes differ.
        """
        pictures = [read_picture(path) for path in self.paths]
        for path, picture in zip(self.paths, pictures, strict=True):
            if picture.shape != pictures[0].shape:
                raise BokehError(
                    f"{path} is {picture.shape[2]} x {picture.shape[1]} but {self.paths[0].name} is "
                    f"{pictures[0].shape[2]} x {pictures[0].shape[1]}; the pictures of a scene must be of one size."
                )
        return pictures

    def load_pivot(self) -> Tensor:
        """The pivot, ``[3, H, W]``, sRGB values 0..1; the sweep must name one.

        Raises:
            BokehError: it cannot be read, or is of another size than the pictures.
        """
        assert self.pivot is not None
        _, path = self.pivot
        return self._of_one_size(path)

    def load_focus(self) -> Tensor | None:
        """What is in focus, bool ``[H, W]``, or None where nobody said.

        Raises:
            BokehError: the map cannot be read, or is of another size than the pictures.
        """
        if self.focus is None:
            return None
        return self._of_one_size(self.focus).mean(0) > 0.5

    def _of_one_size(self, path: Path) -> Tensor:
        found, picture = read_picture(path), read_picture(self.paths[0])
        if found.shape != picture.shape:
            raise BokehError(
                f"{path} is {found.shape[2]} x {found.shape[1]} but the pictures are {picture.shape[2]} x "
                f"{picture.shape[1]}; expected one size."
            )
        return found


def read_picture(path: Path) -> Tensor:
    """A picture ``[3, H, W]``, sRGB values 0..1, upright by its EXIF; what is transparent is laid over grey.

    Raises:
        BokehError: it cannot be read.
    """
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            if upright.mode in ("I;16", "I", "F"):
                raise BokehError(f"{path} has {upright.mode} pixels; expected 8 bits a channel.")
            if upright.has_transparency_data:
                paper = Image.new("RGBA", upright.size, (128, 128, 128, 255))
                upright = Image.alpha_composite(paper, upright.convert("RGBA"))
            pixels = np.array(upright.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise BokehError(f"{path} cannot be read as a picture: {error}.") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def find_sweeps(folder: Path) -> list[Sweep]:
    """The sweeps in a folder, by name: of each of its folders, or of itself where the pictures lie in it.

    Raises:
        BokehError: no folder, nothing in it, or a scene that is not a sweep (the message says why).
    """
    if not folder.is_dir():
        raise BokehError(f"There is no folder {folder}.")
    inside = [each for each in sorted(folder.iterdir()) if not each.name.startswith(".")]
    if any(each.suffix.lower() in SUFFIXES or each.name == "sweep.json" for each in inside):
        return [_sweep(folder)]
    scenes = [each for each in inside if each.is_dir()]
    if not scenes:
        raise BokehError(
            f"{folder} holds neither folders nor pictures; expected a folder for each scene, and in it pictures named "
            "by K, such as k12.png, or a sweep.json."
        )
    return [_sweep(each) for each in scenes]


def match_reference(sweep: Sweep, references: Sequence[Sweep]) -> Sweep:
    """The reference of a scene: of the same name, at the same values.

    Raises:
        BokehError: there is none.
    """
    found = next((each for each in references if each.name == sweep.name), None)
    if found is None and len(references) == 1:
        found = references[0]
    if found is None:
        raise BokehError(f"The reference has no scene named {sweep.name!r}.")
    if (found.kind, found.values) != (sweep.kind, sweep.values):
        raise BokehError(
            f"The scene {sweep.name!r} has {', '.join(sweep.labels)} but its reference {', '.join(found.labels)}; both "
            "must be there at the same values."
        )
    return found


def _sweep(folder: Path) -> Sweep:
    listed = folder / "sweep.json"
    content = _read_list(listed) if listed.is_file() else {}
    entries = [_entry(listed, image) for image in content["images"]] if content else _named(folder)
    kinds = {kind for kind, _, _ in entries}
    if len(kinds) != 1:
        raise BokehError(f"{folder} counts blur in K and in f-numbers; expected one of them.")
    kind = kinds.pop()
    entries.sort(key=lambda entry: entry[1], reverse=kind == "f_number")
    values = tuple(value for _, value, _ in entries)
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise BokehError(
            f"{folder} has several pictures at {', '.join(KINDS[kind] + format_value(value) for value in twice)}; "
            "expected one at each value."
        )
    if len(values) < 2:
        raise BokehError(f"{folder} holds one picture; a sweep has at least two.")
    paths = tuple(path for _, _, path in entries)
    focus = _inside(listed, content["focus"]) if content.get("focus") is not None else None
    pivot = _pivot(listed, content["pivot"], values, paths) if content.get("pivot") is not None else None
    return Sweep(folder.resolve().name, kind, values, paths, focus, pivot)


def _pivot(
    listed: Path, value: Any, values: tuple[float, ...], paths: tuple[Path, ...]
) -> tuple[float, Path]:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise BokehError(f"{listed}: pivot is {value!r}; expected a number.")
    own = listed.parent / "pivot.png"
    if own.is_file():
        return float(value), own
    if float(value) not in values:
        raise BokehError(f"{listed}: the pivot is at {value:g}, but no picture is, nor is there a pivot.png.")
    return float(value), paths[values.index(float(value))]


def _named(folder: Path) -> list[tuple[str, float, Path]]:
    entries = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        match = _NAME.fullmatch(path.stem)
        if match is None:
            raise BokehError(
                f"{path}: the name does not say at which K the picture was made. Call it k12.png, or name the "
                "values in a sweep.json."
            )
        entries.append(
            ("f_number" if (match["kind"] or "k").lower() == "f" else "k", float(match["value"]), path)
        )
    if not entries:
        raise BokehError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))}) and no sweep.json.")
    return entries


def _read_list(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BokehError(f"{path} cannot be read as JSON: {error}.") from error
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images:
        raise BokehError(f'{path}: expected {{"images": [{{"file": "a.png", "k": 12}}, ...]}}.')
    return content


def _entry(path: Path, image: Any) -> tuple[str, float, Path]:
    values = [(kind, image[kind]) for kind in KINDS if isinstance(image, dict) and kind in image]
    kind, value = values[0] if len(values) == 1 else ("", None)
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value is None or not isinstance(image.get("file"), str):
        raise BokehError(
            f"{path}: {image!r} is not an image; expected file, and either k or f_number as a number."
        )
    return kind, float(value), _inside(path, image["file"])


def _inside(path: Path, name: Any) -> Path:
    """A file that a list names, in the list's own folder."""
    if not isinstance(name, str):
        raise BokehError(f"{path}: {name!r} is no name of a file.")
    file = (path.parent / name).resolve()
    if not file.is_relative_to(path.parent.resolve()):
        raise BokehError(f"{path}: {name!r} lies outside the folder.")
    if not file.is_file():
        raise BokehError(f"{path}: there is no file {name!r}.")
    return file
