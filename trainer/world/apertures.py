"""Ways to obey an f-number, on captions of held-out scenes: tables 1 and 2 of the paper, in the small world.

Source: Shrivastava et al., "Fine-grained Defocus Blur Control for Generative Image Models", sec. 4 and supp. F. A way
makes of a caption, one noise and a camera the pictures at eight f-numbers. What is known of a render alone, such as
where its main thing is, is found in generated pictures by the world's own small networks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bokeh_ops.depth.focus_transformer import FocusTransformer, read_focus_transformer
from bokeh_ops.digest import content_key, file_key
from bokeh_ops.errors import BokehError
from bokeh_ops.picture.colour import srgb_to_linear
from bokeh_ops.picture.sheet import contact_sheet
from trainer.data.sample import Sample, Taken
from trainer.files import read_json, replace_text
from trainer.measure.metrics import (
    Interval,
    Lpips,
    blur_monotonicity,
    bootstrap,
    content_consistency,
    energy,
    frechet_distance,
    laplacian_variance,
)
from trainer.recipes.bokeh.samples import large_enough, write_png
from trainer.recipes.dmd.lens import LensChain, Seen
from trainer.world import steps
from trainer.world.base import blur_words
from trainer.world.classes import CLASSES, likeliest
from trainer.world.data import scene_sample
from trainer.world.mask import MainThing, inside
from trainer.world.paint import SIDE
from trainer.world.scene import Scene, draw_scene
from trainer.world.sweeps import held_out

APERTURES = (1.8, 2.8, 4.0, 5.6, 8.0, 11.0, 16.0, 22.0)
"""The f-numbers of the paper."""
CONTENT_FROM = 4.0
"""Smallest f-number of what is compared for its content."""
LENSES = {"thin lens": "thin_lens", "layered": "layered"}
"""Lens models at the end of a chain: the paper's kind, and the one that has rendered the world."""
_SHOWN, _SHOWN_AT = 4, (0, 2, 7)
"""Captions and f-numbers on the sheet."""


# -- ways -----------------------------------------------------------------------------------------------------------


class Made(NamedTuple):
    """What a way makes of a caption."""

    pictures: Tensor
    """Of each camera, ``[R, 3, S, S]``, 0..1."""
    sharp: Tensor
    """What goes into the lens, ``[1, 3, S, S]``; without a lens the picture of f/22."""
    seen: Seen | None = None
    """What a chain has found in that: its depth, what is in focus, and the scale."""


Way = Callable[[Scene, Sequence[Taken]], Made]
Source = Callable[[int], Tensor]
"""Seed of a scene to a picture of it ``[1, S, S, 3]``, 0..1."""


@dataclass(frozen=True)
class Generator:
    """A generator of few steps.

    Attributes:
        model: a :class:`~bokeh_ops.host.small.model.SmallModel`.
        focus: what has learnt with it; None where nothing has.
        exif: an embedding by which it is told of the camera; then it has no lens.
        made_of: names the content of its files.
    """

    model: Any
    focus: FocusTransformer | None = None
    exif: Any = None
    made_of: str = ""


def read_generator(path: Path) -> Generator:
    """One from its file, with what its training has left beside it."""
    from bokeh_ops.host.small.model import read_small
    from bokeh_ops.host.training.exif import read_exif
    from trainer.recipes.dmd.recipe import EXIF, FOCUS

    focus, exif = (each if each.is_file() else None for each in (path.with_name(FOCUS), path.with_name(EXIF)))
    return Generator(
        read_small(path),
        None if focus is None else read_focus_transformer(focus),
        None if exif is None else read_exif(exif),
        content_key(*(each and file_key(each) for each in (path, focus, exif))),
    )


def ways(
    teacher: Any,
    generators: Mapping[str, Generator],
    depth: Callable[[Tensor], Tensor],
    focus: FocusTransformer,
    count: int = 4,
) -> dict[str, Way]:
    """All that is compared, by name.

    Args:
        teacher: the base model.
        generators: by name.
        depth: as :class:`~trainer.recipes.dmd.lens.LensChain` takes it.
        focus: what generators that bring none are focused by.
        count: steps of a generator.

    Raises:
        BokehError: a generator is called as another way is.
    """
    for name in generators:
        if "," in name or name in ("renders", "teacher"):
            raise BokehError(
                f"A generator is called {name!r}; expected another name than renders and teacher, without a comma."
            )
    asked = steps.ways(teacher, {name: each.model for name, each in generators.items()}, count)
    usual, sharp = asked["teacher, 20 steps"], asked["teacher, 20 steps, told"]
    found: dict[str, Way] = {"renders": _rendered(LensChain(depth, focus))}
    found |= _through(
        "renders", lambda seed: _shown(_all_in_focus(draw_scene(seed))), LensChain(depth, focus)
    )
    found |= {"teacher": _alone(usual.picture), "teacher, words": _by_words(usual)}
    found |= _through("teacher", sharp.picture, LensChain(depth, focus))
    for name, each in generators.items():
        source = asked[f"{name}, {count} steps"]
        if each.exif is not None:
            found[name] = _told(source, each.exif)
            continue
        found |= _through(name, source.picture, LensChain(depth, each.focus or focus))
        if each.focus is None:
            found[f"{name}, mean disparity"] = _mean_disparity(source.picture, LensChain(depth, focus))
    return found


def _planar(pictures: Tensor) -> Tensor:
    return pictures.movedim(-1, 1)


def _all_in_focus(scene: Scene) -> Sample:
    """By the scene's own lens: one that is drawn sharp may have another focal length, and so another ground."""
    return scene_sample(replace(scene, shot=replace(scene.shot, f_number=None)))


def _shown(sample: Sample) -> Tensor:
    """``[1, S, S, 3]``, 0..1."""
    return torch.from_numpy(sample.image)[None].float() / 255


def _rendered(chain: LensChain) -> Way:
    """The truth: exact depth, the main thing in focus, the lens that renders the world."""

    def make(scene: Scene, taken: Sequence[Taken]) -> Made:
        sample = _all_in_focus(scene)
        sharp = _planar(_shown(sample))
        disparity, one = torch.from_numpy(sample.disparity)[None, None], torch.ones(1)
        main = torch.from_numpy(sample.mask)[None]
        seen = Seen(disparity, disparity, main, one / scene.shot.focus_distance, one)
        return Made(_formed(chain, sharp, seen, taken, "layered"), sharp)

    return make


def _through(name: str, source: Source, chain: LensChain) -> dict[str, Way]:
    """A picture that is made once, through a chain with each lens model."""

    def way(model: str) -> Way:
        def make(scene: Scene, taken: Sequence[Taken]) -> Made:
            sharp = _planar(source(scene.seed))
            return _photographed(chain, sharp, chain.see(sharp), taken, model)

        return make

    return {f"{name}, {lens}": way(model) for lens, model in LENSES.items()}


def _mean_disparity(source: Source, chain: LensChain) -> Way:
    """The lens without a focus network (table 2, row 3): focused on the mean of the picture's disparity."""

    def make(scene: Scene, taken: Sequence[Taken]) -> Made:
        sharp = _planar(source(scene.seed))
        seen = chain.see(sharp)
        seen = seen._replace(focus=seen.disparity.mean((1, 2, 3)), scale=torch.ones(1))
        return _photographed(chain, sharp, seen, taken, "thin_lens")

    return make


def _photographed(chain: LensChain, sharp: Tensor, seen: Seen, taken: Sequence[Taken], model: str) -> Made:
    return Made(_formed(chain, sharp, seen, taken, model), sharp, seen)


def _formed(chain: LensChain, sharp: Tensor, seen: Seen, taken: Sequence[Taken], model: str) -> Tensor:
    rows = len(taken)
    every = Seen(*(each.expand(rows, *each.shape[1:]) for each in seen))
    return chain.through(sharp.expand(rows, -1, -1, -1), every, taken, model).clamp(0, 1)


def _alone(source: Source) -> Way:
    """Not told of the camera at all: the same picture for each."""

    def make(scene: Scene, taken: Sequence[Taken]) -> Made:
        sharp = _planar(source(scene.seed))
        return Made(sharp.expand(len(taken), -1, -1, -1), sharp)

    return make


def _by_words(way: steps.Way) -> Way:
    """Told in the caption what blur the camera would make of the scene, as far as there are words for it."""

    def make(scene: Scene, taken: Sequence[Taken]) -> Made:
        said = [blur_words(replace(scene.shot, f_number=each.f_number).k) for each in taken]
        known = {words: _planar(way.picture(scene.seed, words)) for words in dict.fromkeys(said)}
        return _direct([known[words] for words in said], taken)

    return make


def _told(way: steps.Way, embedding: Any) -> Way:
    """Told f-number and focal length through the timestep embedding (supp. F.3)."""
    from bokeh_ops.host.training.exif import told

    def make(scene: Scene, taken: Sequence[Taken]) -> Made:
        made = []
        for each in taken:
            with told(way.model.patcher, embedding, [each.f_number], [each.focal_length]):
                made.append(_planar(way.picture(scene.seed)))
        return _direct(made, taken)

    return make


def _direct(made: Sequence[Tensor], taken: Sequence[Taken]) -> Made:
    sharpest = [each.f_number for each in taken].index(APERTURES[-1])
    return Made(torch.cat(list(made)), made[sharpest])


# -- measures -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judges:
    """What looks at the pictures.

    Attributes:
        mask: finds the main thing; its features are compared.
        classes: says what each pixel shows.
        lpips: None leaves it out.
    """

    mask: MainThing
    classes: MainThing
    lpips: Lpips | None


def monotonicity(pictures: Tensor) -> dict[str, float]:
    """Blur Monotonicity of pictures ``[A, 3, S, S]`` at rising f-numbers, four ways.

    ``display`` is the paper's, of values as displayed. ``light`` is of linear light, of which alone it holds that blur
    lowers the energy: a lens spreads light, and the square of a value is a concave function of light (about its power
    0.83), so that spreading raises its sum. The ``even`` ones are of pictures that are brought to one mean first, which
    darkening cannot fake.
    """
    found = {}
    for name, values in (("display", pictures), ("light", srgb_to_linear(pictures))):
        energies = [energy(each) for each in values]
        means = [max(float(each.mean()), 1e-6) for each in values]
        found[name] = blur_monotonicity(energies)
        found[f"{name}, even"] = blur_monotonicity(
            [value / mean**2 for value, mean in zip(energies, means, strict=True)]
        )
    return found


def figures(scene: Scene, made: Made, judges: Judges) -> dict[str, Any]:
    """Of one caption.

    Args:
        scene: whose caption it is.
        made: its first pictures are those of :data:`APERTURES`, the next one the scene's own camera's.
        judges: what looks at them.

    Returns:
        ``display``, ``light`` and so on: :func:`monotonicity`. ``content``, ``content 3``: share of pixels whose
        likeliest class (one of whose three likeliest classes) stays the same from :data:`CONTENT_FROM` on; ``lpips``:
        mean over neighbours there. ``sharpness``: variance of the Laplacian behind and around the main thing, before
        the lens; ``named``: 1 where the main thing is most of all of the kind that the caption names. ``in focus``: 1
        where a chain's focus is nearer to the main thing's median disparity than to that of the rest; ``scale``: of
        the focus distance (eq. 5). ``brightness``, ``brightness of light``: means at each f-number. ``deep``,
        ``shallow``: features of the picture at f/22, and of that by the scene's own camera. None where there is
        nothing to measure.
    """
    swept = made.pictures[: len(APERTURES)]
    kept = swept[[n for n, each in enumerate(APERTURES) if each >= CONTENT_FROM]]
    shown = likeliest(judges.classes, kept)
    found: dict[str, Any] = monotonicity(swept)
    found["content"] = content_consistency(list(shown[:, :1]))
    found["content 3"] = content_consistency(list(shown))
    found["lpips"] = None if judges.lpips is None else float(judges.lpips(kept[:-1], kept[1:]).mean())
    (mask,) = judges.mask.mask(made.sharp)
    behind, main = inside(~mask), inside(mask)
    found["sharpness"] = None if behind is None else laplacian_variance(made.sharp[0], behind)
    found["named"] = float(
        main is not None and _kind(judges.classes, made.sharp, main) == scene.things[0].kind
    )
    found["in focus"] = found["scale"] = None
    if made.seen is not None:
        found["scale"] = float(made.seen.scale)
    if made.seen is not None and main is not None and behind is not None:
        disparity, focus = made.seen.disparity[0, 0], float(made.seen.focus)
        off = [abs(focus - float(disparity[part].median())) for part in (main, behind)]
        found["in focus"] = float(off[0] < off[1])
    found["brightness"] = [float(each.mean()) for each in swept]
    found["brightness of light"] = [float(each.mean()) for each in srgb_to_linear(swept)]
    deep, shallow = judges.mask.features(made.pictures[-2:])
    found |= {"deep": _rounded(deep), "shallow": _rounded(shallow)}
    return found


def _kind(network: MainThing, picture: Tensor, where: Tensor) -> str:
    """What most pixels of a part show."""
    return CLASSES[int(likeliest(network, picture, 1)[0, 0][where].mode().values)]


def _rounded(features: Tensor) -> list[float]:
    return [round(value, 5) for value in features.tolist()]


def cameras(scene: Scene) -> list[Taken]:
    """The scene's lens at each of :data:`APERTURES`, and the camera that has photographed the scene."""
    assert scene.shot.f_number is not None
    return [
        Taken(f_number, scene.shot.focal_length, scene.shot.sensor_width)
        for f_number in (*APERTURES, scene.shot.f_number)
    ]


@torch.no_grad()
def measure(
    folder: Path,
    compared: Mapping[str, Way],
    judges: Judges,
    scenes: int,
    reference: int,
    made_of: Mapping[str, str],
) -> str:
    """Make and measure; ``apertures.json``, ``apertures.md`` and ``apertures.png`` hold the result, ``ways`` pictures.

    Goes on, way by way, where it stopped.

    Args:
        folder: for the result.
        compared: the ways.
        judges: what looks at the pictures.
        scenes: held-out captions.
        reference: other held-out scenes, whose sharp renders and photographs the ways' pictures are compared with.
        made_of: names, for each way and for ``"reference"``, all that its figures depend on; where that has changed,
            it is measured anew.

    Returns:
        The tables.
    """
    path, values = folder / "apertures.json", {}
    if path.is_file():
        values = read_json(path, "what was measured before")

    def lacking(name: str) -> bool:
        return values.get(name, {}).get("made_of") != made_of[name]

    def keep(name: str, found: Any) -> None:
        values[name] = {"made_of": made_of[name], "values": found}
        replace_text(path, json.dumps(values))

    if lacking("reference"):
        keep("reference", _reference(judges.mask, held_out(scenes + reference)[scenes:]))
    for name, way in compared.items():
        if not lacking(name):
            continue
        found, shown = [], []
        for number, scene in enumerate(map(draw_scene, held_out(scenes))):
            made = way(scene, cameras(scene))
            found.append(figures(scene, made, judges))
            if number < _SHOWN:
                shown += made.pictures[list(_SHOWN_AT)]
        write_png(folder / "ways" / f"{name}.png", torch.cat(shown, 1).movedim(0, -1))  # one below the other
        keep(name, found)
    tables = markdown({name: values[name]["values"] for name in compared}, values["reference"]["values"])
    replace_text(folder / "apertures.md", tables)
    _sheet(folder, list(compared))
    return tables


def _reference(network: MainThing, seeds: Sequence[int]) -> dict[str, list[list[float]]]:
    """Features of scenes, all in focus and as their cameras take them."""
    found: dict[str, list[list[float]]] = {"deep": [], "shallow": []}
    for kind, rows in found.items():
        for seed in seeds:
            sample = (_all_in_focus if kind == "deep" else scene_sample)(draw_scene(seed))
            rows.append(_rounded(network.features(_planar(_shown(sample)))[0]))
    return found


def _sheet(folder: Path, names: Sequence[str]) -> None:
    """Some captions and f-numbers down, ways across."""
    columns = []
    for name in names:
        with Image.open(folder / "ways" / f"{name}.png") as opened:
            columns.append(torch.from_numpy(np.array(opened)).float() / 255)
    pictures = large_enough(torch.stack(torch.cat(columns).split(SIDE)))
    title = "each caption at " + ", ".join(f"f/{APERTURES[n]:g}" for n in _SHOWN_AT)
    sheet = contact_sheet(pictures, names, columns=len(names), cell_size=192, title=title)
    write_png(folder / "apertures.png", sheet[0])


# -- tables ---------------------------------------------------------------------------------------------------------

_PERCENT = ("display", "display, even", "light", "light, even", "content", "content 3", "named", "in focus")
_LATER = {
    "named": "main thing as named, %",
    "in focus": "focused on it, %",
    "scale": "focus scale",
    "sharpness": "sharpness behind",
}
_FIRST = {
    "display": "monotonicity, %",
    "display, even": "one mean",
    "light": "of light",
    "light, even": "of light, one mean",
    "content": "consistency, %",
    "content 3": "of three classes",
    "lpips": "LPIPS",
}


def markdown(
    found: Mapping[str, Sequence[Mapping[str, Any]]], reference: Mapping[str, list[list[float]]]
) -> str:
    """Tables of what :func:`measure` found: means over captions with their 95 % intervals, ways down.

    The Frechet distances have none: pictures that are drawn twice are no new ones, and would be taken for a narrower
    set.
    """
    means = {
        name: {key: bootstrap([row[key] for row in rows]) for key in (*_FIRST, *_LATER)}
        for name, rows in found.items()
    }
    apart = {
        name: [
            f"{frechet_distance(torch.tensor([row[kind] for row in rows]), torch.tensor(true)):.3f}"
            for kind, true in reference.items()
        ]
        for name, rows in found.items()
    }
    first = _table(
        [*_FIRST.values(), "Frechet, deep", "shallow"],
        {name: [_cell(of[key], key) for key in _FIRST] + apart[name] for name, of in means.items()},
    )
    later = _table(
        list(_LATER.values()),
        {name: [_cell(of[key], key) for key in _LATER] for name, of in means.items()},
    )
    bright = [
        f"{title}\n\n"
        + _table(
            [f"f/{each:g}" for each in APERTURES],
            {
                name: [f"{sum(at) / len(at):.4f}" for at in zip(*(row[key] for row in rows), strict=True)]
                for name, rows in found.items()
            },
        )
        for key, title in (
            ("brightness", "Mean of values as displayed"),
            ("brightness of light", "Mean of light"),
        )
    ]
    return "\n".join(["The f-numbers\n", first, "Before the lens, without one at f/22\n", later, *bright])


def _table(heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    lines = [f"| way | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines) + "\n"


def _cell(value: Interval, key: str) -> str:
    if math.isnan(value.mean):
        return ""
    scale, places = (100, 1) if key in _PERCENT else (1, 0) if key == "sharpness" else (1, 4)
    mean, low, high = (f"{scale * each:.{places}f}" for each in value)
    return mean if low == high or math.isnan(value.low) else f"{mean} ({low} to {high})"
