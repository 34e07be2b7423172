"""Plug-ins for depth, mask and captions: ONNX files and pipelines of `transformers`, small ones made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from bokeh_ops.errors import BokehError
from tests import segmenters
from tests.onnx_files import mean_network
from tests.photographs import photograph, pixels
from trainer.data.prepare.annotate import look_at
from trainer.data.prepare.providers import Photograph, make_providers
from trainer.data.prepare.providers.registry import split_word
from trainer.data.prepare.record import Item, Record
from trainer.data.prepare.settings import Settings, kind_of
from trainer.data.prepare.sources import PICTURES


def photo(image: Image.Image) -> Photograph:
    return Photograph("a", image, None, Record(Item("a.jpg", Path("a.jpg")), PICTURES), {})


# ---- ONNX ----


def test_a_network_of_known_answer(tmp_path: Path) -> None:
    file = mean_network(tmp_path / "mean.onnx", (40, 60))
    image = Image.fromarray(pixels((60, 40), 2))
    wanted = np.asarray(image, dtype=float).mean(2)
    for word, factor, shift in (
        ("", 1, 0),
        (",range=1", 255, 0),
        (",range=-1", 127.5, 127.5),
        (",output=out", 1, 0),
    ):
        found = make_providers(Settings(depth=f"onnx:{file}{word}")).depth(photo(image))
        assert found.dtype == np.float32
        assert np.allclose(found, (wanted - shift) / factor, atol=1e-4)
    imagenet = make_providers(Settings(mask=f"onnx:{file},range=imagenet")).mask(photo(image))
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert np.allclose(imagenet, ((np.asarray(image) / 255 - mean) / deviation).mean(2), atol=1e-4)


def test_a_network_of_any_size_and_one_that_is_stretched(tmp_path: Path) -> None:
    anything = mean_network(tmp_path / "any.onnx", ("h", "w"))
    image = Image.fromarray(pixels((120, 80), 3))
    wanted = np.asarray(image, dtype=float).mean(2)
    for word in (f"onnx:{anything},size=60x40", f"onnx:{mean_network(tmp_path / 'fixed.onnx', (64, 64))}"):
        found = make_providers(Settings(depth=word)).depth(photo(image))
        assert found.shape == (80, 120)
        assert np.abs(found - wanted).mean() < 3
    with pytest.raises(BokehError, match=r"takes pictures of any size; say which by size="):
        make_providers(Settings(depth=f"onnx:{anything}"))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("onnx:{folder}/none.onnx", "There is no ONNX file"),
        ("onnx:{folder}/text.onnx", "cannot be loaded as an ONNX network"),
        ("onnx:{folder}/four.onnx", r"takes in \[1, 4, 8, 8\]; expected one picture"),
        ("onnx:{folder}/fixed.onnx,size=9x9", "takes pictures of 8 x 8 only, not 9x9"),
        ("onnx:{folder}/fixed.onnx,size=big", "size=big is no size"),
        ("onnx:{folder}/fixed.onnx,range=7", "range=7 is unknown; choose 255, 1"),
        ("onnx:{folder}/fixed.onnx,output=two", "has no output 'two', only out"),
        ("onnx:{folder}/fixed.onnx,mean=2", "there is no option mean; known are range, size, output"),
    ],
)
def test_networks_that_do_not_fit(tmp_path: Path, word: str, message: str) -> None:
    (tmp_path / "text.onnx").write_text("no network")
    mean_network(tmp_path / "four.onnx", (8, 8), channels=4)
    mean_network(tmp_path / "fixed.onnx", (8, 8))
    with pytest.raises(BokehError, match=message):
        make_providers(Settings(depth=word.format(folder=tmp_path)))


def test_a_real_network(shared: Path) -> None:
    """Against the telephone's own disparity of the same picture."""
    with Image.open(shared / "data" / "pug.jpg") as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB").resize((768, 576))
    with Image.open(shared / "data" / "pug_disparity.png") as grey:
        wanted = np.asarray(grey.resize((768, 576)), dtype=float)
    provider = make_providers(
        Settings(depth=f"onnx:{shared / 'data' / 'tcmonodepth_small_192x320.onnx'}")
    ).depth
    found = provider(photo(image))
    assert found.shape == (576, 768)
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.85


def test_a_real_photograph(shared: Path, tmp_path: Path) -> None:
    """A portrait mode as it is: refused for that, and all else on the way to it works on the real file."""
    network = shared / "data" / "tcmonodepth_small_192x320.onnx"
    settings = Settings(
        depth=f"onnx:{network}",
        depth_kind="disparity",
        depth_scale=2.3,
        mask="nearest",
        captions=("none",),
        smartphones=True,
    )
    path = shared / "data" / "pug.jpg"
    outcome = look_at(Item("pug.jpg", path), make_providers(settings), settings)
    assert outcome.reason == "rendered_blur"
    with Image.open(path) as opened:
        held = opened.getexif()
        held.get_ifd(0x8769)[0xA401] = 0
        opened.save(tmp_path / "pug.jpg", exif=held)
    outcome = look_at(Item("pug.jpg", tmp_path / "pug.jpg"), make_providers(settings), settings)
    assert outcome.reason is None, outcome
    assert outcome.info is not None
    # f = 5.7 mm, f/1.5 on a sensor 7.59 mm wide, of which the square shows three quarters, focused nearly at infinity
    assert outcome.info["k"] == pytest.approx(0.0057**2 / 3 * 512 / (0.00759 * 0.75), rel=0.03)


# ---- pipelines ----


@pytest.fixture(scope="module")
def transformers() -> Any:
    """The library, where it can be used: it imports torchvision as soon as that is installed."""
    from tests.host.launch import make_torchvision_importable

    make_torchvision_importable()
    return pytest.importorskip("transformers")


def test_depth_by_a_pipeline(transformers: Any, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    config = transformers.DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    model = transformers.DPTForDepthEstimation(config).eval()
    processor = transformers.DPTImageProcessor(size={"height": 32, "width": 32})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image = Image.fromarray(pixels((96, 64), 4))
    found = make_providers(Settings(depth=f"transformers:{tmp_path}")).depth(photo(image))
    assert found.dtype == np.float32
    with torch.no_grad():
        raw = model(**processor(images=image, return_tensors="pt")).predicted_depth
    assert (
        found.min() >= float(raw.min()) - 0.2 * float(raw.max() - raw.min()) - 1e-3
    )  # not stretched to 0..255
    assert found.max() <= float(raw.max()) + 0.2 * float(raw.max() - raw.min()) + 1e-3
    assert found.shape == (64, 96)


def test_the_model_knows_the_unit_of_its_depth(transformers: Any, tmp_path: Path) -> None:
    """What is declared counts; where nothing is, metres of a model that measures become dioptres."""
    from tests.depth_models import make

    make("metric", tmp_path / "metric")
    make("relative", tmp_path / "relative")
    image = Image.fromarray(pixels((96, 96), 4))
    metric = f"transformers:{tmp_path / 'metric'}"

    def depth(word: str, **more: Any) -> np.ndarray:
        return make_providers(Settings(depth=word, **more)).depth(photo(image))

    metres, dioptres = depth(metric, depth_kind="metric"), depth(metric, depth_kind="model")
    assert metres.shape == dioptres.shape == (96, 96)
    far = metres > 5  # not at edges between near and far, where either was mixed
    assert far.mean() > 0.1
    assert np.median(metres[far] * dioptres[far]) == pytest.approx(1, rel=0.05)
    relative = f"transformers:{tmp_path / 'relative'}"
    with pytest.raises(
        BokehError, match=r"relative tells near and far and not metres.*--depth-kind disparity"
    ):
        depth(relative, depth_kind="model")
    found = depth(relative, depth_kind="model", depth_normalise=True)
    assert np.array_equal(found, depth(relative, depth_kind="disparity"))
    with pytest.raises(BokehError, match="only depth by transformers:MODEL knows its own"):
        Settings(depth="files", depth_kind="model")


def test_depth_kind_may_be_left_out_where_the_model_knows() -> None:
    assert kind_of("transformers:x", None) == "model"
    assert kind_of("transformers:x", "disparity") == "disparity"
    assert kind_of("files", None) is None


def test_masks_by_a_pipeline(tmp_path: Path) -> None:
    """The masks of all labels share the picture out."""
    segmenters.segformer(tmp_path, ("wall", "cat", "dog"), 64)
    image = Image.fromarray(pixels((96, 64), 5))

    def mask(labels: str) -> np.ndarray:
        return make_providers(Settings(mask=f"transformers:{tmp_path},labels={labels}")).mask(photo(image))

    single = [mask(label) for label in ("wall", "cat", "dog")]
    assert np.array_equal(sum(single), np.ones((64, 96)))
    assert np.array_equal(mask("Cat+dog"), single[1] + single[2])
    with pytest.raises(BokehError, match="Say which labels"):
        mask("")
    with pytest.raises(BokehError, match="has no label bird; it knows cat, dog, wall"):
        mask("cat+bird")


def test_captions_by_a_pipeline(transformers: Any, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<s>", "</s>", "<pad>", "<unk>", *(f"word{number}" for number in range(28))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[attr-defined]
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    seeing = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
    )
    telling = transformers.GPT2Config(vocab_size=32, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(seeing, telling)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 0, 2, 1
    transformers.set_seed(2)
    model = transformers.VisionEncoderDecoderModel(config)
    model.generation_config.suppress_tokens = [0, 1, 2, 3]  # it would as soon say nothing
    model.save_pretrained(tmp_path)
    fast.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    settings = Settings(captions=("files", f"transformers:{tmp_path},tokens=5"))
    (_, captions) = make_providers(settings).captions
    (text,) = captions(photo(Image.fromarray(pixels((96, 64), 6))))
    assert len(text.split()) == 5
    assert set(text.split()) <= set(words[4:])
    with pytest.raises(BokehError, match="task=poetry makes no captions"):
        make_providers(Settings(captions=(f"transformers:{tmp_path},task=poetry",)))


@pytest.mark.parametrize("word", ["transformers:{folder}", "transformers:{folder}/none"])
def test_models_that_are_not_there(
    transformers: Any, tmp_path: Path, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BokehError, match="cannot be loaded for depth-estimation"):
        make_providers(Settings(depth=word.format(folder=tmp_path)))


def test_words() -> None:
    assert split_word("files") == ("files", "", {})
    assert split_word("onnx:/a/b:c.onnx,size=4x5,range=1") == (
        "onnx",
        "/a/b:c.onnx",
        {"size": "4x5", "range": "1"},
    )
    assert split_word("python:mine.depth:best") == ("python", "mine.depth:best", {})


def test_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_for_tests.py").write_text(
        "import numpy as np, torch\n"
        "class Models:\n"
        "    @staticmethod\n"
        "    def depth(photo):\n"
        "        return torch.ones(1, 1, photo.image.height, photo.image.width, requires_grad=True)\n"
        "def words(photo):\n    return 'one'\n"
        "def wrong(photo):\n    return np.ones((3, 4, 5))\n"
        "def numbers(photo):\n    return [1]\n"
        "THING = 5\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path = photograph(tmp_path / "a.jpg")
    image = Image.open(path)
    providers = make_providers(
        Settings(depth="python:mine_for_tests:Models.depth", captions=("python:mine_for_tests:words",))
    )
    assert np.array_equal(providers.depth(photo(image)), np.ones((64, 96)))
    assert providers.captions[0](photo(image)) == ["one"]
    with pytest.raises(BokehError, match=r"gave values of shape \[3, 4, 5\]"):
        make_providers(Settings(depth="python:mine_for_tests:wrong")).depth(photo(image))
    with pytest.raises(BokehError, match="expected texts"):
        make_providers(Settings(captions=("python:mine_for_tests:numbers",))).captions[0](photo(image))
    with pytest.raises(BokehError, match="is a int, expected a function"):
        make_providers(Settings(depth="python:mine_for_tests:THING"))
