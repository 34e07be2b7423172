"""What stage one has found so far, in pieces that are whole or not there.

Every part (one machine's share) has a folder::

    DIR/work/part-00000-of-00001/settings.json       with which settings
    DIR/work/part-00000-of-00001/piece-00000.tar     accepted photographs, as in a shard
    DIR/work/part-00000-of-00001/piece-00000.jsonl   one line for every photograph, accepted or rejected
    DIR/work/part-00000-of-00001/done.json           the source was gone through to its end

The ``.jsonl`` is written last: a photograph is dealt with once it stands in one. So a process that is killed loses the
photographs of one piece, which are looked at again, and nothing twice. Only what the machine had trouble with is tried
again by the next run, and then what was found last counts.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bokeh_ops.errors import BokehError
from trainer.data.prepare.annotate import Outcome
from trainer.data.prepare.rejection import OF_THE_MACHINE
from trainer.data.prepare.settings import Settings, differences
from trainer.data.shard import index_path, write_shard
from trainer.files import read_json, remove_leftovers, write_bytes, write_json

FORMAT, VERSION = "bokeh-prepare-work", 1
_PART = re.compile(r"part-(\d{5})-of-(\d{5})")
_SECONDS = 120.0
_DROPPED = ("captions",)  # of what is known, not repeated in the .jsonl


class Part:
    """One machine's share of the work. Opened for writing by :func:`open_part`.

    Attributes:
        folder: where it lies.
        part: its number.
        parts: of so many.
    """

    def __init__(self, folder: Path) -> None:
        match = _PART.fullmatch(folder.name)
        if match is None:
            raise BokehError(f"{folder} is no folder of prepared photographs.")
        self.folder, self.part, self.parts = folder, int(match[1]), int(match[2])

    @property
    def settings(self) -> dict[str, Any]:
        """The settings it was made with.

        Raises:
            BokehError: the folder is damaged, or of another version.
        """
        value = read_json(self.folder / "settings.json", "the settings of a preparation")
        if value.get("format") != FORMAT or value.get("version") != VERSION:
            raise BokehError(
                f"{self.folder} was made by another version of this program ({value.get('format')} "
                f"{value.get('version')}, expected {FORMAT} {VERSION}). Prepare into a new folder."
            )
        return value["settings"]

    @property
    def done(self) -> bool:
        """Whether the source was gone through to its end."""
        return (self.folder / "done.json").exists()

    def pieces(self) -> list[Path]:
        """The ``.jsonl`` of every piece, in order."""
        return sorted(self.folder.glob("piece-*.jsonl"))

    def rows(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Every photograph dealt with, once: the piece's tar file, and its line; the machine's trouble comes last."""
        trouble: dict[str, tuple[Path, dict[str, Any]]] = {}
        for path in self.pieces():
            with open(path, encoding="utf-8") as lines:
                for line in lines:
                    row = json.loads(line)
                    if row["reason"] in OF_THE_MACHINE:
                        trouble[row["id"]] = path.with_suffix(".tar"), row
                    else:
                        trouble.pop(row["id"], None)
                        yield path.with_suffix(".tar"), row
        yield from trouble.values()


class PieceWriter:
    """Gathers outcomes and writes them a piece at a time.

    Args:
        part: where to.
        size: photographs in a piece, or fewer, where those take over two minutes. Accepted ones are in memory until
            it is written.
    """

    def __init__(self, part: Part, size: int) -> None:
        self.part, self.size = part, size
        self.number = len(part.pieces())
        self.waiting: list[Outcome] = []
        self.since = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """Take note of an outcome.

        Raises:
            BokehError: a piece cannot be written.
        """
        self.waiting.append(outcome)
        if len(self.waiting) >= self.size or time.monotonic() - self.since > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if not self.waiting:
            return
        base = self.part.folder / f"piece-{self.number:05d}"
        taken = [(each.key, each.files) for each in self.waiting if each.files is not None]
        if taken:
            write_shard(base.with_suffix(".tar"), taken)
        lines = (json.dumps(_row(each), allow_nan=False) + "\n" for each in self.waiting)
        write_bytes(base.with_suffix(".jsonl"), "".join(lines).encode())
        self.number += 1
        self.waiting, self.since = [], time.monotonic()


@contextmanager
def open_part(out: Path, part: int, parts: int, settings: Settings) -> Iterator[Part]:
    """Begin or go on with a part, alone.

    Raises:
        BokehError: another process is at it, something was kept with other settings, or it was begun in another
            number of parts.
    """
    work = out / "work"
    folder = work / f"part-{part:05d}-of-{parts:05d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BokehError(f"{folder} cannot be made: {error}.") from error
    others = [each for each in parts_in(out) if each.parts != parts]
    if others:
        raise BokehError(
            f"{work} was begun in {others[0].parts} parts, not {parts}. Go on with --shard-of N/{others[0].parts}, or "
            "choose another --out."
        )
    with _alone(folder / "lock"):
        found = Part(folder)
        path = folder / "settings.json"
        if path.exists():
            changed = differences(found.settings, settings.to_json())
            if changed and not any(row["reason"] is None for _, row in found.rows()):
                for piece in found.pieces():  # first: without them it is as if never begun
                    piece.unlink()
                changed = []
                _write_settings(path, settings)
            if changed:
                raise BokehError(
                    f"{folder} was begun with other settings:\n  "
                    + "\n  ".join(changed)
                    + "\nGive the same again to "
                    "go on, or choose another --out."
                )
        else:
            _write_settings(path, settings)
        remove_leftovers(folder)
        for tar in folder.glob("piece-*.tar"):
            if not tar.with_suffix(".jsonl").exists():  # killed between the two
                tar.unlink()
                index_path(tar).unlink(missing_ok=True)
        yield found


def _write_settings(path: Path, settings: Settings) -> None:
    write_json(path, {"format": FORMAT, "version": VERSION, "settings": settings.to_json()})


def parts_in(out: Path) -> list[Part]:
    """The parts in a folder, in order."""
    folders = sorted(path for path in (out / "work").glob("part-*") if _PART.fullmatch(path.name))
    return [Part(folder) for folder in folders]


def finish_part(part: Part, photographs: int) -> None:
    """Note that the source was gone through to its end."""
    write_json(part.folder / "done.json", {"photographs": photographs})


def _row(outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {"id": outcome.id, "key": outcome.key, "sha256": outcome.sha256}
    if outcome.info is None:
        return {**row, "reason": outcome.reason, "detail": outcome.detail}
    info: Mapping[str, Any] = {name: value for name, value in outcome.info.items() if name not in _DROPPED}
    return {**row, "reason": None, "info": dict(info)}


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that the system lets go when the process ends, however it ends."""
    with open(path, "a+b") as file:
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BokehError(
                f"Another process is preparing {path.parent}. Wait for it, or give every machine its own --shard-of."
            ) from error
        yield
