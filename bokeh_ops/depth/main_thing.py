"""The main thing of pictures: what may find it, and pictures one after another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..errors import BokehError
from .focus_transformer import read_focus_transformer
from .saliency import read_onnx_saliency, read_segmentation


class Finder(Protocol):
    """A network that finds the main thing; a ``torch.nn.Module`` too, so that it can be moved."""

    @property
    def working_memory(self) -> int:
        """Bytes in use while it looks at a picture, beside the picture and its map, on the device that it is put on."""
        ...

    def find(self, pictures: Tensor, disparity: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What it makes of one picture, where the network is.

        Args:
            pictures: ``[1, 3, H, W]`` as displayed, 0..1, of any size, on any device.
            disparity: ``[1, 1, h, w]``, finite, larger is nearer, in any unit; None where it is not known. Not every
                network looks at it.

        Returns:
            Saliency ``[1, H, W]``, 0..1, and the scale of the focus distance ``[1]``, 1 where it has not learnt one.

        Raises:
            BokehError: a picture that it cannot look at, or what it puts out is no saliency.
        """
        ...


def read_finder(path: str | Path, accelerated: bool = False) -> Finder:
    """What finds the main thing, from its file or folder: on the CPU, without gradients.

    Args:
        path: a folder of ``transformers`` (a model for semantic segmentation), an ``.onnx`` file, or a focus
            transformer, as ``python -m trainer focus`` writes it.
        accelerated: an ONNX network, which nothing moves afterwards, may be computed on more than the CPU.

    Raises:
        BokehError: as :func:`.saliency.read_segmentation`, :func:`.saliency.read_onnx_saliency` and
            :func:`.focus_transformer.read_focus_transformer` do.
    """
    path = Path(path)
    if path.is_dir():
        return read_segmentation(path)
    if path.suffix.lower() == ".onnx":
        return read_onnx_saliency(path, accelerated)
    return read_focus_transformer(path)


@torch.no_grad()
def find_main_thing(
    network: Finder,
    pictures: Tensor,
    disparity: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Saliency and scale of pictures, one after another, where the network is.

    Args:
        network: as :func:`read_finder` gives it.
        pictures: ``[B, C, H, W]`` as displayed, 0..1, C = 1, 3 or 4 (alpha is not looked at).
        disparity: ``[B or 1, 1, h, w]``, finite, larger is nearer, in any unit; None where it is not known.
        progress: called as ``progress(done, total)`` before each picture and at the end; may raise to stop.

    Returns:
        Saliency ``[B, H, W]``, 0..1, and scale ``[B]``, both fp32 on the CPU.

    Raises:
        BokehError: other shapes, depth that is not finite, or a network whose answer is not.
    """
    if pictures.ndim != 4 or 0 in pictures.shape or pictures.shape[1] not in (1, 3, 4):
        raise BokehError(
            f"Expected pictures [B, C, H, W] with 1, 3 or 4 channels; got {tuple(pictures.shape)}."
        )
    if disparity is not None and len(disparity) not in (1, len(pictures)):
        raise BokehError(
            f"There are {len(disparity)} depth maps for {len(pictures)} images; give one, or one per image."
        )
    if disparity is not None and not bool(torch.isfinite(disparity).all()):
        raise BokehError(
            "The depth map has values that are NaN or infinite; expected disparity, in which infinitely far is 0. Fill "
            "in what is not known."
        )
    saliency = torch.empty(len(pictures), *pictures.shape[2:])
    scale = torch.empty(len(pictures))
    for row, picture in enumerate(pictures):
        if progress:
            progress(row, len(pictures))
        own = picture[None, :3].expand(-1, 3, -1, -1).float().nan_to_num(0.0).clamp(0, 1)
        depth = None if disparity is None else disparity[row % len(disparity)][None]
        found, its_scale = network.find(own, depth)
        if not bool(torch.isfinite(found).all()):
            raise BokehError(
                "The network put out NaN or infinity for a picture. Its weights are damaged, or the values that it "
                "is shown are not those that it was trained on."
            )
        saliency[row], scale[row] = found[0], its_scale[0]
    if progress:
        progress(len(pictures), len(pictures))
    return saliency, scale
