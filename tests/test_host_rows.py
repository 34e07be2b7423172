# ruff: noqa: F811 (fixtures)
"""The rows of a sweep: found wherever another extension puts them, and given the inputs of their own picture."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from tests import models
from tests.models import one_thread, relative  # noqa: F401
from tests.sampling import PIVOT, Sampling, adapter, base, kind, model, s, said, unloaded  # noqa: F401
from tests.test_host_chaining import control_net

Apply = Callable[..., Tensor]


def rearranged(x: Tensor, t: Tensor, c: dict[str, Any], rows: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The call with other rows, every condition that goes by the row with it."""
    moved = {
        name: value[rows] if isinstance(value, Tensor) and value.shape[:1] == x.shape[:1] else value
        for name, value in c.items()
    }
    return x[rows], t[rows], moved


def twice(apply: Apply, x: Tensor, t: Tensor, c: dict[str, Any]) -> Tensor:
    rows = list(range(len(x))) * 2
    x2, t2, c2 = rearranged(x, t, c, rows)
    return apply(x2, t2, **c2)[len(x) :]


def twice_told(apply: Apply, x: Tensor, t: Tensor, c: dict[str, Any]) -> Tensor:
    """The same, and the host's list of chunks is brought into line."""
    options = c["transformer_options"]
    told = {**options, "cond_or_uncond": options["cond_or_uncond"] * 2}
    return twice(apply, x, t, {**c, "transformer_options": told})


def each_row_twice(apply: Apply, x: Tensor, t: Tensor, c: dict[str, Any]) -> Tensor:
    x2, t2, c2 = rearranged(x, t, c, [row for row in range(len(x)) for _ in range(2)])
    return apply(x2, t2, **c2)[1::2]


def backwards(apply: Apply, x: Tensor, t: Tensor, c: dict[str, Any]) -> Tensor:
    x2, t2, c2 = rearranged(x, t, c, list(range(len(x)))[::-1])
    return apply(x2, t2, **c2).flip(0)


def row_by_row(apply: Apply, x: Tensor, t: Tensor, c: dict[str, Any]) -> Tensor:
    parts = []
    for row in range(len(x)):
        x1, t1, c1 = rearranged(x, t, c, [row])
        parts.append(apply(x1, t1, **c1))
    return torch.cat(parts)


def row_by_row_with_all_k(apply: Apply, x: Tensor, t: Tensor, c: dict[str, Any]) -> Tensor:
    ours = {name: value for name, value in c.items() if name.startswith("bokeh")}
    parts = []
    for row in range(len(x)):
        x1, t1, c1 = rearranged(x, t, c, [row])
        parts.append(apply(x1, t1, **{**c1, **ours}))
    return torch.cat(parts)


def without_what_it_does_not_know(apply: Apply, x: Tensor, t: Tensor, c: dict[str, Any]) -> Tensor:
    return apply(x, t, **{name: value for name, value in c.items() if not name.startswith("bokeh")})


def wrapped(model: Any, change: Callable[..., Tensor]) -> Any:
    clone = model.clone()
    clone.set_model_unet_function_wrapper(
        lambda apply, args: change(apply, args["input"], args["timestep"], args["c"])
    )
    return clone


@pytest.mark.parametrize("change", [twice, twice_told, each_row_twice, backwards])
def test_rows_that_are_repeated_or_moved(s: Sampling, change: Any) -> None:
    pivot, targets = s.grounded(target_bokeh="2, 26")
    same_pivot, same = s.grounded(wrapped(s.model, change), target_bokeh="2, 26")
    assert relative(same_pivot["samples"], pivot["samples"]) < 1e-5
    assert relative(same["samples"], targets["samples"]) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (row_by_row, r"1 rows, of which one is grounded on row 0.*pivot and targets must run together"),
        (row_by_row_with_all_k, r"called with 1 rows, but the sampler gave 6 pivots"),
        (without_what_it_does_not_know, "calls the model without what the sampler gave it"),
    ],
)
def test_rows_that_are_torn_apart_are_refused(
    pack: ModuleType, s: Sampling, change: Any, message: str
) -> None:
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=message):
        s.grounded(wrapped(s.model, change), target_bokeh="2, 26")


def test_rows_one_by_one_without_grounding(pack: ModuleType, s: Sampling) -> None:
    _, targets = s.grounded(target_bokeh="2, 26", grounding_steps=0)
    _, same = s.grounded(wrapped(s.model, row_by_row), target_bokeh="2, 26", grounding_steps=0)
    assert relative(same["samples"], targets["samples"]) < 1e-5
    with pytest.raises(
        pack.bokeh_ops.errors.BokehError, match=r"called with 1 rows, but the sampler gave 6 K"
    ):
        s.grounded(wrapped(s.model, row_by_row_with_all_k), target_bokeh="2, 26", grounding_steps=0)


# ---- inputs of other numbers than pictures ----


def prompts(s: Sampling, rows: int) -> Any:
    return models.conditioning(s.kind, 0, rows=rows), models.conditioning(s.kind, 1)


def row(conditioning: Any, index: int) -> Any:
    """One prompt of a batch of them."""
    return [
        [
            tensor[index : index + 1],
            {k: v[index : index + 1] if isinstance(v, Tensor) else v for k, v in settings.items()},
        ]
        for tensor, settings in conditioning
    ]


def as_each_alone(s: Sampling, latent: Any, given: Any, alone: Callable[[int], Any]) -> None:
    """Every role of every picture gets what that picture gets alone."""
    pictures = latent["samples"].shape[0]
    pivot, targets = s.grounded(latent=latent, prompts=given, target_bokeh="2, 26")
    for index in range(pictures):
        one = {"samples": latent["samples"][index : index + 1], "batch_index": [index]}
        own_pivot, own = s.grounded(latent=one, prompts=alone(index), target_bokeh="2, 26")
        assert relative(pivot["samples"][index], own_pivot["samples"][0]) < 1e-5
        assert relative(targets["samples"][index::pictures], own["samples"]) < 1e-5


def latents(s: Sampling, pictures: int) -> dict[str, Any]:
    return {**models.empty_latent(s.kind, pictures), "batch_index": list(range(pictures))}


@pytest.mark.parametrize(("entries", "pictures"), [(4, 1), (2, 2), (3, 2), (2, 3)])
def test_prompts(s: Sampling, entries: int, pictures: int) -> None:
    positive, negative = prompts(s, entries)
    as_each_alone(
        s, latents(s, pictures), (positive, negative), lambda i: (row(positive, i % entries), negative)
    )


@pytest.mark.parametrize(("entries", "pictures"), [(4, 1), (2, 2)])
def test_masks_of_a_prompt(s: Sampling, entries: int, pictures: int) -> None:
    import nodes

    masks = torch.zeros(entries, 64, 64)
    for index in range(entries):
        masks[index, :, : 16 * (index + 1)] = 1

    def masked(mask: Tensor) -> Any:
        other = models.conditioning(s.kind, 5)
        return models.call(nodes.ConditioningSetMask, s.positive, mask, "default", 1.0) + other, s.negative

    as_each_alone(s, latents(s, pictures), masked(masks), lambda i: masked(masks[i : i + 1]))


@pytest.mark.parametrize(("entries", "pictures"), [(4, 1), (3, 2)])
def test_hints_of_control_nets(pack: ModuleType, entries: int, pictures: int) -> None:
    import nodes

    base = models.host_model("sd15")
    s = Sampling(pack, "sd15", pack.bokeh_ops.host.adapter.apply.apply_adapter(base, models.adapter("sd15")))
    hints = torch.rand(entries, 64, 64, 3, generator=models.generator(32))
    net = control_net()

    def controlled(hint: Tensor, other: Tensor) -> Any:
        apply = nodes.ControlNetApplyAdvanced().apply_controlnet
        once = apply(s.positive, s.negative, net, other, 0.4, 0.0, 1.0)
        return apply(*once, net, hint, 0.9, 0.0, 1.0)  # one after the other

    with models.watched(base) as calls:
        as_each_alone(
            s,
            latents(s, pictures),
            controlled(hints, hints.flip(0)),
            lambda i: controlled(hints[i : i + 1], hints.flip(0)[i : i + 1]),
        )
    assert all(
        chunks == [1, 0] for _, chunks in calls
    )  # both branches have one control, so they run together
    assert relative(
        s.grounded(prompts=controlled(hints[:1], hints[:1]))[0]["samples"],
        s.grounded(prompts=controlled(hints[1:2], hints[:1]))[0]["samples"],
    ) > 1e-3  # fmt: skip


@pytest.mark.parametrize(("entries", "pictures"), [(4, 1), (3, 2)])
def test_references(pack: ModuleType, entries: int, pictures: int) -> None:
    s = Sampling(
        pack,
        "flux",
        pack.bokeh_ops.host.adapter.apply.apply_adapter(models.host_model("flux"), models.adapter("flux")),
    )
    references = models.randn(entries, 16, 4, 4, seed=41)

    def referring(reference: Tensor) -> Any:
        return [[t, {**settings, "reference_latents": [reference]}] for t, settings in s.positive], s.negative

    as_each_alone(s, latents(s, pictures), referring(references), lambda i: referring(references[i : i + 1]))


def test_conditions_of_other_extensions(s: Sampling) -> None:
    """What they give the model per picture, four for one."""
    from comfy.conds import CONDRegular

    seen: list[Tensor] = []

    def look(apply: Apply, x: Tensor, t: Tensor, c: dict[str, Any]) -> Tensor:
        seen.append(c.pop("theirs"))
        return apply(x, t, **c)

    given = models.randn(4, 3, seed=51)
    own = [s.carry.with_conditions(c, theirs=CONDRegular(given)) for c in (s.positive, s.negative)]
    s.grounded(wrapped(s.model, look), prompts=own, target_bokeh="2, 26")
    assert all(torch.equal(rows, given[:1].repeat(len(rows), 1)) for rows in seen)


@pytest.mark.parametrize(("entries", "pictures"), [(4, 1), (3, 2)])
def test_pictures_to_inpaint(pack: ModuleType, entries: int, pictures: int) -> None:
    """The host stretches them: of three the first and the last are those of two pictures."""
    with patch.object(models, "UNET", {**models.UNET, "in_channels": 9}):
        base = models.host_model("sd15")
    base.model.set_inpaint()
    s = Sampling(pack, "sd15", pack.bokeh_ops.host.adapter.apply.apply_adapter(base, models.adapter("sd15")))
    seen = models.randn(entries, 4, 8, 8, seed=61)
    masks = (models.randn(entries, 1, 8, 8, seed=62) > 0).float()

    def inpainting(picture: Tensor, mask: Tensor) -> Any:
        more = {"concat_latent_image": picture, "concat_mask": mask}
        return [[[t, {**settings, **more}] for t, settings in c] for c in (s.positive, s.negative)]

    def alone(index: int) -> Any:
        which = round(index * (entries - 1) / max(1, pictures - 1))
        return inpainting(seen[which : which + 1], masks[which : which + 1])

    as_each_alone(s, latents(s, pictures), inpainting(seen, masks), alone)
