"""The extension in a running server, and the harness that drives it: does it notice what it should?"""

from __future__ import annotations

import io
import json
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.host.server import ComfyServer, PromptError

RED = 0xC81E1E


def saved(prefix: str) -> dict[str, Any]:
    """A prompt that saves a red picture of 48 x 32."""
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 48, "height": 32, "batch_size": 1, "color": RED},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def probe(**inputs: Any) -> dict[str, Any]:
    return {"7": {"class_type": "BokehProbe", "inputs": {"steps": 3, "pause": 0.0, **inputs}}}


def test_the_server_offers_every_node_of_the_extension(
    comfy_server: ComfyServer, node_classes: dict[str, Any]
) -> None:
    offered = comfy_server.object_info()
    assert node_classes
    for node_id, cls in node_classes.items():
        assert offered[node_id]["python_module"] == "custom_nodes.comfyui-bokeh"
        assert offered[node_id]["category"].split("/")[0] == "Bokeh"
        assert list(offered[node_id]["input"].get("required", {})) == [
            entry.id for entry in cls.GET_SCHEMA().inputs if not entry.optional
        ]


def test_a_saved_picture_comes_back_bit_for_bit(comfy_server: ComfyServer) -> None:
    run = comfy_server.run(saved("harness"))
    (image,) = run.images("2")
    pixels = np.asarray(Image.open(io.BytesIO(comfy_server.view(**image))))
    assert pixels.shape == (32, 48, 3)
    assert (pixels == [0xC8, 0x1E, 0x1E]).all()
    assert run.executed[-1] == "2"


def test_what_was_computed_before_is_kept(comfy_server: ComfyServer) -> None:
    comfy_server.run(saved("kept"))
    again = comfy_server.run(saved("kept"))
    assert "1" in again.cached
    assert "1" not in again.executed


def test_history_holds_the_run(comfy_server: ComfyServer) -> None:
    run = comfy_server.run(saved("remembered"))
    for _ in range(100):  # the server tells of the end a little before it writes it down
        held = comfy_server.history(run.prompt_id)
        if held:
            break
        time.sleep(0.1)
    assert held[run.prompt_id]["status"]["status_str"] == "success"


def test_steps_previews_and_texts_arrive(comfy_server: ComfyServer) -> None:
    run = comfy_server.run(probe(steps=4))
    assert run.progress == [("7", step, 4) for step in (1, 2, 3, 4)]
    assert len(run.previews) >= 1
    assert all(Image.open(io.BytesIO(preview)).size == (8, 8) for preview in run.previews)
    assert run.texts == [("7", "4 steps")]
    assert run.outputs["7"] == {"steps": [4]}


def test_a_node_that_raises_is_told_with_its_message(comfy_server: ComfyServer) -> None:
    with pytest.raises(PromptError, match=r"node 7 \(BokehProbe\): no light here"):
        comfy_server.run(probe(fail="no light here"))
    run = comfy_server.run(probe(fail="still none"), check=False)
    assert run.error is not None
    assert run.error["exception_type"] == "ValueError"


def test_a_run_can_be_interrupted_and_the_next_one_is_whole(comfy_server: ComfyServer) -> None:
    def stop(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and data["value"] == 2:
            comfy_server.interrupt()

    run = comfy_server.wait(comfy_server.queue(probe(steps=200, pause=0.05)), on_event=stop, timeout=60)
    assert run.interrupted
    assert len(run.progress) < 200
    assert comfy_server.run(saved("after")).images("2")


def test_a_refused_prompt_names_the_node_and_the_input(comfy_server: ComfyServer) -> None:
    prompt = saved("refused")
    prompt["1"]["inputs"]["width"] = "wide"
    with pytest.raises(PromptError, match=r"node 1 \(EmptyImage\).*width"):
        comfy_server.queue(prompt)


def test_an_uploaded_picture_can_be_loaded(comfy_server: ComfyServer, tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    name = comfy_server.upload_image(tmp_path / "noise.png")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "back"}},
    }
    (image,) = comfy_server.run(prompt).images("2")
    assert (np.asarray(Image.open(io.BytesIO(comfy_server.view(**image)))) == pixels).all()


def test_the_page_serves_the_help_of_every_node_that_has_one(comfy_server: ComfyServer, repo: Any) -> None:
    pages = sorted((repo / "web" / "docs").glob("*.md"))
    served = comfy_server.get("/extensions")
    assert isinstance(served, list)
    assert not [name for name in served if "comfyui-bokeh" in name], "the extension ships no JavaScript"
    for page in pages:
        text = comfy_server._open(f"/extensions/comfyui-bokeh/docs/{page.name}").decode()
        assert text == page.read_text(encoding="utf-8")


def test_the_shipped_workflows_are_listed(comfy_server: ComfyServer, repo: Any) -> None:
    shipped = sorted(path.stem for path in (repo / "workflows").glob("*.json"))
    listed = comfy_server.get("/workflow_templates")
    assert sorted(listed.get("comfyui-bokeh", [])) == shipped
    for name in shipped:
        served = comfy_server.get(f"/api/workflow_templates/comfyui-bokeh/{name}.json")
        assert served == json.loads((repo / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
