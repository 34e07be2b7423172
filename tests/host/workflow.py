"""From a workflow as the front end saves it to a prompt as the server takes it: what is shipped is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NOTES = {"Note", "MarkdownNote"}
CHOICE = "COMFY_DYNAMICCOMBO_V3"
"""A list whose every entry may have widgets of its own."""
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", CHOICE}
LATER = {"LoadMoGeModel", "MoGeInference"}
"""The host's own nodes in shipped workflows that its earlier versions do not have."""
UPLOADS = ("image_upload", "video_upload", "audio_upload")


def has_nodes(workflow: dict[str, Any], object_info: dict[str, Any]) -> bool:
    """Whether a host has those of :data:`LATER` that a workflow is made of."""
    return not {node["type"] for node in workflow["nodes"]} & LATER - object_info.keys()


def to_api(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """The prompt that the front end would queue for a workflow.

    Args:
        workflow: format 0.4, without subgraphs, and without muted, bypassed or primitive nodes.
        object_info: what the server says of its nodes (``ComfyServer.object_info()``).

    Raises:
        ValueError: a node the server does not have, a link that leads nowhere, or widget values that are not
            one for each widget of the node (of the server's own nodes, the last optional ones may be missing).
    """
    if workflow.get("definitions", {}).get("subgraphs"):
        raise ValueError("The workflow has subgraphs, which are not handled here.")
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] not in NOTES}
    links = {link[0]: link for link in workflow["links"]}
    prompt = {}
    for node_id, node in nodes.items():
        where = f"node {node_id} ({node['type']})"
        if node["type"] != "Reroute":
            if node.get("mode", 0) != 0:
                raise ValueError(f"{where} is muted or bypassed, which is not handled here.")
            if node["type"] not in object_info:
                raise ValueError(f"{where}: the server has no such node.")
            inputs = widget_values(node, object_info[node["type"]], where)
            inputs.update(_linked(node, nodes, links, where))
            title = node.get("title") or object_info[node["type"]].get("display_name") or node["type"]
            prompt[str(node_id)] = {
                "class_type": node["type"],
                "inputs": inputs,
                "_meta": {"title": title},
            }
    return prompt


def widget_names(info: dict[str, Any], values: Sequence[Any] = ()) -> list[str | None]:
    """The widgets of a node in the order of its ``widgets_values``; None for the page's own.

    The button that uploads a file stands below all others, wherever the file's own widget is. Under a choice that has
    widgets of its own, those of what was chosen follow, named ``choice.widget``.

    Args:
        info: what the server says of the node.
        values: of the widgets, for what was chosen.
    """
    names: list[str | None] = []
    buttons: list[str | None] = []

    def add(inputs: dict[str, Any], prefix: str = "") -> None:
        for group in ("required", "optional"):
            for name, spec in inputs.get(group, {}).items():
                kind, options = spec[0], (spec[1] if len(spec) > 1 else {})
                if options.get("forceInput") or options.get("hidden"):
                    continue
                if not (isinstance(kind, list) or kind in WIDGETS):
                    continue
                names.append(prefix + name)
                if kind == CHOICE:
                    chosen = values[len(names) - 1 : len(names)]
                    for option in options["options"]:
                        if option["key"] in chosen:
                            add(option["inputs"], f"{prefix}{name}.")
                if options.get("control_after_generate", kind == "INT" and name in {"seed", "noise_seed"}):
                    names.append(None)  # fixed, randomize, ...
                if any(options.get(upload) for upload in UPLOADS):
                    buttons.append(None)

    add(info["input"])
    return names + buttons


def is_core(info: dict[str, Any]) -> bool:
    """Whether a node is the server's own, to which a later version may add."""
    return not info.get("python_module", "custom_nodes").startswith("custom_nodes")


def widget_values(node: dict[str, Any], info: dict[str, Any], where: str) -> dict[str, Any]:
    """Values of a node's widgets by name.

    Raises:
        ValueError: they are not one for each (:func:`to_api`).
    """
    values = node.get("widgets_values", [])
    if isinstance(values, dict):
        return {name: values[name] for name in widget_names(info) if name in values and name is not None}
    names = widget_names(info, values)
    if names[-1:] == [None] and len(values) == len(names) - 1:
        names = names[:-1]  # some versions of the front end do not save the button
    # What a later version gave a node of its own is at its default where the workflow is older.
    late = names[len(values) :]
    if is_core(info) and all("default" in _options(info, name) for name in late):
        names = names[: len(values)]
    if len(values) != len(names):
        raise ValueError(f"{where} has {len(values)} widget values for {len(names)} widgets: {names}")
    return {name: value for name, value in zip(names, values, strict=True) if name is not None}


def _options(info: dict[str, Any], name: str | None) -> dict[str, Any]:
    """Of an optional input; empty for any other."""
    return (*info["input"].get("optional", {}).get(name, ()), {}, {})[1]


def _linked(
    node: dict[str, Any], nodes: dict[int, Any], links: dict[int, list[Any]], where: str
) -> dict[str, list[Any]]:
    """Input name -> [node, output] for every connected input."""
    found = {}
    for given in node.get("inputs", []):
        if given.get("link") is None:
            continue
        link = links.get(given["link"])
        while link is not None and link[1] in nodes and nodes[link[1]]["type"] == "Reroute":
            link = links.get(nodes[link[1]]["inputs"][0]["link"])
        if link is None or link[1] not in nodes:
            raise ValueError(f"{where}: its input {given['name']} is linked to nothing.")
        found[given["name"]] = [str(link[1]), link[2]]
    return found
