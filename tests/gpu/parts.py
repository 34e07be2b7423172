"""What the command measures: parts of cases, each a function that gives the fields of a row."""

from __future__ import annotations

import gc
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open

from bokeh_ops.render import Aperture, Lens, LensModel, render
from bokeh_ops.render import aperture as apertures
from tests import devices
from tests.benchmark import ATTENTION, FLUX, Bench
from tests.benchmark_render import rendered, scene

from . import compare
from .board import Cases, Found, LeftOut
from .measure import cost, free_bytes

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Setting:
    """Where and how large.

    Attributes:
        device: as PyTorch names it.
        tiny: thumbnail sizes, for trying the command itself.
        end: when all of it ends, of :func:`time.time`.
    """

    device: str
    tiny: bool = False
    end: float = math.inf

    @cached_property
    def pack(self) -> ModuleType:
        """The extension in a host that computes on the device."""
        return devices.load_pack(self.device)

    @property
    def rounds(self) -> int:
        """How often something is timed."""
        return 0 if self.tiny else 3

    @cached_property
    def bench(self) -> Bench:
        return Bench(self.device)


def golden_folders() -> list[Path]:
    """Golden directories beside the repository, or where BOKEH_SHARED says."""
    shared = Path(os.environ.get("BOKEH_SHARED", ROOT.parent / "shared"))
    return sorted(path.parent for path in shared.glob("golden/*/io.safetensors"))


# ---- results ----


def parity(setting: Setting) -> Cases:
    """Every golden directory in three precisions."""
    from tests.golden import format_of
    from tests.parity import DTYPES
    from tests.parity import compare as compared

    folders = golden_folders()
    if not folders:
        raise LeftOut(
            "no golden directories beside the repository; BOKEH_SHARED names the folder that holds them"
        )

    def one(folder: Path, dtype: str) -> Found:
        found = compared(folder, dtype, setting.device, setting.pack)
        left = f"outputs not known here: {', '.join(found.untried)}" if found.untried else ""
        return {"off": found.worst, "bound": found.bound, "note": left if dtype == DTYPES[0] else ""}

    def nothing() -> Found:
        raise LeftOut("none of its outputs is known here")

    for folder in folders:
        with safe_open(folder / "io.safetensors", framework="pt") as file:
            known = set(format_of(folder).known) & set(file.keys())
        if not known:
            yield folder.name, nothing
        for dtype in DTYPES if known else ():
            yield f"{folder.name}, {dtype}", partial(one, folder, dtype)


def agreement(setting: Setting) -> Cases:
    """The device beside the CPU."""
    size = compare.SMALL if setting.tiny else (480, 270)

    def judged(found: tuple[float, float]) -> Found:
        return dict(zip(("off", "bound"), found, strict=True))

    for name, function in compare.PLAIN.items():
        yield name, lambda function=function: judged(function(setting.device, size))
    for name, hosted in compare.HOSTED.items():
        yield name, lambda hosted=hosted: judged(hosted(setting.pack, setting.device))


def suite(setting: Setting) -> Cases:
    """The tests that take a device, as pytest runs them."""
    from .suite import outcomes

    if setting.tiny:
        raise LeftOut("the tests themselves run this")
    for name, found in outcomes(setting.device, setting.end):
        yield name, lambda found=found: found


# ---- what it costs ----


def attention(setting: Setting) -> Cases:
    """Grounded attention beside the host's own and eq. 11 as printed."""
    shapes = {"2 x 32 tokens": (2, 32, 8)} if setting.tiny else ATTENTION
    for name, shape in shapes.items():
        for targets in (1,) if setting.tiny else (1, 5):
            made: dict[str, Any] = {}
            variants = partial(setting.bench.attention, shape, targets)
            yield from _beside(f"{name}, {1 + targets} rows", made, variants, setting)
            made.clear()


def _beside(
    title: str, made: dict[str, Any], variants: Callable[[], dict[str, Callable[[], Any]]], setting: Setting
) -> Cases:
    """A case for each variant, measured by ``plain``; they are made with the first."""

    def one(name: str) -> Found:
        with torch.no_grad():
            if not made:
                made.update(variants())
            found = cost(made[name], setting.device, setting.rounds)
        made.setdefault("plain, s", found["seconds"])
        return {**found, "times": found["seconds"] / made["plain, s"]}

    for name in ("plain", *(("literal", "ours") if "tokens" in title else ("adapter", "grounded"))):
        yield f"{title}: {name}", partial(one, name)


_BYTES = 2
"""Of a weight."""
_ROOM = 8e9
"""Bytes beside the weights of a full-size model."""


def steps(setting: Setting) -> Cases:
    """One step of SD1.5 and of FLUX with random weights: plain, with an adapter, and grounded with it."""
    from tests import models

    # Title, kind, what the model is made of, side of the latents, parameters.
    full: list[tuple[str, str, dict[str, Any] | None, int | None, float]] = [
        ("SD1.5 512 x 512", "sd15", None, None, 0.86e9),
        ("FLUX 1024 x 1024", "flux", {**FLUX, "num_layers": 19, "num_single_layers": 38}, None, 11.9e9),
        ("FLUX 1024 x 1024, 1 + 1 blocks", "flux", None, None, 0.7e9),
    ]
    if setting.tiny:
        full = [
            ("SD1.5, small", "sd15", models.UNET, 8, 1e5),
            ("FLUX, small", "flux", models.FLUX, 8, 1e5),
        ]
    for title, kind, config, side, parameters in full:
        made: dict[str, Any] = {}

        def variants(
            kind: str = kind, config: Any = config, side: Any = side, parameters: float = parameters
        ) -> dict[str, Callable[[], Any]]:
            free = free_bytes(setting.device)
            needed = _BYTES * parameters + _ROOM * (parameters > 1e8)
            if free is not None and free < needed:
                raise LeftOut(f"needs {needed / 1e9:.0f} GB of memory, of which {free / 1e9:.0f} GB are free")
            return setting.bench.steps(kind, 1, config, side)

        yield from _beside(f"{title}, 2 rows", made, variants, setting)
        made.clear()
        if "bench" in setting.__dict__:
            models.unload()
        gc.collect()


def lenses(setting: Setting) -> Cases:
    """Every lens model at two sizes, K being 30 pixels at a width of 1920, and again after K was changed."""
    models: dict[str, tuple[str | LensModel, Aperture, int | None]] = {
        "layered": ("layered", Aperture(), None),
        "layered, tiles of 512": ("layered", Aperture(), 512),
        "classical": ("classical", Aperture(), None),
        "thin_lens": ("thin_lens", Aperture(), None),
        "bokehme": (compare.networks(), Aperture(), None),
        "layered, cat's eye": ("layered", Aperture(cats_eye=0.8), None),
    }

    def drawn(k: float, counted: bool, shown: Any, model: Any, aperture: Aperture, tile: int | None) -> Found:
        lens = Lens(k, 0.9, "srgb" if aperture.cats_eye else 2.2, aperture)
        kernels = apertures._KERNELS.found, apertures._KERNELS.made

        def run() -> None:
            render(*shown, lens, model, _in_time(30.0), tile)

        found = cost(run, setting.device, setting.rounds, counted)
        again, made = apertures._KERNELS.found - kernels[0], apertures._KERNELS.made - kernels[1]
        note = {"note": f"{again} kernels found again, {made} made"} if aperture.cats_eye else {}
        return {**note, **found}

    for width, height in [(24, 16)] if setting.tiny else [(1920, 1080), (3840, 2160)]:
        shown = [plane.to(setting.device) for plane in scene(width, height)]
        k = 0.7 if setting.tiny else 30.0 * width / 1920
        for name, words in models.items():
            yield f"{width} x {height}: {name}", partial(drawn, k, True, shown, *words)
            if words[2] is None:
                yield f"{width} x {height}: {name}, K changed", partial(drawn, 0.8 * k, False, shown, *words)


def _in_time(seconds: float) -> Callable[[int, int], None]:
    """A renderer's progress that stops what takes longer."""
    end = time.perf_counter() + seconds

    def progress(done: int, total: int) -> None:
        if time.perf_counter() > end:
            raise TimeoutError(f"{100 * done / max(1, total):.0f} % were drawn after {seconds:.0f} s")

    return progress


def node(setting: Setting) -> Cases:
    """The render node with aligned edges: at K 0, after K was changed, and another picture at once."""
    for width, height in [(48, 32)] if setting.tiny else [(1920, 1080)]:
        image, disparity = scene(width, height)
        # A map of a quarter of the size is soft where it is enlarged, as estimates are.
        picture, small = image.movedim(1, -1), disparity[0, :, ::4, ::4]
        for what, shown, k in (
            ("K 0: the edges alone", picture, 0.0),
            ("K 5 after that", picture, 5.0),
            ("K 5 at once", picture * 1.01, 5.0),
        ):

            def run(shown: Any = shown, k: float = k, small: Any = small) -> Found:
                assert setting.pack
                return {"first": rendered(shown, small, k, "aligned to the image")}

            yield f"{width} x {height}: {what}", run


def world(setting: Setting) -> Cases:
    """Steps of training the small world's base models, beside the CPU."""
    from tests.models import KINDS

    steps, fewer, batch = (2, 2, 2) if setting.tiny else (200, 10, 16)

    def train(kind: Any, where: str, count: int, beside: dict[str, Any]) -> Found:
        from tests.models import unload
        from trainer.recipes.world import Plan, base_loop, new_model

        assert setting.pack
        plan = Plan(steps + 10, batch=batch, warmup=20)
        with tempfile.TemporaryDirectory() as folder, _host_on(where):
            pictures = _noise()
            loop = base_loop(new_model(kind, pictures, plan.seed), pictures, plan, Path(folder))

            def step() -> float:
                return loop.step(feed)[0]["loss"]

            with loop.recipe.training():
                feed = loop.feed()
                start = time.perf_counter()
                losses = [step() for _ in range(count)]
                devices.synchronise(where)
                seconds = (time.perf_counter() - start) / count
                found = {**cost(step, where, setting.rounds), "seconds": seconds, "first": None}
            unload()
        if not beside:
            beside.update(losses=losses, seconds=seconds)
            return found
        # Over the first steps, as rounding grows from step to step.
        pairs = zip(losses[:5], beside["losses"], strict=False)
        off = max(abs(one - other) / abs(other) for one, other in pairs)
        return {**found, "times": seconds / beside["seconds"], "off": off, "bound": 1e-2}

    for kind in KINDS:
        beside: dict[str, Any] = {}
        for where, count in (("cpu", fewer), (setting.device, steps)):
            yield (
                f"{kind}, {count} steps of {batch} pictures, {where}",
                partial(train, kind, where, count, beside),
            )


@contextmanager
def _host_on(device: str) -> Iterator[None]:
    """Models that are made meanwhile are computed on ``device``, whatever the host's own is."""
    import comfy.model_management as management

    own = management.get_torch_device
    if device == "cpu":
        management.get_torch_device = lambda: torch.device("cpu")
    try:
        yield
    finally:
        management.get_torch_device = own


def _noise() -> Any:
    """Pictures of the world's size in the place of painted ones, which need a package; steps cost the same."""
    from trainer.recipes.world import Pictures
    from trainer.world.paint import SIDE
    from trainer.world.scene import caption, draw_scene

    class Noise(Pictures):
        def __init__(self) -> None:
            source = torch.Generator().manual_seed(0)
            self.images = torch.randint(0, 256, (64, SIDE, SIDE, 3), dtype=torch.uint8, generator=source)
            self.captions = [caption(draw_scene(seed)) for seed in range(64)]
            self.ks = [0.5 * seed for seed in range(64)]

    return Noise()


PARTS: dict[str, Callable[[Setting], Cases]] = {
    "parity": parity,
    "agreement": agreement,
    "step": steps,
    "lens models": lenses,
    "attention": attention,
    "world": world,
    "render node": node,
    "tests": suite,
}
"""By name, the most wanted first: what is left of the time is the last one's."""
