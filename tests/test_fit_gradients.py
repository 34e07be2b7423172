"""Gradients of the trainer's own loss against finite differences, and that what trains is what samples."""
# ruff: noqa: F811 (the fixture `workshop` is imported)

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import models
from tests.fit import KINDS, settings, workshop  # noqa: F401
from tests.models import one_thread  # noqa: F401
from trainer.recipes.bokeh.plan import MicroBatch


@pytest.fixture(autouse=True)
def unloaded(pack: Any) -> Iterator[None]:
    yield
    models.unload()


class Bench:
    """One micro-batch of a toy, ready to be trained on: grounded sets, or photographs (not grounded)."""

    def __init__(
        self, kind: str, folder: Path, workshop: Path, *overrides: str, batch: str = "contrastive"
    ) -> None:
        from trainer.processes import Alone
        from trainer.recipes.bokeh.recipe import Bokeh

        self.settings = settings(kind, folder, workshop, *overrides).resolved()
        self.run = Bokeh(self.settings, folder, Alone())
        self.adapter = self.run.adapter
        source = torch.Generator().manual_seed(5)
        with torch.no_grad():  # away from the start, where values and the 'up' factors are zero
            for weight in self.adapter.parameters():
                weight.add_(0.3 * torch.randn(weight.shape, generator=source) / weight.shape[-1] ** 0.5)
        self.micro = self.micro_batch(batch)
        fed = self.run.feeder.feed(self.micro)
        self.arguments = (
            self.micro,
            self.run.latents_of(fed),
            self.run.texts(fed.captions),
            self.run.size,
            fed.masks,
        )

    def micro_batch(self, kind: str) -> MicroBatch:
        for step in range(20):
            if self.run.plan.kind(step) == kind:
                micro = next(iter(self.run.plan.micro_batches(step)))
                if (max(micro.pivots()) >= 0) == (kind == "contrastive"):
                    return micro
        raise AssertionError(f"no such batch in twenty steps: {kind}")

    def loss(self) -> Tensor:
        losses = self.run.trainee.losses(*self.arguments)
        return losses.error.sum() + (self.settings.localisation or 0) * losses.localisation.sum()

    def gradients(self) -> dict[str, Tensor]:
        self.adapter.zero_grad(set_to_none=True)
        with self.run.trainee.training():
            self.loss().backward()
        return {name: p.grad.clone() for name, p in self.adapter.named_parameters() if p.grad is not None}

    def slope(self, name: str, direction: Tensor, step: float) -> float:
        """The derivative along ``direction`` by central differences of fourth order."""
        parameter = self.adapter.get_parameter(name)
        before = parameter.detach().clone()
        values = []
        with torch.no_grad(), self.run.trainee.training():
            for steps in (1, -1, 2, -2):
                parameter.copy_(before + steps * step * direction)
                values.append(self.loss().double())
            parameter.copy_(before)
        return float(8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * step)


VARIANTS = {
    "sd15": ("sd15", ()),
    "sd15, photographs": ("sd15", ()),
    "sd15, two tokens": ("sd15", ("adapter.tokens=2", "adapter.rank=0")),
    "sd15, v": ("sd15", ("base.prediction=v", "localisation=0")),
    "sd15, strong localisation": ("sd15", ("localisation=100",)),
    "sd15, every layer": ("sd15", ("adapter.layers=all", "checkpointing=true")),
    "flux": ("flux", ()),
    "flux, photographs": ("flux", ()),
    "flux, two tokens": ("flux", ("adapter.tokens=2",)),
    "flux, checkpointing": ("flux", ("checkpointing=true",)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_finite_differences(workshop: Path, tmp_path: Path, variant: str) -> None:
    """Along the gradient of each tensor, where the slope is its norm."""
    kind, overrides = VARIANTS[variant]
    batch = "photographs" if "photographs" in variant else "contrastive"
    bench = Bench(kind, tmp_path, workshop, *overrides, batch=batch)
    gradients = bench.gradients()
    names = {name for name, p in bench.adapter.named_parameters() if p.requires_grad}
    assert set(gradients) == names
    total = torch.stack([g.norm() for g in gradients.values()]).norm()
    # Those with the largest part in it, one of each kind in a layer; a small slope drowns in rounding.
    by_size = sorted(gradients, key=lambda name: -float(gradients[name].norm()))
    chosen = {name.replace(".down.", ".up.").rpartition(".to_")[2]: name for name in reversed(by_size)}
    checked = []
    for name in {*by_size[:4], *chosen.values()}:
        gradient = gradients[name]
        norm = float(gradient.norm())
        if norm < 0.01 * total:
            continue
        scale = float(bench.adapter.get_parameter(name).detach().norm())
        # In front of the embedding's kinks a shorter way, so as not to run over one.
        step = 0.002 if name.startswith("embedding_layer.0") else 0.01
        slope = bench.slope(name, gradient / norm, step * scale)
        assert slope == pytest.approx(norm, rel=0.01), name
        checked.append(name)
    assert len(checked) >= 4
    kinds = {name.split(".")[-3] if ".down." in name or ".up." in name else name for name in names}
    assert {"to_q_adp", "to_k_adp"} <= kinds  # query/key adapters are among what trains


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_gives_the_same_gradients(workshop: Path, tmp_path: Path, kind: str) -> None:
    plain = Bench(kind, tmp_path / "a", workshop).gradients()
    again = Bench(kind, tmp_path / "b", workshop, "checkpointing=true").gradients()
    assert plain.keys() == again.keys()
    largest = max(float(g.abs().max()) for g in plain.values())
    for name, gradient in plain.items():
        assert float((gradient - again[name]).abs().max()) < 1e-5 * largest, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_changes_little(workshop: Path, tmp_path: Path, kind: str, precision: str) -> None:
    plain = Bench(kind, tmp_path / "a", workshop).gradients()
    half = Bench(
        kind, tmp_path / "b", workshop, f"precision={precision}", "base.weights=fp32", "checkpointing=true"
    ).gradients()
    one, other = (torch.cat([g.flatten() for g in gradients.values()]) for gradients in (plain, half))
    assert all(g.dtype == torch.float32 for g in half.values())
    difference = float((one - other).norm() / one.norm())
    assert difference < (0.1 if precision == "bf16" else 0.02)
    assert difference > 1e-5  # it was on


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_left_as_it_was(workshop: Path, tmp_path: Path, kind: str) -> None:
    bench = Bench(kind, tmp_path, workshop, "checkpointing=true")
    base = bench.run.trainee.base.patcher
    before = models.snapshot(base)
    bench.gradients()
    assert models.same_bits(models.snapshot(base), before)
    for module in base.model.diffusion_model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)
    assert not any(p.requires_grad for p in base.model.parameters())
    assert all(p.grad is None for p in base.model.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", ["contrastive", "photographs"])
def test_what_trained_is_what_samples(
    workshop: Path, tmp_path: Path, pack: Any, kind: str, batch: str
) -> None:
    """The trained file, loaded by LoadBokehAdapter, predicts what the trainer's own forward predicts.

    Grounded, and with a K for each row as BokehCondition gives it.
    """
    from bokeh_ops.adapter.files import write_adapter
    from bokeh_ops.host.training import denoise
    from tests import golden
    from trainer.frozen.cache import stack

    bench = Bench(kind, tmp_path, workshop, "adapter.tokens=2", "localisation=0", batch=batch)
    micro, latents, texts, *_ = bench.arguments
    trainee = bench.run.trainee
    context, pooled = stack(texts)
    guidance = 1.0 if kind == "flux" else None
    positive = denoise.conditioning(
        context, pooled, guidance, [p.told for p in micro.pictures], micro.pivots()
    )
    x, _, sigma = trainee.noisy(micro, latents)
    with trainee.training(), torch.no_grad():
        trained = denoise.denoise(trainee.laid, positive, x, torch.tensor(sigma))
        plain = denoise.denoise(trainee.base.patcher, positive, x, torch.tensor(sigma))
    folder = write_adapter(bench.run.trained_adapter(0), tmp_path / "models" / "mine.safetensors").parent
    with golden.adapter_folder(folder):
        loaded = pack.nodes.adapter.LoadBokehAdapter.execute(
            trainee.base.patcher, "mine.safetensors", 1.0, 1.0
        ).result[0]
    assert (max(micro.pivots()) >= 0) == (batch == "contrastive")
    if batch == "contrastive":  # grounded, as GroundedSampler grounds
        sampling, sweep = pack.bokeh_ops.host.sampling.grounded, pack.bokeh_ops.adapter.rows
        loaded = sampling.ground_model(loaded, sweep.SweepRows(1, 1), torch.zeros(2), 1)
    from bokeh_ops.host.loading.models import on_device

    on_device(loaded)
    with torch.no_grad():
        sampled = denoise.denoise(loaded, positive, x, torch.tensor(sigma))
    assert models.relative(sampled, trained) < 1e-5
    assert models.relative(plain, trained) > 1e-3
