"""ONNX files of one node: the bytes of a protocol buffer by hand."""

from __future__ import annotations

from pathlib import Path


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def value_info(name: str, shape: list[int | str]) -> bytes:
    sides = b"".join(field(1, field(1, s) if isinstance(s, int) else field(2, s)) for s in shape)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, sides)))


def onnx_file(path: Path, *parts: bytes) -> Path:
    """A file of a graph of these parts, in the operators of set 13."""
    graph = parts[0] + field(2, "g") + b"".join(parts[1:])
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13)))
    return path


def mean_network(
    path: Path,
    size: tuple[int | str, int | str],
    channels: int = 3,
    axis: int = 1,
    flat: bool = False,
    more: bool = False,
) -> Path:
    """The mean over an axis, the colours' by default.

    Args:
        path: of the file.
        size: height and width, of any size where they are names.
        channels: of the input.
        axis: which is averaged.
        flat: that axis is left out, so that colours' mean is ``[1, h, w]`` and not ``[1, 1, h, w]``.
        more: a second output, the input.
    """
    shape = [1, channels, *size]
    axes = field(1, "axes") + field(20, 7) + field(8, axis)
    keep = field(1, "keepdims") + field(20, 2) + field(3, 0 if flat else 1)
    nodes = field(
        1, field(1, "in") + field(2, "out") + field(4, "ReduceMean") + field(5, axes) + field(5, keep)
    )
    made = [*shape[:axis], *([] if flat else [1]), *shape[axis + 1 :]]
    outputs = field(12, value_info("out", made))
    if more:
        nodes += field(1, field(1, "in") + field(2, "second") + field(4, "Identity"))
        outputs += field(12, value_info("second", shape))
    return onnx_file(path, nodes, field(11, value_info("in", shape)), outputs)
