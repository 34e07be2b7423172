"""The way from a saved workflow to a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.host.server import ComfyServer
from tests.host.workflow import CHOICE, has_nodes, to_api

INFO: dict[str, Any] = {
    "LoadImageMask": {
        "input": {
            "required": {"image": [["a.png"], {"image_upload": True}], "channel": [["alpha", "red"], {}]}
        }
    },
    "CreateVideo": {
        "input": {
            "required": {"images": ["IMAGE", {}], "fps": ["FLOAT", {"default": 30.0}]},
            "optional": {"audio": ["AUDIO", {}], "bit_depth": ["INT", {"default": 8}]},
        },
        "python_module": "comfy_extras.nodes_video",
    },
    "SaveVideo": {
        "input": {
            "required": {
                "video": ["VIDEO", {}],
                "format": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {
                                "key": "auto",
                                "inputs": {"required": {"codec": ["COMBO", {"options": ["auto"]}]}},
                            },
                            {"key": "gif", "inputs": {"required": {}}},
                        ]
                    },
                ],
                "name": ["STRING", {}],
            },
            "optional": {"codec": ["COMBO", {"hidden": True}]},
        }
    },
    "LoadImage": {"input": {"required": {"image": [["a.png"], {"image_upload": True}]}}},
    "KSampler": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"control_after_generate": True}],
                "steps": ["INT", {}],
                "sampler_name": [["euler", "heun"], {}],
            },
            "optional": {"cfg": ["FLOAT", {}], "strength": ["FLOAT", {"forceInput": True}]},
        }
    },
}


def workflow(*nodes: dict[str, Any], links: tuple[list[Any], ...] = ()) -> dict[str, Any]:
    return {"version": 0.4, "nodes": list(nodes), "links": list(links)}


def sampler(**changes: Any) -> dict[str, Any]:
    values = [7, "randomize", 20, "heun", 4.5]
    inputs = [{"name": "model", "type": "MODEL", "link": 1}]
    return {"id": 5, "type": "KSampler", "inputs": inputs, "widgets_values": values, **changes}


def test_widgets_are_told_from_what_only_the_page_knows() -> None:
    image = {"id": 2, "type": "LoadImage", "widgets_values": ["a.png", "image"]}
    without_button = {"id": 3, "type": "LoadImage", "widgets_values": ["a.png"]}
    prompt = to_api(workflow(image, without_button), INFO)
    assert prompt["2"]["inputs"] == prompt["3"]["inputs"] == {"image": "a.png"}
    button_last = {"id": 4, "type": "LoadImageMask", "widgets_values": ["a.png", "red", "image"]}
    assert to_api(workflow(button_last), INFO)["4"]["inputs"] == {"image": "a.png", "channel": "red"}
    seeded = to_api(workflow(sampler(inputs=[])), INFO)
    assert seeded["5"]["inputs"] == {"seed": 7, "steps": 20, "sampler_name": "heun", "cfg": 4.5}


def test_what_a_later_host_gave_its_own_node_stays_at_its_default() -> None:
    video = {"id": 8, "type": "CreateVideo", "widgets_values": [12.0]}
    assert to_api(workflow(video), INFO)["8"]["inputs"] == {"fps": 12.0}
    given = {**video, "widgets_values": [12.0, 10]}
    assert to_api(workflow(given), INFO)["8"]["inputs"] == {"fps": 12.0, "bit_depth": 10}
    for values, module in (([], "comfy_extras.nodes_video"), ([12.0], "custom_nodes.bokeh")):
        info = {"CreateVideo": {**INFO["CreateVideo"], "python_module": module}}
        with pytest.raises(ValueError, match="widget values for 2 widgets"):
            to_api(workflow({**video, "widgets_values": values}), info)


def test_a_choice_brings_its_own_widgets() -> None:
    video = {"id": 9, "type": "SaveVideo", "widgets_values": ["auto", "h264", "a"]}
    found = to_api(workflow(video), INFO)["9"]["inputs"]
    assert found == {"format": "auto", "format.codec": "h264", "name": "a"}
    plain = {**video, "widgets_values": ["gif", "a"]}
    assert to_api(workflow(plain), INFO)["9"]["inputs"] == {"format": "gif", "name": "a"}


def test_a_link_goes_over_the_widget_and_through_reroutes() -> None:
    source = {"id": 1, "type": "LoadImage", "widgets_values": ["a.png"]}
    reroute = {"id": 9, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": 1}]}
    linked = sampler(
        inputs=[
            {"name": "model", "type": "MODEL", "link": 2},
            {"name": "steps", "type": "INT", "link": 3, "widget": {"name": "steps"}},
        ]
    )
    links = ([1, 1, 0, 9, 0, "MODEL"], [2, 9, 0, 5, 0, "MODEL"], [3, 1, 1, 5, 1, "INT"])
    prompt = to_api(workflow(source, reroute, linked, links=links), INFO)
    assert set(prompt) == {"1", "5"}
    assert prompt["5"]["inputs"]["model"] == ["1", 0]
    assert prompt["5"]["inputs"]["steps"] == ["1", 1]


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (sampler(widgets_values=[7, 20, "heun", 4.5], inputs=[]), "4 widget values for 5 widgets"),
        (sampler(), "model is linked to nothing"),
        (sampler(type="Unknown"), "no such node"),
        (sampler(mode=4), "bypassed"),
    ],
)
def test_what_cannot_be_turned_into_a_prompt_is_refused(node: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        to_api(workflow(node), INFO)


@pytest.mark.server
def test_every_shipped_workflow_makes_a_prompt(comfy_server: ComfyServer, repo: Path) -> None:
    shipped = sorted((repo / "workflows").glob("*.json"))
    assert shipped
    info = comfy_server.object_info()
    for path in shipped:
        workflow = json.loads(path.read_text(encoding="utf-8"))
        if not has_nodes(workflow, info):
            continue
        prompt = to_api(workflow, info)
        for node_id, node in prompt.items():
            known = info[node["class_type"]]["input"]
            required = set(known.get("required", {}))
            choices = {name for name in required if known["required"][name][0] == CHOICE}
            assert required <= set(node["inputs"]), f"{path.name}, node {node_id} lacks an input"
            given = {name for name in node["inputs"] if name.partition(".")[0] not in choices}
            assert given <= required | set(known.get("optional", {})), f"{path.name}, {node_id}"
