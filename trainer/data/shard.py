"""One shard: a tar file, and the index of what lies where in it.

Ours and not WebDataset's, which reads shards in sequence alone (`wids`, its random access, left it with version 1)
and does not say which photograph of which shard is damaged.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bokeh_ops.errors import BokehError
from trainer.data.sample import INFO, decode_info
from trainer.files import atomic_file, read_json, write_json

INDEX_FORMAT, INDEX_VERSION = "bokeh-shard-index", 1
_BLOCK = 512


@dataclass(frozen=True)
class Entry:
    """A photograph in a shard: its key, what training chooses by, and offset and length of its files in bytes."""

    key: str
    k: float | None
    all_in_focus: bool
    files: dict[str, tuple[int, int]]


def index_path(shard: Path) -> Path:
    """The index of a shard: ``shard-00000.index.json`` beside ``shard-00000.tar``."""
    return shard.with_suffix(".index.json")


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> dict[str, Any]:
    """Write a shard and its index. The same samples give the same bytes, whenever and wherever.

    The index gets its name last: a shard that has one is complete.

    Args:
        path: of the shard, ending in ``.tar``.
        samples: key, and files by the ending that follows it.

    Returns:
        The shard's entry for ``dataset.json``: ``name``, ``samples``, ``bytes``, ``sha256``.

    Raises:
        BokehError: it cannot be written (:func:`~trainer.files.atomic_file`), or a key comes twice.
    """
    entries: dict[str, Entry] = {}
    with atomic_file(path) as file:
        hashed = _Hashed(file)
        with tarfile.open(fileobj=hashed, mode="w|", format=tarfile.USTAR_FORMAT, bufsize=2**16) as tar:  # type: ignore[arg-type]
            for key, files in samples:
                if key in entries:
                    raise BokehError(f"{path.name} would hold the key {key!r} twice.")
                places = {}
                for ending, content in files.items():
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(content)
                    places[ending] = (tar.offset + _BLOCK, len(content))
                    tar.addfile(member, io.BytesIO(content))
                info = decode_info(files[INFO])
                entries[key] = Entry(key, info["k"], info["all_in_focus"], places)
        digest, length = hashed.digest.hexdigest(), hashed.length
    write_json(index_path(path), _index_json(length, digest, entries.values()))
    return {"name": path.name, "samples": len(entries), "bytes": length, "sha256": digest}


def read_index(shard: Path) -> list[Entry]:
    """The photographs of a shard: from its index, or from the tar file itself where there is no index for it.

    Raises:
        BokehError: the shard is missing or cannot be read.
    """
    if not shard.is_file():
        raise BokehError(f"The shard {shard} does not exist.")
    path = index_path(shard)
    if path.is_file():
        index = read_json(path, "the index of a shard")
        if index.get("format") == INDEX_FORMAT and index.get("version") == INDEX_VERSION:
            if index.get("bytes") == shard.stat().st_size:
                return _entries(path, index)
            raise BokehError(
                f"The shard {shard} has {shard.stat().st_size} bytes, {index.get('bytes')} by its index: it is "
                "truncated or another file. Copy it again. (If the tar file is right, remove the index.)"
            )
    return scan_shard(shard)


def shard_entry(shard: Path) -> dict[str, Any] | None:
    """A finished shard's entry for ``dataset.json``, by its index; None where it is not finished."""
    path = index_path(shard)
    if not (path.is_file() and shard.is_file()):
        return None
    index = read_json(path, "the index of a shard")
    if index.get("bytes") != shard.stat().st_size:
        return None
    return {
        "name": shard.name,
        "samples": len(index["samples"]),
        "bytes": index["bytes"],
        "sha256": index["sha256"],
    }


def scan_shard(shard: Path) -> list[Entry]:
    """The photographs of a tar file in WebDataset layout, from its headers.

    Raises:
        BokehError: not a tar file, truncated, or a photograph without a readable ``.json``.
    """
    found: dict[str, dict[str, tuple[int, int]]] = {}
    length = shard.stat().st_size
    last = "its beginning"
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                key, _, ending = member.name.partition(".")
                if member.offset_data + member.size > length:
                    raise BokehError(f"The shard {shard} is truncated in sample {key!r} ({member.name}).")
                found.setdefault(key, {})[ending] = (member.offset_data, member.size)
                last = f"sample {key!r}"
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise BokehError(f"The shard {shard} is damaged after {last}: {error}.") from error
    entries = []
    for key, files in found.items():
        if INFO not in files:
            raise BokehError(
                f"The shard {shard}, sample {key!r}: there is no {INFO}; is the shard truncated?"
            )
        try:
            info = decode_info(read_files(shard, Entry(key, None, False, {INFO: files[INFO]}))[INFO])
        except BokehError as error:
            raise BokehError(f"The shard {shard}, sample {key!r}: {error}.") from error
        entries.append(Entry(key, info["k"], info["all_in_focus"], files))
    return entries


def read_files(shard: Path, entry: Entry) -> dict[str, bytes]:
    """The files of one photograph, by the ending that follows its key.

    Raises:
        BokehError: the shard ends early, or something else lies where they should.
    """
    start = min(offset for offset, _ in entry.files.values()) - _BLOCK
    end = max(offset + size for offset, size in entry.files.values())
    try:
        with open(shard, "rb") as file:
            file.seek(start)
            content = file.read(end - start)
    except OSError as error:
        raise BokehError(f"it cannot be read ({error})") from error
    if len(content) < end - start:
        raise BokehError("the shard is truncated here")
    files = {}
    for ending, (offset, size) in entry.files.items():
        begin = offset - start
        header = content[begin - _BLOCK : begin - _BLOCK + 100].rstrip(b"\0")
        if header != f"{entry.key}.{ending}".encode()[:100]:
            raise BokehError(f"its {ending} is not where it should be; the shard is damaged")
        files[ending] = content[begin : begin + size]
    return files


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


class _Hashed:
    """Passes what is written on, and keeps its length and hash."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.length = file, hashlib.sha256(), 0

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.length += len(content)
        return self.file.write(content)


def _index_json(length: int, digest: str, entries: Iterable[Entry]) -> dict[str, Any]:
    samples = [
        {
            "key": e.key,
            "k": e.k,
            "all_in_focus": e.all_in_focus,
            "files": {n: list(p) for n, p in e.files.items()},
        }
        for e in entries
    ]
    return {
        "format": INDEX_FORMAT,
        "version": INDEX_VERSION,
        "bytes": length,
        "sha256": digest,
        "samples": samples,
    }


def _entries(path: Path, index: Mapping[str, Any]) -> list[Entry]:
    try:
        return [
            Entry(
                str(sample["key"]),
                None if sample["k"] is None else float(sample["k"]),
                bool(sample["all_in_focus"]),
                {str(ending): (int(place[0]), int(place[1])) for ending, place in sample["files"].items()},
            )
            for sample in index["samples"]
        ]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BokehError(
            f"{path} is damaged ({type(error).__name__}: {error}); remove it, and the shard itself is read."
        ) from error
