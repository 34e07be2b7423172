"""The shipped workflows through a real server, on models of the real size with random weights.

The graphs are those that are shipped, with the stock loaders in them; only sizes and steps are lowered. Where a
test needs to see more than a picture shows, the latents are saved by the host's own SaveLatent and compared bit
by bit.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from tests import depth_models, fullsize
from tests.host import demo
from tests.host.server import ComfyServer, PromptError, Run
from tests.host.workflow import has_nodes, to_api
from tests.prompts import (
    FRAMES,
    OUTPUTS,
    SAMPLERS,
    STEPS,
    Prompt,
    find,
    pictures,
    relative,
    same_bits,
    sampled,
    small,
    stock,
    texts,
    with_inputs,
    without,
)

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server whose models folder is filled, with the shipped pictures in its input folder."""
    base = tmp_path_factory.mktemp("full-size")
    free = {"disk": shutil.disk_usage(base).free / 1e9, "memory": psutil.virtual_memory().available / 1e9}
    for what, needed in {"disk": fullsize.DISK_GB, "memory": fullsize.MEMORY_GB}.items():
        if free[what] < needed:
            pytest.skip(f"full-size models need {needed:g} GB of {what}; {free[what]:.1f} GB are free")
    try:
        # In a process of its own, whose memory goes back before the server needs it.
        command = [sys.executable, "-m", "tests.fullsize", str(base / "models")]
        subprocess.run(command, cwd=ROOT, check=True)
        broken_adapters(base / "models" / "bokeh" / "broken")
        depth_models.make("relative", base / "models" / "depth" / "Depth-Anything-V2-Small-hf")
        metres = base / "models" / "depth" / "Depth-Anything-V2-Metric-Outdoor-Small-hf"
        shutil.copytree(ROOT / "workflows" / "assets" / "world" / "depth", metres)
        depth_models.make("depth_pro", base / "models" / "depth" / "DepthPro-hf")
        stand_in = ROOT / "tests" / "host" / "shallow_t5.py"
        with pytest.MonkeyPatch.context() as patch:
            # Threads that spin while they wait are several times slower on a machine that others use too.
            patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
            with ComfyServer(base=base, custom_nodes=(stand_in,)) as running:
                for path in sorted((ROOT / "workflows" / "assets").iterdir()):
                    if path.suffix in {".jpg", ".png"}:
                        running.upload_image(path)
                    elif path.suffix == ".mp4":
                        running.upload_image(first_frames(path, base / path.name))
                yield running
    finally:
        shutil.rmtree(base, ignore_errors=True)


def first_frames(path: Path, short: Path) -> Path:
    """The beginning of a video, as a video."""
    with av.open(path) as whole, av.open(short, "w") as target:
        source = whole.streams.video[0]
        stream = target.add_stream("mpeg4", rate=source.average_rate)
        stream.width, stream.height, stream.pix_fmt = source.width, source.height, "yuv420p"
        for frame in itertools.islice(whole.decode(source), FRAMES):
            target.mux(stream.encode(frame.reformat(format="yuv420p")))
        target.mux(stream.encode())
    return short


@pytest.fixture(scope="module")
def shipped(server: ComfyServer) -> dict[str, Prompt]:
    """Every shipped workflow as a prompt, small."""
    info = server.object_info()
    made_of = {name: json.loads(read(name)) for name in SHIPPED}
    return {name: small(to_api(made_of[name], info)) for name in SHIPPED if has_nodes(made_of[name], info)}


def read(name: str) -> str:
    return (ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")


# What is built


def test_the_checkpoint_has_as_many_parameters_as_the_published_one(server: ComfyServer) -> None:
    # Counts of runwayml/stable-diffusion-v1-5: UNet2DConditionModel, AutoencoderKL, CLIPTextModel.
    published = {
        "model.diffusion_model.": 859_520_964,
        "first_stage_model.": 83_653_863,
        "cond_stage_model.": 123_060_480,
    }
    path = server.base / "models" / "checkpoints" / "v1-5-pruned-emaonly-fp16.safetensors"
    with safe_open(path, framework="pt") as file:
        sizes = {key: int(np.prod(file.get_slice(key).get_shape())) for key in file.keys()}  # noqa: SIM118
    counted = {prefix: sum(n for key, n in sizes.items() if key.startswith(prefix)) for prefix in published}
    assert counted == published


# The shipped workflows. SD1.5 before FLUX, so that each model is loaded once.


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in SHIPPED
        if not {"sd15", "sdxl", "flux", "core"} & {*name.split("_")}
        and name not in {path.stem for path in demo.WORKFLOWS}  # test_demo runs these
    ],
)
def test_a_workflow_without_a_model_of_pictures_runs(
    server: ComfyServer, shipped: dict[str, Prompt], name: str
) -> None:
    check_run(server, shipped[name])


@pytest.mark.parametrize("name", [n for n in SHIPPED if "sd15" in n])
def test_an_sd15_workflow_runs(server: ComfyServer, shipped: dict[str, Prompt], name: str) -> None:
    assert find(shipped[name], "CheckpointLoaderSimple")
    check_samples(server, shipped[name])


def check_run(server: ComfyServer, prompt: Prompt) -> Run:
    run = server.run(prompt)
    outputs = [node_id for node_id, node in prompt.items() if node["class_type"] in OUTPUTS]
    assert outputs
    for node_id in outputs:
        shown = pictures(server, run, node_id)
        assert shown
        assert all(picture.std() > 5 for picture in shown), f"node {node_id} shows an empty picture"
    return run


def check_samples(server: ComfyServer, prompt: Prompt) -> None:
    run = check_run(server, prompt)
    sampler = find(prompt, *SAMPLERS)
    steps = [(value, of) for node, value, of in run.progress if node == sampler]
    assert steps, "no progress was told"
    assert steps[-1][0] == steps[-1][1]
    assert run.previews
    assert all(Image.open(io.BytesIO(preview)).size[0] > 0 for preview in run.previews)
    # So small a picture is hardly blurred by a lens, which says so; and a camera tells its K of several f-numbers.
    telling = ("BokehMeRender", "BokehFromCamera")
    said = [text for node, text in run.texts if prompt[node]["class_type"] not in telling]
    assert said == [], "a shipped workflow gives cause for a notice"
    log = server.log.read_text(errors="replace")
    assert "missing:" not in log, "the host found the model files incomplete"


def check_obeys_k(server: ComfyServer, prompt: Prompt) -> None:
    """K changes what comes out, the same seed gives the same bits, and strength 0 gives the model's own."""
    prompt = with_inputs(prompt, "KSampler", steps=1)
    _, (strong,) = sampled(server, with_inputs(prompt, "BokehCondition", bokeh=28.0))
    _, (weak,) = sampled(server, with_inputs(prompt, "BokehCondition", bokeh=2.0))
    again, (same,) = sampled(server, with_inputs(prompt, "BokehCondition", bokeh=28.0))
    assert find(prompt, "KSampler") in again.executed
    assert same_bits(strong, same)
    assert relative(weak, strong) > 1e-2

    _, (plain,) = sampled(server, stock(prompt))
    off, (at_zero,) = sampled(
        server, with_inputs(prompt, "LoadBokehAdapter", strength=0.0, query_key_strength=0.0)
    )
    assert find(prompt, "KSampler") in off.executed
    assert same_bits(at_zero, plain)
    assert relative(strong, plain) > 1e-2
    assert "strength is 0" in texts(off)

    bare, (no_adapter,) = sampled(
        server, with_inputs(without(prompt, "LoadBokehAdapter", "model"), "BokehCondition", bokeh=45.0)
    )
    assert same_bits(no_adapter, plain)
    assert "no LoadBokehAdapter" in texts(bare)
    assert "45" in texts(bare), "K beyond the trained range is not mentioned"


def check_survives_an_interrupt(server: ComfyServer, grounded: Prompt, single: Prompt) -> None:
    """The run after an interrupted one gives the bits of the run before it, with and without adapter."""
    kind = grounded[find(grounded, *SAMPLERS)]["class_type"]
    steps_at = next(k for k in ("GroundedSampler", "BasicScheduler") if any(
        node["class_type"] == k for node in grounded.values()
    ))  # fmt: skip
    grounded, single = with_inputs(grounded, steps_at, steps=1), with_inputs(single, "KSampler", steps=1)
    _, before = sampled(server, grounded)
    _, (plain,) = sampled(server, stock(single))

    def stop(event: str, data: dict[str, Any]) -> None:
        if event == "progress":
            server.interrupt()

    long = with_inputs(grounded, steps_at, steps=40)
    run, _ = sampled(server, long, on_event=stop, timeout=300)
    assert run.interrupted
    assert run.outputs == {}
    after_run, after = sampled(server, grounded)
    assert find(grounded, kind) in after_run.executed
    assert all(same_bits(a, b) for a, b in zip(after, before, strict=True))
    _, (plain_after,) = sampled(server, stock(single))
    assert same_bits(plain_after, plain)


@pytest.mark.slow  # that of FLUX below is the same, and faster
def test_sd15_obeys_k(server: ComfyServer, shipped: dict[str, Prompt]) -> None:
    check_obeys_k(server, shipped["single_k_sd15"])


def test_an_sd15_pivot_is_what_it_would_be_alone(server: ComfyServer, shipped: dict[str, Prompt]) -> None:
    grounded = with_inputs(shipped["sharp_background_sd15"], "GroundedSampler", steps=1)
    single = with_inputs(shipped["single_k_sd15"], "KSampler", steps=1)
    _, (pivot, target) = sampled(server, grounded)
    _, (alone,) = sampled(server, with_inputs(single, "BokehCondition", bokeh=14.0))
    assert relative(pivot, alone) < 1e-4  # another batch size rounds otherwise
    assert relative(target, alone) > 1e-2


@pytest.mark.slow  # FLUX below is the same, and faster
def test_an_sd15_interrupt_leaves_the_model_clean(server: ComfyServer, shipped: dict[str, Prompt]) -> None:
    check_survives_an_interrupt(server, shipped["sharp_background_sd15"], shipped["single_k_sd15"])


def test_an_adapter_that_gets_no_k_is_mentioned(server: ComfyServer, shipped: dict[str, Prompt]) -> None:
    prompt = with_inputs(shipped["single_k_sd15"], "KSampler", steps=1)
    run, _ = sampled(server, without(prompt, "BokehCondition", "positive", "negative"))
    assert "K" in texts(run)
    assert "BokehCondition" in texts(run)


# Bad input: each says what is wrong in its own words, at its own node


def broken_adapters(folder: Path) -> None:
    folder.mkdir(parents=True)
    good = {name: torch.zeros(shape) for name, shape in fullsize.flux_adapter_shapes().items()}
    save_file(good, folder / "whole.safetensors")
    whole = (folder / "whole.safetensors").read_bytes()
    (folder / "cut_short.safetensors").write_bytes(whole[: len(whole) // 3])
    (folder / "whole.safetensors").unlink()
    (folder / "web_page.safetensors").write_text(
        "<!DOCTYPE html><html><body>Log in to download</body></html>"
    )
    torch.save({"a": torch.zeros(2)}, folder / "pickle.safetensors")
    save_file({"lora_unet_up.lora_down.weight": torch.zeros(4, 4)}, folder / "lora.safetensors")
    save_file({**good, "embedding_layer.0.weight": good["embedding_layer.0.weight"] * float("nan")},
              folder / "nan.safetensors")  # fmt: skip
    save_file({k: v for k, v in good.items() if "1.to_v_bokeh.up" not in k}, folder / "lacking.safetensors")


BAD_INPUT = [
    ("LoadBokehAdapter", {"adapter": "bokeh-diffusion-flux/model.safetensors"}, "adapter for FLUX, but"),
    ("LoadBokehAdapter", {"adapter": "broken/cut_short.safetensors"}, "cut short"),
    ("LoadBokehAdapter", {"adapter": "broken/web_page.safetensors"}, "web page"),
    ("LoadBokehAdapter", {"adapter": "broken/pickle.safetensors"}, "pickle"),
    ("LoadBokehAdapter", {"adapter": "broken/lora.safetensors"}, "not a bokeh adapter"),
    ("LoadBokehAdapter", {"adapter": "broken/nan.safetensors"}, "NaN"),
    ("LoadBokehAdapter", {"adapter": "broken/lacking.safetensors"}, "lacks"),
    ("GroundedSampler", {"target_bokeh": ""}, "no value was given"),
    ("GroundedSampler", {"target_bokeh": "sharp, soft"}, "sharp"),
    ("GroundedSampler", {"grounding_steps": 3}, "grounding"),
]


@pytest.mark.parametrize(("kind", "inputs", "said"), BAD_INPUT, ids=[said for *_, said in BAD_INPUT])
def test_bad_input_is_told(
    server: ComfyServer, shipped: dict[str, Prompt], kind: str, inputs: dict[str, Any], said: str
) -> None:
    prompt = with_inputs(shipped["sharp_background_sd15"], kind, **inputs)
    run = server.run(prompt, check=False)
    assert run.error is not None
    assert run.error["node_type"] == kind
    assert run.error["exception_type"].endswith("BokehError")
    assert said in run.error["exception_message"]


def test_a_list_of_k_that_fits_no_batch_is_told(server: ComfyServer, shipped: dict[str, Prompt]) -> None:
    prompt = with_inputs(shipped["single_k_sd15"], "BokehCondition", values="0, 8, 16")
    prompt = with_inputs(prompt, "EmptyLatentImage", batch_size=2)
    with pytest.raises(PromptError, match="3 K values for a latent batch of 2"):
        server.run(prompt)


def test_an_adapter_that_is_not_there_is_told(server: ComfyServer, shipped: dict[str, Prompt]) -> None:
    prompt = with_inputs(shipped["single_k_sd15"], "LoadBokehAdapter", adapter="nowhere.safetensors")
    with pytest.raises(PromptError, match=r"LoadBokehAdapter.*nowhere\.safetensors"):
        server.run(prompt)


# FLUX


@pytest.mark.parametrize("name", [n for n in SHIPPED if "flux" in n and "refocus" not in n])
def test_a_flux_workflow_runs(server: ComfyServer, shipped: dict[str, Prompt], name: str) -> None:
    assert find(shipped[name], "UNETLoader")
    assert find(shipped[name], "VAELoader")
    check_samples(server, shipped[name])


@pytest.mark.parametrize("name", [n for n in SHIPPED if "refocus" in n])
def test_a_photograph_is_refocused(server: ComfyServer, shipped: dict[str, Prompt], name: str) -> None:
    """All in focus, its depth from that, and blurred anew. Beside it every lens but SDXL's, which is not here."""
    prompt = with_inputs(
        without_sdxl(shipped[name]), "DeblurPhotograph", seed=len(name)
    )  # not the other's, kept
    run = check_run(server, prompt)
    for kind in ("DeblurPhotograph", "RefocusPhotograph"):
        steps = [(value, of) for node, value, of in run.progress if node == find(prompt, kind)]
        assert steps[-1] == (STEPS, STEPS), kind
    assert run.previews
    by_depth = {"BokehMeRender", "RefocusPhotograph"}  # these say how the depth map was made to fit
    said = [text for node, text in run.texts if prompt[node]["class_type"] not in by_depth]
    assert said == [], "a shipped workflow gives cause for a notice"
    if name == "refocus_photograph_flux":
        off = with_inputs(prompt, "RefocusPhotograph", denoise=0.0)
        (blurred,), (kept,) = (
            pictures(server, check_run(server, each), refocused(each)) for each in (prompt, off)
        )
        assert np.abs(blurred.astype(float) - kept).mean() > 5


def refocused(prompt: Prompt) -> str:
    """The node that saves what Refocus Photograph made."""
    source = [find(prompt, "RefocusPhotograph"), 0]
    (found,) = [node for node, each in prompt.items() if each["inputs"].get("images") == source]
    return found


def without_sdxl(prompt: Prompt) -> Prompt:
    """A copy without a checkpoint and what is made of it: texts and a lens."""
    prompt, gone = copy.deepcopy(prompt), set()
    for node_id, node in list(prompt.items()):
        links = {name: value[0] for name, value in node["inputs"].items() if isinstance(value, list)}
        if node["class_type"] == "CheckpointLoaderSimple" or (
            node["class_type"] in {"CLIPTextEncode", "LoadDiffusionLens"} and gone & set(links.values())
        ):
            gone.add(node_id)
            del prompt[node_id]
        else:
            for name in [name for name, source in links.items() if source in gone]:
                del node["inputs"][name]
    return prompt


def test_flux_obeys_k(server: ComfyServer, shipped: dict[str, Prompt]) -> None:
    check_obeys_k(server, shipped["single_k_flux"])


def test_a_flux_interrupt_leaves_the_model_clean(server: ComfyServer, shipped: dict[str, Prompt]) -> None:
    check_survives_an_interrupt(server, shipped["sharp_background_flux"], shipped["single_k_flux"])


def test_an_adapter_for_sd15_on_flux_is_told(server: ComfyServer, shipped: dict[str, Prompt]) -> None:
    prompt = with_inputs(shipped["single_k_flux"], "LoadBokehAdapter", adapter="bokeh_sd15.safetensors")
    with pytest.raises(PromptError, match=r"adapter for SD1\.5, but the model is"):
        server.run(prompt)
