"""Training a diffusion lens: losses, scenes, worse depth; that it goes on, and that what is trained is what renders."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bokeh_ops.diffusion_lens.told import TOLD
from bokeh_ops.errors import BokehError
from tests import models
from tests.golden import adapter_folder
from tests.host.setup import host_folder
from tests.models import one_thread, relative  # noqa: F401
from trainer.cli import UsageError
from trainer.data import DatasetWriter, encode_sample, open_dataset
from trainer.log import LOSSES, read_lines
from trainer.recipes.one_step import objective
from trainer.recipes.one_step.config import LensFit
from trainer.recipes.one_step.judge import Judge, looks_made, looks_real
from trainer.recipes.one_step.scenes import WAYS, Scenes, estimated, worse
from trainer.settings import parse_settings

SIDE = 32
LAYER = "input_blocks.1.1.transformer_blocks.0.attn1"


def write_scenes(folder: Path, scenes: int = 5, all_sharp: bool = False, side: int = SIDE) -> Path:
    """Stripes in front of a plain: as sharp as they are, and two more pictures that are grey between them."""
    writer = DatasetWriter(folder, (side, side), {})
    for scene in range(scenes):
        x = np.arange(side)
        stripes = ((x // 4 + scene) % 2)[None, :, None] * 200 + np.zeros((side, 1, 3))
        disparity = np.where((x // 8) % 2, 2.0, 0.5)[None].repeat(side, 0)
        for level, k in enumerate((0.0, 1.0, 3.0)):
            image = (stripes * (1 - k / 6) + 100 * k / 6).astype(np.uint8)
            info = {"captions": ["stripes"], "k": k, "all_in_focus": all_sharp or k == 0, "s1_m": 0.5}
            writer.add(f"s{scene}-0-{level}", encode_sample(image, disparity, disparity > 1, info, "png"))
    writer.finish()
    return folder


@pytest.fixture(scope="module")
def workshop(pack: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small base that has learnt nothing but is not silent, and scenes."""
    from bokeh_ops.host.small.model import SmallModel
    from trainer.world.lens import description

    folder = tmp_path_factory.mktemp("lens")
    small = {"model_channels": 32, "num_res_blocks": [1, 1], "transformer_depth": [1, 1]}
    more = {"transformer_depth_output": [0, 0, 1, 1], "transformer_depth_middle": 1}
    for name, told in (("base", ()), ("told", TOLD)):
        usual = description(told)
        model = SmallModel({**usual, "config": {**usual["config"], **small, **more}})
        source = models.generator(3)
        with torch.no_grad():
            for weight in model.network.parameters():
                scale = 1.0 if weight.ndim == 1 else weight[0].numel() ** -0.5
                weight.copy_(scale * torch.randn(weight.shape, generator=source))
        model.save(folder / f"{name}.safetensors")
    write_scenes(folder / "data")
    return folder


@pytest.fixture(autouse=True)
def unloaded(pack: Any) -> Iterator[None]:
    yield
    models.unload()


def settings(workshop: Path, out: Path, *overrides: str) -> LensFit:
    lines = [
        f"out: {out}",
        f"base: {{architecture: sdxl, diffusion_model: {workshop / 'base.safetensors'}}}",
        f"data: {{dataset: {workshop / 'data'}, worse_depth: 0.1}}",
        f"comfyui: {host_folder()}",
        "steps: 4",
        "precision: fp32",
        "device: cpu",
        "checkpointing: false",
        "tensorboard: false",
        "lora: {rank: 2, layers: all}",
        f"lens: {{timestep: 20, layers: [{LAYER}]}}",
        "losses: {lpips: 0}",
        "batch: {total: 3, micro: 2}",
        "samples: {every: 0, scenes: 2}",
        "checkpoint: {every: 2}",
    ]
    return parse_settings("\n".join(lines), LensFit, "test", overrides)


def train(workshop: Path, out: Path, *overrides: str, until: int | None = None) -> Any:
    """Train, and the recipe."""
    from trainer.loop import Loop, Schedule
    from trainer.processes import Alone
    from trainer.recipes.one_step.recipe import OneStep

    wanted = settings(workshop, out, *overrides).resolved()
    recipe = OneStep(wanted, out, Alone())
    Loop(recipe, Schedule(wanted.steps, 2, until=until), recipe.out).run()
    return recipe


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_lines(out / LOSSES)]


# ---- what is minimised ----


def test_the_edge_loss_by_hand() -> None:
    """A step of height 1 in ``sharp``, one of 0.5 in ``truth``, none in ``made``: at scale 1 one pixel in 8 counts."""
    made = torch.zeros(1, 1, 8, 8)
    truth, sharp = made.clone(), made.clone()
    truth[..., 4:] = 0.5
    sharp[..., 4:] = 1.0
    of_one = 0.5 * 1.0 / 8 / 2  # horizontal edges there are none, which is half of the mean
    assert float(objective.gradients(sharp, 1).abs().sum()) == pytest.approx(8.0)
    for scale in objective.SCALES:  # a difference over more pixels is met in more places
        edge = objective.gradients(sharp, scale)[0, 0, 4]
        assert edge.tolist().count(1.0) == scale
        assert float(objective.gradients(sharp, scale)[0, 1].abs().max()) == 0
    expected = sum(of_one * scale / scale**2 for scale in objective.SCALES)
    assert float(objective.edges(made, truth, sharp)) == pytest.approx(expected)
    assert float(objective.edges(truth, truth, sharp)) == 0
    flipped = [each.mT for each in (made, truth, sharp)]
    assert float(objective.edges(*flipped)) == pytest.approx(expected)


def test_the_edge_gets_harder() -> None:
    assert objective.hardness(0, 10.0, 100) == 10.0
    assert objective.hardness(50, 10.0, 100) == pytest.approx(1e4)
    assert objective.hardness(100, 10.0, 100) == objective.hardness(900, 10.0, 100) == pytest.approx(1e7)
    assert objective.hardness(0, 10.0, 0) == pytest.approx(1e7)


def test_the_adversary_learns_to_tell_and_can_be_told() -> None:
    torch.manual_seed(0)
    judge = Judge(width=8)
    kept, trained = judge.trainable()
    assert set(trained) < set(kept)  # and the numbers that its norms are estimated by
    smooth, noisy = torch.full((4, 3, 32, 32), 0.5), torch.rand(4, 3, 32, 32)
    optimizer = torch.optim.Adam(trained.values(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        (looks_real(judge(smooth)) + looks_made(judge(noisy))).mean().backward()
        optimizer.step()
    assert float(looks_real(judge(smooth)).mean()) < 0.3 < 1 < float(looks_real(judge(noisy)).mean())
    same = [torch.zeros(2, 1, 3, 3)]
    assert looks_real(same).tolist() == looks_made(same).tolist() == pytest.approx([math.log(2)] * 2)


# ---- scenes and depth ----


def test_scenes_of_a_data_set(workshop: Path) -> None:
    scenes = Scenes(open_dataset(workshop / "data"))
    assert len(scenes) == 5
    found = {scenes.example(scene, level).key for scene in range(5) for level in range(2)}
    assert found == {f"s{scene}-0-{level}" for scene in range(5) for level in (1, 2)}
    each = scenes.example(1, 1)
    assert (each.k, each.focus) == (3.0, 2.0)
    assert float((each.sharp - each.truth).abs().max()) == pytest.approx(50 / 255, abs=1 / 255)
    assert {each.key for each in scenes.drawn(0, 5, 40, 0, 3)} == {
        f"s{s}-0-{n}" for s in range(3) for n in (1, 2)
    }
    one, other = scenes.drawn(0, 5, 3, 0, 5), scenes.drawn(0, 5, 2, 1, 5)
    assert [each.key for each in one[1:]] == [each.key for each in other]


def test_a_data_set_without_scenes(tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", 2, all_sharp=True)
    with pytest.raises(BokehError, match=r"no scene with a picture that is all in focus and one that is not"):
        Scenes(open_dataset(tmp_path / "data"))


def test_worse_depth_is_what_it_says() -> None:
    disparity = torch.zeros(1, 16, 20)
    disparity[:, 5:10, 6:12] = 2.0
    grown, shrunk = worse(disparity, "dilated", 2.2), worse(disparity, "eroded", 1.8)
    assert grown.nonzero().amin(0).tolist() == [0, 3, 4]
    assert grown.nonzero().amax(0).tolist() == [0, 11, 13]
    assert shrunk.nonzero().amin(0).tolist() == [0, 7, 8]
    assert shrunk.nonzero().amax(0).tolist() == [0, 7, 9]
    moved = worse(disparity, "shifted", 3.0, math.pi / 2)
    assert torch.equal(moved[:, 2:7, 6:12], disparity[:, 5:10, 6:12])
    blurred = worse(disparity, "blurred", 1.0)
    assert float(blurred.sum()) == pytest.approx(float(disparity.sum()), rel=1e-4)
    assert 0.9 < float(blurred[0, 5, 8]) < 1.5
    for way in WAYS:
        assert torch.equal(worse(disparity, way, 0.0), disparity)
        assert worse(disparity, way, 3.0, 1.0).shape == disparity.shape
    with pytest.raises(BokehError, match=r"There is no way 'melted' .* eroded, dilated"):
        worse(disparity, "melted", 1.0)


def test_depth_is_made_worse_by_chance_and_the_same_again() -> None:
    disparity = torch.rand(1, 40, 40, generator=models.generator(0))
    drawn = [estimated(disparity, 0.2, 0, step, 1) for step in range(40)]
    assert all(torch.equal(each, estimated(disparity, 0.2, 0, step, 1)) for step, each in enumerate(drawn))
    spared = sum(torch.equal(each, disparity) for each in drawn)
    assert 2 <= spared <= 20
    assert torch.equal(estimated(disparity, 0.0, 0, 3, 1), disparity)


# ---- training ----


@pytest.mark.parametrize("rank", [2, 0])
def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(
    workshop: Path, tmp_path: Path, rank: int
) -> None:
    asked = f"lora.rank={rank}", "ema=0.9"
    train(workshop, tmp_path / "whole", *asked)
    train(workshop, tmp_path / "parts", *asked, until=2)
    assert len(losses(tmp_path / "parts")) == 2
    train(workshop, tmp_path / "parts", *asked)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    one, other = (
        {
            file.name: load_file(file)
            for file in (tmp_path / each / "checkpoints/step-00000004").glob("*.safetensors")
        }
        for each in ("whole", "parts")
    )
    assert set(one) == {"lens.safetensors", "lens-average.safetensors", "judge.safetensors"}
    assert all(models.same_bits(one[name], other[name]) for name in one)
    result = "lens.safetensors" if rank == 0 else "pytorch_lora_weights.safetensors"
    assert (tmp_path / "whole" / result).read_bytes() == (tmp_path / "parts" / result).read_bytes()


def test_micro_batches_add_up(workshop: Path, tmp_path: Path) -> None:
    told = []
    for micro in (3, 1):
        out = tmp_path / str(micro)
        train(workshop, out, "losses.adversarial=0", "steps=1", f"batch.micro={micro}")
        (line,) = read_lines(out / LOSSES)
        told.append([line[name] for name in ("mse", "edge", "loss", "gradient")])
    assert told[0] == pytest.approx(told[1], rel=1e-4)


def rendered_by(path: Path, model: Any, example: Any) -> Tensor:
    """What a lens model of the render node makes of an example."""
    from bokeh_ops.host.diffusion_lens.lens import DiffusionLens
    from bokeh_ops.host.small.lens import read_lens
    from bokeh_ops.host.small.model import read_small, small_vae
    from bokeh_ops.render import Lens, render

    if model is None:
        lens = read_lens(path)
    else:
        small = read_small(path)
        context, pooled = small.words.encode("an excellent photo with a large aperture")
        assert pooled is not None
        positive = [[context[None], {"pooled_output": pooled[None]}]]
        lens = DiffusionLens(model, small_vae(small), positive, True, [LAYER], 4, SIDE, 20)
    seen = Lens(example.k, example.focus, gamma="srgb", highlight_recovery=0.0)
    return render(example.sharp[None], example.disparity[None], seen, lens).image


@pytest.mark.parametrize(("rank", "told"), [(2, ()), (0, ()), (0, tuple(TOLD))])
def test_what_is_trained_is_what_renders(
    pack: Any, workshop: Path, tmp_path: Path, rank: int, told: tuple[str, ...]
) -> None:
    from bokeh_ops.diffusion_lens.files import read_lora
    from bokeh_ops.host.diffusion_lens.weights import add_lora
    from bokeh_ops.host.small.model import read_small, small_description

    base = workshop / ("told.safetensors" if told else "base.safetensors")
    recipe = train(
        workshop,
        tmp_path,
        f"base.diffusion_model={base}",
        f"lens.told=[{', '.join(told)}]",
        f"lora.rank={rank}",
        "optimizer.lr=0.02",
        "losses.adversarial=0",
    )
    example = recipe.scenes.example(4, 1)
    with torch.no_grad(), recipe.training():
        recipe.hard = 1e7
        expected = recipe.rendered([example], [example.disparity]).clamp(0, 1)
    models.unload()
    if rank:
        read = read_lora(tmp_path / "pytorch_lora_weights.safetensors")
        found = rendered_by(base, add_lora(read_small(base).patcher, read), example)
    else:
        described = small_description(tmp_path / "lens.safetensors")
        assert described is not None
        assert described["lens"]["timestep"] == 20
        assert described["lens"]["layers"] == [LAYER]
        assert described["lens"]["told"] == list(told)
        found = rendered_by(tmp_path / "lens.safetensors", None, example)
        with adapter_folder(tmp_path, "bokeh_renderers"):
            lens = pack.nodes.diffusion_lens.LoadDiffusionLens.execute(
                "lens.safetensors", "none", 1.0, True
            ).result[0]
        seen = pack.bokeh_ops.render.Lens(example.k, example.focus, gamma="srgb", highlight_recovery=0.0)
        picture, disparity = example.sharp[None], example.disparity[None]
        assert torch.equal(pack.bokeh_ops.render.render(picture, disparity, seen, lens).image, found)
    assert relative(found, expected) < (1e-4 if rank else 1e-2)  # a small model is kept in half precision
    if not told:
        assert relative(rendered_by(base, read_small(base).patcher, example), expected) > 2e-2


def test_what_it_is_told_matters(workshop: Path, tmp_path: Path) -> None:
    """Ordinary attention knows of the lens only what it is told."""
    base = f"base.diffusion_model={workshop / 'told.safetensors'}"
    recipe = train(
        workshop,
        tmp_path,
        base,
        "lens.told=[defocus, layered]",
        "lens.pisa=false",
        "lora.rank=0",
        "losses.adversarial=0",
    )
    one, other = (recipe.scenes.example(0, level) for level in (0, 1))  # one scene at two K
    with torch.no_grad(), recipe.training():
        made = [recipe.rendered([each], [one.disparity]) for each in (one, replace(one, k=other.k))]
        flat = recipe.rendered([one], [torch.full_like(one.disparity, one.focus)])
    assert relative(made[1], made[0]) > 1e-3
    assert relative(flat, made[0]) > 1e-3


def test_ordinary_attention_and_validation(workshop: Path, tmp_path: Path) -> None:
    recipe = train(workshop, tmp_path, "steps=1", "losses.adversarial=0")
    example = recipe.scenes.example(0, 1)
    with torch.no_grad(), recipe.training():
        recipe.hard = 2.0
        soft = recipe.rendered([example], [example.disparity])
        recipe.hard = 1e7
        hard = recipe.rendered([example], [example.disparity])
        object.__setattr__(recipe.settings.lens, "pisa", False)
        plain = recipe.rendered([example], [example.disparity])
        found = recipe.validation()
        sheet = recipe.samples(1)
    assert relative(hard, soft) > 1e-4
    assert relative(plain, hard) > 1e-3
    assert set(found) == {"psnr", "unchanged_psnr"}
    assert sheet.shape[-1] == 3
    assert (tmp_path / "samples" / "step-00000001.png").is_file()


def test_it_learns(workshop: Path, tmp_path: Path) -> None:
    asked = "lora.rank=0", "optimizer.lr=0.003", "losses.adversarial=0", "data.worse_depth=0"

    def found(steps: int) -> float:
        recipe = train(workshop, tmp_path / str(steps), *asked, f"steps={steps}")
        with recipe.training():
            return recipe.validation()["psnr"]

    assert found(30) > found(1) + 1.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("base.architecture=flux", r"a diffusion lens is made of sdxl: set it to that"),
        ("lens.hardness=1", r"hardness"),
        ("lora.ranks=3", r"lora.ranks|ranks"),
        ("data.worse_depth=0.5", r"worse_depth"),
        ("lens.told=[defocus]", r"lens.told is \['defocus'\], .* set lora.rank to 0"),
        ("lens.told=[colour]", r"lens.told"),
    ],
)
def test_settings_that_cannot_be(workshop: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings(workshop, tmp_path, override)


def test_what_training_lacks(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOKEH_LPIPS", raising=False)
    monkeypatch.setattr("trainer.measure.metrics.weights._packaged", lambda: None)
    with pytest.raises(BokehError, match=r"losses.lpips is 5\. .* Or set it to 0"):
        train(workshop, tmp_path / "a", "losses.lpips=5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BokehError, match=r"not a folder of a ConvNeXt"):
        train(workshop, tmp_path / "b", f"losses.backbone={tmp_path / 'empty'}")
    with pytest.raises(BokehError, match=r"takes 48 channels; with lens.told: \['defocus'\] it is given 80"):
        train(workshop, tmp_path / "c", "lens.told=[defocus]", "lora.rank=0", "losses.adversarial=0")
    write_scenes(tmp_path / "odd", 2, side=36)
    with pytest.raises(BokehError, match=r"are 36 x 36; sdxl needs sides that are multiples of 8"):
        train(workshop, tmp_path / "d", f"data.dataset={tmp_path / 'odd'}")
    with pytest.raises(BokehError, match=r"has no self-attention 'nowhere' for the lens"):
        train(workshop, tmp_path / "e", "lens.layers=[nowhere]")
    write_scenes(tmp_path / "single", 1)
    with pytest.raises(BokehError, match=r"has a single scene"):
        train(workshop, tmp_path / "c", f"data.dataset={tmp_path / 'single'}")


def test_other_settings_are_refused(workshop: Path, tmp_path: Path) -> None:
    train(workshop, tmp_path, "steps=2", "losses.adversarial=0")
    with pytest.raises(BokehError, match=r"worse_depth"):
        train(workshop, tmp_path, "steps=2", "losses.adversarial=0", "data.worse_depth=0.02")


def test_the_adversary_may_look_with_a_convnext(workshop: Path, tmp_path: Path) -> None:
    from transformers import ConvNextConfig, ConvNextModel

    torch.manual_seed(0)
    ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])).save_pretrained(
        tmp_path / "next"
    )
    recipe = train(workshop, tmp_path / "out", "steps=1", f"losses.backbone={tmp_path / 'next'}")
    kept = load_file(tmp_path / "out/checkpoints/step-00000001/judge.safetensors")
    assert kept
    assert all(name.startswith("heads.") for name in kept)
    line = json.loads((tmp_path / "out" / LOSSES).read_text().splitlines()[0])
    assert line["judge/judge"] > 0 and line["lens/adversarial"] > 0  # noqa: PT018
    assert recipe.judge is not None


def test_other_small_models_are_no_lens(workshop: Path, tmp_path: Path) -> None:
    from bokeh_ops.host.small.lens import read_lens
    from bokeh_ops.host.small.model import read_small

    with pytest.raises(BokehError, match=r"is no small diffusion lens"):
        read_lens(workshop / "base.safetensors")
    with pytest.raises(BokehError, match=r"There is no file .*absent.safetensors"):
        read_lens(workshop / "absent.safetensors")
    small = read_small(workshop / "base.safetensors")
    for told, message in (
        (["colour"], r"is told colour; known are defocus, layered"),
        (["defocus"], r"takes 48 channels; with lens.told: \['defocus'\] it is given 80"),
    ):
        small.description["lens"] = {"told": told}
        small.save(tmp_path / "a.safetensors")
        with pytest.raises(BokehError, match=message):
            read_lens(tmp_path / "a.safetensors")


def test_the_rate_falls_whatever_else_of_the_optimiser_is_set(workshop: Path, tmp_path: Path) -> None:
    found = settings(workshop, tmp_path, "optimizer.lr=0.01").resolved().optimizer
    assert (found.lr, found.schedule) == (0.01, "cosine")


@pytest.mark.parametrize("name", ["lens-sdxl", "world-lens"])
def test_the_shipped_profiles_are_valid(repo: Path, name: str) -> None:
    text = (repo / "trainer" / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    found = parse_settings(text, LensFit, name).resolved()
    assert found.optimizer.schedule == "cosine"
    if "sdxl" in name:  # what it spells out is the default
        bare = parse_settings(
            "out: a\nbase: {architecture: sdxl, checkpoint: b}\ndata: {dataset: c, worse_depth: 0.02}",
            LensFit,
            "bare",
        ).resolved()
        for section in ("losses", "lora", "lens", "optimizer"):
            assert getattr(found, section) == getattr(bare, section)


@pytest.fixture
def host_base(pack: Any) -> Any:
    """A frozen SDXL with an autoencoder of the host's class, both tiny: half as many pixels each way as places."""
    from types import SimpleNamespace

    import comfy.model_patcher
    from comfy.ldm.models.autoencoder import AutoencoderKL

    from bokeh_ops.host.architectures import named
    from trainer.frozen.model import Base, Embedding, HostBase

    sizes = {"double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32}
    shape = {"ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    stage = AutoencoderKL(ddconfig={**sizes, **shape}, embed_dim=4).eval().requires_grad_(False)
    source = models.generator(5)
    for weight in stage.parameters():
        scale = 0.1 if weight.ndim == 1 else weight[0].numel() ** -0.5
        weight.copy_(scale * torch.randn(weight.shape, generator=source))
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(stage, load_device=cpu, offload_device=cpu)

    class Host(HostBase):
        def __init__(self) -> None:
            Base.__init__(self, named("sdxl"), models.host_model("sdxl"), "a")
            self._vae = SimpleNamespace(
                first_stage_model=stage,
                patcher=patcher,
                process_input=lambda pixels: pixels * 2 - 1,
                process_output=lambda pixels: (pixels + 1) / 2,
            )

        def encode_text(self, texts: Any) -> list[Embedding]:
            (context, told) = models.conditioning("sdxl")[0]
            return [Embedding(context[0], told["pooled_output"][0])]

    return Host()


@pytest.mark.parametrize("trained", [True, False])
def test_the_encoder_trains_too(workshop: Path, tmp_path: Path, host_base: Any, trained: bool) -> None:
    from comfy.model_management import load_models_gpu

    from bokeh_ops.diffusion_lens.files import read_encoder
    from bokeh_ops.host.diffusion_lens.weights import with_encoder
    from trainer.loop import Loop, Schedule
    from trainer.processes import Alone
    from trainer.recipes.one_step.recipe import OneStep

    vae = host_base._vae
    before = {name: value.clone() for name, value in vae.first_stage_model.state_dict().items()}
    asked = (
        "lens.layers=[]",
        f"lora.encoder={trained}",
        "optimizer.lr=0.01",
        "steps=2",
        "losses.adversarial=0",
    )
    wanted = settings(workshop, tmp_path, *asked).resolved()
    Loop(OneStep(wanted, tmp_path, Alone(), host_base), Schedule(2, 2), tmp_path).run()
    after = vae.first_stage_model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(not weight.requires_grad for weight in vae.first_stage_model.parameters())
    if not trained:
        assert not changed
        assert not (tmp_path / "vae.safetensors").exists()
        return
    assert changed
    assert all(name.startswith(("encoder.conv_in", "encoder.mid", "encoder.conv_out")) for name in changed)
    assert any(name.startswith("encoder.mid.attn_1") for name in changed)
    expected = {name: value.clone() for name, value in after.items()}
    vae.first_stage_model.load_state_dict(before)
    laid = with_encoder(vae, read_encoder(tmp_path / "vae.safetensors"))
    load_models_gpu([laid.patcher])
    found = vae.first_stage_model.state_dict()
    assert not [name for name in expected if not torch.allclose(found[name], expected[name], atol=1e-6)]
