"""Photographs of the world at another K: every way of editing against the true render, which the world can make.

A photograph at K0 goes through the codec, is edited to K1, and is compared with the render of the same scene at K1
after the codec's round trip, since no edit can be better than that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bokeh_ops.errors import BokehError
from bokeh_ops.numbers import format_value
from trainer.files import replace_text
from trainer.measure.metrics import Interval, Lpips, bootstrap, psnr
from trainer.measure.metrics.sweep import laplacian_variance, lvcorr
from trainer.world.data import scene_sweep
from trainer.world.mask import inside
from trainer.world.scene import caption, draw_scene
from trainer.world.sheet import write_rows
from trainer.world.sweeps import KS, file_name, prompts

FROM = (0.0, 14.0, 28.0)
"""K of the photographs."""
TOGETHER = 10
"""Scenes that are sampled at once."""
ROUNDING = 1 / 255 / 12**0.5
"""Root mean square of rounding to 8 bits: a codec that loses less has lost nothing that a ratio could be taken to."""


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

    method: Literal["none", "retextured", "true", "again", "sdedit", "flowedit", "inverted"] = "inverted"
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
    """Everything that is compared, by name.

    With K guidance one edit takes 98 to 120 evaluations of the model, inversion included, and FlowEdit 104; SDEdit
    takes its part of 104 steps, what is inverted without guidance 80 evaluations and what is sampled anew 20.
    """
    usual = Edit()
    most = 104
    found = {"no edit": Edit("none"), "sampled anew": Edit("again")}
    found["SDEdit"] = Edit("sdedit", 0.4, steps=most)  # the better of 0.4 and 0.6 on other scenes
    found["FlowEdit"] = Edit("flowedit", grounding=0.0, steps=most // 2)
    free = replace(usual, grounding=0.0)
    found["inverted"] = replace(free, residual=False)
    found["inverted, grounded"] = replace(usual, residual=False)
    found["inverted, residual"] = free
    found["inverted, residual, grounded"] = usual
    guided = replace(usual, guidance=None)
    found["the same, K guidance"] = guided
    found["the same, K guidance, subject"] = replace(guided, subject=True)
    found["another texture"] = Edit("retextured")
    found["SDEdit of the true picture"] = Edit("true", 0.45)  # from where detail comes
    return found


class Photographs:
    """Scenes of the world at every K, and what the codec leaves of them.

    Args:
        model: a :class:`~bokeh_ops.host.small.model.SmallModel`.
        patcher: its MODEL with an adapter.
        seeds: of the scenes.

    Attributes:
        latents: by K, LATENT samples ``[P, C, h, w]``.
        pictures: by K, after the codec's round trip, ``[P, S, S, 3]``.
        masks: of the main thing, ``[P, S, S]``.
        positive, negative: CONDITIONING.
    """

    def __init__(self, model: Any, patcher: Any, seeds: Sequence[int]) -> None:
        made = [scene_sweep(seed, KS) for seed in seeds]
        self.model, self.patcher, self.seeds = model, patcher, seeds
        self.masks = torch.stack([torch.from_numpy(mask) for _, mask in made]).float()
        self.true = _by_k([pictures for pictures, _ in made])
        self.latents = {k: model.encode_images(pictures) for k, pictures in self.true.items()}
        self.pictures = {k: model.decode(latents) for k, latents in self.latents.items()}
        captions = [caption(draw_scene(seed)) for seed in seeds]
        self.positive = prompts(model, captions, per_row=False)
        self.negative = prompts(model, [""] * len(seeds), per_row=False)
        self._kept: dict[Any, Any] = {}

    @cached_property
    def others(self) -> dict[float, Tensor]:
        """The same scenes with another texture, by K, ``[P, S, S, 3]``."""
        return _by_k([scene_sweep(seed, KS, texture=1)[0] for seed in self.seeds])

    def trajectory(self, k0: float, way: Edit) -> Any:
        """Of the photographs at ``k0``: inverted, or from noise straight to them, another noise at every level."""
        key = (k0, way.method, way.steps, way.scheduler, way.corrections)
        return self.kept(key, lambda: self._follow(k0, way))

    def kept(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` makes, made once."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def _follow(self, k0: float, way: Edit) -> Any:
        from bokeh_ops.host.sampling.grounded import make_guider, make_sigmas
        from bokeh_ops.host.sampling.invert import invert
        from bokeh_ops.host.sampling.trajectory import Identity, Trajectory

        sigmas = make_sigmas(self.patcher, "euler", way.scheduler, way.steps, 1.0)
        guider = make_guider(self.patcher, self.positive, self.negative, 1.0)
        latents = {"samples": self.latents[k0]}
        if way.method == "inverted":
            return invert(guider, sigmas, latents, k0, way.corrections)
        scaling = self.patcher.get_model_object("model_sampling").noise_scaling
        photographs = self.patcher.model.process_latent_in(self.latents[k0])
        source = torch.Generator().manual_seed(7)
        made = [
            scaling(sigma, torch.randn(photographs.shape, generator=source), photographs, max_denoise=False)
            for sigma in sigmas
        ]
        return Trajectory(torch.stack(made), sigmas.cpu().float(), k0, Identity.of(guider))


def _by_k(made: Sequence[np.ndarray]) -> dict[float, Tensor]:
    """Sweeps of scenes as pictures by K, ``[P, S, S, 3]``."""
    return {
        k: torch.stack([torch.from_numpy(each[i]) for each in made]).float() / 255 for i, k in enumerate(KS)
    }


@torch.no_grad()
def edited(photographs: Photographs, k0: float, way: Edit) -> Tensor:
    """Pictures ``[len(KS), P, S, S, 3]`` of photographs at ``k0``, edited to every K."""
    model = photographs.model
    if way.method == "none":
        return photographs.pictures[k0].expand(len(KS), *photographs.pictures[k0].shape)
    if way.method == "retextured":
        unseen = photographs.true[k0] - photographs.others[k0]
        made = [(photographs.others[k] + unseen).clamp(0, 1) if k < k0 else photographs.true[k] for k in KS]
        return torch.stack([model.decode(model.encode_images(pictures)) for pictures in made])
    if way.method == "true":
        return photographs.kept(
            way, lambda: torch.cat([_sampled(photographs, photographs.latents[k], k, (k,), way) for k in KS])
        )
    return _sampled(photographs, photographs.latents[k0], k0, KS, way)


def _sampled(
    photographs: Photographs, samples: Tensor, k0: float, ks: tuple[float, ...], way: Edit
) -> Tensor:
    """Pictures ``[len(ks), P, S, S, 3]`` that the model makes of latents at ``k0``."""
    from bokeh_ops.host.sampling.grounded import Sweep
    from bokeh_ops.host.sampling.sweep import sample_sweep

    trajectory = photographs.trajectory(k0, way) if way.method in ("inverted", "flowedit") else None
    steps = round(way.steps * way.strength)
    sweep = Sweep(
        k0,
        ks,
        grounding_steps=round(way.grounding * steps) if trajectory is not None else 0,
        subject=photographs.masks if way.subject else None,
    )
    _, targets = sample_sweep(
        photographs.patcher,
        photographs.positive,
        photographs.negative,
        {"samples": samples if way.method != "again" else torch.zeros_like(samples)},
        photographs.seeds[0],
        way.steps,
        way.cfg,
        way.sampler,
        way.scheduler,
        sweep,
        way.strength,
        way.guidance,
        trajectory=trajectory,
        residual=way.residual,
    )
    return photographs.model.decode(targets["samples"]).unflatten(0, (len(ks), len(samples)))


Values = dict[str, dict[str, float]]
"""By cell, ``K0 -> K1``, and figure."""


def measure(
    model: Any,
    patcher: Any,
    seeds: Sequence[int],
    ways: Mapping[str, Edit],
    lpips: Lpips | None,
    folder: Path,
    made_of: str = "",
) -> dict[str, dict[str, dict[str, Interval]]]:
    """Edit and measure; ``values.json`` and ``edit.md`` hold the result, and sheets the first scenes. Goes on where it
    stopped.

    Args:
        model, patcher: a small model, and its MODEL with an adapter.
        seeds: of the scenes.
        ways: by name.
        lpips: None leaves it out.
        folder: for the result.
        made_of: names model and adapter.

    Returns:
        By way and cell (``K0 -> K1``) the figures: ``psnr`` and ``lpips`` to the true render; ``focus``, the error in
        the main thing as a share of the codec's own, or of rounding where that is more; ``lvcorr`` over the sweep of
        each photograph.

    Raises:
        BokehError: the folder holds what was measured of another model or adapter.
    """
    path = folder / "values.json"
    done = _measured(path, made_of)
    for start in range(0, len(seeds), TOGETHER):
        together = seeds[start : start + TOGETHER]
        photographs: Photographs | None = None
        for name, way in ways.items():
            if done.setdefault(name, {"way": asdict(way), "scenes": {}})["way"] != asdict(way):
                done[name] = {"way": asdict(way), "scenes": {}}
            scenes = done[name]["scenes"]
            if all(str(seed) in scenes for seed in together):
                continue
            photographs = photographs or Photographs(model, patcher, together)
            made = {k0: edited(photographs, k0, way) for k0 in FROM}
            for place, seed in enumerate(together):
                scenes[str(seed)] = _values(photographs, place, made, lpips)
            if start == 0:
                for k0, pictures in made.items():
                    _sheet(
                        folder / "sheets" / f"{file_name(name)}-from-{k0:g}.png", photographs, k0, pictures
                    )
            replace_text(path, json.dumps({"made_of": made_of, "ways": done}))
            replace_text(folder / "edit.md", markdown(_table(done, ways, seeds)))
    return _table(done, ways, seeds)


def _measured(path: Path, made_of: str) -> dict[str, dict[str, Any]]:
    """What was measured before, by way."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, other = content["ways"], content["made_of"] != made_of
    except (ValueError, TypeError, KeyError) as error:
        raise BokehError(f"{path} is not what this command wrote there ({error}). Delete it.") from error
    if other:
        raise BokehError(f"{path} is of another base or adapter. Delete it, or give another folder.")
    return found


def _table(
    done: Mapping[str, Mapping[str, Any]], ways: Mapping[str, Edit], seeds: Sequence[int]
) -> dict[str, dict[str, dict[str, Interval]]]:
    table: dict[str, dict[str, dict[str, Interval]]] = {}
    for name in ways:
        known = done.get(name, {}).get("scenes", {})
        scenes = [known[str(seed)] for seed in seeds if str(seed) in known]
        if scenes:
            table[name] = {
                cell: {
                    figure: bootstrap([scene[cell].get(figure) for scene in scenes])
                    for figure in dict.fromkeys(figure for scene in scenes for figure in scene[cell])
                }
                for cell in scenes[0]
            }
    return table


def _values(
    photographs: Photographs, place: int, made: Mapping[float, Tensor], lpips: Lpips | None
) -> Values:
    """The figures of one scene."""
    found: Values = {}
    mask = inside(photographs.masks[place] > 0.5)
    for k0, edits in made.items():
        trend, truths = [], []
        for k, picture in zip(KS, edits[:, place].movedim(-1, 1), strict=True):
            true = photographs.pictures[k][place].movedim(-1, 0)
            cell = found[f"{k0:g} -> {k:g}"] = {"psnr": min(psnr(picture, true), 99.0)}
            if lpips is not None:
                cell["lpips"] = float(lpips(picture[None], true[None]))
            if mask is not None and mask.any():
                original = photographs.true[k][place].movedim(-1, 0)
                cell["focus"] = float(
                    (picture - original)[:, mask].square().mean().sqrt()
                    / (true - original)[:, mask].square().mean().sqrt().clamp(min=ROUNDING)
                )
            trend.append(laplacian_variance(picture))
            truths.append(laplacian_variance(true))
        found[f"{k0:g} -> all"] = {"lvcorr": lvcorr(trend, truths).levels}
    return found


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
