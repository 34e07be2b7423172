"""SDXL: what of the other architectures' tests could come out otherwise for it. Its attention is SD1.5's."""
# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from bokeh_ops.adapter.files import read_adapter, write_adapter
from bokeh_ops.host.architectures import named
from tests import models
from tests.fit import host_folder, workshop  # noqa: F401
from tests.fullsize import SDXL_UNET
from tests.models import one_thread, predict, relative  # noqa: F401
from tests.reference import by_hooks
from tests.sampling import PIVOT, Sampling

K = [2.0, 14.0, 28.0]


@pytest.fixture(scope="module")
def base(pack: ModuleType) -> Any:
    return models.host_model("sdxl")


@pytest.fixture(autouse=True)
def unloaded(pack: ModuleType) -> Iterator[None]:
    yield
    models.unload()


def told(pack: ModuleType, pivots: list[int] | None = None) -> tuple[Any, Any]:
    """Both prompts with K, of which the positive one is grounded."""
    carry = pack.bokeh_ops.host.sampling.conditioning
    positive = carry.with_k(models.conditioning("sdxl", 0), K)
    negative = carry.with_negative_k(models.conditioning("sdxl", 1), K, carry.NEGATIVE_MODES[0])
    if pivots is None:
        return positive, negative
    plans = (carry.PivotCondition(models.per_row(plan)) for plan in (pivots, [-1] * len(pivots)))
    return tuple(
        carry.with_conditions(c, bokeh_pivot=p) for c, p in zip((positive, negative), plans, strict=True)
    )


@pytest.mark.parametrize("grounded", [False, True])
@pytest.mark.parametrize(
    "variant", [{}, {"tokens": 3}, {"full": False, "lora_alpha": 6.0}], ids=["usual", "tokens", "low rank"]
)
def test_it_computes_equations_10_and_11(
    pack: ModuleType, base: Any, variant: dict[str, Any], grounded: bool
) -> None:
    """Against the same equations by hooks on the network: nothing of the extension is in them."""
    adapter = models.adapter("sdxl", **variant)
    model = pack.bokeh_ops.host.adapter.apply.apply_adapter(base, adapter, 0.8)
    pivots = [1, -1, 1] if grounded else None
    if grounded:
        rows = pack.bokeh_ops.adapter.rows.SweepRows(1, 2)
        model = pack.bokeh_ops.host.sampling.grounded.ground_model(model, rows, torch.zeros(2), 1)
    x = models.randn(3, 4, 9, 7, seed=5)  # halved twice: neither is a multiple of 4
    out = torch.stack(predict(model, *told(pack, pivots), x=x))
    models.unload()
    # The host puts the negative's rows first.
    everywhere = None if pivots is None else [-1] * 3 + [row + 3 if row >= 0 else -1 for row in pivots]
    with by_hooks(base, [(adapter, 0.8)], [-30.0] * 3 + K, everywhere):
        expected = torch.stack(predict(base, *told(pack), x=x))
    plain = torch.stack(predict(base, models.conditioning("sdxl", 0), models.conditioning("sdxl", 1), x=x))
    assert relative(out, expected) < 1e-5
    assert relative(out, plain) > 0.02


def test_an_adapter_of_another_architecture_is_refused(pack: ModuleType, base: Any) -> None:
    apply = pack.bokeh_ops.host.adapter.apply.apply_adapter
    for kind, title in (("sd15", "SD1.5"), ("flux", "FLUX")):
        with pytest.raises(Exception, match=f"for {title}, but the model is SDXL"):
            apply(base, models.adapter(kind))
    with pytest.raises(Exception, match=r"for SDXL, but the model is BaseModel \(UNet"):
        apply(models.host_model("sd15"), models.adapter("sdxl"))


def test_a_sweep_is_what_each_picture_would_be_alone(pack: ModuleType, base: Any) -> None:
    """Prompts with pooled text and sizes, through the node."""
    s = Sampling(pack, "sdxl", pack.bokeh_ops.host.adapter.apply.apply_adapter(base, models.adapter("sdxl")))
    pivot, targets = s.grounded(target_bokeh="14, 2", grounding_steps=2)
    assert relative(pivot["samples"], s.alone(PIVOT)) < 1e-5
    assert relative(targets["samples"][:1], s.alone(PIVOT)) < 1e-5
    assert relative(targets["samples"][1:], s.alone(PIVOT)) > 1e-2
    assert relative(s.grounded(grounding_steps=0)[1]["samples"][1:], s.alone(2.0)) < 1e-5


def full_size(pack: ModuleType) -> Any:
    """The published network on the device that holds no data."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.ops import disable_weight_init

    return UNetModel(**SDXL_UNET, dtype=torch.float16, device="meta", operations=disable_weight_init)


def test_every_layer_of_the_full_size_is_found(pack: ModuleType) -> None:
    network = full_size(pack)
    assert sum(p.numel() for p in network.parameters()) == 2_567_463_684  # UNet2DConditionModel, as published
    architecture = pack.bokeh_ops.host.architectures.named("sdxl")
    widths = architecture.widths(network)
    assert len(widths) == 140
    decoder = architecture.bokeh_layers(widths, "decoder")
    assert [len(decoder), sorted({widths[path] for path in decoder})] == [36, [640, 1280]]
    assert len(architecture.bokeh_layers(widths, "all")) == len(architecture.query_key_layers(widths)) == 70
    slots = pack.bokeh_ops.host.attention.unet.slots(widths)
    assert len(set(slots.values())) == 70
    assert slots["output_blocks.2.1.transformer_blocks.9"] == ("output", 2, 9)
    assert slots["middle_block.1.transformer_blocks.3"] == ("middle", 0, 3)


@pytest.mark.parametrize("name", ["SSD1B", "Segmind_Vega", "KOALA_700M", "SDXL_instructpix2pix"])
def test_its_kin_are_taken_for_it(pack: ModuleType, base: Any, name: str) -> None:
    import comfy.supported_models

    model = base.clone().model
    own = model.model_config
    try:
        model.model_config = getattr(comfy.supported_models, name)(dict(own.unet_config))
        assert named("sdxl").claims(model)
        assert not named("sd15").claims(model)
    finally:
        model.model_config = own


def test_checkpointing_changes_no_gradient(pack: ModuleType, base: Any) -> None:
    """Each block by itself: what is kept for the way back is less than with the blocks of a place together."""
    from bokeh_ops.host.loading import models as loading
    from bokeh_ops.host.training import denoise
    from bokeh_ops.host.training import gradients as training

    context, settings = models.conditioning("sdxl", 0, rows=2)[0]
    condition = denoise.conditioning(context, settings["pooled_output"], None, [2.0, 20.0], [-1, 0])
    x, sigma = models.randn(2, 4, 8, 8, seed=5), torch.tensor([3.0, 3.0])

    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        adapter = models.adapter("sdxl").requires_grad_(True)
        model = training.apply_for_training(base, adapter)
        loading.on_device(model)
        with training.differentiable(model, adapter, checkpointing):
            denoise.denoise(model, condition, x, sigma).square().mean().backward()
        return {name: p.grad for name, p in adapter.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys()
    assert any(".to_q_adp" in name for name in plain)
    assert all(relative(again[name], plain[name]) < 1e-5 for name in plain if plain[name].any())
    blocks = named("sdxl").checkpoint_blocks(base.model.diffusion_model)
    assert sum(type(block).__name__ == "BasicTransformerBlock" for block, _ in blocks) == 8


def fit(folder: Path, workshop: Path, *words: str) -> Tensor:
    """`fit` of a toy on the workshop's photographs."""
    from tests.fit import run
    from trainer.toy import make_toy, write_toy

    write_toy(workshop / "sdxl.safetensors", make_toy("sdxl", seed=3))
    run(
        "sdxl", folder, workshop, "steps=2", "samples.every=2", "samples.steps=2", "samples.k=[0, 20]", *words
    )
    return folder


def test_it_is_trained_exported_and_evaluated(
    pack: ModuleType, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bokeh_ops.host.small.model import read_small
    from trainer.cli import main

    fit(tmp_path, workshop)
    made = read_adapter(tmp_path / "adapter.safetensors")
    assert made.config.base == "sdxl"
    assert all(
        ".to_v_bokeh" not in n or p.any() for n, p in made.named_parameters() if n.endswith("up.weight")
    )
    assert len(list((tmp_path / "samples").glob("*.png"))) >= 1
    exported = tmp_path / "exported.safetensors"
    assert main(["export", str(tmp_path / "adapter.safetensors"), str(exported), "--dtype", "bf16"]) == 0
    toy = read_small(workshop / "sdxl.safetensors")
    laid = pack.bokeh_ops.host.adapter.apply.apply_adapter(toy.patcher, read_adapter(exported))
    assert laid is not None
    assert write_adapter(made, tmp_path / "again.safetensors").is_file()
    out, prompt = tmp_path / "measured", ("--prompt", "a patch", "--steps", "2", "--k", "0, 30")
    base = ("--architecture", "sdxl", "--checkpoint", str(workshop / "sdxl.safetensors"), "--weights", "fp32")
    where = (
        "--comfyui",
        str(host_folder()),
        "--sample-on",
        "cpu",
        "--adapter",
        str(exported),
        "--size",
        "32",
    )
    monkeypatch.setattr("trainer.measure.plots.plot_sweeps", lambda *_: [])
    monkeypatch.setattr("trainer.measure.metrics.weights.load_lpips", lambda *_: None)
    assert main(["evaluate", "model", str(out), *base, *where, *prompt]) == 0
    (scene,) = json.loads((out / "figures.json").read_text())["runs"][0]["scenes"]
    assert scene["values"] == [0, 14, 30]
