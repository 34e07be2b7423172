"""Adapter files: what is written is read again, in both layouts, whatever blocks and precision they have."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bokeh_ops.adapter import conditions, network
from bokeh_ops.adapter import files as formats
from bokeh_ops.adapter.conditions import Conditions, Field, K
from bokeh_ops.adapter.files import read_adapter, read_tensors, write_adapter, write_released
from bokeh_ops.adapter.network import AdapterConfig, BokehAdapter, LayerSpec
from bokeh_ops.errors import BokehError
from tests import models
from tests.models import one_thread, relative  # noqa: F401

SOME_BLOCKS = ["double_blocks.1", "single_blocks.0"]
VARIANTS = {
    "sd15": {"kind": "sd15"},
    "sd15 low rank": {"kind": "sd15", "full": False, "lora_alpha": 2.0},
    "sd15 without query/key": {"kind": "sd15", "query_key": False},
    "sd15 three tokens": {"kind": "sd15", "tokens": 3},
    "sd15 one block": {"kind": "sd15", "blocks": ["middle_block.1.transformer_blocks.0"]},
    "flux": {"kind": "flux"},
    "flux alpha": {"kind": "flux", "lora_alpha": 6.0},
    "flux without query/key": {"kind": "flux", "query_key": False},
    "flux three tokens": {"kind": "flux", "tokens": 3},
    "flux some blocks": {"kind": "flux", "blocks": SOME_BLOCKS},
}
RELEASED = {name: v for name, v in VARIANTS.items() if v["kind"] == "flux"}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def same(one: BokehAdapter, other: BokehAdapter, dtype: torch.dtype = torch.float32) -> bool:
    """Same tensors, names, settings, and so the same function of K."""
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    assert all(b[name].dtype == dtype and torch.equal(a[name].to(dtype), b[name]) for name in a)
    assert one.config == other.config
    assert set(one.cross_layers) == set(other.cross_layers)
    assert set(one.query_key_layers) == set(other.query_key_layers)
    assert one.widths == other.widths
    k = Conditions.of_k([3.0, 28.0])
    ours, theirs = one.to(dtype).project(k), other.project(k)
    return all(torch.equal(ours[layer][1], theirs[layer][1]) for layer in ours)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_this_projects_layout(tmp_path: Path, variant: dict, dtype: torch.dtype) -> None:
    made = models.adapter(**variant)
    path = write_adapter(made, tmp_path / "sub" / "any name.safetensors", dtype)
    assert same(made, read_adapter(path), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", RELEASED.values(), ids=RELEASED)
def test_the_released_layout(tmp_path: Path, variant: dict, dtype: torch.dtype) -> None:
    made = models.adapter(**variant)
    path = write_released(made, tmp_path, double_blocks=2, dtype=dtype)
    assert path == tmp_path / "model.safetensors"
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["unfreeze_q"] == config["unfreeze_k"] == variant.get("query_key", True)
    assert config["lora_rank"] in (3, 4)
    assert config["attn_hidden_dim"] == 32
    assert all(key.startswith(("embedding_layer", "adapter_modules")) for key in load_file(path))
    assert same(made, read_adapter(path), dtype)
    assert same(
        made, read_adapter(tmp_path, double_blocks=1), dtype
    )  # config.json outranks the model's count


@pytest.mark.parametrize("variant", RELEASED.values(), ids=RELEASED)
def test_the_released_layout_without_its_config(tmp_path: Path, variant: dict) -> None:
    made = models.adapter(**variant)
    write_released(made, tmp_path, double_blocks=2)
    (tmp_path / "config.json").unlink()
    found = read_adapter(tmp_path, double_blocks=2)
    # Everything but lora_alpha follows from the tensors; the blocks from their absolute numbers.
    assert found.config == replace(made.config, lora_alpha=None)
    assert found.widths == made.widths
    made.config = found.config
    state = made.state_dict()
    assert all(torch.equal(state[name], value) for name, value in found.state_dict().items())


def test_one_layout_to_the_other_and_back(tmp_path: Path) -> None:
    made = models.adapter("flux", lora_alpha=6.0, blocks=SOME_BLOCKS)
    write_released(made, tmp_path / "a", double_blocks=2)
    write_adapter(read_adapter(tmp_path / "a"), tmp_path / "b.safetensors")
    assert same(made, read_adapter(tmp_path / "b.safetensors"))


def test_block_numbers_may_be_positions_in_the_list_of_blocks(tmp_path: Path) -> None:
    made = models.adapter("flux", blocks=SOME_BLOCKS)
    path = write_released(made, tmp_path, double_blocks=2)
    tensors = load_file(path)
    assert {key.split(".")[1] for key in tensors if key.startswith("adapter_modules")} == {"1", "2"}
    shifted = {
        k.replace("modules.1.", "modules.0.").replace("modules.2.", "modules.1."): v
        for k, v in tensors.items()
    }
    assert {key.split(".")[1] for key in shifted if key.startswith("adapter_modules")} == {"0", "1"}
    save_file(shifted, path)
    assert same(made, read_adapter(path))


def test_blocks_may_be_listed_in_any_order(tmp_path: Path) -> None:
    made = models.adapter("flux")
    write_released(made, tmp_path, double_blocks=2)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["blocks"] == [
        *(f"transformer_blocks.{i}" for i in range(2)),
        *(f"single_transformer_blocks.{i}" for i in range(2)),
    ]
    config["blocks"].reverse()  # double blocks come first all the same
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert same(made, read_adapter(tmp_path))


@pytest.mark.parametrize("numbers", [[0, 18, 19, 56], [18]])
def test_a_file_of_flux_1s_width_has_19_double_blocks(tmp_path: Path, numbers: list[int]) -> None:
    tensors = {"embedding_layer.0.weight": torch.ones(2, 1), "embedding_layer.0.bias": torch.ones(2)}
    tensors |= {"embedding_layer.2.weight": torch.ones(3, 2), "embedding_layer.2.bias": torch.ones(3)}
    for n in numbers:
        for name in ("to_k_bokeh", "to_v_bokeh"):
            tensors[f"adapter_modules.{n}.{name}.down.weight"] = torch.ones(1, 3)
            tensors[f"adapter_modules.{n}.{name}.up.weight"] = torch.ones(3072, 1)
    save_file(tensors, tmp_path / "model.safetensors")
    blocks = {0: "double_blocks.0", 18: "double_blocks.18", 19: "single_blocks.0", 56: "single_blocks.37"}
    assert set(read_adapter(tmp_path).cross_layers) == {blocks[n] for n in numbers}


def test_the_layout_is_told_by_content(tmp_path: Path) -> None:
    made = models.adapter("flux", blocks=["double_blocks.0"])
    write_released(made, tmp_path / "r", double_blocks=2)
    shutil.copy(tmp_path / "r" / "model.safetensors", tmp_path / "bokeh-adapter.safetensors")
    assert same(made, read_adapter(tmp_path / "bokeh-adapter.safetensors", double_blocks=2))
    ours = models.adapter("sd15")
    save_file(ours.state_dict(), tmp_path / "model.safetensors")  # no metadata at all
    assert same(ours, read_adapter(tmp_path))
    assert read_adapter(tmp_path).config.base == "sd15"
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    assert read_adapter(tmp_path).config.base == "flux"


def test_a_config_beside_this_projects_layout_is_another_files(tmp_path: Path) -> None:
    made = models.adapter("flux", lora_alpha=2.0)
    (tmp_path / "config.json").write_text("not even JSON")
    assert same(made, read_adapter(write_adapter(made, tmp_path / "a.safetensors")))


def test_what_training_recorded_is_kept(tmp_path: Path) -> None:
    extra = {"steps": 12000, "note": "größer – 焦点", "data": {"real": 0.5}}
    made = models.adapter("sd15")
    made.config = replace(made.config, extra=extra, bokeh_scale=0.5, lora_scale=2.0, k_range=20.0)
    path = write_adapter(made, tmp_path / "a.safetensors")
    assert same(made, read_adapter(path))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "bokeh-adapter"
    assert metadata["version"] == "1"
    config = json.loads(metadata["config"])
    assert config["base"] == "sd15"
    assert {k: config[k] for k in extra} == extra
    assert (config["tokens"], config["k_range"], config["bokeh_hidden_dim"]) == (1, 20.0, 6)
    with safe_open(write_adapter(read_adapter(path), tmp_path / "b.safetensors"), "pt") as file:
        assert file.metadata() == metadata


def test_scales_of_the_released_config(tmp_path: Path) -> None:
    made = models.adapter("flux")
    made.config = replace(made.config, bokeh_scale=0.25, lora_scale=3.0, extra={"who": "me"})
    write_released(made, tmp_path, double_blocks=2)
    assert read_adapter(tmp_path).config == made.config


@pytest.mark.parametrize("kept", ["old file", None])
def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str | None
) -> None:
    path = tmp_path / "a.safetensors"
    if kept:
        path.write_text(kept)

    def full_disk(tensors: object, name: str, metadata: object = None) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(formats, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_adapter(models.adapter("sd15"), path)
    assert [p.name for p in tmp_path.iterdir()] == (["a.safetensors"] if kept else [])
    if kept:
        assert path.read_text() == kept


def test_a_write_replaces_and_leaves_one_file_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("old")
    (tmp_path / "plain").write_text("")
    with open(path) as reader:  # whoever has the old file open, mapped into memory say, keeps it
        write_adapter(models.adapter("sd15"), path)
        assert os.name != "posix" or reader.read() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "plain"]
    if os.name == "posix":
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_header_whose_first_byte_is_that_of_a_pickle(tmp_path: Path) -> None:
    made = models.adapter("sd15", blocks=["middle_block.1.transformer_blocks.0"])
    path = tmp_path / "a.safetensors"
    for padding in range(0, 300, 8):
        made.config = replace(made.config, extra={"padding": "x" * padding})
        write_adapter(made, path)
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert same(made, read_adapter(path))


def test_reading_gives_frozen_weights_ready_for_use(tmp_path: Path) -> None:
    made = models.adapter("sd15").requires_grad_(True).train()
    found = read_adapter(write_adapter(made, tmp_path / "a.safetensors"))
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())


def test_only_one_of_the_query_key_pair(tmp_path: Path) -> None:
    config = AdapterConfig("flux", 6, 10)
    layer = {"double_blocks.0": LayerSpec(32, 4)}
    made = BokehAdapter(config, layer, layer, ("to_k_adp",)).requires_grad_(False)
    path = write_adapter(made, tmp_path / "a.safetensors")
    assert same(made, read_adapter(path))
    write_released(made, tmp_path, double_blocks=2)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["unfreeze_q"], written["unfreeze_k"]) == (False, True)
    assert same(made, read_adapter(tmp_path / "model.safetensors"))


def test_query_key_adapters_alone(tmp_path: Path) -> None:
    made = BokehAdapter(AdapterConfig("flux", 6, 10), {}, {"single_blocks.0": LayerSpec(32, 4)})
    found = read_adapter(write_adapter(made, tmp_path / "a.safetensors"))
    assert same(made.requires_grad_(False), found)
    assert found.cross_layers == ()


def test_the_released_layout_is_for_low_rank_flux_adapters(tmp_path: Path) -> None:
    with pytest.raises(BokehError, match="is for FLUX; this adapter is for sd15"):
        write_released(models.adapter("sd15"), tmp_path / "x")
    with pytest.raises(BokehError, match="full matrix; the released layout holds low-rank pairs only"):
        write_released(models.adapter("flux", full=True), tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["flux_official", "sd15_reference"])
def test_golden_files(shared: Path, kind: str, tmp_path: Path) -> None:
    folder = shared / "golden" / kind
    found = read_adapter(folder)
    raw, metadata = read_tensors(folder / "model.safetensors")
    assert sum(p.numel() for p in found.parameters()) == sum(t.numel() for t in raw.values())
    assert (found.config.base == "flux") == (kind == "flux_official") == (not metadata)
    again = read_adapter(write_adapter(found, tmp_path / "a.safetensors"))
    assert same(found, again)
    if kind == "flux_official":
        write_released(found, tmp_path, double_blocks=2)
        written = load_file(tmp_path / "model.safetensors")
        assert written.keys() == raw.keys()
        assert all(torch.equal(written[k], raw[k]) for k in raw)
        before = json.loads((folder / "config.json").read_text())
        assert json.loads((tmp_path / "config.json").read_text()) == before


FOCUS = Field("focus", "Focus", 0.0, 10.0, 0.0)


def test_a_second_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written where an adapter has one, told by its name in whatever order, and refused where it is not known."""
    for module in (conditions, network):
        monkeypatch.setattr(module, "FIELDS", (K, FOCUS))
    torch.manual_seed(0)
    made = BokehAdapter(AdapterConfig("sd15", fields=("focus", "k")), {"a.attn2": LayerSpec(4)})
    found = read_adapter(write_adapter(made, tmp_path / "a.safetensors"))
    assert found.config == made.config
    told = Conditions(torch.tensor([[15.0, 2.0]]), torch.tensor([True]))
    assert torch.equal(Conditions.unpack(told.pack()).values, told.values)
    by_hand = made.embedding_layer(torch.tensor([[2.0 / 10, 15.0 / 30]]))
    assert torch.allclose(found.embed(told)[:, 0], by_hand, atol=1e-6)
    with pytest.raises(BokehError, match="knows K alone; this adapter is told"):
        write_released(
            BokehAdapter(AdapterConfig("flux", fields=("focus", "k")), {"double_blocks.0": LayerSpec(4, 2)}),
            tmp_path,
        )
    monkeypatch.undo()
    with pytest.raises(BokehError, match=r"told focus, k of every picture; this version knows k\."):
        read_adapter(tmp_path / "a.safetensors")


def test_a_file_says_nothing_of_fields_where_there_is_k_alone(tmp_path: Path) -> None:
    made = BokehAdapter(AdapterConfig("sd15"), {"a.attn2": LayerSpec(4)})
    _, metadata = read_tensors(write_adapter(made, tmp_path / "a.safetensors"))
    assert "fields" not in json.loads(metadata["config"])
    save_file(
        {k: v.contiguous() for k, v in made.state_dict().items()},
        tmp_path / "b.safetensors",
        {"config": '{"fields": "k"}'},
    )
    with pytest.raises(BokehError, match="'fields' are 'k', expected a list"):
        read_adapter(tmp_path / "b.safetensors")
