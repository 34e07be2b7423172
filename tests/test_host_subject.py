# ruff: noqa: F811 (fixtures)
"""Beyond the paper: a subject that keeps the pivot's K, and a guidance scale of K alone."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from bokeh_ops.adapter.conditions import Conditions
from tests import models
from tests.models import one_thread, relative  # noqa: F401
from tests.sampling import Sampling, adapter, base, kind, model, s, said, unloaded  # noqa: F401

K = "14, 2, 26"


def test_a_subject_that_is_nowhere_changes_nothing(s: Sampling) -> None:
    pivot, targets = s.grounded(target_bokeh=K)
    same_pivot, same = s.grounded(target_bokeh=K, subject=torch.zeros(1, 50, 70))
    assert relative(same_pivot["samples"], pivot["samples"]) < 1e-6
    assert relative(same["samples"], targets["samples"]) < 1e-6


@pytest.mark.parametrize("grounding", [0, 4])
def test_a_subject_that_is_everywhere_leaves_the_pivot(s: Sampling, grounding: int) -> None:
    pivot, targets = s.grounded(target_bokeh=K, grounding_steps=grounding, subject=torch.ones(1, 64, 64))
    for target in targets["samples"]:
        assert relative(target[None], pivot["samples"]) < 1e-5
    assert relative(pivot["samples"], s.alone()) < 1e-5


def test_a_half_is_neither(s: Sampling) -> None:
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    pivot, without = s.grounded(target_bokeh="2", grounding_steps=0)
    _, half = s.grounded(target_bokeh="2", grounding_steps=0, subject=mask)
    left, right = slice(0, 4), slice(-4, None)
    change = (half["samples"] - pivot["samples"]).abs()
    assert change[..., right].mean() > 1.2 * change[..., left].mean()
    assert relative(half["samples"], without["samples"]) > 1e-3


def test_every_picture_of_a_batch_has_its_own_mask(s: Sampling) -> None:
    latent = {**s.latent, "samples": s.latent["samples"].repeat(2, 1, 1, 1)}
    masks = torch.stack([torch.ones(64, 64), torch.zeros(64, 64)])
    pivot, targets = s.grounded(latent=latent, target_bokeh="2, 26", grounding_steps=0, subject=masks)
    _, without = s.grounded(latent=latent, target_bokeh="2, 26", grounding_steps=0)
    for row in (0, 2):
        assert relative(targets["samples"][row], pivot["samples"][0]) < 1e-5
        assert relative(targets["samples"][row + 1], without["samples"][row + 1]) < 1e-5
    with pytest.raises(Exception, match=r"shape \(3, 64, 64\) for 2 pictures"):
        s.grounded(latent=latent, target_bokeh="2", subject=torch.ones(3, 64, 64))


def test_a_mask_that_is_no_mask_is_refused(s: Sampling) -> None:
    with pytest.raises(Exception, match="mask has NaN or infinite values"):
        s.grounded(target_bokeh="2", subject=torch.full((1, 64, 64), float("nan")))
    with pytest.raises(Exception, match=r"shape \(0, 64, 64\) for 1 pictures"):
        s.grounded(target_bokeh="2", subject=torch.ones(0, 64, 64))


def test_a_mask_of_another_shape_is_told(s: Sampling, said: Any) -> None:
    s.grounded(target_bokeh="2", subject=torch.ones(1, 64, 66))
    assert not any("stretched" in text for text in said())
    s.grounded(target_bokeh="2", subject=torch.ones(1, 50, 70))
    assert any("70 x 50, another shape than the picture" in text for text in said())


@pytest.mark.parametrize("area", [(4, 4, 2, 0), (5, 3, 1, 5)])
def test_a_prompt_for_an_area_has_the_mask_of_that_area(s: Sampling, area: tuple[int, ...]) -> None:
    """What the area is predicted as is what the model makes of that part of the picture and of the mask alone."""
    height, width, y, x0 = area
    x = models.randn(2, models.LATENT_CHANNELS[s.kind], 8, 8, seed=5)
    mask = torch.zeros(2, 8, 8)
    mask[:, 3:6, 1:4], mask[1, :, 6:] = 1, 0.5

    def conditioned(mask: torch.Tensor) -> Any:
        inside = {
            "bokeh_in_subject": s.carry.ToldCondition(Conditions.of_k([14.0, 14.0])),
            "bokeh_subject": s.carry.SubjectCondition(mask),
        }
        return s.carry.with_conditions(s.carry.with_k(s.positive, [14.0, 2.0]), **inside)

    part = (..., slice(y, y + height), slice(x0, x0 + width))
    whole = conditioned(mask)
    whole[0][1]["area"] = area
    (out,) = models.predict(s.model, whole, x=x)
    (alone,) = models.predict(s.model, conditioned(mask[part].contiguous()), x=x[part].contiguous())
    (without,) = models.predict(s.model, s.carry.with_k(s.positive, [14.0, 2.0]), x=x[part].contiguous())
    assert relative(out[part], alone) < 1e-5
    assert relative(alone[1], without[1]) > 1e-3


@pytest.mark.parametrize("factor", [2.0, 1.5])
def test_layers_that_are_shrunk_have_the_mask_at_their_size(pack: ModuleType, factor: float) -> None:
    """Deep shrink makes layers of sizes that are no halving of the latent's."""
    from comfy_extras.nodes_model_downscale import PatchModelAddDownscale

    base = models.host_model("sd15")
    shrunk = models.call(PatchModelAddDownscale, base, 1, factor, 0.0, 1.0, True, "bicubic", "bicubic")
    s = Sampling(
        pack, "sd15", pack.bokeh_ops.host.adapter.apply.apply_adapter(shrunk, models.adapter("sd15"))
    )
    latent = models.empty_latent("sd15", 1, 14, 10)
    pivot, targets = s.grounded(latent=latent, target_bokeh="2", subject=torch.ones(1, 14, 10))
    assert relative(targets["samples"], pivot["samples"]) < 1e-5
    left = torch.zeros(1, 14, 10)
    left[..., :5] = 1
    _, half = s.grounded(latent=latent, target_bokeh="2", grounding_steps=0, subject=left)
    change = (half["samples"] - pivot["samples"]).abs()
    assert change[..., 6:].mean() > 1.2 * change[..., :4].mean()


def test_groups_give_the_same(s: Sampling) -> None:
    mask = torch.zeros(1, 64, 64)
    mask[:, 20:50, 10:40] = 1
    _, at_once = s.grounded(target_bokeh=K, subject=mask)
    _, in_groups = s.grounded(target_bokeh=K, subject=mask, rows_per_batch=2)
    assert relative(in_groups["samples"], at_once["samples"]) < 1e-5


def test_the_share_of_every_token(pack: ModuleType) -> None:
    region = pack.bokeh_ops.host.attention.model_call.Region
    mask = torch.zeros(2, 5, 6)
    mask[1, :, :3] = 1
    assert region({}, mask).share((5, 6), 30)[1, :, 0].reshape(5, 6).equal(mask[1])
    halves = region({}, mask).share((3, 3), 9)[1, :, 0].reshape(3, 3)
    assert halves.tolist() == [[1.0, 0.5, 0.0]] * 3
    # A layer of any size, such as deep shrink makes.
    assert region({}, mask).share((4, 4), 16)[1, :, 0].reshape(4, 4).tolist() == [[1.0, 1.0, 0.0, 0.0]] * 4
    # FLUX: text first, patches of 2 x 2, and then other pictures.
    joint = region({}, mask, before=4).share((3, 3), 4 + 9 + 7)[1, :, 0]
    assert joint.tolist() == [0.5] * 4 + [1.0, 0.5, 0.0] * 3 + [0.0] * 7
    with pytest.raises(Exception, match="11 tokens for 3 x 3 places, so the subject's mask"):
        region({}, mask).share((3, 3), 11)
    with pytest.raises(Exception, match="12 tokens for 3 x 3 places and 4 tokens of text"):
        region({}, mask, before=4).share((3, 3), 12)


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_term_is_that_of_the_place(pack: ModuleType, tokens: int) -> None:
    """Against eq. 10 written out, for each place with the K that is meant there."""
    call, attention = pack.bokeh_ops.host.attention.model_call, pack.bokeh_ops.adapter.attention
    q = models.randn(1, 2, 4, 8, seed=1)
    outside, inside = (
        tuple(models.randn(1, tokens, 16, seed=seed + part) for part in (0, 1)) for seed in (2, 4)
    )
    mask = torch.tensor([[[1.0, 0.0], [0.0, 0.25]]])
    planned = call.ModelCall({"x": [outside]}, None, call.Region({"x": [inside]}, mask))
    (term,) = call.bokeh_terms(planned, "x", (2, 2), 4, lambda k, v: attention.bokeh_attention(q, k, v))

    def written_out(pair: Any) -> torch.Tensor:
        keys, values = (part.reshape(tokens, 2, 8).movedim(1, 0) for part in pair)
        return (torch.softmax(q[0] @ keys.mT / 8**0.5, -1) @ values).movedim(0, 1).reshape(4, 16)

    share = mask.reshape(4, 1)
    wanted = share * written_out(inside) + (1 - share) * written_out(outside)
    assert relative(term[0], wanted) < 1e-5


def test_k_has_a_guidance_scale_of_its_own(pack: ModuleType, s: Sampling) -> None:
    """As the host's dual guider gives, with Bokeh Condition's -30 for the same prompt."""
    from comfy.samplers import CFGGuider as CFGGuiders
    from comfy_extras.nodes_custom_sampler import BasicGuider, CFGGuider, DualCFGGuider

    condition = pack.nodes.adapter.BokehCondition
    _, middle = condition.execute(s.positive, s.positive, 14.0, "released (-30)").result
    guider = models.call(DualCFGGuider, s.model, s.positive, middle, s.negative, 2.5, 2.0, "regular")
    _, by_hand = s.advanced(guider)
    pivot, targets = s.grounded(bokeh_guidance=2.5, scheduler="simple")
    assert relative(targets["samples"], by_hand["samples"]) < 1e-5
    assert relative(targets["samples"], s.grounded()[1]["samples"]) > 1e-3
    _, off = s.grounded(bokeh_guidance=0.0)
    assert relative(off["samples"], s.grounded()[1]["samples"]) < 1e-6
    assert relative(targets["samples"][:1], pivot["samples"]) < 1e-5
    # in the other node, on the guider that its workflows have
    cfg_guider = models.call(CFGGuider, s.model, s.positive, s.negative, 2.0)
    assert torch.equal(s.advanced(cfg_guider, bokeh_guidance=2.5)[1]["samples"], targets["samples"])
    basic = models.call(BasicGuider, s.model, s.positive)
    _, scaled = s.advanced(basic, bokeh_guidance=2.5)
    by_hand = models.call(DualCFGGuider, s.model, s.positive, middle, s.negative, 2.5, 1.0, "regular")
    assert relative(scaled["samples"], s.advanced(by_hand)[1]["samples"]) < 1e-5
    assert set(basic.original_conds) == {"positive"}  # as it was
    # The server loads the file of BasicGuider by itself, so that its class is another one there.
    other = type("Guider_Basic", (CFGGuiders,), {"set_conds": type(basic).set_conds})(s.model)
    other.set_conds(s.positive)
    assert torch.equal(s.advanced(other, bokeh_guidance=2.5)[1]["samples"], scaled["samples"])
    refused = pack.bokeh_ops.errors.BokehError
    with pytest.raises(refused, match=r"is 2\.5, but the guider is a Guider_DualCFG; expected BasicGuider"):
        s.advanced(guider, bokeh_guidance=2.5)
    with pytest.raises(refused, match="bokeh_guidance is nan; give a finite scale"):  # as a link may bring it
        s.grounded(bokeh_guidance=float("nan"))


def test_much_cfg_of_flux_is_said(s: Sampling, said: Any, kind: str) -> None:
    """Its guidance is distilled; SD1.5 is meant to be run so."""
    from comfy_extras.nodes_custom_sampler import CFGGuider

    for cfg, told in ((7.0, kind == "flux"), (3.0, False), (1.0, False)):
        before = len(said())
        s.grounded(cfg=cfg, steps=1)
        s.advanced(models.call(CFGGuider, s.model, s.positive, s.negative, cfg))
        assert [f"cfg is {cfg:g}, but FLUX" in text for text in said()[before:]] == [True, True] * told
