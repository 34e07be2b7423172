"""The workflows for SDXL through a real server, on a model of its whole size with random weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors import safe_open

from tests.host.server import ComfyServer, Run
from tests.host.workflow import to_api
from tests.prompts import find, pictures, relative, sampled, small, stock, texts, with_inputs
from tests.test_end_to_end import check_run, check_samples, read

pytestmark = [pytest.mark.server, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[1]
DISK_GB, MEMORY_GB = 8.0, 18.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("full-size")
    free = {"disk": shutil.disk_usage(base).free / 1e9, "memory": psutil.virtual_memory().available / 1e9}
    for what, needed in {"disk": DISK_GB, "memory": MEMORY_GB}.items():
        if free[what] < needed:
            pytest.skip(f"SDXL needs {needed:g} GB of {what} here; {free[what]:.1f} GB are free")
    try:
        command = [sys.executable, "-m", "tests.fullsize", str(base / "models"), "sdxl"]
        subprocess.run(command, cwd=ROOT, check=True)
        with ComfyServer(base=base) as running:
            yield running
    finally:
        shutil.rmtree(base, ignore_errors=True)


def test_the_checkpoint_has_as_many_parameters_as_the_published_one(server: ComfyServer) -> None:
    # Counts of stabilityai/stable-diffusion-xl-base-1.0: UNet2DConditionModel, AutoencoderKL, both CLIPTextModels.
    published = {
        "model.diffusion_model.": 2_567_463_684,
        "first_stage_model.": 83_653_863,
        "conditioner.embedders.0.": 123_060_480,
        "conditioner.embedders.1.": 694_659_840,
    }
    path = server.base / "models" / "checkpoints" / "sd_xl_base_1.0.safetensors"
    with safe_open(path, framework="pt") as file:
        sizes = {key: int(np.prod(file.get_slice(key).get_shape())) for key in file.keys()}  # noqa: SIM118
    counted = {prefix: sum(n for key, n in sizes.items() if key.startswith(prefix)) for prefix in published}
    assert counted == published


@pytest.mark.parametrize(
    "name", ["single_k_sdxl", "bokeh_sweep_sdxl", "sharp_background_sdxl", "photo_edit_sdxl"]
)
def test_a_workflow_runs(server: ComfyServer, name: str) -> None:
    check_samples(server, small(to_api(json.loads(read(name)), server.object_info())))


def test_it_obeys_k(server: ComfyServer) -> None:
    prompt = small(to_api(json.loads(read("single_k_sdxl")), server.object_info()))
    assert find(prompt, "CheckpointLoaderSimple")
    _, (strong,) = sampled(server, with_inputs(prompt, "BokehCondition", bokeh=28.0))
    _, (weak,) = sampled(server, with_inputs(prompt, "BokehCondition", bokeh=2.0))
    _, (plain,) = sampled(server, stock(prompt))
    assert relative(weak, strong) > 1e-2
    assert relative(strong, plain) > 1e-2


def test_the_diffusion_lens(server: ComfyServer) -> None:
    """LoRA and encoder from their files, a picture of a tile, K and the lens at work."""
    prompt = to_api(json.loads(read("diffusion_lens_sdxl")), server.object_info())
    prompt = with_inputs(prompt, "ImageScale", width=512, height=384)
    prompt[find(prompt, "PrimitiveString")]["inputs"]["value"] = "12"
    run = check_run(server, prompt)
    lens = next(node for node, each in prompt.items() if "lens" in each["inputs"])
    steps = [(value, of) for node, value, of in run.progress if node == lens]
    assert steps[-1][0] == steps[-1][1]
    assert not [text for node, text in run.texts if prompt[node]["class_type"] == "LoadDiffusionLens"]
    log = server.log.read_text(errors="replace")
    assert "lora key not loaded" not in log
    saved = {
        each["inputs"]["filename_prefix"]: node
        for node, each in prompt.items()
        if each["class_type"] == "SaveImage"
    }

    def sheet(of: Run, name: str) -> torch.Tensor:
        (found,) = pictures(server, of, saved[name])
        return torch.from_numpy(found).float()

    by_lens = sheet(run, "diffusion_lens")
    assert relative(by_lens, sheet(run, "diffusion_lens_layered")) > 0.1
    again = check_run(server, with_inputs(prompt, "LoadDiffusionLens", lora="none", encoder="none"))
    assert relative(by_lens, sheet(again, "diffusion_lens")) > 1e-2
    assert "There is no LoRA" in texts(again)
