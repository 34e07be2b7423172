"""What comes with the extension to try it with: small models with their bokeh adapters, and photographs with depth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...depth.conventions import DepthKind, DepthMap, DepthRange, to_depth_map
from ...depth.files import load_depth
from ...errors import BokehError
from ..notices import say

ASSETS = Path(__file__).resolve().parents[3] / "workflows" / "assets"
"""Pictures: ``NAME.jpg``, its disparity ``NAME_disparity.png``, perhaps a mask ``NAME_subject.png``."""
FOLDER = ASSETS / "world"
"""Models: ``NAME.safetensors`` with ``NAME_adapter.safetensors``, and generators ``NAME_few_steps.safetensors``."""
DEPTH = FOLDER / "depth"
"""The model that finds depth in their pictures, as :func:`bokeh_ops.depth.estimate.load_estimator` takes it."""
_ADAPTER, _FEW = "_adapter", "_few_steps"


def demo_names() -> list[str]:
    """Their names: the files' without the ending."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors") if not path.stem.endswith(_ADAPTER))


def demo_path(name: str, adapter: bool = False) -> Path:
    """The file of a demo model, or of its adapter.

    Raises:
        BokehError: there is none; the message names the folder searched and what is in it.
    """
    path = FOLDER / f"{name}{_ADAPTER if adapter else ''}.safetensors"
    if name not in demo_names() or not path.is_file():
        have = ", ".join(sorted(path.name for path in FOLDER.glob("*.safetensors"))) or "none"
        raise BokehError(
            f"No demo model {name!r}: searched {FOLDER} for {path.name} and found {have}. They come with the "
            "extension: update it, or copy that folder again."
        )
    return path


def load_demo(name: str, adapter: bool = True, node_id: str | None = None) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a demo model.

    Args:
        name: of :func:`demo_names`.
        adapter: lay its bokeh adapter on, if it is a model with one.
        node_id: the node to speak through while sampling.

    Raises:
        BokehError: there is none of that name.
    """
    from ...adapter.files import read_adapter
    from ..adapter.apply import apply_adapter
    from .model import read_small, small_clip, small_vae

    model = read_small(demo_path(name))
    patcher = model.patcher
    if adapter and name.endswith(_FEW):
        say(
            f"{name} has no bokeh adapter: what it makes is all in focus. Blur it with Lens Blur from Depth, or take "
            f"{name.removesuffix(_FEW)} for K by an adapter.",
            node_id,
        )
    elif adapter:
        path = demo_path(name, adapter=True)
        patcher = apply_adapter(patcher, read_adapter(path), name=path.name, node_id=node_id)
    return patcher, small_clip(model), small_vae(model)


@dataclass(frozen=True)
class _Scene:
    """What is known of a picture: dioptres that white of its disparity is, and its focal length in its own widths."""

    white: float
    focal: float
    ending: str = ".jpg"


PICTURES = {
    "pug": _Scene(8.0, 26 / 43.267 * 1.25),
    "evening": _Scene(2.5, 50 / 36),
    "post": _Scene(4.0, 50 / 36, ".png"),
}
"""A photograph by a phone, a balcony drawn by a program, and a scene of the demo models' world (NOTICE.md beside)."""


def load_demo_picture(name: str) -> tuple[Tensor, DepthMap, Tensor]:
    """A picture ``[1, H, W, 3]`` 0..1, its depth in dioptres, and a mask ``[1, H, W]`` of its subject (0: none drawn).

    Args:
        name: of :data:`PICTURES`.

    Raises:
        BokehError: there is none of that name, or its files are missing.
    """
    if name not in PICTURES:
        raise BokehError(f"No demo photograph {name!r}; expected one of {', '.join(PICTURES)}.")
    scene = PICTURES[name]
    paths = [ASSETS / f"{name}{ending}" for ending in (scene.ending, "_disparity.png", "_subject.png")]
    for path in paths[:2]:
        if not path.is_file():
            raise BokehError(
                f"The demo photograph lacks its file {path}. It comes with the extension: update it, or copy that "
                "folder again."
            )
    image = _read(paths[0], "RGB")
    depth = to_depth_map(load_depth(paths[1]), DepthKind.DISPARITY, DepthRange.SCALE, scene.white)
    height, width = image.shape[1:3]
    subject = torch.zeros(1, height, width)
    if paths[2].is_file():
        subject = torch.nn.functional.interpolate(
            _read(paths[2], "L")[None], (height, width), mode="bilinear", antialias=True
        )[0]
    return image, replace(depth, focal_pixels=scene.focal * depth.disparity.shape[3]), subject


def _read(path: Path, mode: str) -> Tensor:
    with Image.open(path) as file:
        return torch.from_numpy(np.asarray(file.convert(mode), dtype=np.float32) / 255)[None]
