"""An ONNX file that looks at pictures, and the JSON file beside it that says how it is shown them.

The file takes one picture ``[1, 3, h, w]``. The JSON has the file's own name but for the ending, and all of it is
optional: ``{"size": [height, width], "scale": 255, "mean": [...], "std": [...]}``, so that the input is
``(values 0..255 / scale - mean) / std``. Unless told, that is 255 with ImageNet's mean and deviation, and the size is
the file's own, or that of the picture rounded to a multiple of 32.

The package onnxruntime, which ComfyUI does not bring, is imported when a file is opened, and not before.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BokehError

if TYPE_CHECKING:  # those who bring pictures of their own as arrays do not wait for it
    from torch import Tensor

_IMAGENET = {"scale": 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


class OnnxNetwork:
    """A network of one picture.

    Args:
        path: of the file.
        accelerated: it may be computed where onnxruntime's installation can best, not on the CPU alone.

    Attributes:
        path: of the file.
        size: height and width that it takes; None for any.
        outputs: names, the first first.
        accelerated: whether it is computed on more than the CPU.

    Raises:
        BokehError: no onnxruntime, no such file, no network, or one that takes anything but a picture.
    """

    def __init__(self, path: str | Path, accelerated: bool = False) -> None:
        self.path = Path(path)
        try:
            import onnxruntime
        except ImportError as error:
            raise BokehError(
                f"{path} needs the package onnxruntime, which is not installed. Install it for the Python that runs "
                "this (pip install onnxruntime; onnxruntime-gpu computes on NVIDIA's GPUs), or choose a "
                "network that is no .onnx file."
            ) from error
        if not self.path.is_file():
            raise BokehError(f"There is no ONNX file {path}.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0").partition(",")[0])
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        if accelerated:  # TensorRT would build an engine of its own for minutes, for every size of picture
            found = onnxruntime.get_available_providers()
            providers = [each for each in found if "tensorrt" not in each.lower()]
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:
            _check_is_its_own(error)
            raise BokehError(f"{path} cannot be loaded as an ONNX network: {error}") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[1] not in (3, "3"):
            shapes = ", ".join(f"{each.name} {each.shape}" for each in inputs)
            raise BokehError(f"{path} takes {shapes}; expected one picture [1, 3, height, width].")
        height, width = inputs[0].shape[2:]
        self._input, self._type = inputs[0].name, np.float16 if "float16" in inputs[0].type else np.float32
        self.size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        self.outputs = [each.name for each in self._session.get_outputs()]
        self.accelerated = self._session.get_providers()[0] not in (
            "CPUExecutionProvider",
            "AzureExecutionProvider",
        )

    def run(self, batch: np.ndarray, output: str | None = None) -> np.ndarray:
        """What the network makes of a picture, as fp32 where it is floating point.

        Args:
            batch: ``[1, 3, h, w]``, in the values that it was trained on.
            output: one of ``outputs``; the first by default.

        Raises:
            BokehError: it cannot be computed.
        """
        try:
            (made,) = self._session.run([output or self.outputs[0]], {self._input: batch.astype(self._type)})
        except Exception as error:
            _check_is_its_own(error)
            height, width = batch.shape[2:]
            raise BokehError(f"{self.path} failed on a picture of {width} x {height}: {error}") from error
        found = np.asarray(made)
        return found.astype(np.float32) if np.issubdtype(found.dtype, np.floating) else found


class OnnxPictures:
    """A network that is shown pictures as the JSON file beside it says.

    Args:
        path: of the network.
        accelerated: as :class:`OnnxNetwork` takes it.

    Raises:
        BokehError: as :class:`OnnxNetwork` does, and a JSON file that cannot be read or says something else.
    """

    def __init__(self, path: Path, accelerated: bool = False) -> None:
        self.network = OnnxNetwork(path, accelerated)
        self._settings = _settings(path)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which it sees a picture of this height and width."""
        told = self._settings.get("size") or self.network.size
        if told:
            return told[0], told[1]
        return max(32, round(height / 32) * 32), max(32, round(width / 32) * 32)

    def __call__(self, picture: Tensor) -> Tensor:
        """The network's first output for a picture.

        Args:
            picture: ``[3, H, W]``, 0..1.

        Raises:
            BokehError: it cannot be computed.
        """
        import torch
        import torch.nn.functional as F

        size = self.size(*picture.shape[1:])
        given = F.interpolate(picture[None].float().cpu(), size, mode="bilinear", antialias=True)[0]
        mean, std = (torch.tensor(self._settings[key]).float().view(3, 1, 1) for key in ("mean", "std"))
        given = (given * 255 / self._settings["scale"] - mean) / std
        return torch.from_numpy(self.network.run(given[None].numpy()))


def _check_is_its_own(error: Exception) -> None:
    """Raise on what onnxruntime has not raised: its exceptions have no common base of their own."""
    if not type(error).__module__.startswith("onnxruntime"):
        raise error


def _settings(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return dict(_IMAGENET)
    try:
        own = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BokehError(f"{beside} cannot be read as JSON: {error}.") from error
    unknown = set(own) - {"size", *_IMAGENET} if isinstance(own, dict) else {"..."}
    if unknown:
        raise BokehError(
            f"{beside}: unknown {', '.join(sorted(unknown))}; expected size, scale, mean and std."
        )
    settings = {**_IMAGENET, **own}
    good = isinstance(settings["scale"], (int, float)) and settings["scale"] > 0
    for key, count, kind in (("mean", 3, (int, float)), ("std", 3, (int, float)), ("size", 2, int)):
        value = settings.get(key, [32] * count)
        good &= isinstance(value, list) and len(value) == count and all(isinstance(v, kind) for v in value)
    good = good and all(each > 0 for each in [*settings["std"], *settings.get("size", [])])
    if not good:
        raise BokehError(
            f"{beside}: expected mean and std as lists of three numbers, scale and std above 0, and size as "
            "[height, width]."
        )
    return settings
