"""Where photographs come from: folders, lists, parquet files and WebDataset shards, one by one, never all at once."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

from bokeh_ops.errors import BokehError
from trainer.data.prepare.record import MOST_TEXT, Item

PICTURES = ("jpg", "jpeg", "jpe", "mpo", "tif", "tiff", "png", "heic", "heif", "hif", "avif", "webp")
"""Endings of what is taken for a photograph; everything else in a folder is left alone."""

BESIDE = (".depth", ".mask", ".disparity")
"""A picture whose stem ends so is a map that belongs to another one."""

LISTS = (".txt", ".lst", ".jsonl")
GIVEN = (
    "captions",
    "caption",
    "f_number",
    "focal_length",
    "focal_length_35",
    "sensor_width_mm",
    "subject_distance",
    "exposure_time",
    "make",
    "model",
    "pseudo_aif",
    "blur",
    "photograph",
    "flickr_photo_id",
    "flickr_exif",
    "flickr_url",
    "image_license",
    "source",
    "licence",
    "license",
)
"""What a list, a parquet file or a JSON file beside a picture may say of it."""

_ROWS = 4

Mine = Callable[[str], bool]


def shard_of(part: int, parts: int) -> Mine:
    """Whether a unit of work is this machine's: by the hash of its name, so that all machines agree unasked.

    A unit is what is read in one go: a photograph of a folder or list, a whole tar file, a row group.
    """
    return lambda name: (
        int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") % parts
        == part
    )


def items(source: str, mine: Mine, done: Container[str], outside: Path | None = None) -> Iterator[Item]:
    """The photographs of a source.

    Args:
        source: a folder, a list, a parquet file, a tar file, or a pattern with ``{000..099}``, ``*`` or ``?`` of
            such files. A folder that holds parquet or tar files and no photographs is taken for those.
        mine: which units of work to take (:func:`shard_of`).
        done: ids of photographs that need not be read again.
        outside: a folder whose contents are not part of the source: the one that is being written.

    Raises:
        BokehError: no such source, or one of an unknown kind.
    """
    files = _files(source)
    if files is not None:
        if not files:
            raise BokehError(f"The pattern {source} matches no file.")
        root = Path(os.path.commonpath([path.parent for path in files]))
        for path in files:
            yield from _file(path, root, mine, done)
        return
    path = Path(source)
    if path.is_file():
        yield from _file(path, path.parent, mine, done)
    elif path.is_dir():
        yield from _folder(path, mine, done, outside)
    else:
        raise BokehError(f"There is no folder or file {source}.")


def _files(source: str) -> list[Path] | None:
    """The files of a pattern, or None where it is none."""
    if Path(source).exists() or not set(source) & set("{*?"):
        return None
    patterns = [source]
    if "{" in source:
        from braceexpand import braceexpand

        patterns = list(braceexpand(source))
    found: list[Path] = []
    for pattern in patterns:
        if set(pattern) & set("*?"):
            fixed = Path(pattern)
            while set(str(fixed)) & set("*?"):
                fixed = fixed.parent
            found += sorted(fixed.glob(str(Path(pattern).relative_to(fixed))))
        elif Path(pattern).exists():
            found.append(Path(pattern))
        else:
            raise BokehError(f"{pattern}, of the pattern {source}, does not exist.")
    return found


def _file(path: Path, root: Path, mine: Mine, done: Container[str]) -> Iterator[Item]:
    ending = path.suffix.lower()
    name = path.relative_to(root).as_posix()
    if ending == ".parquet":
        yield from _parquet(path, name, mine, done)
    elif ending == ".tar":
        if mine(name):
            yield from _tar(path, name, done)
    elif ending in LISTS:
        yield from _list(path, mine, done)
    elif ending[1:] in PICTURES:
        if mine(name) and name not in done:
            yield Item(name, path)
    else:
        raise BokehError(
            f"{path} is no source of photographs: give a folder, a list ({', '.join(LISTS)}), a .parquet file, or an "
            "uncompressed .tar file in WebDataset layout."
        )


def _folder(root: Path, mine: Mine, done: Container[str], outside: Path | None) -> Iterator[Item]:
    kept_out = None if outside is None else outside.resolve()
    photographs = False
    archives: list[Path] = []
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith("."))
        if kept_out is not None:
            names[:] = [name for name in names if Path(folder, name).resolve() != kept_out]
        for file in sorted(files):
            path = Path(folder, file)
            ending = path.suffix.lower()
            if file.startswith("."):
                continue
            if ending in (".parquet", ".tar"):
                archives.append(path)
            elif ending[1:] in PICTURES and not path.stem.endswith(BESIDE):
                photographs = True
                name = path.relative_to(root).as_posix()
                if mine(name) and name not in done:
                    yield Item(name, path)
    if archives and photographs:
        raise BokehError(
            f"{root} holds photographs and also {archives[0].name}: prepare them separately, and `--merge` the results."
        )
    for path in archives:
        yield from _file(path, root, mine, done)


def _list(path: Path, mine: Mine, done: Container[str]) -> Iterator[Item]:
    """Lines: a path, from the list's folder on; or a JSON object with ``image`` and any of :data:`GIVEN`."""
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            given: dict[str, Any] = {}
            if path.suffix.lower() == ".jsonl":
                try:
                    value = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise BokehError(f"{path}, line {number} is no JSON: {error}.") from error
                if not isinstance(value, dict) or not isinstance(value.get("image"), str):
                    raise BokehError(f"{path}, line {number}: expected an object whose 'image' is a path.")
                text, given = value["image"], {name: value[name] for name in GIVEN if name in value}
            if len(text) > 4096:
                raise BokehError(f"{path}, line {number} has {len(text)} characters; expected a path.")
            name = text.replace("\\", "/")
            if mine(name) and name not in done:
                yield Item(name, path.parent / text, given=given)


def _parquet(path: Path, name: str, mine: Mine, done: Container[str]) -> Iterator[Item]:
    """Rows with the authors' fields, row group by row group: one is in memory, and none that is finished is read."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
    except (pyarrow.ArrowException, OSError) as error:
        raise BokehError(f"{path} cannot be read as parquet: {error}") from error
    with file:
        held = set(file.schema_arrow.names)
        if "image" not in held:
            raise BokehError(f"{path} has no field 'image', only {', '.join(sorted(held)) or 'nothing'}.")
        columns = ["image", *(field for field in GIVEN if field in held)]
        first = 0
        for group in range(file.metadata.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            ids = [f"{name}/{row:08d}" for row in range(first, first + count)]
            first += count
            if not mine(f"{name}/{group}") or all(each in done for each in ids):
                continue
            place = 0
            try:
                for batch in file.iter_batches(_ROWS, row_groups=[group], columns=columns, use_threads=False):
                    for row in range(batch.num_rows):
                        if ids[place] not in done:
                            yield _row(path, ids[place], {c: batch.column(c)[row].as_py() for c in columns})
                        place += 1
            except (pyarrow.ArrowException, OSError) as error:
                yield Item(
                    f"{name}/{group}/damaged", path, broken=f"row group {group} is damaged: {error}"[:300]
                )


def _row(path: Path, id: str, row: dict[str, Any]) -> Item:
    image = row.pop("image")
    if isinstance(image, dict):  # as the `datasets` library keeps pictures
        image, beside = image.get("bytes"), image.get("path")
        if image is None and beside:
            return Item(id, path.parent / str(beside), given=row)
    if not isinstance(image, bytes) or not image:
        return Item(id, path, given=row, broken=f"its image is {type(image).__name__}, expected bytes")
    return Item(id, path, content=image, given=row)


def _tar(path: Path, name: str, done: Container[str]) -> Iterator[Item]:
    """Photographs of a shard in WebDataset layout; only headers are read here."""
    key, files = "", {}

    def item() -> Iterator[Item]:
        id = f"{name}/{key}"
        if id not in done and any(ending.lower() in PICTURES for ending in files):
            yield Item(id, path, offsets=dict(files))

    length = path.stat().st_size
    broken = None
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile() or member.name.rpartition("/")[2].startswith("."):
                    continue
                stem, _, ending = member.name.rpartition("/")[2].partition(".")
                folder = member.name.rpartition("/")[0]
                found = f"{folder}/{stem}" if folder else stem
                if found != key:
                    yield from item()
                    key, files = found, {}
                if member.offset_data + member.size > length:
                    broken = f"the tar file breaks off in {member.name}"
                    files = {}
                    break
                files[ending] = (member.offset_data, member.size)
                tar.members = []  # type: ignore[attr-defined]  # otherwise it keeps them all
            else:
                if not _ends_well(path, tar.offset):
                    broken = f"the tar file breaks off or is damaged after {key or 'its beginning'}"
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        broken = f"the tar file is damaged after {key or 'its beginning'}: {error}"
    yield from item()
    if broken is not None and f"{name}/damaged" not in done:
        yield Item(f"{name}/damaged", path, broken=broken)


def _ends_well(path: Path, offset: int) -> bool:
    """Whether an empty block stands where reading stopped; `tarfile` takes anything for the end."""
    with open(path, "rb") as file:
        file.seek(offset)
        block = file.read(512)
    return len(block) == 512 and not block.strip(b"\0")


def text_beside(path: Path) -> list[str]:
    """Captions of a text file: one a line.

    Raises:
        OSError, ValueError: it cannot be read as UTF-8.
    """
    if path.stat().st_size > MOST_TEXT:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes")
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
