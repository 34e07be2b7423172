"""Depth or mask from an ONNX file: one picture in, one map out."""

from __future__ import annotations

import numpy as np
from PIL import Image

from bokeh_ops.errors import BokehError
from bokeh_ops.onnx_network import OnnxNetwork
from trainer.data.prepare.providers.protocol import Photograph

RANGES = {
    "255": (np.zeros(3, np.float32), np.full(3, 1, np.float32)),
    "1": (np.zeros(3, np.float32), np.full(3, 255, np.float32)),
    "-1": (np.full(3, 127.5, np.float32), np.full(3, 127.5, np.float32)),
    "imagenet": (
        np.array([0.485, 0.456, 0.406], np.float32) * 255,
        np.array([0.229, 0.224, 0.225], np.float32) * 255,
    ),
}
"""What colours are turned into, from 0..255: mean to subtract, and divisor."""


class OnnxMap:
    """A network of one picture ``[1, 3, h, w]`` (RGB) in, one map ``[1, h, w]`` or ``[1, 1, h, w]`` out.

    The photograph is stretched to the network's size, and its map back. Values are passed on as they are.

    Args:
        file: the ONNX file.
        range: one of :data:`RANGES`: 0..255, 0..1, -1..1, or less ImageNet's mean over its deviation.
        size: ``WIDTHxHEIGHT``, for a network that takes any.
        output: name of the output, of a network that has several; its first by default.

    Raises:
        BokehError: no such file, no network of that kind, or an option that does not fit it.
    """

    def __init__(self, file: str, range: str = "255", size: str = "", output: str = "") -> None:
        if range not in RANGES:
            raise BokehError(f"range={range} is unknown; choose {', '.join(RANGES)}.")
        self.mean, self.divisor = RANGES[range]
        self.network = OnnxNetwork(file, accelerated=True)
        self.size = _size(file, self.network.size, size)
        names = self.network.outputs
        if output and output not in names:
            raise BokehError(f"{file} has no output {output!r}, only {', '.join(names)}.")
        self.output = output or names[0]

    def __call__(self, photograph: Photograph) -> np.ndarray:
        """The network's map, float32, of the photograph's size."""
        return self.of(photograph.image)

    def of(self, picture: Image.Image) -> np.ndarray:
        """The network's map of a picture (RGB), float32, of its size."""
        image = picture.resize(self.size, Image.Resampling.BICUBIC)
        values = (np.asarray(image, dtype=np.float32) - self.mean) / self.divisor
        found = self.network.run(values.transpose(2, 0, 1)[None], self.output).astype(np.float32)
        flat = found.reshape([side for side in found.shape if side != 1] or [1, 1])
        if flat.ndim != 2:
            raise BokehError(
                f"The network's output {self.output} has the shape {list(found.shape)}; expected one map."
            )
        return np.asarray(
            Image.fromarray(flat).resize(picture.size, Image.Resampling.BILINEAR), dtype=np.float32
        )


def _size(file: str, fixed: tuple[int, int] | None, wanted: str) -> tuple[int, int]:
    """Width and height, of the network that takes this height and width."""
    if not wanted:
        if not fixed:
            raise BokehError(f"{file} takes pictures of any size; say which by size=WIDTHxHEIGHT.")
        return fixed[1], fixed[0]
    parts = wanted.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and 0 < int(part) <= 4096 for part in parts):
        raise BokehError(f"size={wanted} is no size; write size=WIDTHxHEIGHT.")
    chosen = int(parts[0]), int(parts[1])
    if fixed and chosen != (fixed[1], fixed[0]):
        raise BokehError(f"{file} takes pictures of {fixed[1]} x {fixed[0]} only, not {wanted}.")
    return chosen
