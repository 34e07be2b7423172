"""The same work on the CPU and on another device: how far the results are apart, and how far they may be.

Each comparison is a function of the device that the tests call as well (tests/test_devices.py), at a small size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from bokeh_ops.adapter.attention import Grounding, bokeh_attention, grounded_attention, split_heads
from bokeh_ops.depth.conventions import DepthKind, DepthRange, to_depth_map
from bokeh_ops.depth.edges import align_to_image
from bokeh_ops.depth.focus import focus_at_point, focus_in_mask, focus_on_salient
from bokeh_ops.picture.colour import match_lab
from bokeh_ops.render import Aperture, Lens, LensModel, render
from bokeh_ops.render.bokehme import BokehMe
from bokeh_ops.render.grain import add_grain
from bokeh_ops.render.networks import ARNet, IUNet
from tests import models
from tests.benchmark_render import scene

Size = tuple[int, int]
SMALL: Size = (48, 32)
"""Width and height in pixels."""
Comparison = Callable[[str, Size], tuple[float, float]]
"""Of a device and a size: the largest relative difference, and its bound."""


def apart(found: Tensor, expected: Tensor) -> float:
    """``max |found - expected| / max(|expected|, 1e-3)``, pixel by pixel; infinite where a number is none."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    share = ((found - expected).abs() / expected.abs().clamp_min(1e-3)).max()
    return float(share.nan_to_num(torch.inf))


def networks() -> BokehMe:
    """BokehMe of the published size with random weights: what it costs does not depend on them."""
    torch.manual_seed(0)
    return BokehMe(ARNet(), IUNet())


# ---- the lens models: K is 16 pixels at 480 pixels of width ----

_LAMP = Aperture(blades=5, rotation=10.0)
# Model, lens at K = 1, channels, bound. Measured on a card: layered 6.8e-4, classical up to 6.7e-4, others below 1e-5.
_LENSES: dict[str, tuple[str, Lens, int, float]] = {
    "layered": ("layered", Lens(1.0, 0.9, "srgb"), 3, 3e-3),
    "layered, alpha, 5 blades": ("layered", Lens(1.0, 0.9, "srgb", _LAMP), 4, 3e-3),
    "layered, cat's eye": ("layered", Lens(1.0, 0.9, "srgb", Aperture(cats_eye=0.8)), 3, 3e-3),
    "layered, soap bubbles": ("layered", Lens(1.0, 0.9, 1.0, Aperture(spherical=-0.8)), 3, 3e-3),
    "classical": ("classical", Lens(1.0, 0.9, 2.2), 3, 1e-4),
    "classical, gamma 4": ("classical", Lens(1.0, 0.9, 4.0), 3, 1e-4),
    "classical, HDR": ("classical", Lens(1.0, 0.9, 1.0), 3, 3e-3),
    "classical, alpha, 5 blades": ("classical", Lens(1.0, 0.9, 2.2, _LAMP), 4, 1e-4),
    "thin_lens": ("thin_lens", Lens(1.0, 0.9, 2.2), 3, 1e-4),
    "thin_lens, HDR": ("thin_lens", Lens(1.0, 0.9, 1.0), 3, 1e-4),
    "bokehme": ("bokehme", Lens(1.0, 0.9, 2.2), 3, 1e-4),
}


def picture(size: Size, channels: int = 3, hdr: bool = False) -> tuple[Tensor, Tensor]:
    """A picture ``[1, C, H, W]``, with lamps of a thousand times white if ``hdr``, and its disparity."""
    width, height = size
    image, disparity = scene(width, height)
    if hdr:
        lamps = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(1)) > 0.999
        image = image * 0.01 + 1000 * lamps
    if channels == 4:
        image = torch.cat([image, torch.linspace(0, 1, width).expand(1, 1, height, width)], 1)
    return image, disparity


def lens_model(name: str, device: str, size: Size) -> tuple[float, float]:
    """A picture through a lens model; ``name`` as in the table of comparisons."""
    named, lens, channels, bound = _LENSES[name]
    model: str | LensModel = networks() if named == "bokehme" else named
    lens = replace(lens, k=16.0 * size[0] / 480)
    image, disparity = picture(size, channels, "HDR" in name)
    expected = render(image, disparity, lens, model)
    found = render(image.to(device), disparity.to(device), lens, model)
    defocus = models.relative(found.defocus.cpu(), expected.defocus)
    return max(apart(found.image, expected.image), defocus), bound


def lens_gradients(device: str, size: Size) -> tuple[float, float]:
    """Of picture and K through the thin lens."""
    image, disparity = picture((min(size[0], 240), min(size[1], 135)))
    pair = []
    for where in ("cpu", device):
        x = image.to(where).clone().requires_grad_()
        k = torch.tensor(16.0 * image.shape[3] / 480, requires_grad=True)
        render(x, disparity.to(where), Lens(k, 0.9, 2.2), "thin_lens").image.square().sum().backward()
        assert x.grad is not None
        assert k.grad is not None
        pair.append((x.grad, k.grad))
    (a, b), (c, d) = pair
    return max(models.relative(c.cpu(), a), models.relative(d.cpu(), b)), 1e-4


def grain(device: str, size: Size) -> tuple[float, float]:
    """Grain that a blurred picture is given again."""
    image, disparity = picture(size)
    lens, pair = Lens(16.0 * size[0] / 480, 0.9), []
    blurred = render(image, disparity, lens)
    for d in ("cpu", device):
        given = blurred.image[0].to(d), image[0].to(d), blurred.defocus[0].to(d)
        pair.append(add_grain(*given, lens, 1.0, 0))
    return apart(pair[1], pair[0]), 1e-2


# ---- what is done with depth and colours before and after ----


def aligned_edges(device: str, size: Size) -> tuple[float, float]:
    """Edges of a map of a quarter of the size; a vote that is near even may fall otherwise, so: the share of such."""
    image, disparity = picture(size)
    small = disparity[:, :, ::4, ::4]
    soft = torch.nn.functional.interpolate(small, size=disparity.shape[2:], mode="bilinear")
    expected, found = (align_to_image(soft.to(d), image.to(d)).cpu() for d in ("cpu", device))
    return float(((found - expected).abs() > 1e-4).float().mean()), 1e-3


def depth_with_holes(device: str, size: Size) -> tuple[float, float]:
    """Metres with holes and sky, filled and normalised."""
    _, disparity = picture(size)
    metres = (1 / disparity)[0].clone()
    metres[:, ::7, ::5] = 0.0
    metres[:, :4] = torch.inf
    expected, found = (
        to_depth_map(metres.to(d), DepthKind.METRIC, DepthRange.NORMALISE).disparity for d in ("cpu", device)
    )
    return apart(found, expected), 1e-2


def focus(device: str, size: Size) -> tuple[float, float]:
    """At a point, in a mask, and on what is salient."""
    image, disparity = picture(size)
    mask = (disparity[0] > 0.6).float()
    pair = []
    for d in ("cpu", device):
        at, salient = disparity.to(d), image.mean(1).to(d)
        found = (focus_at_point(at, 0.4, 0.6), focus_in_mask(at, mask.to(d)), focus_on_salient(at, salient))
        pair.append(torch.cat([each.flatten().cpu() for each in found]))
    return apart(pair[1], pair[0]), 1e-4


def colours(device: str, size: Size) -> tuple[float, float]:
    """Colours matched in L*a*b*."""
    image, _ = picture(size)
    image = image.movedim(1, -1)
    expected, found = (
        match_lab(image.to(d), image.to(d).flip(2).square(), "mean and deviation") for d in ("cpu", device)
    )
    return apart(found, expected), 1e-2


# ---- attention, beside the CPU in double precision ----

_ATTENTION = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def _qkv(tokens: int) -> list[Tensor]:
    return [models.randn(4, 4, tokens, 32, seed=seed) for seed in range(3)]


def grounded(shared: bool, dtype: torch.dtype, device: str, size: Size) -> tuple[float, float]:
    """Eq. 11 for two targets of one pivot, forward."""
    plan = Grounding.from_pivots([-1, 0, 0, -1])
    given = [t.to(dtype) for t in _qkv(size[0])]
    expected = grounded_attention(*(t.double() for t in given), plan, shared=False)
    found = grounded_attention(*(t.to(device) for t in given), plan, shared=shared)
    return models.relative(found[1:3].cpu(), expected[1:3]), _ATTENTION[dtype]


def grounded_gradients(device: str, size: Size) -> tuple[float, float]:
    """Of queries, keys and values through eq. 11."""
    plan, gradients = Grounding.from_pivots([-1, 0, 0, -1]), []
    for where, dtype in (("cpu", torch.float64), (device, torch.float32)):
        given = [t.to(where, dtype).requires_grad_() for t in _qkv(size[0])]
        grounded_attention(*given, plan).square().sum().backward()
        gradients.append([t.grad.cpu() for t in given if t.grad is not None])
    return max(models.relative(b, a) for a, b in zip(*gradients, strict=True)), 1e-4


def bokeh_term(device: str, size: Size) -> tuple[float, float]:
    """Eq. 10 with three tokens."""
    q = _qkv(size[0])[0]
    keys, values = (models.randn(4, 3, 128, seed=seed) for seed in (5, 6))
    expected = bokeh_attention(q.double(), keys.double(), values.double())
    found = bokeh_attention(*(t.to(device) for t in (q, keys, values)))
    assert split_heads(found, 4).shape == q.shape
    return models.relative(found.cpu(), expected), 2e-5


PLAIN: dict[str, Comparison] = {
    **{name: partial(lens_model, name) for name in _LENSES},
    "thin_lens, gradients": lens_gradients,
    "grain": grain,
    "aligned edges": aligned_edges,
    "depth with holes": depth_with_holes,
    "focus": focus,
    "colours": colours,
    **{
        f"grounded attention, {how}, {str(dtype).removeprefix('torch.')}": partial(grounded, shared, dtype)
        for shared, how in ((True, "shared logits"), (False, "concatenated"))
        for dtype in _ATTENTION
    },
    "grounded attention, gradients": grounded_gradients,
    "bokeh term": bokeh_term,
}
"""Comparisons that need no host."""


# ---- small models of the host ----


def grounded_sampling(kind: str, pack: ModuleType, device: str) -> tuple[float, float]:
    """A sweep of two K by the node, four steps at guidance 2, with an adapter of all parts."""
    from tests.sampling import Sampling

    pair = []
    for where in ("cpu", device):
        base = models.host_model(kind, device=where)
        laid = pack.bokeh_ops.host.adapter.apply.apply_adapter(base, models.adapter(kind))
        made = Sampling(pack, kind, laid).grounded()
        pair.append(torch.cat([part["samples"].cpu() for part in made]))
        models.unload()
    return models.relative(pair[1], pair[0]), 5e-4


def training_gradients(kind: str, _pack: ModuleType, device: str) -> tuple[float, float]:
    """Of an adapter's weights through a model, grounded rows included."""
    from bokeh_ops.host.loading import models as loading
    from bokeh_ops.host.training import denoise  # the trainer's, which is a script to the host
    from bokeh_ops.host.training import gradients as training

    pair = []
    for where in ("cpu", device):
        base = models.host_model(kind, device=where)
        adapter = models.adapter(kind).to(where).requires_grad_(True)
        laid = training.apply_for_training(base, adapter)
        loading.on_device(laid)
        prompt, settings = models.conditioning(kind, rows=3)[0]
        condition = denoise.conditioning(
            prompt, settings.get("pooled_output"), settings.get("guidance"), [2.0, 14.0, 30.0], [1, -1, 1]
        )
        x = models.randn(3, models.LATENT_CHANNELS[kind], 8, 8, seed=5).to(where)
        sigma = torch.full((3,), models.sigma_of(kind), device=where)
        with training.differentiable(laid, adapter):
            denoise.denoise(laid, condition, x, sigma).square().mean().backward()
        pair.append(torch.cat([w.grad.flatten().cpu() for w in adapter.parameters() if w.grad is not None]))
        models.unload()
    assert len(pair[0])
    return models.relative(pair[1], pair[0]), 1e-3


HOSTED: dict[str, Callable[[ModuleType, str], tuple[float, float]]] = {
    f"{what}, {kind}": partial(function, kind)
    for function, what in (
        (grounded_sampling, "grounded sampling"),
        (training_gradients, "training gradients"),
    )
    for kind in models.KINDS
}
"""Comparisons in the host."""
