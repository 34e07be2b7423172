"""The shipped workflow files: sound, tidy, explained, and agreeing with the nodes they are made of."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.host.server import ComfyServer
from tests.host.workflow import CHOICE, NOTES, has_nodes, is_core, widget_values

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "workflows").glob("*.json"))
TITLE = 30  # pixels that the front end draws a node's title above its position
# Where ComfyUI looks for the files of each loader's widgets.
FOLDERS = {
    "CheckpointLoaderSimple": "models/checkpoints",
    "UNETLoader": "models/diffusion_models",
    "DualCLIPLoader": "models/text_encoders",
    "VAELoader": "models/vae",
    "LoadBokehAdapter": "models/bokeh",
    "LoadDiffusionLens": "models/bokeh_renderers",
    "LoadMoGeModel": "models/geometry_estimation",
    "LoadGenfocus": "models/loras",
    "BokehEstimateDepth": "models/depth",
}
WANTED = {
    "generated_sweep_demo": {"LoadBokehDemoModel", "GroundedSampler", "LabColorMatch", "BokehContactSheet"},
    "photo_edit_demo": {"LoadBokehDemoModel", "BokehInvert", "GroundedSampler", "BokehMeRender"},
    "any_aperture_demo": {"BokehInvert", "GroundedSampler", "BokehMeRender", "BokehLensOrModel"},
    "find_main_thing_demo": {"BokehMainThing", "BokehFocus", "BokehMeRender"},
    "generated_photograph_demo": {"BokehEstimateDepth", "BokehMainThing", "BokehFromCamera", "BokehMeRender"},
    "generated_photograph_sd15": {"BokehEstimateDepth", "BokehMainThing", "BokehFromCamera", "BokehMeRender"},
    "photo_edit_sd15": {"BokehInvert", "GroundedSampler"},
    "photo_edit_sdxl": {"BokehInvert", "GroundedSampler"},
    "photo_edit_flux": {"BokehInvert", "GroundedSamplerAdvanced"},
    "diffusion_lens_sdxl": {"LoadDiffusionLens", "BokehMeRender", "BokehContactSheet"},
    "refocus_photograph_flux": {"DeblurPhotograph", "BokehEstimateDepth", "BokehFocus", "RefocusPhotograph"},
    "refocus_compared_flux": {"RefocusPhotograph", "BokehMeRender", "LoadDiffusionLens", "BokehInvert"},
    "bokeh_sweep_sd15": {"GroundedSampler", "LabColorMatch", "BokehContactSheet"},
    "bokeh_sweep_flux": {"GroundedSamplerAdvanced", "LabColorMatch", "BokehContactSheet"},
    "bokeh_sweep_sdxl": {"GroundedSampler", "LabColorMatch", "BokehContactSheet"},
    "single_k_sdxl": {"BokehCondition", "KSampler"},
    "sharp_background_sdxl": {"GroundedSampler"},
    "single_k_sd15": {"BokehCondition", "KSampler"},
    "single_k_flux": {"BokehCondition", "KSampler"},
    "sharp_background_sd15": {"GroundedSampler"},
    "sharp_background_flux": {"GroundedSamplerAdvanced"},
    "photo_rerendered_from_depth": {"BokehMeRender", "BokehFromCamera", "BokehContactSheet"},
    "first_lens_blur": {"LoadBokehDemoPhotograph", "BokehMeRender"},
    "photograph_estimated_depth": {"BokehEstimateDepth", "BokehMeRender"},
    "photograph_core_depth": {"MoGeInference", "BokehDepthFromGeometry", "BokehMeRender"},
    "portrait_whole_subject": {"LoadBokehDemoPhotograph", "BokehMeRender", "BokehFocus"},
    "aperture_series": {"BokehMeRender", "BokehFromCamera", "BokehFocus", "BokehContactSheet"},
    "camera_to_file": {"BokehFromCamera", "BokehFocus", "BokehMeRender", "BokehSavePhotograph"},
    "focus_pull": {"BokehMeRender", "BokehFocus", "SaveAnimatedWEBP"},
    "shaped_highlights": {"BokehMeRender", "BokehAperture"},
    "video_focus_pull": {"BokehMeRender", "BokehFocus", "LoadVideo", "SaveVideo"},
    "colour_match": {"LabColorMatch"},
}

Box = tuple[float, float, float, float]


@pytest.fixture(params=SHIPPED, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def workflow(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def real_nodes(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for node in workflow["nodes"] if node["type"] not in NOTES]


def box(node: dict[str, Any]) -> Box:
    """Left, top, right and bottom of a node with its title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def inside(inner: Box, outer: Box) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def area(group: dict[str, Any]) -> Box:
    x, y, width, height = group["bounding"]
    return x, y, x + width, y + height


def test_there_is_one_for_every_task() -> None:
    made_of = {
        path.stem: {node["type"] for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]}
        for path in SHIPPED
    }
    for name, kinds in WANTED.items():
        assert kinds <= made_of[name], name


def test_every_link_has_both_its_ends(workflow: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert workflow["version"] == 0.4
    assert len(nodes) == len(workflow["nodes"])
    assert workflow["last_node_id"] >= max(nodes)
    assert workflow["last_link_id"] >= max(link[0] for link in workflow["links"])
    outgoing, incoming = set(), set()
    for link_id, source, output, target, entry, kind in workflow["links"]:
        assert link_id in nodes[source]["outputs"][output]["links"]
        assert nodes[source]["outputs"][output]["type"] == kind
        assert nodes[target]["inputs"][entry]["link"] == link_id
        assert nodes[target]["inputs"][entry]["type"] == "*" or kind in nodes[target]["inputs"][entry][
            "type"
        ].split(",")
        outgoing.add(link_id)
    for node in nodes.values():
        incoming |= {entry["link"] for entry in node["inputs"] if entry["link"] is not None}
        assert node["mode"] == 0, f"{node['type']} is muted or bypassed"
    assert incoming == outgoing


def test_nodes_do_not_overlap_and_lie_in_their_groups(workflow: dict[str, Any]) -> None:
    boxes = {node["id"]: box(node) for node in workflow["nodes"]}
    groups = [area(group) for group in workflow["groups"]]
    for one, other in itertools.combinations(boxes, 2):
        assert not overlap(boxes[one], boxes[other]), f"nodes {one} and {other} overlap"
    for one, other in itertools.combinations(groups, 2):
        assert not overlap(one, other)
    for node in real_nodes(workflow):
        assert any(inside(boxes[node["id"]], group) for group in groups), f"node {node['id']} is in no group"
    assert all(group["title"] for group in workflow["groups"])


def test_it_reads_from_left_to_right(workflow: dict[str, Any]) -> None:
    left = {node["id"]: node["pos"][0] for node in workflow["nodes"]}
    backwards = [link for link in workflow["links"] if left[link[1]] > left[link[3]]]
    assert not backwards


def test_its_note_says_where_every_file_goes(workflow: dict[str, Any]) -> None:
    (note,) = [node for node in workflow["nodes"] if node["type"] in NOTES]
    (text,) = note["widgets_values"]
    assert "### To try" in text
    for node in real_nodes(workflow):
        files = [
            value
            for value in node["widgets_values"]
            if str(value).endswith((".safetensors", ".jpg", ".png", ".mp4"))
        ]
        for file in files:
            folder, _, name = f"{FOLDERS.get(node['type'], 'input')}/{file}".rpartition("/")
            assert f"**{name}**" in text, f"{name} is not in the note"
            assert f"**{folder}**" in text, f"{folder} is not in the note"


def test_its_thumbnail_is_square_and_small(path: Path) -> None:
    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.stat().st_size < 60_000
    with Image.open(thumbnail) as image:
        assert image.format == "JPEG"
        assert image.size == (512, 512)


def test_the_same_seed_is_kept(workflow: dict[str, Any]) -> None:
    """A comparison over K needs it."""
    for node in real_nodes(workflow):
        assert not {"randomize", "increment", "decrement"} & set(map(str, node["widgets_values"]))


def test_it_agrees_with_the_nodes(workflow: dict[str, Any], comfy_server: ComfyServer) -> None:
    offered = comfy_server.object_info()
    if not has_nodes(workflow, offered):
        pytest.skip("made of nodes that this ComfyUI does not have")
    for node in real_nodes(workflow):
        info = offered[node["type"]]
        known = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        inputs = {entry["name"] for entry in node["inputs"]}
        outputs = [output["name"] for output in node["outputs"]]
        if is_core(info):  # a later host's may take and give more
            assert set(info["input"].get("required", {})) <= inputs <= set(known), node["type"]
            assert outputs == list(info["output_name"])[: len(outputs)], node["type"]
        else:
            assert inputs == set(known), node["type"]
            assert outputs == list(info["output_name"]), node["type"]
        for name, value in widget_values(node, info, node["type"]).items():
            if name in known:  # else of a choice, which the server checks
                check_value(node["type"], name, known[name], value)


def check_value(kind: str, name: str, spec: list[Any], value: Any) -> None:
    """A value is one of the choices, where these are not files, or lies in the range of its widget."""
    settings = spec[1] if len(spec) > 1 else {}
    choices = spec[0] if isinstance(spec[0], list) else settings.get("options")
    if spec[0] == CHOICE:
        choices = [option["key"] for option in settings["options"]]
    if choices is not None:
        file = kind in FOLDERS and name not in {"weight_dtype", "type", "device"}
        if not file and not (settings.get("image_upload") or settings.get("video_upload")):
            assert value in choices, f"{kind}.{name}"
    elif spec[0] == "BOOLEAN":
        assert isinstance(value, bool), f"{kind}.{name}"
    elif spec[0] in {"INT", "FLOAT"}:
        assert settings["min"] <= value <= settings["max"], f"{kind}.{name}"
    else:
        assert isinstance(value, str), f"{kind}.{name}"
