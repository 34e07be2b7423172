"""Networks of others that find the main thing: those that segment, of ``transformers``, and ONNX files.

They see the picture alone, and know no scale of the focus distance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BokehError
from ..onnx_network import OnnxPictures
from ..pretrained import Pretrained, Task, as_pillow, load_pretrained, pixel_values

BACKGROUND = ("background", "unlabeled", "void")
"""Labels, in small letters, of what is not the main thing."""

_SEGMENTATION = Task(
    "semantic-segmentation",
    "AutoModelForSemanticSegmentation",
    "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
    "Segmentation",
    ("segformer", "upernet", "beit", "dpt"),
    "Take one that is; of BiRefNet and RMBG take the .onnx file.",
)
_WORKING = 500  # bytes in use for each byte of a picture that a network sees
_NEAR = 0.01  # beyond 0..1, by which rounding and resizing may take values that are no logits
_SHOWN = 12  # labels in an error


class Segmentation(nn.Module):
    """A model for semantic segmentation: saliency is what is not background.

    Args:
        model: of ``transformers``.

    Raises:
        BokehError: it has several labels, and none of them is the background's.
    """

    def __init__(self, model: Pretrained) -> None:
        super().__init__()
        # Inside, as the library's networks have a ``device`` that cannot be set, which the host does.
        self.network, self._processor, self._name = model.network, model.processor, model.name
        if getattr(self._processor, "do_center_crop", False):  # what is cut off would have no saliency
            self._processor.do_center_crop, self._processor.size = False, self._processor.crop_size
        labels: dict[int, str] = self.network.config.id2label
        self._background = [index for index, label in labels.items() if label.strip().lower() in BACKGROUND]
        if len(labels) > 1 and not self._background:
            more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
            raise BokehError(
                f"{model.name} has no label for the background, so what is not the main thing is not known: it has "
                f"{', '.join(list(labels.values())[:_SHOWN])}{more}; expected one called {', '.join(BACKGROUND)}. Use "
                "a model that has one, or, if one of these is the background, call it so in id2label of its "
                "config.json."
            )

    def find(self, pictures: Tensor, disparity: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :class:`.main_thing.Finder` has it: 1 - p(background), of one channel the sigmoid."""
        shown = pictures[0]
        if shown.shape[1] < 4:  # the library would take three rows, or one, for the channels
            shown = shown.repeat_interleave(4, 1).repeat_interleave(4, 2)
        pixels = pixel_values(self._processor, as_pillow(shown), self._name)
        logits = self.network(pixel_values=pixels.to(next(self.network.parameters()))).logits.float()
        if logits.ndim != 4 or len(logits) != 1 or logits.shape[1] != len(self.network.config.id2label):
            raise BokehError(
                f"{self._name} put out {tuple(logits.shape)} for one picture; expected "
                f"[1, {len(self.network.config.id2label)}, h, w], a channel for each label."
            )
        if logits.shape[1] == 1:
            return _of_size(logits.sigmoid(), pictures), logits.new_ones(1)
        background = logits.softmax(1)[:, self._background].sum(1, keepdim=True)
        return _of_size(1 - background, pictures), logits.new_ones(1)

    @property
    def working_memory(self) -> int:
        """As :class:`.main_thing.Finder` has it."""
        size: Any = getattr(self._processor, "size", None) or {}
        height, width = (size.get(side) or 512 for side in ("height", "width"))
        return _WORKING * 3 * 4 * height * width


class OnnxSaliency(nn.Module):
    """An ONNX network whose first output is a map, of logits or of 0..1.

    Args:
        pictures: the network.
    """

    def __init__(self, pictures: OnnxPictures) -> None:
        super().__init__()
        self._pictures = pictures

    def find(self, pictures: Tensor, disparity: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :class:`.main_thing.Finder` has it."""
        found = self._pictures(pictures[0])
        if found.ndim not in (3, 4) or found.shape[:-2].numel() != 1 or 0 in found.shape:
            network = self._pictures.network
            raise BokehError(
                f"{network.path} put out {tuple(found.shape)} as {network.outputs[0]} for one picture; expected a map "
                "[1, 1, h, w] or [1, h, w]."
            )
        values = found.float().reshape(1, 1, *found.shape[-2:])
        if float(values.min()) < -_NEAR or float(values.max()) > 1 + _NEAR:
            values = values.sigmoid()
        return _of_size(values, pictures), torch.ones(1)

    @property
    def working_memory(self) -> int:
        """As :class:`.main_thing.Finder` has it: the weights are not the module's, so they count here."""
        network = self._pictures.network
        if not network.accelerated:
            return 0
        height, width = self._pictures.size(1024, 1024)
        return network.path.stat().st_size + _WORKING * 3 * 4 * height * width


def read_segmentation(folder: Path) -> Segmentation:
    """A model for semantic segmentation from its folder, on the CPU.

    Raises:
        BokehError: as :func:`bokeh_ops.pretrained.load_pretrained` does, and a model without a background.
    """
    return Segmentation(load_pretrained(folder, _SEGMENTATION))


def read_onnx_saliency(path: Path, accelerated: bool = False) -> OnnxSaliency:
    """An ONNX network and the JSON file beside it.

    Args:
        path: of the ``.onnx`` file.
        accelerated: as :class:`bokeh_ops.onnx_network.OnnxNetwork` takes it.

    Raises:
        BokehError: as :class:`bokeh_ops.onnx_network.OnnxPictures` does.
    """
    return OnnxSaliency(OnnxPictures(path, accelerated))


def _of_size(maps: Tensor, pictures: Tensor) -> Tensor:
    """``[1, 1, h, w]`` as ``[1, H, W]``, 0..1, of the pictures' size."""
    if maps.shape[2:] != pictures.shape[2:]:
        maps = F.interpolate(maps, pictures.shape[2:], mode="bilinear", antialias=True)
    return maps[:, 0].clamp(0, 1)
