"""What others computed: golden directories of both formats through the real nodes, and the command that checks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bokeh_ops.adapter.files import read_adapter
from tests import golden, parity
from tests.models import one_thread  # noqa: F401
from tests.reference import by_hooks

FORMATS = ("flux_official", "sd15_reference")
CASES = {"flux_official": golden.CASES[:5], "sd15_reference": golden.CASES}


def copy_with(source: Path, target: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a golden directory whose adapter is changed."""
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    metadata = {"format": "bokeh-adapter"} if "sd15" in source.name else {"format": "pt"}
    save_file(tensors, target / "model.safetensors", metadata)
    return target


@pytest.mark.parametrize("name", FORMATS)
def test_outputs_of_others_in_single_precision(
    shared: Path, pack: ModuleType, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parity.main([str(shared / "golden" / name)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [case for case, _ in lines] == list(CASES[name])
    assert all(float(error) < 1e-5 for _, error in lines)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp8"])
@pytest.mark.parametrize("name", FORMATS)
def test_outputs_of_others_in_half_precision(shared: Path, pack: ModuleType, name: str, dtype: str) -> None:
    assert parity.main([str(shared / "golden" / name), "--dtype", dtype]) == 0


@pytest.mark.parametrize("dtype", ["bf16"])  # whose bound is the widest
@pytest.mark.parametrize("part", ["to_v_bokeh", "to_q_adp", "to_k_adp", "embedding_layer"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_wrong_adapter_does_not_pass(
    shared: Path, pack: ModuleType, tmp_path: Path, name: str, part: str, dtype: str
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for key, tensor in tensors.items():
            if part in key and "down" not in key:
                tensor.mul_(1.001 if dtype == "fp32" else -1)

    folder = copy_with(
        shared / "golden" / name, tmp_path / "sd15" if "sd15" in name else tmp_path / "f", change
    )
    assert parity.main([str(folder), "--dtype", dtype]) == 1


def test_nan_does_not_pass(shared: Path, pack: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "golden"
    shutil.copytree(shared / "golden" / "flux_official", folder)
    base = load_file(folder / "base.safetensors")
    next(iter(base.values())).fill_(float("nan"))
    save_file(base, folder / "base.safetensors")
    assert parity.main([str(folder)]) == 1


def test_its_own_bound(shared: Path, pack: ModuleType) -> None:
    folder = str(shared / "golden" / "flux_official")
    assert parity.main([folder, "--bound", "1e-9"]) == 1
    assert parity.main([folder, "--dtype", "bf16", "--bound", "1e-5"]) == 1


def test_a_file_in_the_layout_of_this_project(shared: Path, pack: ModuleType, tmp_path: Path) -> None:
    """The released FLUX adapter, read and written anew in this project's layout, computes the same."""
    formats = pack.bokeh_ops.adapter.files
    folder = tmp_path / "golden"
    shutil.copytree(shared / "golden" / "flux_official", folder)
    adapter = formats.read_adapter(folder)
    (folder / "config.json").unlink()
    formats.write_adapter(adapter, folder / "model.safetensors")
    assert parity.main([str(folder)]) == 0


def test_the_released_layout_without_its_config(shared: Path, pack: ModuleType, tmp_path: Path) -> None:
    """Then the number of double blocks comes from the model it is laid onto."""
    folder = tmp_path / "golden"
    shutil.copytree(shared / "golden" / "flux_official", folder)
    (folder / "config.json").unlink()
    assert parity.main([str(folder)]) == 0


def test_lora_alpha_is_obeyed(shared: Path, pack: ModuleType, tmp_path: Path) -> None:
    """alpha / rank = 2 with every low-rank pair halved is the golden adapter again."""

    def halve(tensors: dict[str, Tensor]) -> None:
        for key, tensor in tensors.items():
            if key.endswith("up.weight"):
                tensor.div_(2)

    folder = copy_with(shared / "golden" / "flux_official", tmp_path / "flux", halve)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "lora_alpha": 2.0 * config["lora_rank"]}))
    assert parity.main([str(folder)]) == 0


def by_the_paper(case: golden.Golden, adapter: Any, which: str) -> Tensor:
    """The output of a case from eqs. 10 and 15 written out (``tests.reference``), nothing of the extension in it."""
    k, grounded = case.io["K"].tolist(), "grounded" in which
    if which == "out_negative":
        k = [-30.0] * len(k)
    pivot = int(case.io["pivot"])
    pivots = [-1 if row == pivot else pivot for row in range(len(k))] if grounded else None
    adapters = [] if adapter is None else [(adapter, 0.5 if which == "out_scale_half" else 1.0)]
    prompt: Any = {"pooled_output": case.io["y"], "guidance": float(case.io["guidance"][0])}
    with by_hooks(case.model, adapters, k, pivots):
        return golden.forward(case, case.model, [[case.io["context"], prompt]], golden.sigma_for(case))


@pytest.mark.parametrize("which", golden.CASES[:5])
def test_the_equations_written_out_give_the_released_codes_outputs(
    shared: Path, pack: ModuleType, which: str
) -> None:
    """So that they may stand in for it where there is no output of it: for adapters of some blocks."""
    folder = shared / "golden" / "flux_official"
    case = golden.load(folder)
    adapter = None if which == "out_base" else read_adapter(folder)
    assert golden.relative_error(by_the_paper(case, adapter, which), case.io[which]) < 1e-5


SOME_BLOCKS = {
    "double": ["transformer_blocks.1"],
    "single": ["single_transformer_blocks.0", "single_transformer_blocks.2"],
    "both": ["transformer_blocks.0", "single_transformer_blocks.1"],
}


@pytest.mark.parametrize("blocks", SOME_BLOCKS.values(), ids=SOME_BLOCKS)
def test_a_flux_adapter_of_some_blocks(
    shared: Path, pack: ModuleType, tmp_path: Path, blocks: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The released code leaves the other blocks alone, grounded steps included; without an adapter all are grounded."""
    folder = tmp_path / "golden"
    shutil.copytree(shared / "golden" / "flux_official", folder)
    config = json.loads((folder / "config.json").read_text())
    kept = {f"adapter_modules.{config['blocks'].index(block)}." for block in blocks}
    (folder / "config.json").write_text(json.dumps({**config, "blocks": blocks}))
    tensors = load_file(folder / "model.safetensors")
    some = {
        key: t for key, t in tensors.items() if key[:5] == "embed" or key[: key.index(".to_") + 1] in kept
    }
    save_file(some, folder / "model.safetensors")

    case, adapter = golden.load(folder), read_adapter(folder)
    outputs = {which: by_the_paper(case, adapter, which) for which in golden.CASES[1:5]}
    outputs["out_grounded_no_adapter"] = by_the_paper(case, None, "out_grounded_no_adapter")
    io = {key: tensor for key, tensor in case.io.items() if key not in golden.CASES}
    save_file({**io, "out_base": case.io["out_base"], **outputs}, folder / "io.safetensors")
    assert parity.main([str(folder)]) == 0, capsys.readouterr().out
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(golden.CASES)


def test_the_command(shared: Path, repo: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.parity", str(shared / "golden" / "flux_official"), "--bound", "1e-12"],
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr[-2000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(CASES["flux_official"])


def test_what_it_does_not_know_it_names_and_does_not_pass(
    shared: Path, pack: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outputs of something else: nothing may count as reproduced that was not run."""
    folder = tmp_path / "golden"
    shutil.copytree(shared / "golden" / "flux_official", folder)
    tensors = load_file(folder / "io.safetensors")
    known = {name: value for name, value in tensors.items() if name[:3] != "out" or name == "out_base"}
    save_file({**known, "out_other": tensors["out_base"].clone()}, folder / "io.safetensors")
    assert parity.main([str(folder)]) == 1
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["out_base"]
    assert "worst" in err
    named = next(line for line in err.splitlines() if line.startswith("not tried: "))
    assert named.removeprefix("not tried: ").split(", ") == ["out_other"]


def test_a_folder_without_any_output_does_not_pass(
    shared: Path, pack: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "golden"
    shutil.copytree(shared / "golden" / "sd15_reference", folder)
    tensors = {key: value for key, value in load_file(folder / "io.safetensors").items() if key[:3] != "out"}
    save_file(tensors, folder / "io.safetensors")
    assert parity.main([str(folder)]) == 1
    assert "nothing tried" in capsys.readouterr().err


def test_a_folder_of_neither_format(pack: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither flux_config.json nor unet_config.json"):
        golden.load(tmp_path)


def test_the_models_are_left_as_they_were(shared: Path, pack: ModuleType) -> None:
    for name in FORMATS:
        case = golden.load(shared / "golden" / name)
        before = {key: value.clone() for key, value in case.model.model.state_dict().items()}
        golden.run(case, pack, "out_grounded")
        after = case.model.model.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert not case.model.patches
        assert not case.model.wrappers
