"""A generator learns through depth, focus and lens: what is computed, and that gradients come back through it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bokeh_ops.depth.focus import focus_by_weight
from bokeh_ops.depth.focus_transformer import FocusTransformer, Sizes, read_focus_transformer
from bokeh_ops.errors import BokehError
from bokeh_ops.render.thin_lens import circle_of_confusion, render_thin_lens_camera
from tests import depth_models, models
from tests.fit import workshop  # noqa: F401
from tests.models import one_thread  # noqa: F401
from tests.test_distil import NO_HEAD, only, recipe, settings, train, unloaded  # noqa: F401
from trainer import toy
from trainer.cli import UsageError
from trainer.data.sample import Sample, Taken
from trainer.recipes.dmd.lens import LARGEST_BLUR, LensChain, Seen

# ruff: noqa: F811 (the fixtures are imported)

TAKEN = [Taken(2.8, 0.085, 0.018), Taken(4.0, 0.05, 0.006)]


def depth(pictures: Tensor) -> Tensor:
    """Smooth in the picture, so that differences can be told: what is bright is near, what is low in it too."""
    rows = torch.linspace(0, 1, pictures.shape[2]).to(pictures).view(1, 1, -1, 1)
    return 0.4 + 0.8 * pictures.mean(1, keepdim=True) + 0.7 * rows


def transformer(seed: int = 0) -> FocusTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FocusTransformer(Sizes(side=16, patch=4, width=8, heads=2, layers=1))
        torch.nn.init.normal_(network.scale.weight, std=0.02)
    return network


def pictures(rows: int = 2, side: int = 16, seed: int = 0) -> Tensor:
    """Well inside 0..1."""
    return 0.2 + 0.6 * torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_the_lens_is_that_of_the_paper() -> None:
    """K and focus of eqs. 4 to 6 against the circle of confusion as it is printed, and the renderer that takes it."""
    chain, given = LensChain(depth, transformer()), pictures()
    with torch.no_grad():
        seen = chain.see(given)
        formed = chain.through(given, seen, TAKEN)
        assert torch.equal(seen.focus, focus_by_weight(depth(given), seen.saliency))
        assert float((seen.scale - 1).abs().min()) > 0.01
        f_number, focal, sensor = torch.tensor(TAKEN).T
        metres, distance = 1 / seen.disparity, 1 / seen.focus
        wide = [each.view(-1, 1, 1, 1) for each in (distance, focal, f_number, seen.scale)]
        coc = circle_of_confusion(metres, *wide) / sensor.view(-1, 1, 1, 1) * 16
        k = chain.strength(seen, TAKEN, 16).view(-1, 1, 1, 1)
        assert torch.allclose(coc / 2, (k * (seen.disparity - seen.focus.view(-1, 1, 1, 1))).abs(), atol=1e-5)
        other = render_thin_lens_camera(given, metres, distance, seen.scale, f_number, focal, sensor).image
    assert float((other - given).abs().max()) > 0.05
    assert torch.allclose(formed, other, atol=1e-5)


def test_gradients_through_depth_focus_and_lens_against_differences() -> None:
    """To the picture, whose depth and focus move with it, and to every weight of the transformer at once."""
    network = transformer().double()
    chain, given = LensChain(depth, network), pictures().double().requires_grad_(True)
    weight = torch.randn(given.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def value() -> Tensor:
        return (chain.through(given, chain.see(given), TAKEN) * weight).sum()

    inputs = [given, *network.parameters()]
    gradients = torch.autograd.grad(value(), inputs, allow_unused=True)
    for part in (inputs[:1], inputs[1:]):
        found, steps = 0.0, []
        for each, gradient in zip(inputs, gradients, strict=True):
            if any(each is one for one in part) and gradient is not None:
                step = torch.randn(
                    each.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
                )
                steps.append((each, step))
                found += float((gradient * step).sum())
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                for each, step in steps:
                    each += sign * 1e-6 * step
                ends.append(float(value()))
                for each, step in steps:
                    each -= sign * 1e-6 * step
        assert found == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4)
    assert all(float(gradients[number].abs().max()) > 0 for number in (0, -1))  # type: ignore[union-attr]


def test_depth_focus_and_lens_each_carry_a_part_of_the_gradient() -> None:
    given = pictures().requires_grad_(True)
    chain = LensChain(depth, transformer())
    blind = LensChain(lambda shown: depth(shown).detach(), transformer())
    whole, part = (
        torch.autograd.grad(each.through(given, each.see(given), TAKEN).square().sum(), given)[0]
        for each in (chain, blind)
    )
    assert float((whole - part).norm() / whole.norm()) > 0.01
    seen = chain.see(given)
    held = Seen(*(value.detach() for value in seen))
    assert float(torch.autograd.grad(chain.through(given, seen, TAKEN).sum(), given)[0].norm()) != float(
        torch.autograd.grad(chain.through(given, held, TAKEN).sum(), given)[0].norm()
    )


def test_values_outside_are_kept_and_have_a_gradient() -> None:
    """A generator's pictures run over 0 and 1, and black has no slope in light."""
    given = torch.where(pictures() > 0.6, 1.3, -0.2).requires_grad_(True)
    chain = LensChain(lambda shown: depth(shown).detach(), transformer())
    formed = chain.through(given, chain.see(given), TAKEN)
    (gradient,) = torch.autograd.grad(formed.sum(), given)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().min()) > 0
    black = torch.zeros(1, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(chain.through(black, chain.see(black), TAKEN[:1]).sum(), black)
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("metres", [1e-3, 1e6])
def test_wrong_depth_stops_nothing(metres: float) -> None:
    """Nearer than the focal length, or endlessly far with something close by."""

    def wrong(shown: Tensor) -> Tensor:
        map = torch.full_like(shown[:, :1], 1 / metres)
        map[..., :4, :] = 2 * map[..., :4, :] if metres < 1 else 500.0
        return map

    given = pictures().requires_grad_(True)
    chain = LensChain(wrong, transformer())
    seen = chain.see(given)
    formed = chain.through(given, seen, TAKEN)
    away = (seen.disparity - seen.focus.view(-1, 1, 1, 1)).abs().flatten(1).amax(1)
    radius = chain.strength(seen, TAKEN, 16) * away
    assert float(radius.detach().max()) <= 16 * LARGEST_BLUR * 1.001
    assert bool(torch.isfinite(torch.autograd.grad(formed.square().sum(), given)[0]).all())


def test_flat_depth_changes_nothing() -> None:
    chain, given = LensChain(lambda shown: torch.ones_like(shown[:, :1]), transformer()), pictures()
    assert torch.equal(chain.through(given, chain.see(given), TAKEN), given)


def test_the_tie_is_to_the_frozen_one_and_trains_the_transformer_alone() -> None:
    given = pictures().requires_grad_(True)
    moved = transformer()
    chain = LensChain(depth, moved, transformer())
    assert float(chain.tie(given, chain.see(given)).detach().abs().max()) == 0
    with torch.no_grad():
        moved.pixels.weight += 0.5 * torch.randn(moved.pixels.weight.shape)
    loss = chain.tie(given, chain.see(given))
    near = chain.see(given).near
    wanted, found = (focus_by_weight(near, net(given, near).saliency) for net in (transformer(), moved))
    assert torch.allclose(loss, 0.5 * (found - wanted).square(), atol=1e-7)
    to_picture, to_weight = torch.autograd.grad(loss.sum(), [given, moved.pixels.weight], allow_unused=True)
    assert to_picture is None
    assert float(to_weight.abs().max()) > 0


# ---- the recipe ----


@pytest.fixture(scope="module")
def metres(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A depth model that measures."""
    folder = tmp_path_factory.mktemp("depth")
    depth_models.make("metric", folder)
    return folder


def through(workshop: Path, metres: Path) -> tuple[str, ...]:
    return f"data.shallow={workshop / 'data'}", f"lens.depth={metres}", "lens.lr=0.003"


def test_steps_take_turns(workshop: Path, tmp_path: Path, metres: Path) -> None:
    """Without and with the lens, on sharp and on blurred photographs, each with its own head."""
    made = recipe(workshop, tmp_path, "sd15", *through(workshop, metres))
    assert set(made.learners) == {"generator", "fake", "focus"}
    assert not set(made.pictures.indices) & set(made.shallow.indices)
    seen: list[bool] = []
    chain = made.chain
    made.chain = SimpleNamespace(
        see=lambda p: (seen.append(True), chain.see(p))[1], tie=chain.tie, through=chain.through
    )
    for step, shallow in enumerate((False, True)):
        turns = made.turns(step)
        assert [turn.learners for turn in turns] == (
            [("fake", "focus"), ("fake", "focus"), ("generator", "focus")]
            if shallow
            else [("fake",), ("fake",), ("generator",)]
        )
        for turn in turns:
            seen.clear()
            head = made.heads[shallow]
            handle = head.register_forward_hook(lambda *_: seen.append(False))
            rows = made.losses(turn, turn.jobs[0])
            handle.remove()
            assert seen == ([True, False] if shallow else [False])
            assert set(rows.losses) == set(turn.weights)
            if shallow:  # the focus learns in every turn
                (tied,) = torch.autograd.grad(
                    rows.losses["focus"].sum(), chain.focus.token, retain_graph=True
                )
                assert tied.shape == chain.focus.token.shape
            known = {made.pictures.dataset.key(index) for index in made.sets[shallow].indices}
            assert {row["photograph"] for row in rows.told} <= known
    assert made.turns(1)[-1].weights["focus"] == 200  # the paper's


def test_the_generator_learns_through_the_lens(workshop: Path, tmp_path: Path, metres: Path) -> None:
    """What teacher and fake model are shown has a gradient to the generator and to the scale of the focus."""
    made = recipe(workshop, tmp_path, "sd15", *through(workshop, metres), *NO_HEAD, "losses.focus=0")
    turn = made.turns(1)[-1]
    with made.training():
        made.losses(turn, turn.jobs[0]).losses["matching"].sum().backward()
    assert any(
        float(p.grad.abs().max()) > 0 for p in made.learners["generator"].parameters if p.grad is not None
    )
    scale = made.chain.focus.scale
    assert float(scale.bias.grad.abs()) > 0
    # What is matched are latents of what the lens makes.
    x, taken = models.randn(2, *made.pictures.shape, seed=1), [TAKEN[1]] * 2
    with torch.no_grad():
        shown, _ = made.shown(turn.jobs[0], x, taken)
        opened = made.base.opened(x).movedim(-1, 1)
        formed = made.chain.through(opened, made.chain.see(opened), taken)
        assert torch.allclose(shown, made.base.closed(formed.movedim(1, -1)), atol=1e-6)
        assert float((shown - x).abs().max()) > 0.05
    assert made.shown(made.turns(0)[-1].jobs[0], x, taken)[0] is x
    fixed = recipe(workshop, tmp_path, "sd15", *through(workshop, metres), "lens.scale=false")
    own = fixed.learners["focus"].weights
    assert set(own) == {
        name for name, _ in made.chain.focus.named_parameters() if not name.startswith("scale")
    }


@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_the_gradient_of_the_codec_and_the_lens_against_differences(
    workshop: Path, tmp_path: Path, metres: Path, checkpointing: str
) -> None:
    """From what is judged back to the generator's latents, through real networks in single precision."""
    made = recipe(workshop, tmp_path, "sd15", *through(workshop, metres), f"checkpointing={checkpointing}")
    job = made.turns(1)[-1].jobs[0]
    x = made.base.closed(pictures().movedim(1, -1))
    weight, step = (models.randn(*x.shape, seed=seed) for seed in (2, 3))

    def value(x: Tensor) -> Tensor:
        return (made.shown(job, x, TAKEN)[0] * weight).double().sum()

    given = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(given), given)
    with torch.no_grad():
        difference = (value(x + 3e-4 * step) - value(x - 3e-4 * step)) / 6e-4
    assert float((gradient * step).sum()) == pytest.approx(float(difference), rel=2e-2)


def test_a_run_through_the_lens_goes_on(workshop: Path, tmp_path: Path, metres: Path) -> None:
    """The focus transformer is in checkpoint and result, and a stopped run ends where one that was not stopped does."""
    told = (*through(workshop, metres), "ema=0.9")
    train(workshop, tmp_path / "one", "sd15", *told)
    train(workshop, tmp_path / "two", "sd15", *told, until=2)
    made = train(workshop, tmp_path / "two", "sd15", *told)
    for name in ("generator_lora.safetensors", "focus.safetensors"):
        one, two = (load_file(tmp_path / folder / name) for folder in ("one", "two"))
        assert models.same_bits(one, two)
    found = read_focus_transformer(tmp_path / "one" / "focus.safetensors")
    assert float(found.scale.bias.abs()) > 0  # it has moved
    with made.training():
        told_of = made.validation()
        sheet = made.samples(4)
    assert {"matching", "matching_shallow", "focus_shallow"} <= set(told_of)
    assert sheet.shape[-1] == 3


def test_a_generator_may_begin_with_another(workshop: Path, tmp_path: Path) -> None:
    train(workshop, tmp_path / "one", "sd15", "steps=2")
    file = tmp_path / "one" / "generator_lora.safetensors"
    made = recipe(workshop, tmp_path / "two", "sd15", f"init={file}")
    made.result(0)
    assert models.same_bits(load_file(tmp_path / "two" / file.name), load_file(file))
    fresh = recipe(workshop, tmp_path / "three", "sd15")
    assert models.same_bits(
        {name: value.detach() for name, value in made.learners["fake"].weights.items()},
        {name: value.detach() for name, value in fresh.learners["fake"].weights.items()},
    )
    with pytest.raises(BokehError, match=r"has \d+ tensors and \d+ are expected; the first that differs"):
        recipe(workshop, tmp_path / "four", "sd15", f"init={file}", "lora.rank=3")


@pytest.mark.parametrize("rank", [0, 2])
def test_a_beginning_that_is_none(workshop: Path, tmp_path: Path, rank: int) -> None:
    """No such file, a file of something else, and one of another kind of training."""
    (tmp_path / "broken.safetensors").write_bytes(b"no network")
    train(workshop, tmp_path / "other", "sd15", "steps=1", f"lora.rank={2 - rank}")
    other = next((tmp_path / "other").glob("generator*.safetensors"))
    for file in (tmp_path / "none.safetensors", tmp_path / "broken.safetensors", other):
        with pytest.raises(BokehError, match=re.escape(str(file))):
            recipe(workshop, tmp_path / "one", "sd15", f"init={file}", f"lora.rank={rank}")


def test_one_process_has_nothing_to_spread(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe(workshop, tmp_path, "sd15", "shard=true")
    assert "there is one process, which holds all weights" in capsys.readouterr().err


def test_exif_is_told_to_generator_and_fake_model(workshop: Path, tmp_path: Path) -> None:
    made = train(workshop, tmp_path, "sd15", "exif=true", "data.sharp=false", "steps=2")
    taken = [made.pictures.read(number).taken for number in range(len(made.pictures))]
    assert None not in taken
    x, sigma = models.randn(2, *made.pictures.shape), torch.tensor([2.0, 1.0])
    texts = made.texts(["a patch"] * 2)
    for role, differs in (("teacher", False), ("generator", True), ("fake", True)):
        one, two = (made.roles.estimate(role, x, sigma, texts, taken=[each] * 2)[0] for each in TAKEN)
        assert bool((one != two).any()) == differs
    from bokeh_ops.host.training.exif import read_exif

    written = read_exif(tmp_path / "exif.safetensors").state_dict()
    own = {name: value.detach() for name, value in made.roles.exif["generator"].state_dict().items()}
    assert models.same_bits(written, own)
    assert {f"exif.{name}" for name in own} <= set(
        load_file(tmp_path / "checkpoints/step-00000002/generator.safetensors")
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("data.shallow=x", "data.shallow is set and lens.depth is not"),
        ("lens.depth=x", "lens.depth or lens.focus is set and data.shallow is not"),
        ("exif=true", "exif and data.sharp are both set"),
    ],
)
def test_settings_that_do_not_go_together(workshop: Path, tmp_path: Path, wrong: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings(workshop, tmp_path, "sd15", wrong)


def test_photographs_without_a_lens(workshop: Path, tmp_path: Path, metres: Path) -> None:
    folder = tmp_path / "sharp"
    toy.write_dataset(folder, photographs=1, sharp=3)
    with pytest.raises(
        BokehError, match="has 1 photographs that are not all in focus and whose lens is known"
    ):
        recipe(workshop, tmp_path, "sd15", *through(workshop, metres), f"data.shallow={folder}")
    with pytest.raises(BokehError, match="has 1 photographs whose lens is known"):
        recipe(workshop, tmp_path, "sd15", "exif=true", "data.sharp=false", f"data.dataset={folder}")


def test_a_data_set_that_does_not_say_how_photographs_were_taken(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(workshop, tmp_path, "sd15", "exif=true", "data.sharp=false")
    monkeypatch.setattr(Sample, "taken", None)
    with pytest.raises(BokehError, match=r"has a K, but not all of f_number, f_mm and sensor_shown_mm"):
        only(made, "generator")


def test_sets_of_two_sizes(
    workshop: Path, tmp_path: Path, metres: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy, "SIDE", 32)
    toy.write_dataset(tmp_path / "large", photographs=3, sharp=1)
    with pytest.raises(
        BokehError, match=r"pictures of 16 x 16 and data.shallow of 32 x 32; .* one resolution"
    ):
        recipe(workshop, tmp_path, "sd15", *through(workshop, metres), f"data.shallow={tmp_path / 'large'}")


def test_a_depth_model_that_does_not_measure(workshop: Path, tmp_path: Path) -> None:
    depth_models.make("relative", tmp_path / "relative")
    with pytest.raises(BokehError, match="metres"):
        recipe(workshop, tmp_path, "sd15", *through(workshop, tmp_path / "relative"))
    with pytest.raises(BokehError, match="There is no folder"):
        recipe(workshop, tmp_path, "sd15", *through(workshop, tmp_path / "none"))
