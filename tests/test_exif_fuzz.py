"""EXIF of files that somebody damaged, or built to do damage: refused or read, quickly and in little memory."""

from __future__ import annotations

import io
import math
import random
import struct
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import ExifTags, Image, features

from bokeh_ops.camera.exif import CameraExif, read_exif
from bokeh_ops.camera.tiff_tags import MOST_TEXT, MOST_VALUES, Ratio, claimed_bytes, read_tags
from bokeh_ops.errors import BokehError

MAKE, ORIENTATION, POINTER, F_NUMBER, FOCAL, LENS = 0x010F, 0x0112, 0x8769, 0x829D, 0x920A, 0xA434
INTERESTING = (0, 1, 2, 7, 8, 26, 255, 65535, 65536, 2**24, 2**28, 2**31 - 1, 2**31, 2**32 - 1)
READ = (
    0x100,
    0x101,
    MAKE,
    0x110,
    ORIENTATION,
    0x829A,
    F_NUMBER,
    0x9206,
    FOCAL,
    0xA002,
    0xA003,
    0xA20E,
    0xA405,
    LENS,
)


def exif_block(order: str = "<", pointer: int = 26) -> bytes:
    """Maker and f/2.8, 50 mm, by hand: the EXIF directory is at byte 26 unless told otherwise."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    first = struct.pack(order + "H", 1) + struct.pack(order + "HHII", POINTER, 4, 1, pointer) + b"\0" * 4
    second = struct.pack(order + "H", 2)
    second += struct.pack(order + "HHII", F_NUMBER, 5, 1, 56) + struct.pack(order + "HHII", FOCAL, 5, 1, 64)
    return head + first + second + b"\0" * 4 + struct.pack(order + "4I", 28, 10, 50, 1)


def jpeg(block: bytes) -> bytes:
    """A JPEG with an EXIF block in as many segments as it takes."""
    plain = io.BytesIO()
    Image.new("RGB", (24, 16), "teal").save(plain, "JPEG")
    parts = [block[start : start + 60_000] for start in range(0, len(block), 60_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in parts)
    return b"\xff\xd8" + segments + plain.getvalue()[20:]


def written(kind: str) -> bytes:
    """A picture with the block, written by Pillow or pillow-heif."""
    out = io.BytesIO()
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = Image.new("RGB", (24, 16), "teal")
    if kind == "TIFF":
        exif = Image.Exif()
        exif.load(b"Exif\0\0" + exif_block())
        image.save(out, kind, exif=exif)
    else:
        image.save(out, kind, exif=b"Exif\0\0" + exif_block() if kind != "PNG" else exif_block())
    return out.getvalue()


def resealed(data: bytes | bytearray) -> bytes:
    """A PNG with the check sums of its chunks right again, so that damage inside them gets through."""
    data, place = bytearray(data), 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(data)


def check(found: CameraExif) -> None:
    """What is told must be possible."""
    assert found.width > 0
    assert found.height > 0
    assert found.f_number is None or 0.5 <= found.f_number <= 128
    assert found.focal_length is None or 0.0005 <= found.focal_length <= 5
    assert found.focus_distance is None or 0.001 <= found.focus_distance <= 10_000
    assert found.sensor_width is None or 0.002 / (found.digital_zoom or 1) <= found.sensor_width <= 0.07
    assert found.sensor_shown is None or 0 < found.sensor_shown <= found.sensor_width
    assert found.orientation in {None, *range(1, 9)}
    assert found.digital_zoom is None or 1 < found.digital_zoom <= 100
    assert all(len(text or "") <= 64 for text in (found.make, found.model, found.lens))


def survives(data: bytes) -> bool:
    """Whether a file is read; anything but a result or BokehError is raised."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check(read_exif(io.BytesIO(data)))
    except BokehError:
        return False
    return True


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP", "AVIF", "HEIF"])
def test_damaged_files_of_every_format(kind: str) -> None:
    good = written(kind)
    found = read_exif(io.BytesIO(good))
    assert found.f_number == pytest.approx(2.8)
    assert found.focal_length == pytest.approx(0.05)
    rng = random.Random(kind)
    tags = [
        place
        for place in range(len(good) - 2)
        if good[place : place + 2] in (b"\x9d\x82", b"\x82\x9d", b"II")
    ]
    counts = [0, 0]
    for number in range(300):
        data = bytearray(good)
        for _ in range(rng.choice((1, 2, 8))):
            near = rng.choice(tags) if number % 2 else 0
            place = min(rng.randrange(near, near + 80 if near else len(data)), len(data) - 4)
            data[place : place + 4] = rng.choice(
                (rng.randbytes(1), rng.randbytes(4), struct.pack("<I", rng.choice(INTERESTING)))
            )
        if number % 5 == 0:
            del data[rng.randrange(8, len(data)) :]
        counts[survives(resealed(data) if kind == "PNG" else bytes(data))] += 1
    assert counts[True] > 30, counts
    assert counts[False] > 10, counts


def test_random_directories() -> None:
    """Entries of any tag, type, count and place, in both byte orders."""
    rng = random.Random(7)
    read = 0
    for _ in range(1500):
        order = rng.choice("<>")
        head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(
            order + "I", rng.choice((8, 8, 8, 0, 26, 9999))
        )
        entries = b""
        number = rng.randrange(1, 12)
        for _ in range(number):
            tag = rng.choice((POINTER, *READ, rng.randrange(65536)))
            count = rng.choice((1, 1, 2, 5, rng.choice(INTERESTING)))
            entries += struct.pack(order + "HHI", tag, rng.randrange(20), count)
            entries += struct.pack(
                order + "I", rng.choice((8, 10, rng.randrange(200), rng.choice(INTERESTING)))
            )
        claimed = rng.choice((number, number, number + 1, 65535))
        block = head + struct.pack(order + "H", claimed) + entries + rng.randbytes(rng.randrange(100))
        read += survives(jpeg(block))
    assert read > 1000


def test_hypothesis_finds_nothing() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    strategies = hypothesis.strategies
    entry = strategies.tuples(
        strategies.sampled_from((POINTER, *READ)),
        strategies.integers(0, 20),
        strategies.one_of(strategies.integers(0, 5), strategies.integers(0, 2**32 - 1)),
        strategies.one_of(strategies.integers(0, 120), strategies.integers(0, 2**32 - 1)),
    )

    @hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @hypothesis.given(strategies.lists(entry, max_size=8), strategies.binary(max_size=64))
    def whatever(entries: list[tuple[int, int, int, int]], rest: bytes) -> None:
        body = b"".join(struct.pack("<HHII", *each) for each in entries)
        block = b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + rest
        tags, damage = read_tags(io.BytesIO(block), READ, READ)
        assert damage is None or isinstance(damage, str)
        assert set(tags) <= set(READ)
        for value in tags.values():
            assert isinstance(value, (int, float, str, bytes, Ratio, tuple))
            assert (
                len(value) <= (MOST_VALUES if isinstance(value, tuple) else MOST_TEXT)
                if not isinstance(value, (int, float, Ratio))
                else True
            )
        survives(jpeg(block))

    whatever()


def test_pillow_reads_the_same() -> None:
    """On sound blocks of random contents, against the library's own reader."""
    rng = random.Random(11)
    for _ in range(60):
        exif = Image.Exif()
        exif[MAKE] = "".join(rng.choice("ABC xyz") for _ in range(rng.randrange(1, 40))).strip() or "X"
        exif[ORIENTATION] = rng.randrange(1, 9)
        inner = exif.get_ifd(ExifTags.IFD.Exif)
        inner[F_NUMBER] = rng.randrange(1, 10**6) / rng.randrange(1, 1000)
        inner[0xA405] = rng.randrange(65536)
        inner[0xA002] = rng.randrange(2**31)
        inner[LENS] = "lens"
        block = exif.tobytes()[6:]
        theirs = Image.Exif()
        theirs.load(b"Exif\0\0" + block)
        wanted = {**dict(theirs), **theirs.get_ifd(ExifTags.IFD.Exif)}
        ours, damage = read_tags(io.BytesIO(block), READ, READ)
        assert damage is None
        assert set(ours) == {tag for tag in wanted if tag in READ}
        for tag, value in ours.items():
            if isinstance(value, Ratio):
                assert float(value) == pytest.approx(float(wanted[tag]))
            else:
                assert value == wanted[tag]


def test_big_tiff_and_both_byte_orders() -> None:
    assert read_exif(io.BytesIO(jpeg(exif_block(">")))).f_number == pytest.approx(2.8)
    entries = struct.pack("<HHQQ", MAKE, 2, 3, int.from_bytes(b"Me\0", "little"))
    entries += struct.pack("<HHQII", F_NUMBER, 5, 1, 28, 10)  # fits in the entry, unlike in a small TIFF
    entries += struct.pack("<HHQQ", LENS, 2, 12, 92)
    big = b"II" + struct.pack("<HHHQ", 43, 8, 0, 16) + struct.pack("<Q", 3) + entries + b"\0" * 8
    tags, damage = read_tags(io.BytesIO(big + b"a long lens\0"), READ)
    assert tags == {MAKE: "Me", F_NUMBER: Ratio(28, 10), LENS: "a long lens"}
    assert damage is None


@pytest.mark.parametrize("pointer", [8, 26, 0, 2**32 - 1])
def test_directories_that_name_themselves(pointer: int) -> None:
    """The pointer to the EXIF directory leads to the first one, to itself, to the header, to nowhere."""
    block = exif_block(pointer=pointer)
    assert survives(jpeg(block))
    assert read_exif(io.BytesIO(jpeg(block))).f_number == (pytest.approx(2.8) if pointer == 26 else None)
    following = bytearray(block)  # the first directory's successor is itself
    following[22:26] = struct.pack("<I", 8)
    assert survives(jpeg(bytes(following)))


def test_values_are_not_lost_to_a_damaged_one_beside_them() -> None:
    block = exif_block().replace(
        struct.pack("<HHII", F_NUMBER, 5, 1, 56), struct.pack("<HHII", F_NUMBER, 5, 2**31, 0)
    )
    found = read_exif(io.BytesIO(jpeg(block)))
    assert found.f_number is None
    assert found.focal_length == pytest.approx(0.05)
    assert "claims 2147483648 values" in found.reasons["exif"]
    assert math.isnan(float(Ratio(3, 0)))


def overlapping(entries: int, length: int, kind: int = 5) -> bytes:
    """Entries that each claim nearly the whole block."""
    count = (length - 8) // 8
    body = b"".join(struct.pack("<HHII", (40_000 + i) % 65536, kind, count, 0) for i in range(entries))
    return (b"II*\0" + struct.pack("<IH", 8, entries) + body).ljust(length, b"\1")


def test_blocks_built_to_fill_the_memory() -> None:
    """Twenty thousand tags that each claim the same megabyte: twenty gigabytes, were they read."""
    block = overlapping(20_000, 2**20)
    assert claimed_bytes(io.BytesIO(block)) > 20 * 10**9
    tiff = block + b"\0" * 100
    wanted_many = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", FOCAL, 5, 10**6, 22)
    for data, refused in (
        (jpeg(block), True),
        (tiff, True),
        (jpeg(exif_block() + b"\0" * 3_000_000), False),
        (jpeg(wanted_many + b"\1" * 8_000_000), False),  # a million focal lengths, all of them there
    ):
        tracemalloc.start()
        started = time.perf_counter()
        try:
            if refused:
                with pytest.raises(BokehError, match="built to fill the memory: its EXIF claims"):
                    read_exif(io.BytesIO(data))
            else:
                assert survives(data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 8 * len(data), f"{peak} bytes for a file of {len(data)}"
        assert time.perf_counter() - started < 20


def test_segments_without_end(tmp_path: Path) -> None:
    path = tmp_path / "comments.jpg"
    path.write_bytes(b"\xff\xd8" + b"\xff\xfe\0\2" * 200_000 + jpeg(exif_block())[2:])
    with pytest.raises(BokehError, match="built to take for ever: it has over 10000 segments"):
        read_exif(path)
