"""What a generated sweep should look like: its picture at K = 0, rendered at the other K by its depth."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bokeh_ops.camera.optics import k_at_width
from bokeh_ops.errors import BokehError
from bokeh_ops.render import DEFAULT_MODEL
from trainer.data.pairs.render import render_set
from trainer.data.prepare.annotate import maps_of
from trainer.data.prepare.focus import INSIDE, focus_from_foreground
from trainer.data.prepare.providers import Photograph, make_providers
from trainer.data.prepare.record import Item, Record
from trainer.data.prepare.rejection import Rejected
from trainer.data.prepare.settings import Settings
from trainer.data.prepare.sources import PICTURES
from trainer.data.sample import Sample
from trainer.measure.pictures import write_png
from trainer.measure.report import write_json


class Renderer:
    """Renders references, by the depth and the foreground that providers of `prepare` see in the sharp picture.

    The focus is where `prepare` would find it: at the median distance of the nearest part of the foreground.

    Args:
        depth, mask: providers.
        kind, scale, normalise: what the depth's values mean.

    Raises:
        BokehError: a provider that does not exist.
    """

    def __init__(self, depth: str, kind: str, scale: float, normalise: bool, mask: str) -> None:
        self.settings = Settings(
            depth=depth, depth_kind=kind, depth_scale=scale, depth_normalise=normalise, mask=mask, captions=()
        )
        self.providers = make_providers(self.settings)

    def record(self) -> dict[str, Any]:
        """What decides the references."""
        settings = self.settings
        return {
            "depth": settings.depth,
            "depth_kind": settings.depth_kind,
            "depth_scale": settings.depth_scale,
            "depth_normalise": settings.depth_normalise,
            "mask": settings.mask,
            "lens": DEFAULT_MODEL,
        }

    def render(self, sharp: Path, images: Sequence[dict[str, Any]], folder: Path, focus: Path) -> str:
        """Render one scene.

        Args:
            sharp: the picture at K = 0.
            images: entries of ``sweep.json``: ``file`` and ``k``, counted at a width of 512 pixels.
            folder: of the reference.
            focus: where the map of what is in focus goes.

        Returns:
            Name of that map.

        Raises:
            BokehError: no depth or no foreground could be had of the picture.
        """
        with Image.open(sharp) as file:
            picture = file.convert("RGB")
        photograph = Photograph(sharp.stem, picture, None, Record(Item(str(sharp), sharp), PICTURES), {})
        try:
            disparity, mask = maps_of(photograph, self.providers, self.settings)
            distance = focus_from_foreground(disparity, mask).distance
        except Rejected as rejected:
            raise BokehError(
                f"No reference can be rendered from {sharp}: {rejected.reason} ({rejected.detail}). Choose another "
                "--depth or --mask, or leave --depth out."
            ) from rejected
        sample = Sample(sharp.stem, np.array(picture), disparity, mask, (), 0.0, True, {"s1_m": distance})
        own = [float(k_at_width(image["k"], max(picture.size))) for image in images]
        folder.mkdir(parents=True, exist_ok=True)
        for image, rendered in zip(images, render_set(sample, own), strict=True):
            write_png(folder / image["file"], torch.from_numpy(rendered).float() / 255)
        inside = torch.from_numpy((mask > INSIDE).astype(np.float32))
        write_png(focus, inside[..., None].expand(-1, -1, 3))
        write_json(folder / "sweep.json", {"images": list(images), "focus": focus.name, "focus_m": distance})
        shutil.copy(focus, folder / focus.name)
        return focus.name
