"""Where photographs come from, and that every one of them comes once."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bokeh_ops.errors import BokehError
from tests.photographs import photograph
from trainer.data.prepare.annotate import Outcome, look_at
from trainer.data.prepare.providers import make_providers
from trainer.data.prepare.record import Item, Record, key_for
from trainer.data.prepare.rejection import Rejected
from trainer.data.prepare.settings import Settings
from trainer.data.prepare.sources import PICTURES, items, shard_of

ALL = shard_of(0, 1)
SETTINGS = Settings(resolution=(64, 64))


def ids(source: Path | str, done: set[str] | None = None, outside: Path | None = None) -> list[str]:
    return [item.id for item in items(str(source), ALL, done or set(), outside)]


def look(item: Item) -> Outcome:
    return look_at(item, make_providers(SETTINGS), SETTINGS)


def tar(path: Path, entries: list[tuple[str, bytes]], **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as file:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def files_of(folder: Path, stem: str) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(folder.glob(f"{stem}.*"))]


def test_folders(tmp_path: Path) -> None:
    for name in ("b.jpg", "sub/a.JPG", "sub/deeper/c.tiff", "z.png"):
        photograph(tmp_path / name, maps=name == "z.png")
    (tmp_path / ".hidden").mkdir()
    photograph(tmp_path / ".hidden" / "d.jpg")
    (tmp_path / "notes.md").write_text("no photograph")
    (tmp_path / "._b.jpg").write_bytes(b"what another system leaves behind")
    photograph(tmp_path / "out" / "e.jpg")
    wanted = ["b.jpg", "z.png", "sub/a.JPG", "sub/deeper/c.tiff"]
    assert ids(tmp_path, outside=tmp_path / "out") == wanted  # maps are no photographs
    assert ids(tmp_path, {"z.png", "sub/a.JPG"}, tmp_path / "out") == ["b.jpg", "sub/deeper/c.tiff"]
    assert ids(tmp_path / "b.jpg") == ["b.jpg"]
    assert ids(tmp_path / ".hidden") == ["d.jpg"]


def test_lists(tmp_path: Path) -> None:
    photograph(tmp_path / "photos" / "a.jpg")
    photograph(tmp_path / "photos" / "b.jpg", make="", model="", f_number=0.0)
    (tmp_path / "list.txt").write_text("# mine\nphotos/a.jpg\n\n  photos/gone.jpg  \nphotos/a.jpg\n")
    assert ids(tmp_path / "list.txt") == ["photos/a.jpg", "photos/gone.jpg", "photos/a.jpg"]
    outcomes = [look(item) for item in items(str(tmp_path / "list.txt"), ALL, set())]
    assert [outcome.reason for outcome in outcomes] == [None, "unreadable", None]
    given = {
        "image": "photos/b.jpg",
        "f_number": 2,
        "focal_length": 50,
        "focal_length_35": 75,
        "captions": ["two"],
    }
    (tmp_path / "list.jsonl").write_text(json.dumps(given) + "\n\n")
    (item,) = items(str(tmp_path / "list.jsonl"), ALL, set())
    outcome = look(item)
    assert outcome.info is not None, outcome
    assert outcome.info["sensor_width_mm"] == pytest.approx(24)
    assert outcome.info["captions"] == ["two", "a disc"]
    for line in ("{", "[]", '{"picture": 1}', '{"image": 5}'):
        (tmp_path / "bad.jsonl").write_text(line)
        with pytest.raises(BokehError, match=r"bad\.jsonl, line 1"):
            ids(tmp_path / "bad.jsonl")
    (tmp_path / "bad.txt").write_text("x" * 5000)
    with pytest.raises(BokehError, match="has 5000 characters"):
        ids(tmp_path / "bad.txt")


def test_shards(tmp_path: Path) -> None:
    """The maps and captions come from the shard too."""
    for name in ("a", "b"):
        photograph(tmp_path / "in" / f"{name}.jpg", seed=ord(name))
    entries = [
        *files_of(tmp_path / "in", "a"),
        ("readme.txt", b"no photograph"),
        *files_of(tmp_path / "in", "b"),
    ]
    path = tar(tmp_path / "shard-0.tar", [(f"deep/{name}", content) for name, content in entries])
    assert ids(path) == ["shard-0.tar/deep/a", "shard-0.tar/deep/b"]
    assert ids(path, {"shard-0.tar/deep/a"}) == ["shard-0.tar/deep/b"]
    loose = [look(Item(f"{name}.jpg", tmp_path / "in" / f"{name}.jpg")) for name in ("a", "b")]
    packed = [look(item) for item in items(str(path), ALL, set())]
    assert [outcome.reason for outcome in packed] == [None, None]
    for one, other in zip(loose, packed, strict=True):
        assert one.files is not None
        assert other.files is not None
        assert one.sha256 == other.sha256
        assert {n: c for n, c in one.files.items() if n != "json"} == {
            n: c for n, c in other.files.items() if n != "json"
        }


@pytest.mark.parametrize("cut", [100, 600, 0.4, 0.7, -1024])
def test_shards_that_break_off(tmp_path: Path, cut: float) -> None:
    """What is whole is used; that there was more is told."""
    for name in "abc":
        photograph(tmp_path / "in" / f"{name}.jpg", seed=ord(name))
    path = tar(tmp_path / "s.tar", [entry for name in "abc" for entry in files_of(tmp_path / "in", name)])
    content = path.read_bytes().rstrip(b"\0")
    content = content.ljust(-(-len(content) // 512) * 512 + 1024, b"\0")
    path.write_bytes(content[: int(cut * len(content)) if abs(cut) < 1 else int(cut)])
    found = list(items(str(path), ALL, set()))
    assert found[-1].id == "s.tar/damaged"
    outcomes = [look(item) for item in found]
    assert outcomes[-1].reason == "unreadable"
    assert "s.tar" not in outcomes[-1].detail
    assert all(outcome.reason in (None, "no_captions", "no_mask", "no_depth") for outcome in outcomes[:-1])
    assert len(found) - 1 == {100: 0, 600: 0, 0.4: 1, 0.7: 2, -1024: 3}[cut] or 0 < cut < 1
    assert ids(path, {"s.tar/damaged"}) == [item.id for item in found[:-1]]


def test_a_damaged_header_in_a_shard(tmp_path: Path) -> None:
    for name in "ab":
        photograph(tmp_path / "in" / f"{name}.jpg", seed=ord(name))
    path = tar(tmp_path / "s.tar", files_of(tmp_path / "in", "a") + files_of(tmp_path / "in", "b"))
    content = bytearray(path.read_bytes())
    place = content.index(b"b.depth.npy")
    content[place : place + 512] = b"\xff" * 512
    path.write_bytes(content)
    found = list(items(str(path), ALL, set()))
    assert [item.id for item in found] == ["s.tar/a", "s.tar/damaged"]
    assert "damaged" in str(found[-1].broken)
    (tmp_path / "z.tar").write_bytes(b"\x1f\x8b" + b"compressed" * 100)
    (item,) = items(str(tmp_path / "z.tar"), ALL, set())
    assert item.broken


def parquet(path: Path, rows: list[dict[str, Any]], group: int = 2) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as format

    format.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group, compression="none")
    return path


def row(path: Path, **fields: Any) -> dict[str, Any]:
    """The authors' fields."""
    fields = {"f_number": 2.0, "focal_length": 50.0, "focal_length_35": 50, "pseudo_aif": False, **fields}
    exif = json.dumps([{"tag": "Model", "raw": {"_content": "Canon EOS 6D"}}])
    told = {"flickr_photo_id": "123", "flickr_exif": exif, "flickr_url": "https://example.org/123"}
    return {"image": path.read_bytes(), "captions": ["one", "two"], **told, "image_license": "CC0", **fields}


def test_parquet(tmp_path: Path) -> None:
    """Depth and mask have to come from models there; here from functions that know the scene."""
    paths = [photograph(tmp_path / f"{n}.jpg", seed=n, make="", model="", f_number=0.0) for n in range(5)]
    source = parquet(tmp_path / "data.parquet", [row(path) for path in paths])
    found = list(items(str(source), ALL, set()))
    assert [item.id for item in found] == [f"data.parquet/{n:08d}" for n in range(5)]
    assert [item.content for item in found] == [path.read_bytes() for path in paths]
    assert found[0].given["captions"] == ["one", "two"]
    assert look(found[0]).reason == "no_depth"
    providers = make_providers(SETTINGS)
    metres, mask = np.load(paths[0].with_suffix(".depth.npy")), paths[0].with_suffix(".mask.png")
    from PIL import Image

    scene = type(providers)(
        lambda photo: metres, lambda photo: np.asarray(Image.open(mask)) / 255, providers.captions
    )
    outcome = look_at(found[0], scene, SETTINGS)
    assert outcome.info is not None, outcome
    assert outcome.info["k"] == pytest.approx(0.05**2 / (4 * 0.95) * 64 / 0.024, rel=1e-5)
    assert (outcome.info["source"], outcome.info["licence"]) == ("https://example.org/123", "CC0")
    assert outcome.info["flickr_photo_id"] == "123"
    assert outcome.info["captions"] == ["one", "two"]
    assert ids(source, {f"data.parquet/{n:08d}" for n in (0, 1, 3)}) == [
        "data.parquet/00000002",
        "data.parquet/00000004",
    ]


def test_parquet_of_other_shapes(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg")
    rows = [
        {"image": {"bytes": path.read_bytes(), "path": None}},
        {"image": {"bytes": None, "path": "a.jpg"}},
        {"image": {"bytes": None, "path": None}},
    ]
    found = list(items(str(parquet(tmp_path / "hf.parquet", rows)), ALL, set()))
    assert [look(item).reason for item in found] == ["no_depth", None, "unreadable"]
    with pytest.raises(BokehError, match="has no field 'image', only text"):
        ids(parquet(tmp_path / "text.parquet", [{"text": "a"}]))
    (tmp_path / "no.parquet").write_bytes(b"PAR1" + b"\0" * 100)
    with pytest.raises(BokehError, match="cannot be read as parquet"):
        ids(tmp_path / "no.parquet")


def test_a_damaged_row_group_does_not_take_the_others_along(tmp_path: Path) -> None:
    paths = [photograph(tmp_path / f"{n}.jpg", (384, 256), seed=n) for n in range(4)]
    source = parquet(tmp_path / "d.parquet", [row(path) for path in paths], group=1)
    content = bytearray(source.read_bytes())
    place = content.index(paths[1].read_bytes()[-200:]) - len(paths[1].read_bytes()) + 200
    content[place - 20 : place - 8] = b"\xff" * 12  # in the header of its page
    source.write_bytes(content)
    found = list(items(str(source), ALL, set()))
    assert {"d.parquet/00000000", "d.parquet/00000002", "d.parquet/00000003"} <= {item.id for item in found}
    assert sum(look(item).reason == "unreadable" for item in found) == 1


def test_patterns_and_folders_of_shards(tmp_path: Path) -> None:
    photograph(tmp_path / "in" / "a.jpg")
    (tmp_path / "shards").mkdir()
    for number in range(3):
        tar(tmp_path / "shards" / f"s-{number:02d}.tar", files_of(tmp_path / "in", "a"))
    wanted = [f"s-{number:02d}.tar/a" for number in range(3)]
    assert ids(tmp_path / "shards") == wanted
    assert ids(tmp_path / "shards" / "s-*.tar") == wanted
    pytest.importorskip("braceexpand")
    assert ids(str(tmp_path / "shards" / "s-{00..02}.tar")) == wanted
    with pytest.raises(BokehError, match=r"s-03\.tar, of the pattern"):
        ids(str(tmp_path / "shards" / "s-{00..03}.tar"))
    with pytest.raises(BokehError, match="matches no file"):
        ids(tmp_path / "shards" / "x-*.tar")
    photograph(tmp_path / "shards" / "b.jpg")
    with pytest.raises(BokehError, match=r"holds photographs and also s-00\.tar"):
        ids(tmp_path / "shards")
    for source in (tmp_path / "nowhere", tmp_path / "in" / "a.depth.npy"):
        with pytest.raises(BokehError, match=r"There is no folder or file|is no source of photographs"):
            ids(source)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_shares_are_disjoint_and_complete(tmp_path: Path, parts: int) -> None:
    for number in range(40):
        photograph(tmp_path / "in" / f"{number}.jpg", maps=False, caption=None)
    tar(tmp_path / "all.tar", [entry for n in range(40) for entry in files_of(tmp_path / "in", str(n))])
    for source in (tmp_path / "in", tmp_path / "all.tar"):
        whole = ids(source)
        shares = [[item.id for item in items(str(source), shard_of(n, parts), set())] for n in range(parts)]
        assert sorted(id for share in shares for id in share) == sorted(whole)
        if source.is_dir():
            assert all(share and len(share) < 40 for share in shares)


def test_keys_are_readable_and_unique() -> None:
    digest = "0" * 64
    names = [
        "a/DSC_0012.JPG",
        "b/DSC_0012.JPG",
        "Bär äöü.jpg",
        "😀.jpg",
        "x" * 300 + ".jpg",
        "shard.tar/key",
        "-.jpg",
    ]
    keys = [key_for(name, digest) for name in names]
    assert len(set(keys)) == len(names)
    assert keys[0].startswith("DSC_0012-")
    assert all(len(key) <= 80 and key.isascii() and "." not in key for key in keys)
    assert key_for("a.jpg", "1" * 64) != key_for("a.jpg", digest)
    assert key_for("\udcff.jpg", digest)  # a file name that is no text


def test_files_beside_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trainer.data.prepare.record as record

    path = photograph(tmp_path / "a.jpg")
    with pytest.raises(Rejected) as caught:
        Record(Item("a.jpg", path), PICTURES).picture(most=100)
    assert caught.value.reason == "too_large"
    monkeypatch.setattr(record, "MOST_BESIDE", 100)
    assert look(Item("a.jpg", path)).reason == "bad_fields"
