"""Folders of pairs: sharp pictures, the same with a wide aperture, and disparity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from bokeh_ops.depth.conventions import DepthKind, DepthRange, fit_to_image, to_depth_map
from bokeh_ops.depth.files import load_depth
from bokeh_ops.errors import BokehError
from trainer.measure.sweeps import SUFFIXES, read_picture

_FOLDERS = ("original", "bokeh", "disparity")


@dataclass(frozen=True)
class Pair:
    """One scene photographed twice."""

    name: str
    original: Path
    bokeh: Path
    disparity: Path

    def load(self, side: int | None = None, inverted: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The sharp picture and the blurred one, ``[3, H, W]``, sRGB values 0..1; disparity ``[H, W]``, 0..1.

        Args:
            side: longest side to reduce to.
            inverted: far is bright in the map.

        Raises:
            BokehError: a file cannot be read, or the two pictures differ in size.
        """
        original, bokeh = read_picture(self.original), read_picture(self.bokeh)
        if original.shape != bokeh.shape:
            raise BokehError(
                f"{self.original} is {original.shape[2]} x {original.shape[1]} but {self.bokeh} is "
                f"{bokeh.shape[2]} x {bokeh.shape[1]}; the pictures of a pair must be of one size."
            )
        factor = side / max(original.shape[1:]) if side else 1.0
        if factor < 1:
            size = [max(1, round(length * factor)) for length in original.shape[1:]]
            original, bokeh = (
                F.interpolate(each[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
                for each in (original, bokeh)
            )
        kind = DepthKind.INVERTED if inverted else DepthKind.DISPARITY
        try:
            disparity = to_depth_map(load_depth(self.disparity), kind, DepthRange.NORMALISE).disparity
        except BokehError as error:
            raise BokehError(f"{self.disparity}: {error}") from error
        return original, bokeh, fit_to_image(disparity, 1, original.shape[1], original.shape[2])[0, 0]


def find_pairs(folder: Path) -> list[Pair]:
    """Every pair of a folder, by name.

    Raises:
        BokehError: a folder is missing or empty, or a picture lacks its counterpart.
    """
    found: list[dict[str, Path]] = []
    for name in _FOLDERS:
        inside = folder / name
        if not inside.is_dir():
            raise BokehError(f"There is no folder {inside}; expected {', '.join(_FOLDERS)} in {folder}.")
        files = [each for each in sorted(inside.iterdir()) if each.suffix.lower() in SUFFIXES]
        stems = [each.stem for each in files]
        twice = next((stem for stem in stems if stems.count(stem) > 1), None)
        if twice is not None:
            raise BokehError(f"{inside} has several pictures named {twice!r}.")
        found.append(dict(zip(stems, files, strict=True)))
    original, bokeh, disparity = found
    if not original:
        raise BokehError(f"{folder / 'original'} holds no pictures ({', '.join(sorted(SUFFIXES))}).")
    for name, others in (("bokeh", bokeh), ("disparity", disparity)):
        missing = sorted(set(original) - set(others))
        if missing:
            raise BokehError(
                f"{folder / name} lacks {', '.join(missing[:4])}{' and others' if len(missing) > 4 else ''}, which "
                f"{folder / 'original'} has."
            )
    return [Pair(name, original[name], bokeh[name], disparity[name]) for name in sorted(original)]


def align_mean(picture: Tensor, reference: Tensor) -> Tensor:
    """``picture`` times what makes its mean that of ``reference``, clipped to 0..1: the two exposures made equal."""
    return (picture * (reference.mean() / picture.mean().clamp(min=1e-6))).clamp(0, 1)


def focus_of(original: Tensor, blurred: Tensor, disparity: Tensor) -> float:
    """The disparity that a photograph is focused on: where it kept most of the detail that the sharp one has.

    Detail is the energy of the grey picture's gradient in windows of 15 pixels. Of the pixels with more detail than
    the median, the tenth that kept the largest share is taken, and of those the median disparity.

    Args:
        original: ``[3, H, W]``.
        blurred: of the same shape.
        disparity: ``[H, W]``.
    """

    def detail(picture: Tensor) -> Tensor:
        grey = picture.mean(0)
        rows = (grey[1:, :-1] - grey[:-1, :-1]) ** 2
        columns = (grey[:-1, 1:] - grey[:-1, :-1]) ** 2
        padded = F.pad((rows + columns)[None, None], (0, 1, 0, 1))
        return F.avg_pool2d(padded, 15, stride=1, padding=7)[0, 0]

    there = detail(original)
    kept = detail(blurred) / there.clamp(min=1e-8)
    textured = there > there.median()
    if not bool(textured.any()):
        return float(disparity.median())
    least = kept[textured].topk(max(1, int(textured.sum()) // 10)).values.min()
    return float(disparity[textured & (kept >= least)].median())
