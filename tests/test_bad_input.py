"""Bad adapter files: each its own clear message through the node, and nothing changed on the model."""

from __future__ import annotations

import copy
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import golden, models
from tests.models import one_thread  # noqa: F401

NAME = "model.safetensors"
PROJECT = {"format": "bokeh-adapter", "version": "1"}


@pytest.fixture(scope="module")
def bases(pack: ModuleType) -> dict[str, Any]:
    return {kind: models.host_model(kind) for kind in models.KINDS}


@pytest.fixture
def folder(pack: ModuleType, tmp_path: Path) -> Iterator[Path]:
    with golden.adapter_folder(tmp_path):
        yield tmp_path


@pytest.fixture
def refused(pack: ModuleType, bases: dict[str, Any], folder: Path) -> Callable[..., str]:
    """Load NAME from the folder through the node; returns its message, having seen that nothing changed."""

    def load(kind: str, match: str) -> str:
        model = bases[kind]
        before = copy.deepcopy((model.patches, model.wrappers, model.callbacks, model.model_options))
        weights, uuid = models.snapshot(model), model.patches_uuid
        files = sorted(p.name for p in folder.rglob("*"))
        with pytest.raises(pack.bokeh_ops.errors.BokehError, match=match) as raised:
            pack.nodes.adapter.LoadBokehAdapter.execute(model, NAME, 1.0, 1.0)
        assert (model.patches, model.wrappers, model.callbacks, model.model_options) == before
        assert model.patches_uuid == uuid
        assert models.same_bits(models.snapshot(model), weights)
        assert sorted(p.name for p in folder.rglob("*")) == files
        text = str(raised.value)
        assert str(folder) in text or NAME in text
        assert text[-1] in ".)?", "a message is a sentence"
        return text

    return load


def write_project(folder: Path, kind: str = "sd15", **settings: Any) -> dict[str, Tensor]:
    """A sound file in this project's layout, and its tensors to spoil."""
    made = models.adapter(kind, **settings)
    tensors = {name: value.clone().contiguous() for name, value in made.state_dict().items()}
    config = {
        "base": kind,
        "bokeh_hidden_dim": 6,
        "bokeh_context_dim": 10,
        "tokens": settings.get("tokens", 1),
    }
    save_file(tensors, folder / NAME, {**PROJECT, "config": json.dumps(config)})
    return tensors


def write_released(pack: ModuleType, folder: Path, **settings: Any) -> dict[str, Tensor]:
    made = models.adapter("flux", ops=pack.bokeh_ops.adapter.network, **settings)
    return load_file(pack.bokeh_ops.adapter.files.write_released(made, folder, double_blocks=2))


# ---- not a safetensors file at all ----


class Payload:
    """Unpickling it would raise, so that a test sees if it ever is."""

    def __reduce__(self) -> Any:
        return (eval, ("1/0",))


def checkpoint(path: Path) -> None:
    torch.save({"weight": torch.ones(3)}, path)


def old_checkpoint(path: Path) -> None:
    torch.save({"weight": torch.ones(3)}, path, _use_new_zipfile_serialization=False)


def hostile_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Payload()}, protocol=2))


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model.safetensors", "x")


def truncated(path: Path) -> None:
    write_project(path.parent)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def cut_in_the_header(path: Path) -> None:
    write_project(path.parent)
    path.write_bytes(path.read_bytes()[:100])


def one_byte_short(path: Path) -> None:
    write_project(path.parent)
    path.write_bytes(path.read_bytes()[:-1])


def longer(path: Path) -> None:
    write_project(path.parent)
    path.write_bytes(path.read_bytes() + b"more")


NOT_SAFETENSORS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "web page": (lambda p: p.write_text("<!DOCTYPE html><html>Sign in</html>"), "it is a web page"),
    "web page, oddly begun": (lambda p: p.write_text("\n\n <HTML lang=en>" + "x" * 500), "it is a web page"),
    "XML": (lambda p: p.write_text('<?xml version="1.0"?><Error>AccessDenied</Error>'), "it is a web page"),
    "Git LFS pointer": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 583\n"),
        "it is a Git LFS pointer",
    ),
    "checkpoint renamed": (checkpoint, "it is a pickle .*can run code.*convert it to, safetensors"),
    "old checkpoint renamed": (old_checkpoint, "it is a pickle"),
    "hostile pickle": (hostile_pickle, "it is a pickle"),
    "zip archive renamed": (archive, "or an archive"),
    "GGUF": (lambda p: p.write_bytes(b"GGUF" + bytes(100)), "it is a GGUF model"),
    "empty": (lambda p: p.write_bytes(b""), "it is 0 bytes long"),
    "five bytes": (lambda p: p.write_bytes(b"12345"), "it is 5 bytes long"),
    "text": (lambda p: p.write_text("Entry not found" * 9), "cannot be read as safetensors"),
    "a JSON error": (lambda p: p.write_text('{"error": "Invalid credentials"}' * 9), "cannot be read"),
    "truncated": (truncated, r"\d+ bytes\) cannot be read as safetensors.*probably cut short"),
    "cut in the header": (cut_in_the_header, "probably cut short"),
    "one byte short": (one_byte_short, "cannot be read as safetensors"),
    "longer than it says": (longer, "cannot be read as safetensors"),
    "zeros": (lambda p: p.write_bytes(bytes(4096)), "cannot be read as safetensors"),
}


@pytest.mark.parametrize("what", NOT_SAFETENSORS)
def test_not_safetensors(folder: Path, refused: Any, what: str) -> None:
    write, message = NOT_SAFETENSORS[what]
    write(folder / NAME)
    refused("flux", message)


def test_a_folder_in_place_of_the_file(pack: ModuleType, bases: Any, folder: Path) -> None:
    (folder / NAME).mkdir()
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=r"No adapter 'model\.safetensors'\. Searched"):
        pack.nodes.adapter.LoadBokehAdapter.execute(bases["flux"], NAME, 1.0, 1.0)


def test_no_such_file(pack: ModuleType, bases: Any, folder: Path) -> None:
    write_project(folder)
    with pytest.raises(pack.bokeh_ops.errors.BokehError) as raised:
        pack.nodes.adapter.LoadBokehAdapter.execute(bases["sd15"], "other.safetensors", 1.0, 1.0)
    text = str(raised.value)
    assert "'other.safetensors'" in text
    assert str(folder) in text  # the folder searched
    assert NAME in text  # and what was found there
    (folder / NAME).unlink()
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=r"found no \.safetensors file"):
        pack.nodes.adapter.LoadBokehAdapter.execute(bases["sd15"], "other.safetensors", 1.0, 1.0)
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match="No adapter ''"):
        pack.nodes.adapter.LoadBokehAdapter.execute(bases["sd15"], "", 1.0, 1.0)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/../../secret.safetensors"])
def test_names_that_leave_the_folder(pack: ModuleType, bases: Any, folder: Path, name: str) -> None:
    write_project(folder)
    (folder / NAME).rename(folder.parent / "secret.safetensors")
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match="No adapter"):
        pack.nodes.adapter.LoadBokehAdapter.execute(bases["sd15"], name, 1.0, 1.0)


def test_reading_a_path_that_is_not_there(pack: ModuleType, tmp_path: Path) -> None:
    read = pack.bokeh_ops.adapter.files.read_adapter
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(
        pack.bokeh_ops.errors.BokehError, match=r"No adapter file .*: the folder holds a\.safetensors"
    ):
        read(tmp_path / "b.safetensors")
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match="no such folder"):
        read(tmp_path / "x" / "b.safetensors")


# ---- safetensors, but not this adapter ----


def test_for_the_other_architecture(pack: ModuleType, folder: Path, refused: Any) -> None:
    write_project(folder, "sd15")
    refused("flux", r"is a bokeh adapter for SD1\.5, but the model is Flux \(2 double and 2 single blocks\)")
    write_project(folder, "flux")
    refused("sd15", r"is a bokeh adapter for FLUX, but the model is BaseModel \(UNet, 14 attention layers\)")
    write_released(pack, folder)
    refused("sd15", "is a bokeh adapter for FLUX")


def test_a_lora_or_a_checkpoint(folder: Path, refused: Any) -> None:
    save_file({"lora_unet_x.lora_up.weight": torch.ones(2, 2), "alpha": torch.ones(1)}, folder / NAME)
    refused(
        "sd15",
        r"not a bokeh adapter: it has 2 tensors such as alpha, lora_unet_x.*Is it a LoRA or a checkpoint\?",
    )
    save_file({}, folder / NAME)
    refused("sd15", "not a bokeh adapter: it has 0 tensors")


def spoil(folder: Path, kind: str, change: Callable[[dict[str, Tensor]], Any], **settings: Any) -> None:
    tensors = write_project(folder, kind, **settings)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / NAME, PROJECT)


VALUE = "output_blocks.3.1.transformer_blocks.0.attn2.to_v_bokeh.weight"
UP = "single_blocks.1.to_v_bokeh.up.weight"
QUERY = "single_blocks.1.to_q_adp"


def wide(t: dict[str, Tensor]) -> None:
    for name in list(t):
        if name.startswith("single_blocks.1."):
            if name.endswith("up.weight"):
                t[name] = torch.cat((t[name], t[name]))
            elif "adp" in name:
                t[name] = torch.cat((t[name], t[name]), 1)


def lower_rank(t: dict[str, Tensor]) -> None:
    t[UP] = t[UP][:, :2].contiguous()


def rename(old: str, new: str) -> Callable[[dict[str, Tensor]], None]:
    def change(t: dict[str, Tensor]) -> None:
        for name in list(t):
            if name.startswith(old):
                t[new + name[len(old) :]] = t.pop(name)

    return change


def set_value(name: str, value: float) -> Callable[[dict[str, Tensor]], None]:
    return lambda t: t[name].view(-1).__setitem__(3, value)


def drop(*names: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda t: [t.pop(name) for name in names] and None


def replaced(**tensors: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda t: t.update({name.replace("__", "."): value for name, value in tensors.items()})


def full_query(t: dict[str, Tensor]) -> None:
    drop(f"{QUERY}.up.weight", f"{QUERY}.down.weight")(t)
    t[f"{QUERY}.weight"] = torch.ones(32, 32)


UPS = [f"single_blocks.1.{n}.up.weight" for n in ("to_k_adp", "to_k_bokeh", "to_q_adp", "to_v_bokeh")]
NAN, INFINITY = float("nan"), float("inf")
IN, OUT, BIAS = "embedding_layer.0.weight", "embedding_layer.2.weight", "embedding_layer.2.bias"

SPOILT: dict[str, tuple[str, Callable[[dict[str, Tensor]], Any], str]] = {
    "missing value": ("sd15", drop(VALUE), f"lacks 1 tensors: {VALUE}"),
    "missing half of a pair": ("flux", drop(UP), f"lacks 1 tensors: {UP}"),
    "missing both halves of a layer": ("flux", drop(*UPS), f"lacks 4 tensors: {UPS[0]}, .*download it again"),
    "missing query pair": ("flux", drop(f"{QUERY}.up.weight", f"{QUERY}.down.weight"), "lacks 2 tensors"),
    "missing embedding": ("sd15", drop(BIAS), f"lacks {BIAS}: the embedding of K is incomplete"),
    "extra tensor": (
        "sd15",
        replaced(extra=torch.ones(3)),
        "1 tensors that no bokeh adapter has, such as extra",
    ),
    "extra embedding": (
        "sd15",
        replaced(embedding_layer__4__bias=torch.ones(3)),
        "such as embedding_layer.4.bias",
    ),
    "wrong rank in one half": ("flux", lower_rank, r"to_v_bokeh.up.weight is \[32, 2\], expected \[32, 4\]"),
    "a vector": (
        "sd15",
        lambda t: t.update({VALUE: t[VALUE][0]}),
        r"has 1 dimensions \[10\], expected a matrix",
    ),
    "a stack of matrices": ("flux", lambda t: t.update({UP: t[UP][None]}), r"has 3 dimensions \[1, 32, 4\]"),
    "two widths of tokens": (
        "sd15",
        lambda t: t.update({VALUE: torch.ones(32, 12)}),
        "tokens of different widths",
    ),
    "no whole number of tokens": (
        "sd15",
        lambda t: t.update({OUT: torch.ones(15, 6), BIAS: torch.ones(15)}),
        "makes 15 numbers, which is no whole number of tokens of width 10",
    ),
    "another width": (
        "sd15",
        lambda t: t.update({IN: torch.ones(7, 1)}),
        rf"{IN} is \[7, 1\], expected \[6, 1\]",
    ),
    "two inputs": ("sd15", lambda t: t.update({IN: torch.ones(6, 2)}), r"is \[6, 2\], expected \[6, 1\]"),
    "full query adapter": (
        "flux",
        full_query,
        "to_q_adp.weight is a full matrix; query/key adapters are low-rank",
    ),
    "NaN": ("sd15", set_value(VALUE, NAN), f"{VALUE} has NaN or infinite weights"),
    "infinity": ("flux", set_value(UP, INFINITY), "has NaN or infinite weights: its training diverged"),
    "NaN in the embedding": ("flux", set_value(OUT, NAN), f"{OUT} has NaN"),
    "whole numbers": (
        "sd15",
        lambda t: t.update({VALUE: t[VALUE].to(torch.int8)}),
        "torch.int8, expected floating",
    ),
    "a layer the model lacks": (
        "flux",
        rename("single_blocks.1.", "single_blocks.7."),
        r"weights for 1 layers that Flux .* does not have, such as single_blocks\.7\. .*another model",
    ),
    "a layer of another width": (
        "flux",
        wide,
        r"single_blocks\.1 is 64 wide, but that layer of Flux .* is 32 wide",
    ),
    "a UNet layer the model lacks": (
        "sd15",
        rename("output_blocks.3.", "output_blocks.11."),
        r"does not have, such as output_blocks\.11",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_spoilt_tensors(folder: Path, refused: Any, what: str) -> None:
    kind, change, message = SPOILT[what]
    spoil(folder, kind, change)
    refused(kind, message)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "other"}, "format is 'other', expected 'bokeh-adapter'"),
        ({**PROJECT, "version": "2"}, "layout version '2'; this extension reads version 1. Update it"),
        ({**PROJECT, "config": "{"}, "'config' in its metadata is not JSON"),
        ({**PROJECT, "config": "[1]"}, "is not a JSON object"),
        (
            {**PROJECT, "config": '{"base": "sd4"}'},
            "for 'sd4', which this version does not know; it knows FLUX, ",
        ),
        ({**PROJECT, "config": '{"base": 4}'}, "base is 4; it must be the name of an architecture"),
        ({**PROJECT, "config": '{"base": "flux"}'}, "is a bokeh adapter for FLUX"),
        ({**PROJECT, "config": '{"k_range": "30"}'}, "k_range is '30'; it must be a finite number"),
        ({**PROJECT, "config": '{"k_range": 0}'}, "k_range is 0; it must be above 0"),
        ({**PROJECT, "config": '{"lora_alpha": NaN}'}, "lora_alpha is nan"),
    ],
)
def test_spoilt_metadata(folder: Path, refused: Any, metadata: dict[str, str], message: str) -> None:
    save_file(write_project(folder), folder / NAME, metadata)
    refused("sd15", message)


def named(*blocks: str) -> str:
    """A config.json that names blocks; ``d0`` is the first double block, ``s0`` the first single block."""
    kinds = {"d": "transformer_blocks.", "s": "single_transformer_blocks."}
    return json.dumps({"blocks": [kinds.get(name[0], "x.") + name[1:] for name in blocks]})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{not JSON", r"config\.json cannot be read as JSON .*download it again, or move it away"),
        ("", "cannot be read as JSON"),
        ("[1, 2]", "holds a JSON list, expected an object"),
        (b"\xff\xfe{}", "cannot be read as JSON"),
        (named("d0"), "config.json names 1 blocks but the file has weights for 4"),
        (named(), "names 0 blocks but the file has weights for 4"),
        ('{"blocks": 4}', "'blocks' of config.json is 4, expected a list"),
        ('{"blocks": "all"}', "'blocks' of config.json is 'all', expected a list"),
        (named("x0", "d1", "s0", "s1"), r"names a block 'x\.0'; expected 'transformer_blocks\.N'"),
        ('{"blocks": [0, 1, 2, 3]}', "names a block 0; expected"),
        (named("d0", "d0", "s0", "s1"), "names a block twice"),
        (named("d0", "d9", "s0", "s1"), r"does not have, such as double_blocks\.9\. "),
        ('{"lora_alpha": "high"}', "lora_alpha is 'high'; it must be a finite number"),
        ('{"bokeh_scale": {}}', r"bokeh_scale is \{\}"),
    ],
)
def test_a_released_file_with_a_config_that_is_not_its_own(
    pack: ModuleType, folder: Path, refused: Any, config: str | bytes, message: str
) -> None:
    write_released(pack, folder)
    (folder / "config.json").write_bytes(config if isinstance(config, bytes) else config.encode())
    refused("flux", message)


def test_a_released_file_of_another_model_without_its_config(
    pack: ModuleType, folder: Path, refused: Any
) -> None:
    write_released(pack, folder, blocks=["double_blocks.1", "single_blocks.1"])
    (folder / "config.json").unlink()
    tensors = load_file(folder / NAME)
    save_file({k.replace("modules.3.", "modules.40."): v for k, v in tensors.items()}, folder / NAME)
    refused("flux", r"does not have, such as single_blocks\.38")
    refused("sd15", "put the config.json it came with next to it|for FLUX")


def test_a_released_file_with_something_else_in_it(pack: ModuleType, folder: Path, refused: Any) -> None:
    tensors = write_released(pack, folder)
    save_file({**tensors, "adapter_modules.0.to_z.up.weight": torch.ones(2, 2)}, folder / NAME)
    refused("flux", "has 1 tensors that no bokeh adapter has, such as adapter_modules.0.to_z.up.weight")


def test_a_sound_file_still_loads(pack: ModuleType, bases: Any, folder: Path) -> None:
    """After all this, the same node on the same model."""
    write_project(folder)
    model = pack.nodes.adapter.LoadBokehAdapter.execute(bases["sd15"], NAME, 1.0, 1.0).result[0]
    assert "apply_model" in model.wrappers
    assert model.patches
