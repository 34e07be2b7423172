"""Aperture and focal length as a condition: what it adds to the host's networks, and its gradients."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bokeh_ops.errors import BokehError
from tests import models
from tests.models import one_thread, relative  # noqa: F401

KINDS = ("sd15", "sdxl", "flux")
LAST = {"sd15": "time_embed.2", "sdxl": "time_embed.2", "flux": "time_in.out_layer"}
"""The layer whose output is the timestep embedding."""
F_NUMBERS, FOCAL_LENGTHS = [1.8, 16.0], [0.035, 0.085]


@pytest.fixture(autouse=True)
def unloaded(pack: Any) -> Iterator[None]:
    yield
    models.unload()


def embedding_for(patcher: Any, fresh: bool = False) -> Any:
    from bokeh_ops.host.architectures import recognise
    from bokeh_ops.host.training.exif import ExifEmbedding

    _, width = recognise(patcher).architecture.timestep_embedding(patcher.model.diffusion_model)
    torch.manual_seed(3)
    embedding = ExifEmbedding(width)
    if not fresh:
        with torch.no_grad():
            for weight in embedding.last.parameters():
                weight.copy_(torch.randn(weight.shape) / weight.shape[0] ** 0.5)
    return embedding.to(patcher.load_device)


def predicted(patcher: Any, kind: str, rows: int = 2, both: bool = False) -> Tensor:
    """What the network gives of each row, of the positive prompt and, after those, of the negative one."""
    x = models.randn(rows, models.LATENT_CHANNELS[kind], 8, 8, seed=5)
    negative = models.conditioning(kind, 1) if both else None
    return torch.cat(models.predict(patcher, models.conditioning(kind), negative, x=x))


def condition(kind: str) -> list[Any]:
    from bokeh_ops.host.training import denoise

    context, said = models.conditioning(kind, rows=2)[0]
    return denoise.conditioning(context, said.get("pooled_output"), said.get("guidance"), [0.0] * 2)


def loss(patcher: Any, kind: str) -> Tensor:
    from bokeh_ops.host.training import denoise

    device = patcher.load_device
    x = models.randn(2, models.LATENT_CHANNELS[kind], 8, 8, seed=5).to(device)
    sigma = torch.full((2,), models.sigma_of(kind), device=device)
    return denoise.denoise(patcher, condition(kind), x, sigma).square().mean()


def gradients(patcher: Any, kind: str, embedding: Any, checkpointing: bool) -> dict[str, Tensor]:
    from bokeh_ops.host.loading import models as loading
    from bokeh_ops.host.training.exif import told
    from bokeh_ops.host.training.gradients import differentiable

    loading.on_device(patcher)
    embedding.zero_grad(set_to_none=True)
    with differentiable(patcher, None, checkpointing):
        with told(patcher, embedding, F_NUMBERS, FOCAL_LENGTHS):
            found = loss(patcher, kind)
        found.backward()  # what is computed again on the way back is so after `told` was closed
    return {name: weight.grad for name, weight in embedding.named_parameters() if weight.grad is not None}


def test_neighbours_are_told_apart() -> None:
    from bokeh_ops.host.training.exif import _sinusoids

    def apart(one: float, other: float) -> float:
        a, b = _sinusoids(torch.tensor([one, other]))
        return float((a - b).norm() / a.norm())

    assert apart(1.8, 2.0) > 0.5
    assert apart(16.0, 22.0) > 0.5
    assert apart(35.0, 50.0) > 0.5
    assert apart(1.0, 2.0) == pytest.approx(apart(16.0, 32.0), rel=1e-3)  # stops alone count
    every = 2 ** (torch.arange(-3, 31) / 3)  # thirds of an octave from f/0.5, or 1 mm to 1 m
    between = torch.cdist(_sinusoids(every), _sinusoids(every)) + 9 * torch.eye(len(every))
    assert float(between.min()) > 0.5 * 16**0.5


@torch.no_grad()
def test_both_numbers_count() -> None:
    embedding = embedding_for(models.host_model("sd15")).cpu()
    own = embedding(torch.tensor([2.0, 4.0, 2.0, 4.0]), torch.tensor([0.035, 0.035, 0.05, 0.05]))
    assert own.shape == (4, 128)
    assert float(torch.pdist(own).min()) > 0.1 * float(own.norm(dim=-1).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_one_changes_no_bit_and_nothing_is_left_behind(kind: str) -> None:
    from bokeh_ops.host.training.exif import told

    patcher = models.host_model(kind)
    before = predicted(patcher, kind)
    with told(patcher, embedding_for(patcher, fresh=True), F_NUMBERS, FOCAL_LENGTHS):
        assert torch.equal(predicted(patcher, kind), before)
    with told(patcher, embedding_for(patcher), F_NUMBERS, FOCAL_LENGTHS):
        assert not torch.equal(predicted(patcher, kind), before)
    assert torch.equal(predicted(patcher, kind), before)


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_is_told_its_own_in_both_branches(kind: str) -> None:
    """As if the layer that the timestep embedding comes out of had the row's own embedding in its bias."""
    from bokeh_ops.host.training.exif import told

    patcher = models.host_model(kind)
    embedding = embedding_for(patcher)
    with told(patcher, embedding, F_NUMBERS, FOCAL_LENGTHS), models.watched(patcher) as calls:
        found = predicted(patcher, kind, both=True)
    assert [shape[0] for shape, _ in calls] == [4]  # both branches in one call
    with torch.no_grad():
        rows = embedding(torch.tensor(F_NUMBERS), torch.tensor(FOCAL_LENGTHS))
    layer = patcher.model.diffusion_model.get_submodule(LAST[kind])
    own = layer.bias.detach().clone()
    others = []
    for row, each in enumerate(rows):
        with torch.no_grad():
            layer.bias.copy_(own + each.to(own))
        expected = predicted(patcher, kind, both=True)
        for place in (row, row + 2):
            assert relative(found[place], expected[place]) < 1e-5
            others.append(relative(found[place ^ 1], expected[place ^ 1]))
    assert min(others) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    from bokeh_ops.host.training.exif import told
    from bokeh_ops.host.training.gradients import differentiable

    patcher = models.host_model(kind)
    embedding = embedding_for(patcher)
    found = gradients(patcher, kind, embedding, checkpointing=False)
    assert set(found) == {"first.weight", "first.bias", "last.weight", "last.bias"}
    for name, gradient in found.items():
        weight, norm = embedding.get_parameter(name), float(gradient.norm())
        before, step, values = weight.detach().clone(), 0.05, []
        with torch.no_grad(), differentiable(patcher), told(patcher, embedding, F_NUMBERS, FOCAL_LENGTHS):
            for steps in (1, -1, 2, -2):
                weight.copy_(before + steps * step * gradient / norm)
                values.append(float(loss(patcher, kind)))
            weight.copy_(before)
        slope = (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * step)
        assert slope == pytest.approx(norm, rel=2e-3), name


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_gives_the_same_gradients(kind: str) -> None:
    patcher = models.host_model(kind)
    embedding = embedding_for(patcher)
    plain = gradients(patcher, kind, embedding, checkpointing=False)
    again = gradients(patcher, kind, embedding, checkpointing=True)
    assert plain.keys() == again.keys()
    assert all(relative(again[name], plain[name]) < 1e-5 for name in plain)


def test_the_last_projection_of_a_fresh_one_is_what_learns_first() -> None:
    patcher = models.host_model("sd15")
    found = gradients(patcher, "sd15", embedding_for(patcher, fresh=True), checkpointing=False)
    assert {name for name, gradient in found.items() if gradient.any()} == {"last.weight", "last.bias"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_hosts_own_sampler_is_told(kind: str) -> None:
    from bokeh_ops.host.sampling.plain import sample_plain
    from bokeh_ops.host.training.exif import told

    patcher = models.host_model(kind)
    embedding = embedding_for(patcher)
    blank = models.empty_latent(kind, pictures=2)["samples"]

    def sampled(f_numbers: list[float] | None) -> Tensor:
        within = nullcontext() if f_numbers is None else told(patcher, embedding, f_numbers, FOCAL_LENGTHS)
        positive, negative = models.conditioning(kind), models.conditioning(kind, 1)
        with within:
            return sample_plain(patcher, positive, negative, blank, 7, 2, 3.0, "euler")

    plain, wide, narrow = sampled(None), sampled([2.0, 4.0]), sampled([16.0, 4.0])
    assert torch.equal(sampled([2.0, 4.0]), wide)
    assert relative(narrow[0], wide[0]) > 1e-2
    assert relative(narrow[1], wide[1]) < 1e-5
    assert relative(plain[1], wide[1]) > 1e-2
    assert torch.equal(sampled(None), plain)


def test_the_type_of_the_network_is_kept() -> None:
    from bokeh_ops.host.training.exif import told

    patcher = models.host_model("sd15")
    module = patcher.model.diffusion_model.time_embed
    given = models.randn(4, 32, seed=2).to(next(module.parameters()).device)
    half = torch.autocast(given.device.type, torch.bfloat16)
    embedding = embedding_for(patcher).double()
    with torch.no_grad(), told(patcher, embedding, F_NUMBERS, FOCAL_LENGTHS):
        assert module(given).dtype == torch.float32
        with half:
            assert module(given).dtype == torch.bfloat16


def test_what_is_refused() -> None:
    from bokeh_ops.host.training.exif import ExifEmbedding, told

    patcher = models.host_model("sd15")
    embedding = embedding_for(patcher)
    one = torch.ones(1)

    def refused(f_numbers: Any, focal_lengths: Any, message: str) -> None:
        with pytest.raises(BokehError, match=message), told(patcher, embedding, f_numbers, focal_lengths):
            pass

    for number in (0.0, -2.0, math.inf, math.nan):
        refused(
            [2.0, number], [0.05, 0.05], rf"f-numbers are 2, {number:g}; expected finite .* Give 2\.8 for"
        )
        with pytest.raises(BokehError, match="The f-numbers are"):
            embedding(number * one, 0.05 * one)
    for number in (0.0, -0.05, math.nan, 2.0, 50.0):
        refused(
            [2.0], [number], rf"lengths are {number:g} m; expected metres, .* below 2\. Give 0\.05 for 50 mm"
        )
    refused([2.0, 4.0], [0.05], r"are \(2,\) and the focal lengths \(1,\); expected \[R\] of both")
    refused([], [], r"\(0,\)")
    refused([[2.0]], [[0.05]], r"\(1, 1\)")
    with (
        told(patcher, embedding, F_NUMBERS, FOCAL_LENGTHS),
        pytest.raises(
            BokehError, match=r"called with 3 rows, but .* of 2 pictures are told; .* Give one per"
        ),
    ):
        predicted(patcher, "sd15", rows=3)
    with pytest.raises(BokehError, match=r"is 64 wide, but .* is 128 wide. It was trained on another model"):
        told(patcher, ExifEmbedding(64), [2.0], [0.05]).__enter__()
    with pytest.raises(BokehError, match="width of an EXIF embedding is 0; expected 1 to"):
        ExifEmbedding(0)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    from bokeh_ops.host.training.exif import read_exif

    path, embedding = tmp_path / "exif.safetensors", embedding_for(models.host_model("flux"))
    embedding.save(path)
    found = read_exif(path)
    numbers = torch.tensor(F_NUMBERS), torch.tensor(FOCAL_LENGTHS)
    assert torch.equal(found(*numbers), embedding.cpu()(*numbers))
    assert not any(weight.requires_grad for weight in found.parameters())


def test_files_that_are_refused(tmp_path: Path) -> None:
    from bokeh_ops.host.training.exif import FILE, ExifEmbedding, read_exif

    path, embedding = tmp_path / "a.safetensors", ExifEmbedding(8)
    weights = {name: value.detach().clone() for name, value in embedding.state_dict().items()}

    def refused(message: str, **said: object) -> None:
        if said:
            description = json.dumps({"version": 1, "width": 8, **said})
            save_file(weights, path, {FILE.key: description})
        with pytest.raises(BokehError, match=message):
            read_exif(path)

    refused(r"There is no file .*; expected an EXIF embedding")
    embedding.save(path)
    path.write_bytes(path.read_bytes()[:-10])
    refused(r"\(\d+ bytes\) cannot be read as safetensors .* download it again")
    save_file(weights, path, {"format": "pt"})
    refused(r"is not an EXIF embedding: it has 4 tensors such as first.bias, .* has written")
    save_file(weights, path, {FILE.key: "half a senten"})
    refused("says 'half a senten' of itself; expected JSON")
    save_file(weights, path, {FILE.key: "{}"})
    refused("expected JSON with version and width")
    refused(r"of version 2; this extension reads version 1\. Update", version=2)
    refused(r"says the width '8'; expected a whole number", width="8")
    refused(r"width of an EXIF embedding is 1000000000", width=10**9)
    refused(r"first.weight is \(8, 64\); a ExifEmbedding has \(16, 64\)", width=16)
    weights["last.bias"][0] = math.nan
    refused("last.bias holds numbers that are NaN", width=8)
