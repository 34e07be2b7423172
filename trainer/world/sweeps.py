"""Sweeps of held-out captions through grounded sampling, in the folders that ``evaluate images`` measures.

A scene is a caption of the world and a seed of the noise, neither of them trained on. What it should look like at
each K is rendered from the world itself (:func:`write_reference`); the generated scene is another one with the same
caption, so only trends are compared, never pixels. What is in focus is known in a render; in a generated picture it is
found by a network (:mod:`trainer.world.mask`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bokeh_ops.errors import BokehError
from bokeh_ops.numbers import format_value
from bokeh_ops.picture.colour import match_lab
from trainer.files import replace_text
from trainer.measure.sweeps import read_picture
from trainer.recipes.bokeh.samples import write_png
from trainer.world.base import blur_words
from trainer.world.data import scene_sweep
from trainer.world.mask import MainThing, inside
from trainer.world.paint import SIDE
from trainer.world.scene import HELD_OUT, caption, draw_scene

KS = (0.0, 7.0, 14.0, 21.0, 28.0)
"""K of the five pictures of a sweep, counted at 512 pixels."""


@dataclass(frozen=True)
class Variant:
    """One way to make sweeps.

    Attributes:
        control: what is to set the blur: the adapter, or words in the caption.
        ks: K of the pictures.
        pivot: K of the pivot.
        grounding: grounded steps; -1 is 60 %, 0 none.
        branches: which branches of guidance are grounded.
        colours: match the pictures' colours to the pivot's, in a mode of :func:`.match_lab` (eq. 13).
        cfg: classifier-free guidance; None is the architecture's own (SD1.5: 3, FLUX: 1).
        strength: of the adapter.
        bokeh_guidance: a guidance scale of K alone (:func:`.make_guider`); None guides K with
            the caption.
        subject: K acts outside the main thing alone; the thing is found in the pivot, which is sampled first.
        steps: sampling steps.
        sampler: of the host; None is ``dpmpp_2m`` for SD1.5, ``euler`` for FLUX.
        scheduler: of the host.
    """

    control: Literal["adapter", "words"] = "adapter"
    ks: tuple[float, ...] = KS
    pivot: float = 14.0
    grounding: int = -1
    branches: str = "positive only"
    colours: Literal[False, "mean", "mean and deviation"] = False
    cfg: float | None = None
    strength: float = 1.0
    bokeh_guidance: float | None = None
    subject: bool = False
    steps: int = 30
    sampler: str | None = None
    scheduler: str = "simple"


def held_out(count: int) -> range:
    """Seeds of so many held-out scenes."""
    return range(HELD_OUT, HELD_OUT + count)


def scene_name(seed: int) -> str:
    """Name of a scene's folder."""
    return f"scene{seed}"


def write_reference(folder: Path, seeds: Iterable[int], ks: Sequence[float] = KS) -> None:
    """The world's own renders of scenes at every K, a folder each; those that are there already stay."""
    for seed in seeds:
        if (folder / scene_name(seed)).is_dir():
            continue
        pictures, mask = scene_sweep(seed, ks)
        _write(
            folder, seed, ks, torch.from_numpy(pictures).float() / 255, inside(torch.from_numpy(mask) > 0.5)
        )


def write_sweeps(
    folder: Path,
    model: Any,
    adapter: Any | None,
    seeds: Iterable[int],
    variant: Variant,
    network: MainThing,
    plain: Path | None = None,
) -> None:
    """Sample scenes at every K, a folder each; scenes that are there already are left as they are.

    Args:
        folder: where.
        model: a :class:`~bokeh_ops.host.small.model.SmallModel`.
        adapter: a :class:`~bokeh_ops.adapter.network.BokehAdapter`, where the variant is controlled by one.
        seeds: of the scenes.
        variant: how.
        network: finds in the pivot what is in focus.
        plain: the same scenes, sampled in the same way but with colours not matched, to save sampling them again.

    Raises:
        BokehError: no adapter where one is needed, or a folder of another variant.
    """
    from bokeh_ops.host.adapter.apply import apply_adapter
    from bokeh_ops.host.loading import models as loading

    described = folder / ".variant.json"
    text = json.dumps(asdict(variant), indent=1)
    if described.is_file() and described.read_text(encoding="utf-8") != text:
        raise BokehError(f"{folder} holds sweeps made in another way; choose another folder.")
    replace_text(described, text)
    patcher = model.patcher
    if variant.control == "adapter":
        if adapter is None:
            raise BokehError("The variant is controlled by an adapter and none is given.")
        patcher = apply_adapter(patcher, adapter, variant.strength)
    for seed in seeds:
        if (folder / scene_name(seed)).is_dir():
            continue
        if plain is not None:
            pivot, pictures = _read(plain / scene_name(seed), variant.ks)
        else:
            pivot, pictures = _sample(model, patcher, seed, variant, network)
        if variant.colours:
            pictures = match_lab(pictures, pivot[None], variant.colours)
        focus = inside(network.mask(pivot.movedim(-1, 0)[None])[0])
        _write(folder, seed, variant.ks, pictures, focus, (variant.pivot, pivot))
    loading.unload()


def _write(
    folder: Path,
    seed: int,
    ks: Sequence[float],
    pictures: Tensor,
    focus: Tensor | None,
    pivot: tuple[float, Tensor] | None = None,
) -> None:
    unfinished = folder / f".scene{seed}"
    content: dict[str, Any] = {"seed": seed, "caption": caption(draw_scene(seed)), "images": []}
    for k, picture in zip(ks, pictures, strict=True):
        content["images"].append({"file": _file(k), "k": k})
        write_png(unfinished / _file(k), picture)
    if focus is not None:
        content["focus"] = "focus.png"
        write_png(unfinished / "focus.png", focus[..., None].expand(-1, -1, 3).float())
    if pivot is not None:
        content["pivot"] = pivot[0]
        write_png(unfinished / "pivot.png", pivot[1])
    replace_text(unfinished / "sweep.json", json.dumps(content, indent=1))
    unfinished.rename(folder / scene_name(seed))


def _file(k: float) -> str:
    return f"k{format_value(k)}.png"


def _read(folder: Path, ks: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Pivot and pictures of a scene that :func:`_write` wrote."""
    pivot, *pictures = (read_picture(folder / name) for name in ("pivot.png", *map(_file, ks)))
    return pivot.movedim(0, -1), torch.stack(pictures).movedim(1, -1)


def file_name(name: str) -> str:
    """That of a comparison."""
    return name.replace(" ", "-").replace(",", "").replace(":", "").replace("%", "")


def prompts(model: Any, texts: Sequence[str], per_row: bool = True) -> list[Any]:
    """CONDITIONING of texts: one for each row of a sweep, the pivots' first, or one for each picture."""
    from bokeh_ops.host.sampling.conditioning import PER_ROW_KEY

    found = [model.words.encode(text) for text in texts]
    settings: dict[str, Any] = {PER_ROW_KEY: True} if per_row else {}
    if model.architecture.pooled:
        settings["pooled_output"] = torch.stack([pooled for _, pooled in found])
    if model.architecture.guided:
        settings["guidance"] = 1.0
    return [[torch.stack([rows for rows, _ in found]), settings]]


@torch.no_grad()
def _sample(
    model: Any, patcher: Any, seed: int, variant: Variant, network: MainThing
) -> tuple[Tensor, Tensor]:
    from bokeh_ops.host.sampling.grounded import Sweep
    from bokeh_ops.host.sampling.sweep import sample_sweep

    usual, patch = model.architecture.sampling, model.codec.patch
    # Small models are told less by their prompts, and need less guidance.
    cfg = variant.cfg if variant.cfg is not None else min(usual.cfg, 3.0)
    blank = torch.zeros(1, model.codec.channels, SIDE // patch, SIDE // patch)

    def sample(sweep: Sweep) -> tuple[Tensor, Tensor]:
        pivot, targets = sample_sweep(
            patcher,
            prompts(model, _texts(seed, variant)),
            prompts(model, [""]),
            {"samples": blank},
            seed,
            variant.steps,
            cfg,
            variant.sampler or usual.sampler,
            variant.scheduler,
            sweep,
            bokeh_guidance=variant.bokeh_guidance,
        )
        return model.decode(pivot["samples"])[0], model.decode(targets["samples"])

    sweep = Sweep(variant.pivot, variant.ks, variant.grounding, variant.branches)
    if variant.subject:
        pivot, _ = sample(replace(sweep, target_k=sweep.target_k[:1]))
        sweep = replace(sweep, subject=network.mask(pivot.movedim(-1, 0)[None])[0].float())
    return sample(sweep)


def _texts(seed: int, variant: Variant) -> list[str]:
    """The caption; where words are to control, one for the pivot and each target, with what they say of blur."""
    text = caption(draw_scene(seed))
    if variant.control == "adapter":
        return [text]
    return [f"{text} {blur_words(k)}" for k in (variant.pivot, *variant.ks)]
