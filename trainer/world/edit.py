"""Photographs of the world at another K: every way of editing against the true render, which the world can make.

A photograph at K0 goes through the codec, is edited to K1, and is compared with the render of the same scene at K1
after the codec's round trip, since no edit can be better than that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bokeh_ops.numbers import format_value
from trainer.files import replace_text
from trainer.measure.metrics import Interval, Lpips, bootstrap, psnr
from trainer.measure.metrics.sweep import laplacian_variance, lvcorr
from trainer.world.data import scene_sweep
from trainer.world.mask import inside
from trainer.world.scene import caption, draw_scene
from trainer.world.sheet import write_rows
from trainer.world.sweeps import KS, prompts

FROM = (0.0, 14.0, 28.0)
"""K of the photographs."""
TOGETHER = 10
"""Scenes that are sampled at once."""


@dataclass(frozen=True)
class Edit:
    """One way of editing.

    Attributes:
        method: ``none`` gives the photograph back; ``again`` samples its caption anew; ``sdedit`` adds noise and takes
            it away; ``flowedit`` follows the differences of slopes beside the photograph with noise; ``inverted`` does
            so beside its own trajectory.
        strength: share of the steps.
        grounding: share of the steps that are grounded.
        residual: for ``inverted``, see :func:`bokeh_ops.host.sampling.trajectory.follow`.
        guidance: a scale of K alone, from the photograph's; None is that of
            :func:`bokeh_ops.host.sampling.trajectory.k_guidance`.
        subject: K acts outside the main thing alone, as the world knows it.
        corrections: of the inversion.
        cfg: guidance of the edit; the inversion's is 1.
        steps, sampler, scheduler: of both.
    """

    method: Literal["none", "again", "sdedit", "flowedit", "inverted"] = "inverted"
    strength: float = 1.0
    grounding: float = 0.6
    residual: bool = True
    guidance: float | None = 1.0
    subject: bool = False
    corrections: int = 1
    cfg: float = 1.0
    steps: int = 20
    sampler: str = "euler"
    scheduler: str = "simple"


def ways() -> dict[str, Edit]:
    """Everything that is compared, by name, at the same evaluations of the model for one edit (but for the ways that
    only noise a part, which have long converged by then)."""
    usual = Edit()
    plain = 2 * usual.steps + usual.steps * (1 + usual.corrections)
    found = {"no edit": Edit("none"), "sampled anew": Edit("again", steps=plain)}
    for strength in (0.4, 0.6):
        found[f"SDEdit, {strength:.0%} of the noise"] = Edit("sdedit", strength, steps=plain)
    found["FlowEdit"] = Edit("flowedit", grounding=0.0, steps=plain // 2)
    free = replace(usual, grounding=0.0)
    found["inverted"] = replace(free, residual=False)
    found["inverted, grounded"] = replace(usual, residual=False)
    found["inverted, residual"] = free
    found["inverted, residual, grounded"] = usual
    guided = replace(usual, guidance=None, steps=plain // (5 + usual.corrections))
    found["the same, K guidance"] = guided
    found["the same, K guidance, subject"] = replace(guided, subject=True)
    return found


class Photographs:
    """Scenes of the world at every K, and what the codec leaves of them.

    Args:
        model: a :class:`~bokeh_ops.host.small.model.SmallModel`.
        seeds: of the scenes.

    Attributes:
        latents: by K, LATENT samples ``[P, C, h, w]``.
        pictures: by K, after the codec's round trip, ``[P, S, S, 3]``.
        masks: of the main thing, ``[P, S, S]``.
    """

    def __init__(self, model: Any, seeds: Sequence[int]) -> None:
        made = [scene_sweep(seed, KS) for seed in seeds]
        self.seeds = seeds
        self.captions = [caption(draw_scene(seed)) for seed in seeds]
        self.masks = torch.stack([torch.from_numpy(mask) for _, mask in made]).float()
        self.true = {
            k: torch.stack([torch.from_numpy(pictures[i]) for pictures, _ in made]).float() / 255
            for i, k in enumerate(KS)
        }
        self.latents = {k: model.encode_images(pictures) for k, pictures in self.true.items()}
        self.pictures = {k: model.decode(latents) for k, latents in self.latents.items()}


@torch.no_grad()
def edited(model: Any, patcher: Any, photographs: Photographs, k0: float, way: Edit) -> Tensor:
    """Pictures ``[len(KS), P, S, S, 3]`` of photographs at ``k0``, edited to every K."""
    from bokeh_ops.host.sampling.grounded import Sweep, make_guider, make_sigmas
    from bokeh_ops.host.sampling.invert import invert
    from bokeh_ops.host.sampling.sweep import sample_sweep

    samples = photographs.latents[k0]
    pictures = len(samples)
    if way.method == "none":
        return photographs.pictures[k0].expand(len(KS), *photographs.pictures[k0].shape)
    positive, negative = (
        prompts(model, texts, per_row=False) for texts in (photographs.captions, [""] * pictures)
    )
    strength = way.strength if way.method != "again" else 1.0
    trajectory = None
    if way.method in ("inverted", "flowedit"):
        sigmas = make_sigmas(patcher, "euler", way.scheduler, way.steps, 1.0)
        guider = make_guider(patcher, positive, negative, 1.0)
        trajectory = invert(guider, sigmas, {"samples": samples}, k0, way.corrections)
        if way.method == "flowedit":
            trajectory = straight(patcher, trajectory)
    steps = round(way.steps * strength)
    sweep = Sweep(
        k0,
        KS,
        grounding_steps=round(way.grounding * steps) if trajectory is not None else 0,
        subject=photographs.masks if way.subject else None,
    )
    _, targets = sample_sweep(
        patcher,
        positive,
        negative,
        {"samples": samples if way.method != "again" else torch.zeros_like(samples)},
        photographs.seeds[0],
        way.steps,
        way.cfg,
        way.sampler,
        way.scheduler,
        sweep,
        strength,
        way.guidance,
        trajectory=trajectory,
        residual=way.residual,
    )
    return model.decode(targets["samples"]).unflatten(0, (len(KS), pictures))


def straight(patcher: Any, trajectory: Any) -> Any:
    """A trajectory from noise straight to the photographs, another noise at every level: FlowEdit's."""
    scaling = patcher.get_model_object("model_sampling").noise_scaling
    photographs = trajectory.latents[-1]
    source = torch.Generator().manual_seed(7)
    made = [
        scaling(sigma, torch.randn(photographs.shape, generator=source), photographs, max_denoise=False)
        for sigma in trajectory.sigmas
    ]
    return replace(trajectory, latents=torch.stack(made))


def measure(
    model: Any,
    patcher: Any,
    seeds: Sequence[int],
    ways: Mapping[str, Edit],
    lpips: Lpips | None,
    folder: Path,
) -> dict[str, dict[str, dict[str, Interval]]]:
    """Edit and measure; ``edit.json`` and ``edit.md`` hold the result, and sheets the first scenes.

    Args:
        model, patcher: a small model, and its MODEL with an adapter.
        seeds: of the scenes.
        ways: by name.
        lpips: None leaves it out.
        folder: for the result.

    Returns:
        By way and cell (``K0 -> K1``) the figures: ``psnr`` and ``lpips`` to the true render; ``focus``, the error in
        the main thing as a share of the codec's own; ``lvcorr`` over the sweep of each photograph.
    """
    rows: dict[str, dict[str, dict[str, list[float]]]] = {}
    table: dict[str, dict[str, dict[str, Interval]]] = {}
    for start in range(0, len(seeds), TOGETHER):
        photographs = Photographs(model, seeds[start : start + TOGETHER])
        for name, way in ways.items():
            for k0 in FROM:
                made = edited(model, patcher, photographs, k0, way)
                _add(rows.setdefault(name, {}), photographs, k0, made, lpips)
                if start == 0:
                    _sheet(
                        folder / "sheets" / f"{name.replace(' ', '-')}-from-{k0:g}.png", photographs, k0, made
                    )
        table = {
            name: {
                cell: {figure: bootstrap(values) for figure, values in figures.items()}
                for cell, figures in cells.items()
            }
            for name, cells in rows.items()
        }
        content = {
            "scenes": start + len(photographs.seeds),
            "ways": {name: asdict(way) for name, way in ways.items()},
            "figures": {
                name: {cell: {f: list(v) for f, v in figures.items()} for cell, figures in cells.items()}
                for name, cells in table.items()
            },
        }
        replace_text(folder / "edit.json", json.dumps(content, indent=1))
        replace_text(folder / "edit.md", markdown(table))
    return table


def _add(
    cells: dict[str, dict[str, list[float]]],
    photographs: Photographs,
    k0: float,
    made: Tensor,
    lpips: Lpips | None,
) -> None:
    trends: list[list[float]] = [[] for _ in photographs.seeds]
    truths: list[list[float]] = [[] for _ in photographs.seeds]
    for k, pictures in zip(KS, made, strict=True):
        figures = cells.setdefault(f"{k0:g} -> {k:g}", {"psnr": [], "lpips": [], "focus": []})
        for place, picture in enumerate(pictures):
            truth, mask = photographs.pictures[k][place], inside(photographs.masks[place] > 0.5)
            found, wanted = picture.movedim(-1, 0), truth.movedim(-1, 0)
            figures["psnr"].append(min(psnr(found, wanted), 99.0))
            if lpips is not None:
                figures["lpips"].append(float(lpips(found[None], wanted[None])))
            if mask is not None and mask.any():
                original = photographs.true[k][place]
                figures["focus"].append(
                    float(
                        (picture - original)[mask].square().mean().sqrt()
                        / (truth - original)[mask].square().mean().sqrt()
                    )
                )
            trends[place].append(laplacian_variance(found))
            truths[place].append(laplacian_variance(wanted))
    sweep = cells.setdefault(f"{k0:g} -> all", {"lvcorr": []})
    sweep["lvcorr"] += [lvcorr(a, b).levels for a, b in zip(trends, truths, strict=True)]


def _sheet(path: Path, photographs: Photographs, k0: float, made: Tensor) -> None:
    shown = min(5, len(photographs.seeds))
    lines = []
    for place in range(shown):
        before = photographs.pictures[k0][place]
        lines.append(torch.stack([before, *made[:, place]]))
        lines.append(torch.stack([before, *(photographs.pictures[k][place] for k in KS)]))
    labels = [f"photograph, K = {format_value(k0)}", *(f"K = {format_value(k)}" for k in KS)]
    write_rows(path, torch.stack(lines), labels)


def markdown(table: Mapping[str, Mapping[str, Mapping[str, Interval]]]) -> str:
    """One line a way, one column a cell, each PSNR / LPIPS (/ focus), or LVCorr."""
    cells = list(next(iter(table.values())))
    lines = ["| | " + " | ".join(cells) + " |", "|---|" + "---|" * len(cells)]
    for name, found in table.items():
        lines.append(f"| {name} | " + " | ".join(_cell(found[cell]) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(figures: Mapping[str, Interval]) -> str:
    places = {"psnr": 2, "lpips": 3, "focus": 2, "lvcorr": 3}
    return " / ".join(f"{value.mean:.{places[figure]}f}" for figure, value in figures.items())
