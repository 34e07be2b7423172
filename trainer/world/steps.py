"""What generators of few steps are worth: pictures of held-out captions beside their teacher's, and renders."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bokeh_ops.picture.sheet import contact_sheet
from trainer.files import replace_text
from trainer.measure.metrics import frechet_distance
from trainer.recipes.bokeh.samples import large_enough, write_png
from trainer.world.base import blur_words
from trainer.world.data import scene_sample
from trainer.world.mask import MainThing
from trainer.world.paint import SIDE
from trainer.world.scene import HELD_OUT, caption, draw_scene

SHOWN = 8
"""Captions on the sheet."""


@dataclass(frozen=True)
class Way:
    """One way to make pictures.

    Attributes:
        model: a :class:`~bokeh_ops.host.small.model.SmallModel`.
        steps, cfg, sampler: of the host, with its scheduler ``simple``.
        told: words after the caption.
    """

    model: Any
    steps: int
    cfg: float
    sampler: str
    told: str = ""

    def picture(self, seed: int, told: str | None = None) -> Tensor:
        """Of the caption of a scene, with the noise of the scene's seed, ``[1, S, S, 3]``, 0..1.

        Args:
            seed: of the scene.
            told: other words after the caption than the way's own.
        """
        from bokeh_ops.host.small.model import sample_texts

        text = f"{caption(draw_scene(seed))} {self.told if told is None else told}".strip()
        size = (SIDE, SIDE)
        return sample_texts(self.model, [text], seed, size, self.steps, self.cfg, self.sampler, "simple")


def ways(teacher: Any, generators: Mapping[str, Any], steps: int = 4) -> dict[str, Way]:
    """The teacher as it is used, the teacher in few steps, and the generators."""
    usual = teacher.architecture.sampling
    cfg = min(usual.cfg, 3.0)
    found = {f"teacher, {count} steps": Way(teacher, count, cfg, usual.sampler) for count in (20, steps)}
    # What the generators have learnt of their sharp pictures, words can ask of the teacher.
    found["teacher, 20 steps, told"] = Way(teacher, 20, cfg, usual.sampler, blur_words(0.0))
    found[f"teacher, {steps} steps of lcm"] = Way(teacher, steps, 1.0, "lcm")
    return found | {
        f"{name}, {steps} steps": Way(model, steps, 1.0, "lcm") for name, model in generators.items()
    }


def renders(seeds: Sequence[int]) -> Tensor:
    """Scenes that are all in focus, ``[N, S, S, 3]``, 0..1."""
    return torch.stack(
        [torch.from_numpy(scene_sample(draw_scene(seed, sharp=True)).image).float() / 255 for seed in seeds]
    )


def measure(
    folder: Path, compared: Mapping[str, Way], network: MainThing, scenes: int, reference: int
) -> dict[str, tuple[float, float | None]]:
    """Sample captions of held-out scenes every way, and compare them with sharp renders.

    Args:
        folder: for ``steps.png``, the first captions every way, and ``steps.md``, the table.
        compared: the ways.
        network: whose features are compared.
        scenes: pictures of each way, and of the renders that show what perfect pictures would have.
        reference: renders of other held-out scenes that all are compared with.

    Returns:
        For each way, and for ``renders``, the Frechet distance and seconds for a picture.
    """
    seeds = range(HELD_OUT, HELD_OUT + scenes)
    true = renders(seeds)
    others = _features(network, renders(range(HELD_OUT + scenes, HELD_OUT + scenes + reference)))
    found: dict[str, tuple[float, float | None]] = {
        "renders": (frechet_distance(_features(network, true), others), None)
    }
    shown = [true[:SHOWN]]
    for name, way in compared.items():
        began = time.monotonic()
        pictures = torch.cat([way.picture(seed) for seed in seeds])
        seconds = (time.monotonic() - began) / scenes
        found[name] = (frechet_distance(_features(network, pictures), others), seconds)
        shown.append(pictures[:SHOWN])
    sheet = contact_sheet(large_enough(torch.cat(shown)), list(found), columns=len(found), cell_size=192)[0]
    write_png(folder / "steps.png", sheet)
    replace_text(folder / "steps.md", markdown(found))
    return found


def _features(network: MainThing, pictures: Tensor) -> Tensor:
    return network.features(pictures.movedim(-1, 1))


def markdown(found: Mapping[str, tuple[float, float | None]]) -> str:
    """A table of what :func:`measure` found."""
    lines = ["| | Frechet distance | seconds for a picture |", "|---|---|---|"]
    for name, (distance, seconds) in found.items():
        lines.append(f"| {name} | {distance:.3f} | {'' if seconds is None else f'{seconds:.2f}'} |")
    return "\n".join(lines) + "\n"
