"""Depth or mask from an ONNX file: one picture in, one map out."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from bokeh_ops.errors import BokehError
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
        import onnxruntime

        if range not in RANGES:
            raise BokehError(f"range={range} is unknown; choose {', '.join(RANGES)}.")
        if not Path(file).is_file():
            raise BokehError(f"There is no ONNX file {file}.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                file, options, providers=onnxruntime.get_available_providers()
            )
        except Exception as error:  # its exceptions have no common base of their own
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            raise BokehError(f"{file} cannot be loaded as an ONNX network: {error}") from error
        self.mean, self.divisor = RANGES[range]
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[1] not in (3, "3"):
            shapes = ", ".join(f"{each.name} {each.shape}" for each in inputs)
            raise BokehError(f"{file} takes {shapes}; expected one picture [1, 3, height, width].")
        self.input = inputs[0].name
        self.half = inputs[0].type == "tensor(float16)"
        self.size = _size(file, inputs[0].shape, size)
        names = [each.name for each in self.session.get_outputs()]
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
        batch = values.transpose(2, 0, 1)[None].astype(np.float16 if self.half else np.float32)
        found = np.asarray(self.session.run([self.output], {self.input: batch})[0], dtype=np.float32)
        flat = found.reshape([side for side in found.shape if side != 1] or [1, 1])
        if flat.ndim != 2:
            raise BokehError(
                f"The network's output {self.output} has the shape {list(found.shape)}; expected one map."
            )
        return np.asarray(
            Image.fromarray(flat).resize(picture.size, Image.Resampling.BILINEAR), dtype=np.float32
        )


def _size(file: str, shape: list[int | str], wanted: str) -> tuple[int, int]:
    height, width = shape[2], shape[3]
    fixed = isinstance(height, int) and isinstance(width, int)
    if not wanted:
        if not fixed:
            raise BokehError(f"{file} takes pictures of any size; say which by size=WIDTHxHEIGHT.")
        return int(width), int(height)
    parts = wanted.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and 0 < int(part) <= 4096 for part in parts):
        raise BokehError(f"size={wanted} is no size; write size=WIDTHxHEIGHT.")
    chosen = int(parts[0]), int(parts[1])
    if fixed and chosen != (width, height):
        raise BokehError(f"{file} takes pictures of {width} x {height} only, not {wanted}.")
    return chosen
