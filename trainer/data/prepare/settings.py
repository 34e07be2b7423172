"""How photographs are looked at: everything that decides what stage one makes of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from bokeh_ops.errors import BokehError

CROPS = ("foreground", "centre")
OWN_KIND = "model"
"""What the depth's values mean is known from the model that gives them."""
DEPTH_KINDS = ("metric", "disparity", "inverted", OWN_KIND)
KNOWING = "transformers:"
"""How words of providers begin that know what their values mean."""


def kind_of(depth: str, declared: str | None) -> str | None:
    """What depth's values mean: as declared, else as the model that gives them knows; None where nobody does.

    Args:
        depth: the provider's word.
        declared: one of ``DEPTH_KINDS``.
    """
    return declared or (OWN_KIND if depth.startswith(KNOWING) else None)


@dataclass(frozen=True)
class Settings:
    """Settings of stage one. Photographs prepared with different ones do not mix.

    Attributes:
        resolution: width and height of the training pictures, in pixels.
        crop: ``"foreground"`` puts the crop over the foreground, ``"centre"`` in the middle.
        picture: ``"jpg"`` or ``"png"``.
        depth: where depth comes from (:mod:`trainer.data.prepare.providers`).
        depth_kind: what its values mean: ``"metric"`` (distance), ``"disparity"`` (near is large), ``"inverted"``
            (0 near, 1 far) or ``"model"`` (what the model of ``transformers`` says it gives).
        depth_normalise: stretch every map to 0..1 first; it has no units of its own.
        depth_scale: metres at value 1 for ``"metric"``, else dioptres at value 1.
        depth_offset: dioptres to be added.
        mask: where the foreground comes from.
        captions: where captions come from; all are kept.
        nearest: share of the foreground, from its nearest point on, whose median distance is the focus.
        flat: a foreground whose distances differ by no more than this factor is treated as one distance.
        subject_distance: take the camera's own SubjectDistance as the focus where it is there.
        smartphones: whether they are taken.
        min_foreground: least share of the crop that must be foreground.
        max_foreground: most.
        min_depth_range: least difference of disparity in the crop, dioptres, between its 2nd and 98th percentile.
        max_k: largest K.
        sharp_radius: largest blur radius, in pixels, of what counts as all in focus.
        sharp_exposure: longest exposure, in seconds, of what counts as all in focus.
        min_side: least short side of a photograph in pixels; 0 is that of the training resolution.
        max_aspect: largest ratio of its sides.
        max_megapixels: largest photograph that is decoded whole; a baseline JPEG may have eight times as many,
            being decoded at a reduced size.
        source: what is noted as the source of a photograph that does not tell its own.
        licence: likewise, its licence.
    """

    resolution: tuple[int, int] = (512, 512)
    crop: str = "foreground"
    picture: str = "jpg"
    depth: str = "files"
    depth_kind: str = "metric"
    depth_normalise: bool = False
    depth_scale: float = 1.0
    depth_offset: float = 0.0
    mask: str = "files"
    captions: tuple[str, ...] = ("files",)
    nearest: float = 0.25
    flat: float = 1.25
    subject_distance: bool = False
    smartphones: bool = False
    min_foreground: float = 0.05
    max_foreground: float = 0.8
    min_depth_range: float = 0.1
    max_k: float = 30.0
    sharp_radius: float = 1.0
    sharp_exposure: float = 0.1
    min_side: int = 0
    max_aspect: float = 2.4
    max_megapixels: float = 100.0
    source: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        def check(holds: bool, name: str, expected: str) -> None:
            if not holds:
                raise BokehError(f"{name.replace('_', '-')} is {getattr(self, name)!r}; expected {expected}.")

        check(
            all(side >= 64 and side % 8 == 0 for side in self.resolution),
            "resolution",
            "multiples of 8 from 64",
        )
        check(self.crop in CROPS, "crop", " or ".join(CROPS))
        check(self.depth_kind in DEPTH_KINDS, "depth_kind", ", ".join(DEPTH_KINDS))
        check(
            self.depth_kind != OWN_KIND or self.depth.startswith(KNOWING),
            "depth_kind",
            f"another kind, as only depth by {KNOWING}MODEL knows its own",
        )
        check(self.depth_scale > 0, "depth_scale", "a number above 0")
        check(0 < self.nearest <= 1, "nearest", "a share above 0, at most 1")
        check(self.flat >= 1, "flat", "a ratio of 1 or more")
        check(
            0 <= self.min_foreground < self.max_foreground <= 1,
            "min_foreground",
            "below max-foreground, in 0..1",
        )
        check(self.min_depth_range >= 0, "min_depth_range", "0 or more dioptres")
        check(self.max_k > 0, "max_k", "a number above 0")
        check(self.max_aspect >= 1, "max_aspect", "1 or more")
        check(self.max_megapixels > 0, "max_megapixels", "a number above 0")

    @property
    def shortest(self) -> int:
        """Least short side of a photograph in pixels."""
        return self.min_side or min(self.resolution)

    def to_json(self) -> dict[str, Any]:
        """As kept beside what was made with them."""
        return {**asdict(self), "resolution": list(self.resolution), "captions": list(self.captions)}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two settings' JSON, one line each: ``name: old -> new``."""
    names = [each.name for each in fields(Settings)]
    names += sorted((set(old) | set(new)) - set(names))
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in dict.fromkeys(names)
        if old.get(name) != new.get(name)
    ]
