"""Small models: what their transforms keep, and their use in the real host through the nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from bokeh_ops.errors import BokehError
from bokeh_ops.host.small.parts import Cosines, Words, cosine_sizes
from tests import models
from tests.models import one_thread  # noqa: F401
from trainer.measure.metrics.sweep import laplacian_variance

WORDS = ["red", "blue", "ball", "box", "grass", "wall", "evening"]


def demo_node(pack: ModuleType) -> Any:
    """The loader, which is not in the menu as long as its models are not there."""
    return import_module(f"{pack.__name__}.nodes.demo").LoadBokehDemoModel


# ---- the transforms ----


def test_pictures_keep_their_sharpness_at_every_k() -> None:
    pytest.importorskip("skimage")
    from trainer.world.data import scene_sweep

    pictures = torch.from_numpy(
        np.stack([scene_sweep(seed, [0, 6, 14, 30])[0] for seed in range(6)])
    ).flatten(0, 1)
    pictures = pictures.float() / 255
    codec = Cosines(cosine_sizes(pictures))
    back = codec.decode(codec.encode(pictures))
    error = (back - pictures).square().mean((1, 2, 3))
    assert float((-10 * error.log10()).min()) > 24
    assert float(-10 * error.mean().log10()) > 30
    for one, other in zip(pictures, back, strict=True):
        ratio = laplacian_variance(other.movedim(-1, 0)) / laplacian_variance(one.movedim(-1, 0))
        assert 0.9 < ratio < 1.1


def test_grey_pictures_survive_the_cosine_transform_whole() -> None:
    grey = torch.rand(2, 16, 24, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, -1, 3)
    codec = Cosines(torch.rand(24) + 0.1)
    latents = codec.encode(grey)
    assert latents.shape == (2, 24, 4, 6)
    assert float((codec.decode(latents) - grey).abs().max()) < 1e-5
    with pytest.raises(BokehError, match="24 x 15 pixels; both must be multiples of 4"):
        codec.encode(grey[:, :15])


def test_words_and_their_neighbours() -> None:
    words = Words(32, 32, 8, WORDS)
    rows, pooled = words.encode("a red ball and a blue box on grass")
    assert rows.shape == (8, 32)
    assert pooled is not None
    assert float(rows[6:].abs().max()) == 0  # a beginning and five words
    other, _ = words.encode("a blue ball and a red box on grass")
    assert not torch.equal(rows[2], other[2])  # a red ball is not a blue one, where "ball" stands
    assert torch.equal(words.encode("Red, ball.")[0], words.encode("red ball")[0])
    again = Words(32, 32, 8, WORDS, words.table)
    assert torch.equal(again.encode("red ball")[0], words.encode("red ball")[0])
    with pytest.raises(BokehError, match=r"does not know 'woman'. It knows: red, blue"):
        words.encode("a woman on grass")
    with pytest.raises(BokehError, match=r"has 8 words.*at most 7"):
        words.encode("red " * 8)


# ---- in the host ----


def small(folder: Path, kind: str) -> Path:
    """A world base with random weights, its closing layers too, so that it does something."""
    from bokeh_ops.host.small.model import SmallModel
    from trainer.world.base import describe, first_weights

    made = SmallModel(describe(kind), sizes=torch.full((24,), 0.2))  # type: ignore[arg-type]
    first_weights(made.network, 1)
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in made.network.parameters():
            if weight.ndim > 1 and not bool(weight.any()):
                weight.copy_(torch.randn(weight.shape, generator=source) * 0.3 / weight[0].numel() ** 0.5)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(folder / f"{kind}.safetensors", torch.float16)
    return folder / f"{kind}.safetensors"


@pytest.fixture(params=["sd15", "flux"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def loaded(
    pack: ModuleType, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Any, Any, Any]]:
    """What the node gives."""
    monkeypatch.setattr(pack.bokeh_ops.host.small.shipped, "FOLDER", small(tmp_path / "world", kind).parent)
    yield tuple(demo_node(pack).execute(kind, False).result)
    models.unload()


def test_the_node_names_what_there_is(
    pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = demo_node(pack)
    monkeypatch.setattr(pack.bokeh_ops.host.small.shipped, "FOLDER", tmp_path)
    assert "found none" in node.validate_inputs("sd15")
    small(tmp_path, "sd15")
    assert node.validate_inputs("sd15") is True
    assert pack.bokeh_ops.host.small.shipped.demo_names() == ["sd15"]
    assert "found sd15" in node.validate_inputs("flux")


def test_a_file_is_small_enough_and_read_as_it_was(tmp_path: Path, pack: ModuleType, kind: str) -> None:
    from bokeh_ops.host.small.model import read_small

    path = small(tmp_path, kind)
    assert path.stat().st_size < 15e6
    model = read_small(path)
    assert model.architecture.name == kind
    model.save(tmp_path / "again.safetensors", torch.float16)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_the_hosts_own_nodes_make_a_picture(loaded: tuple[Any, Any, Any]) -> None:
    import nodes

    model, clip, vae = loaded
    positive = nodes.CLIPTextEncode().encode(clip, "a red ball and a blue box on grass by a wall, evening")[0]
    negative = nodes.CLIPTextEncode().encode(clip, "")[0]
    latent = nodes.EmptyLatentImage().generate(128, 128, 2)[0]
    sampled = nodes.common_ksampler(model, 3, 4, 3.0, "euler", "simple", positive, negative, latent)[0]
    assert sampled["samples"].shape == (2, 24, 16, 16)
    picture = nodes.VAEDecode().decode(vae, sampled)[0]
    assert picture.shape == (2, 64, 64, 3)
    assert float(picture.min()) >= 0
    assert float(picture.max()) <= 1
    assert float(picture.std()) > 0.02
    other = nodes.CLIPTextEncode().encode(clip, "a white cone on tiles by hills, day")[0]
    changed = nodes.common_ksampler(model, 3, 4, 3.0, "euler", "simple", other, negative, latent)[0]
    assert float((changed["samples"] - sampled["samples"]).abs().mean()) > 1e-3  # the words matter
    encoded = nodes.VAEEncode().encode(vae, picture)[0]["samples"]
    assert encoded.shape == (2, 24, 16, 16)
    assert float((nodes.VAEDecode().decode(vae, {"samples": encoded})[0] - picture).abs().mean()) < 0.05
    with pytest.raises(ValueError, match="does not know 'woman'"):
        nodes.CLIPTextEncode().encode(clip, "a woman")


def test_grounded_sampling_with_an_adapter(pack: ModuleType, loaded: tuple[Any, Any, Any], kind: str) -> None:
    import nodes

    model, clip, vae = loaded
    described = pack.bokeh_ops.host.architectures.recognise(model)
    paths = [path for path in described.widths if kind == "flux" or path.endswith("attn2")]
    made = pack.bokeh_ops.adapter.network
    adapter = made.BokehAdapter(
        made.AdapterConfig(kind, bokeh_hidden_dim=8, bokeh_context_dim=16),
        {path: made.LayerSpec(described.widths[path], 4) for path in paths},
    )
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.normal_(std=0.3)
    folder = pack.bokeh_ops.host.small.shipped.FOLDER
    pack.bokeh_ops.adapter.files.write_adapter(adapter, folder / f"{kind}_adapter.safetensors")
    laid = demo_node(pack).execute(kind, True).result[0]
    positive, negative = (
        nodes.CLIPTextEncode().encode(clip, text)[0] for text in ("a red ball on grass by trees, day", "")
    )
    pivot, targets = pack.nodes.sampling.GroundedSampler.execute(
        model=laid,
        positive=positive,
        negative=negative,
        latent_image=nodes.EmptyLatentImage().generate(128, 128, 1)[0],
        seed=1,
        steps=4,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
        pivot_bokeh=14.0,
        target_bokeh="0, 14, 28",
        grounding_steps=-1,
        grounded_branches="positive only",
        rows_per_batch=0,
    ).result
    assert targets["samples"].shape == (3, 24, 16, 16)
    alike = (targets["samples"][1] - pivot["samples"][0]).abs().max()
    assert float(alike) < 1e-3
    assert float((targets["samples"][2] - targets["samples"][0]).abs().mean()) > 1e-3
    assert vae.decode(targets["samples"]).shape == (3, 64, 64, 3)


def node(name: str, module: str = "nodes") -> Callable[..., Any]:
    """The outputs of one of the host's nodes, by the names of its inputs."""
    found = import_module(module)
    cls = getattr(found, name)

    def run(**inputs: Any) -> Any:
        if hasattr(cls, "execute"):
            return cls.execute(**inputs).result
        return getattr(cls(), cls.FUNCTION)(**inputs)

    return run


def test_clip_and_vae_are_the_hosts_own(loaded: tuple[Any, Any, Any]) -> None:
    """So every node that takes one of the host's takes these."""
    import comfy.sd

    _, clip, vae = loaded
    assert type(clip) is type(clip.clone()) is comfy.sd.CLIP
    assert type(vae) is comfy.sd.VAE
    assert (vae.spacial_compression_encode(), vae.spacial_compression_decode(), vae.latent_channels) == (
        4,
        4,
        24,
    )
    assert vae.get_sd()["sizes"].shape == (24,)
    assert vae.patcher.model_size() < 1000
    if hasattr(vae, "model_size"):  # 0.3.64 asks the patcher alone
        assert vae.model_size() == vae.patcher.model_size()
    if hasattr(vae, "get_ram_usage"):  # later hosts count it otherwise
        assert vae.get_ram_usage() == vae.model_size()
    assert clip.get_sd()["table"].ndim == 2


def picture(height: int, width: int, count: int = 1) -> torch.Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(("height", "width"), [(64, 48), (66, 51), (7, 9)])
def test_pictures_of_any_size_are_cropped_as_the_host_does(
    loaded: tuple[Any, Any, Any], height: int, width: int
) -> None:
    _, _, vae = loaded
    whole = picture(height, width, 3)
    (latent,) = node("VAEEncode")(vae=vae, pixels=whole)
    (back,) = node("VAEDecode")(vae=vae, samples=latent)
    top, left = height % 4 // 2, width % 4 // 2
    middle = whole[:, top : top + height // 4 * 4, left : left + width // 4 * 4]
    assert back.shape == middle.shape
    (again,) = node("VAEEncode")(vae=vae, pixels=middle)
    assert torch.equal(latent["samples"], again["samples"])


@torch.inference_mode()  # as the host runs nodes
def test_tiled_as_whole(loaded: tuple[Any, Any, Any]) -> None:
    _, _, vae = loaded
    whole = picture(160, 96, 2)
    (latent,) = node("VAEEncode")(vae=vae, pixels=whole)
    (tiled,) = node("VAEEncodeTiled")(vae=vae, pixels=whole, tile_size=64, overlap=16)
    assert torch.allclose(tiled["samples"], latent["samples"], atol=1e-4)
    (back,) = node("VAEDecode")(vae=vae, samples=latent)
    (tiled,) = node("VAEDecodeTiled")(vae=vae, samples=latent, tile_size=64, overlap=16)
    assert tiled.shape == back.shape == (2, 160, 96, 3)
    assert torch.allclose(tiled, back, atol=1e-4)


def test_inpainting(loaded: tuple[Any, Any, Any]) -> None:
    model, clip, vae = loaded
    pixels, mask = picture(66, 66), torch.zeros(1, 66, 66)
    mask[:, 20:40, 20:40] = 1
    (latent,) = node("VAEEncodeForInpaint")(vae=vae, pixels=pixels, mask=mask, grow_mask_by=6)
    assert latent["samples"].shape == (1, 24, 16, 16)
    assert latent["noise_mask"].shape[-2:] == (64, 64)
    (prompt,) = node("CLIPTextEncode")(clip=clip, text="a red ball on grass by a wall, day")
    positive, negative, latent = node("InpaintModelConditioning")(
        positive=prompt, negative=prompt, pixels=pixels, vae=vae, mask=mask, noise_mask=True
    )
    assert positive[0][1]["concat_latent_image"].shape == (1, 24, 16, 16)
    ksampler = node("KSampler")(
        model=model, seed=1, steps=1, cfg=1.0, sampler_name="euler", scheduler="simple", positive=positive,
        negative=negative, latent_image=latent, denoise=1.0,
    )  # fmt: skip
    assert torch.isfinite(node("VAEDecode")(vae=vae, samples=ksampler[0])[0]).all()


def test_nodes_of_the_text_encoder(loaded: tuple[Any, Any, Any], kind: str) -> None:
    _, clip, _ = loaded
    text = "a red ball on grass by a wall, day"
    (plain,) = node("CLIPTextEncode")(clip=clip, text=text)
    (other,) = node("CLIPSetLastLayer")(clip=clip, stop_at_clip_layer=-2)
    (skipped,) = node("CLIPTextEncode")(clip=other, text=text)
    assert torch.equal(skipped[0][0], plain[0][0])  # it has no layers to skip
    (zero,) = node("ConditioningZeroOut")(conditioning=plain)
    assert not zero[0][0].any()
    (average,) = node("ConditioningAverage")(
        conditioning_to=plain, conditioning_from=zero, conditioning_to_strength=0.5
    )
    assert torch.allclose(average[0][0], plain[0][0] / 2)
    (twice,) = node("ConditioningConcat")(conditioning_to=plain, conditioning_from=plain)
    assert twice[0][0].shape[1] == 2 * plain[0][0].shape[1]
    assert torch.equal(clip.encode(text), plain[0][0])
    assert len(clip.tokenize(text, return_word_ids=True)["l"][0][0]) == 3
    assert clip.tokenizer.untokenize(clip.tokenize("red ball")["l"][0])[1][1] == "red"
    if kind == "flux":
        encode = node("CLIPTextEncodeFlux", "comfy_extras.nodes_flux")
        (found,) = encode(clip=clip, clip_l="blue box", t5xxl=text, guidance=2.0)
        assert torch.equal(found[0][0], plain[0][0])
        assert not torch.equal(found[0][1]["pooled_output"], plain[0][1]["pooled_output"])
        assert found[0][1]["guidance"] == 2.0


def test_a_lora_for_other_models_and_merged_encoders(
    loaded: tuple[Any, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths
    from safetensors.torch import save_file

    model, clip, _ = loaded
    down, up = torch.ones(2, 8), torch.ones(8, 2)
    save_file(
        {"lora_te_x.lora_down.weight": down, "lora_te_x.lora_up.weight": up}, tmp_path / "l.safetensors"
    )
    monkeypatch.setattr(folder_paths, "get_full_path_or_raise", lambda *_: str(tmp_path / "l.safetensors"))
    _, changed = node("LoraLoader")(
        model=model, clip=clip, lora_name="l.safetensors", strength_model=1.0, strength_clip=1.0
    )
    text = "a red ball on grass by a wall, day"
    assert torch.equal(changed.encode(text), clip.encode(text))
    merge = node("CLIPMergeSimple", "comfy_extras.nodes_model_merging")
    assert torch.equal(merge(clip1=clip, clip2=clip, ratio=0.5)[0].encode(text), clip.encode(text))


def test_it_can_be_saved(
    loaded: tuple[Any, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import folder_paths
    from safetensors.torch import load_file

    model, clip, vae = loaded
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    merging = "comfy_extras.nodes_model_merging"
    node("CheckpointSave", merging)(model=model, clip=clip, vae=vae, filename_prefix="whole")
    node("VAESave", merging)(vae=vae, filename_prefix="vae")
    node("CLIPSave", merging)(clip=clip, filename_prefix="clip")
    whole, one, other = (load_file(next(tmp_path.glob(f"{name}*"))) for name in ("whole", "vae", "clip"))
    assert torch.equal(one["sizes"], vae.get_sd()["sizes"])
    assert torch.equal(other["table"], clip.get_sd()["table"])
    network = model.model.diffusion_model.state_dict()
    assert all(torch.equal(whole[f"model.diffusion_model.{name}"], network[name]) for name in network)
    assert sum(name.endswith(("sizes", "table")) for name in whole) == 2


def test_a_photograph_with_depth_comes_along(pack: ModuleType, node_classes: dict[str, Any]) -> None:
    """The dog sits at some 37 cm before what the phone saw at 60; the balcony's lamps are within a metre of 16."""
    node = node_classes["LoadBokehDemoPhotograph"]
    shipped = pack.bokeh_ops.host.small.shipped
    assert list(shipped.PICTURES) == ["pug", "evening", "post"]
    known = {
        "pug": (26 / 43.267 * 1.25, 0.65),
        "evening": (50 / 36, 16.0),
        "post": (50 / 36, 2.82),
    }  # focal length in widths; farthest
    for name, (focal, farthest) in known.items():
        image, depth, subject = node.execute(name).result
        height, width = image.shape[1:3]
        assert image.shape == (1, height, width, 3)
        assert subject.shape == (1, height, width)
        assert 0 <= float(image.min()) < float(image.max()) <= 1
        assert depth.unit.value == "dioptres"
        assert depth.focal_pixels == pytest.approx(focal * depth.disparity.shape[3])
        assert 1 / float(depth.disparity.flatten().quantile(0.05)) == pytest.approx(farthest, rel=0.05)
    depth, subject = shipped.load_demo_picture("pug")[1:]
    inside = torch.nn.functional.interpolate(subject[None], depth.disparity.shape[2:])[0, 0] > 0.5
    metres = 1 / depth.disparity[0, 0]
    assert float(metres[inside].median()) == pytest.approx(0.37, abs=0.02)
    assert float(metres[~inside].median()) == pytest.approx(0.59, abs=0.02)
    assert float(shipped.load_demo_picture("evening")[2].max()) == 0
    with pytest.raises(ValueError, match="No demo photograph 'cat'; expected one of pug, evening, post"):
        shipped.load_demo_picture("cat")
