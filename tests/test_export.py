"""`export`: the same adapter in another layout or precision."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from bokeh_ops.adapter.conditions import Conditions
from bokeh_ops.adapter.files import read_adapter, write_adapter
from bokeh_ops.adapter.network import BokehAdapter
from tests import models
from trainer.cli import main


@pytest.fixture
def flux() -> BokehAdapter:
    adapter = models.adapter("flux", lora_alpha=None)
    # One rank for all pairs, as the released layout has.
    same = BokehAdapter(
        replace(adapter.config, bokeh_scale=0.5, extra={"training": {"steps": 7, "data": "mine"}}),
        *[{path: replace(spec, rank=4) for path, spec in table.items()} for table in specs(adapter)],
    )
    with torch.no_grad():
        for number, weight in enumerate(same.parameters()):
            weight.copy_(models.randn(*weight.shape, seed=number))
    return same.requires_grad_(False).eval()


def specs(adapter: BokehAdapter) -> list[dict[str, models.plain_ops.LayerSpec]]:
    table = {path: models.plain_ops.LayerSpec(width) for path, width in models.FLUX_WIDTHS.items()}
    assert set(table) == set(adapter.cross_layers)
    return [table, table]


def export(*words: object) -> int:
    return main(["export", *map(str, words)])


def same(one: BokehAdapter, other: BokehAdapter, tolerance: float = 0.0) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        torch.allclose(mine[name].float(), theirs[name].float(), rtol=tolerance, atol=0) for name in mine
    )


def test_there_and_back(flux: BokehAdapter, tmp_path: Path) -> None:
    first = write_adapter(flux, tmp_path / "mine.safetensors")
    assert export(first, tmp_path / "released", "--layout", "released", "--double-blocks", 2) == 0
    with safe_open(tmp_path / "released" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    # Blocks are numbered through, double ones first, as the released file's are.
    assert {name.split(".")[1] for name in names if name.startswith("adapter_modules")} == {
        "0",
        "1",
        "2",
        "3",
    }
    config = json.loads((tmp_path / "released" / "config.json").read_text())
    assert config["blocks"] == ["transformer_blocks.0", "transformer_blocks.1"] + [
        f"single_transformer_blocks.{i}" for i in range(2)
    ]
    assert config["training"] == {"steps": 7, "data": "mine"}
    assert (config["bokeh_scale"], config["lora_rank"], config["attn_hidden_dim"]) == (0.5, 4, 32)
    assert export(tmp_path / "released", tmp_path / "back.safetensors") == 0
    back = read_adapter(tmp_path / "back.safetensors")
    assert same(back, flux)
    assert back.config == flux.config
    k = Conditions.of_k([0.0, 12.0])
    for path, (_, values) in flux.project(k).items():
        assert torch.equal(back.project(k)[path][1], values)


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_pairs_of_several_ranks(tmp_path: Path, alpha: float | None) -> None:
    """As in the toy's adapter. The released layout says one rank for all, and the adapter does what it did."""
    adapter = models.adapter("flux", lora_alpha=alpha)
    first = write_adapter(adapter, tmp_path / "mine.safetensors")
    adapter = read_adapter(first)
    pairs = [tensor for name, tensor in adapter.state_dict().items() if name.endswith("down.weight")]
    assert {tensor.shape[0] for tensor in pairs} == {3, 4}
    assert export(first, tmp_path / "released", "--layout", "released", "--double-blocks", 2) == 0
    config = json.loads((tmp_path / "released" / "config.json").read_text())
    assert config["lora_rank"] == 4
    back = read_adapter(tmp_path / "released")
    assert {
        tensor.shape[0] for name, tensor in back.state_dict().items() if name.endswith("down.weight")
    } == {4}
    k = Conditions.of_k([0.0, 12.0])
    for path, found in adapter.project(k).items():
        for mine, theirs in zip(found, back.project(k)[path], strict=True):
            torch.testing.assert_close(theirs, mine)
    x = models.randn(2, 32, seed=1)
    for path, name, pair in adapter.low_rank_pairs():
        torch.testing.assert_close(back.projection(path, name)(x), pair(x))


@pytest.mark.parametrize(
    ("name", "dtype", "error"),
    [("fp32", torch.float32, 0), ("bf16", torch.bfloat16, 2**-8), ("fp16", torch.float16, 2**-10)],
)
@pytest.mark.parametrize("layout", ["project", "released"])
def test_precisions(
    flux: BokehAdapter, tmp_path: Path, name: str, dtype: torch.dtype, error: float, layout: str
) -> None:
    first = write_adapter(flux, tmp_path / "mine.safetensors")
    out = tmp_path / ("out" if layout == "released" else "out.safetensors")
    assert export(first, out, "--layout", layout, "--dtype", name) == 0
    made = read_adapter(out)
    assert {value.dtype for value in made.state_dict().values()} == {dtype}
    assert same(made, flux, error)
    assert error == 0 or not same(made, flux)
    assert made.config.extra["training"] == {"steps": 7, "data": "mine"}


def test_metadata_of_sd15_is_kept(tmp_path: Path) -> None:
    adapter = models.adapter("sd15", tokens=2, lora_alpha=2.0)
    adapter.config = replace(adapter.config, k_range=40.0, lora_scale=0.5, extra={"note": "kept"})
    first = write_adapter(adapter, tmp_path / "mine.safetensors")
    assert export(first, tmp_path / "half.safetensors", "--dtype", "bf16") == 0
    assert read_adapter(tmp_path / "half.safetensors").config == adapter.config


def test_what_the_released_layout_cannot_hold(
    flux: BokehAdapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(adapter: BokehAdapter, said: str) -> None:
        first = write_adapter(adapter, tmp_path / "mine.safetensors")
        assert export(first, tmp_path / "out", "--layout", "released") == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    refused(models.adapter("sd15"), "The released layout is for FLUX")
    refused(models.adapter("flux", full=True, query_key=False), "is a full matrix")
    flux.config = replace(flux.config, k_range=60.0)
    refused(flux, "counts K up to 60")


def test_wrong_words_and_files(
    flux: BokehAdapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_adapter(flux, tmp_path / "mine.safetensors")
    before = first.read_bytes()
    assert export(first, tmp_path / "out.bin") == 2
    assert export(first, first) == 2
    assert "exists; give --force" in capsys.readouterr().err
    assert first.read_bytes() == before
    assert export(first, first, "--force", "--dtype", "bf16") == 0
    assert first.stat().st_size < 0.7 * len(before)
    assert export(first, tmp_path / "a", "--layout", "released", "--double-blocks", 1) == 1
    assert "more than 1" in capsys.readouterr().err
    assert export(first, tmp_path / "a", "--layout", "released", "--double-blocks", -1) == 2
    assert export(tmp_path / "none.safetensors", tmp_path / "b.safetensors") == 1
    (tmp_path / "page.safetensors").write_text("<!doctype html>")
    assert export(tmp_path / "page.safetensors", tmp_path / "b.safetensors") == 1
    assert "web page" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        export(first, tmp_path / "b.safetensors", "--dtype", "fp8")


def test_numbers_too_large_for_fp16(
    flux: BokehAdapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.no_grad():
        flux.projection("double_blocks.1", "to_v_bokeh").up.weight[0, 0] = 1e5  # type: ignore[union-attr]
    first = write_adapter(flux, tmp_path / "mine.safetensors")
    assert export(first, tmp_path / "half.safetensors", "--dtype", "fp16") == 1
    assert "double_blocks.1.to_v_bokeh.up.weight holds 1e+05" in capsys.readouterr().err
    assert not (tmp_path / "half.safetensors").exists()
    assert export(first, tmp_path / "half.safetensors", "--dtype", "bf16") == 0


@pytest.mark.parametrize("layout", ["project", "released"])
def test_a_full_disk(
    flux: BokehAdapter, tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    resource = pytest.importorskip("resource")
    first = write_adapter(flux, tmp_path / "mine.safetensors")
    out = tmp_path / ("out" if layout == "released" else "out.safetensors")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (first.stat().st_size // 2, old[1]))
        assert export(first, out, "--layout", layout, "--double-blocks", 2) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "could not be written" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.part"))
