"""The data set format: what is written comes back, and what is damaged is said to be, by shard and sample."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bokeh_ops.errors import BokehError
from trainer.data import DatasetWriter, Order, encode_sample, open_dataset

SIZE = (24, 16)  # width, height


def annotated(number: int, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    disparity = rng.random((SIZE[1], SIZE[0])) * (number + 1)
    info = {"captions": [f"picture {number}", "Bär"], "k": number + 0.25, "all_in_focus": number % 3 == 0}
    return {
        "image": rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8),
        "disparity": disparity,
        "mask": (disparity > disparity.mean()).astype(np.float32),
        "info": {**info, "s1_m": 1.5, "source": "here", **changes},
    }


def write(folder: Path, count: int = 10, per_shard: int = 4, picture: str = "png") -> None:
    writer = DatasetWriter(folder, SIZE, {"seed": 1}, per_shard)
    for number in range(count):
        assert writer.add(f"k{number:03d}", encode_sample(**annotated(number), picture=picture))
    writer.finish({"note": "a test"})


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    write(tmp_path)
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 10
    assert dataset.resolution == SIZE
    assert dataset.settings == {"seed": 1}
    assert dataset.manifest.more == {"note": "a test"}
    assert [shard["samples"] for shard in dataset.manifest.shards] == [4, 4, 2]
    for number in (9, 0, 4, 3):
        sample, wanted = dataset.sample(number), annotated(number)
        assert sample.key == dataset.key(number) == f"k{number:03d}"
        assert np.array_equal(sample.image, wanted["image"])
        assert sample.image.dtype == np.uint8
        largest = wanted["disparity"].max()
        assert np.abs(sample.disparity - wanted["disparity"]).max() <= largest / 65535 * 0.51
        assert sample.disparity.dtype == sample.mask.dtype == np.float32
        assert np.array_equal(sample.mask, wanted["mask"])
        assert sample.captions == (f"picture {number}", "Bär")
        assert (sample.k, sample.all_in_focus) == (number + 0.25, number % 3 == 0)
        assert sample.info["s1_m"] == 1.5
    k, sharp = dataset.facts()
    assert np.array_equal(k, np.arange(10) + 0.25)
    assert sharp.nonzero()[0].tolist() == [0, 3, 6, 9]
    dataset.verify()


def test_shards_are_plain_tar_files_in_webdataset_layout(tmp_path: Path) -> None:
    write(tmp_path, picture="jpg")
    with tarfile.open(tmp_path / "shards" / "shard-00001.tar") as tar:
        names = tar.getnames()
        assert names[:5] == ["k004.jpg", "k004.disparity.png", "k004.mask.png", "k004.json", "k005.jpg"]
        info = json.load(tar.extractfile("k004.json"))  # type: ignore[arg-type]
        with Image.open(tar.extractfile("k004.disparity.png")) as grey:  # type: ignore[arg-type]
            assert grey.mode == "I;16"
            dioptres = np.array(grey) / 65535 * info["disparity_scale"]
    assert np.allclose(dioptres, annotated(4)["disparity"], atol=5 / 65535)
    entry = json.loads((tmp_path / "dataset.json").read_text())["shards"][1]
    content = (tmp_path / "shards" / "shard-00001.tar").read_bytes()
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    again = tmp_path / "again"
    write(again, picture="jpg")
    assert (again / "shards" / "shard-00001.tar").read_bytes() == content


def test_the_webdataset_library_reads_it(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", exc_type=ImportError)
    write(tmp_path)
    urls = [str(path) for path in sorted((tmp_path / "shards").glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in found] == [f"k{number:03d}" for number in range(10)]
    assert {"png", "disparity.png", "mask.png", "json"} <= set(found[0])


def test_without_an_index_the_tar_file_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    for path in (tmp_path / "shards").glob("*.index.json"):
        path.unlink()
    dataset = open_dataset(tmp_path / "dataset.json")
    assert np.array_equal(dataset.sample(7).image, annotated(7)["image"])
    assert dataset.facts()[0].tolist() == [number + 0.25 for number in range(10)]


def test_a_tar_file_of_another_program_is_read(tmp_path: Path) -> None:
    """GNU headers, long names, an entry for a folder, files of a sample not side by side."""
    (tmp_path / "shards").mkdir()
    files = encode_sample(**annotated(3, k=None))
    key = "a" * 120
    with tarfile.open(tmp_path / "shards" / "shard-00000.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        folder = tarfile.TarInfo("somewhere")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for ending in ("json", "mask.png"):
            for name in ("b", key):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(files[ending])
                tar.addfile(member, io.BytesIO(files[ending]))
        for ending in ("jpg", "disparity.png"):
            for name in ("b", key):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(files[ending])
                tar.addfile(member, io.BytesIO(files[ending]))
    manifest = {"format": "bokeh-dataset", "version": 1, "resolution": SIZE, "settings": {}}
    manifest["shards"] = [{"name": "shard-00000.tar", "samples": 2}]
    (tmp_path / "dataset.json").write_text(json.dumps(manifest))
    dataset = open_dataset(tmp_path)
    assert dataset.sample(0).key == "b"
    assert dataset.sample(0).k is None
    assert np.isnan(dataset.facts()[0]).all()


def test_order_is_a_function_of_seed_and_position() -> None:
    order, again = Order(7, seed=5), Order(7, seed=5)
    walked = [order[position] for position in range(35)]
    assert [again[position] for position in range(34, -1, -1)] == walked[::-1]
    passes = [walked[start : start + 7] for start in range(0, 35, 7)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) > 3
    assert [Order(7, seed=6)[position] for position in range(35)] != walked
    assert sorted(Order(np.array([4, 9]))[position] for position in range(2)) == [4, 9]
    with pytest.raises(BokehError, match="nothing to go through"):
        Order(0)


def test_iteration_goes_on_at_any_position_and_in_another_process(tmp_path: Path) -> None:
    write(tmp_path)
    dataset = open_dataset(tmp_path)
    walk = dataset.iterate(seed=3)
    keys = [next(walk)[1].key for _ in range(23)]
    other = pickle.loads(pickle.dumps(dataset)).iterate(seed=3, start=17)
    assert [next(other)[1].key for _ in range(6)] == keys[17:]
    assert next(dataset.iterate(start=4))[0] == 4


def test_a_killed_writer_leaves_whole_shards_and_another_goes_on(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    write(whole)
    folder = tmp_path / "killed"
    writer = DatasetWriter(folder, SIZE, {"seed": 1}, 4)
    for number in range(6):  # the last two are in memory only
        writer.add(f"k{number:03d}", encode_sample(**annotated(number), picture="png"))
    with pytest.raises(BokehError, match=r"is not a data set: it has no dataset\.json"):
        open_dataset(folder)
    # as if killed while writing the second: a temporary file, and a tar file that has no index yet
    (folder / "shards" / ".shard-00001.tar.tmp").write_bytes(b"half")
    (folder / "shards" / "shard-00001.tar").write_bytes(b"whole, but its index is not")
    writer = DatasetWriter(folder, SIZE, {"seed": 1}, 4)
    assert writer.keys == {f"k{number:03d}" for number in range(4)}
    assert not list((folder / "shards").glob(".*"))
    added = [
        writer.add(f"k{number:03d}", encode_sample(**annotated(number), picture="png"))
        for number in range(10)
    ]
    assert added == [False] * 4 + [True] * 6
    writer.finish({"note": "a test"})
    for path in whole.rglob("*.*"):
        assert (folder / path.relative_to(whole)).read_bytes() == path.read_bytes()
    with pytest.raises(BokehError, match="finished data set"):
        DatasetWriter(folder, SIZE, {}, 4)


def test_a_full_disk_keeps_what_is_done(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    writer = DatasetWriter(tmp_path, SIZE, {}, 2)
    for number in range(2):
        writer.add(f"k{number:03d}", encode_sample(**annotated(number)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer.add("k002", encode_sample(**annotated(2)))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # the kernel refuses, as on a full disk
        with pytest.raises(BokehError, match=r"shard-00001\.tar could not be written: the disk is full"):
            writer.add("k003", encode_sample(**annotated(3)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [
        "shard-00000.index.json",
        "shard-00000.tar",
    ]
    assert DatasetWriter(tmp_path, SIZE, {}, 2).keys == {"k000", "k001"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "is of version 2; this program reads version 1"),
        ({"format": "other"}, "its format is 'other'"),
        ({"resolution": 512}, "expected \\[width, height\\]"),
        ({"shards": {}}, "'shards' is a dict"),
        ({"shards": [{"name": "../../etc/passwd", "samples": 1}]}, "shard 0 is"),
        ({"shards": [{"name": "shard-00000.tar"}]}, "number of 'samples'"),
    ],
)
def test_descriptions_that_cannot_be_read(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(tmp_path, 2)
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BokehError, match=message):
        open_dataset(tmp_path)


def test_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(BokehError, match="is not a data set"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{" * 5)
    with pytest.raises(BokehError, match="cannot be read as JSON"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("[" * 100_000)
    with pytest.raises(BokehError, match="cannot be read as JSON"):
        open_dataset(tmp_path)


def test_truncated_and_damaged_shards_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    shard, index = (tmp_path / "shards" / f"shard-00001.{end}" for end in ("tar", "index.json"))
    content = shard.read_bytes()
    shard.write_bytes(content[:6000])
    with pytest.raises(
        BokehError, match=r"shard-00001\.tar has 6000 bytes, \d+ by its index: it is truncated"
    ):
        open_dataset(tmp_path).sample(5)
    assert open_dataset(tmp_path).sample(0).key == "k000"  # the other shards serve
    kept = index.read_text()
    index.unlink()
    shard.write_bytes(content[: content.index(b"k006.png") + 700])
    with pytest.raises(BokehError, match=r"shard-00001\.tar is truncated in sample 'k006' \(k006\.png\)"):
        open_dataset(tmp_path).sample(5)
    shard.write_bytes(content[: content.index(b"k006.png") + 100])  # within a header
    with pytest.raises(BokehError, match="holds 2 samples, expected 4, the last is 'k005'"):
        open_dataset(tmp_path).sample(5)
    index.write_text(kept)
    place = content.index(b"k005.png") + 512
    for start, length, message in (
        (place + 40, 60, "its png cannot be read"),
        (place - 512, 8, "its png is not where it should be"),
        (content.index(b"k005.json") + 512, 20, "its json cannot be read"),
    ):
        spoilt = bytearray(content)
        spoilt[start : start + length] = b"\xff" * length
        shard.write_bytes(spoilt)
        dataset = open_dataset(tmp_path)
        with pytest.raises(BokehError, match=rf"shard-00001\.tar, sample 'k005' \(number 5\): {message}"):
            dataset.sample(5)
        assert dataset.sample(4).key == "k004"
        with pytest.raises(BokehError, match=r"shard-00001\.tar is damaged: its SHA-256"):
            dataset.verify()
    index.unlink()
    shard.write_bytes(b"no tar file at all" * 100)
    with pytest.raises(BokehError, match=r"shard-00001\.tar is damaged after its beginning"):
        open_dataset(tmp_path).sample(4)
    shutil.copy(tmp_path / "shards" / "shard-00002.tar", shard)
    with pytest.raises(BokehError, match=r"holds 2 samples, expected 4, the last is 'k009'"):
        open_dataset(tmp_path).sample(4)
    shard.unlink()
    with pytest.raises(BokehError, match=r"shard-00001\.tar does not exist"):
        open_dataset(tmp_path).sample(4)
    with pytest.raises(BokehError, match="There is no sample 10"):
        open_dataset(tmp_path).sample(10)


def test_pictures_of_another_size_are_not_decoded(tmp_path: Path) -> None:
    """A picture that says it has 60000 x 60000 pixels would take 3.6 gigabytes."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 9)), (b"IEND", b""))
    )
    files = {**encode_sample(**annotated(0)), "mask.png": bomb}
    writer = DatasetWriter(tmp_path, SIZE, {}, 1)
    writer.add("bomb", files)
    writer.finish()
    with pytest.raises(BokehError, match=r"its mask\.png (is 60000 x 60000|cannot be read)"):
        open_dataset(tmp_path).sample(0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("k", -1.0),
        ("k", float("nan")),
        ("k", "1"),
        ("all_in_focus", 1),
        ("captions", "one"),
        ("captions", [1]),
    ],
)
def test_samples_that_cannot_be_true_are_not_written(field: str, value: Any) -> None:
    with pytest.raises(BokehError, match=f"its '{field}' is"):
        encode_sample(**annotated(0, **{field: value}))


def test_maps_that_cannot_be_true_are_not_written() -> None:
    good = annotated(0)
    for spoilt, message in (
        ({"disparity": good["disparity"] * np.nan}, "must be finite"),
        ({"disparity": good["disparity"] - 5}, "0 or more"),
        ({"disparity": good["disparity"] * 0}, "not 0 everywhere"),
        ({"mask": good["mask"][1:]}, "same height and width"),
        ({"image": good["image"] / 255}, "expected uint8"),
    ):
        with pytest.raises(BokehError, match=message):
            encode_sample(**{**good, **spoilt})
    with pytest.raises(BokehError, match="not as 'gif'"):
        encode_sample(**good, picture="gif")


def test_keys_are_fit_for_file_names(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path, SIZE, {})
    for key in ("a.b", "a/b", "", "x" * 81, "ü"):
        with pytest.raises(BokehError, match="is not made of"):
            writer.add(key, {})
