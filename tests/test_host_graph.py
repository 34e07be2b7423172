"""Which samplers get K and a model without adapter, told from the graph alone.

The nodes are the host's own, and such as other extensions have: switches, pipes, reroutes of their own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

Find = Callable[[dict[str, Any]], list[str]]


def node_class(inputs: dict[str, str], *outputs: Any) -> type:
    """A class as another extension has it."""
    return type(
        "Theirs",
        (),
        {
            "INPUT_TYPES": classmethod(lambda _: {"required": {n: (t,) for n, t in inputs.items()}}),
            "RETURN_TYPES": outputs,
        },
    )


class AnyType(str):
    """As several extensions write it, so that the host takes any link."""

    def __ne__(self, _other: object) -> bool:
        return False


ANY = AnyType("*")
THEIRS = {
    "Any Switch": node_class({"any_1": ANY, "any_2": ANY, "index": "INT"}, ANY),
    "Their Reroute": node_class({"": ANY}, ANY),
    "Model Switch": node_class({"a": "MODEL", "b": "MODEL", "first": "BOOLEAN"}, "MODEL"),
    "To Pipe": node_class({"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING"}, "PIPE"),
    "From Pipe": node_class({"pipe": "PIPE"}, "MODEL", "CONDITIONING", "CONDITIONING"),
    "Conditioning Pipe": node_class({"positive": "CONDITIONING"}, "PAIR"),
    "Pipe Sampler": node_class({"pipe": "PIPE"}, "LATENT"),
    "Pair Sampler": node_class({"model": "MODEL", "pair": "PAIR"}, "LATENT"),
    "Efficient Sampler": node_class(
        {"model": "MODEL", "positive": "CONDITIONING", "latent": "LATENT"}, "MODEL", "CONDITIONING", "LATENT"
    ),
    "Model And Prompt": node_class({"model": "MODEL", "positive": "CONDITIONING"}, "MODEL", "CONDITIONING"),
    "Two Models Sampler": node_class(
        {"base": "MODEL", "refiner": "MODEL", "positive": "CONDITIONING"}, "LATENT"
    ),
    "Names": node_class({}, ["euler", "heun"]),
    "Broken": type("Broken", (), {"RETURN_TYPES": (ANY,), "INPUT_TYPES": None}),
}


@pytest.fixture(scope="module")
def find(pack: ModuleType, node_classes: dict[str, Any]) -> Iterator[Find]:
    """Samplers without adapter that get the prompts of node ``k``."""
    mappings = importlib.import_module("nodes").NODE_CLASS_MAPPINGS
    known = dict(mappings)
    for name in ("custom_sampler", "model_merging", "flux", "perpneg"):
        module = importlib.import_module(f"comfy_extras.nodes_{name}")
        mappings.update(getattr(module, "NODE_CLASS_MAPPINGS", {}))
        for cls in vars(module).values():
            if isinstance(cls, type) and hasattr(cls, "GET_SCHEMA") and "define_schema" in vars(cls):
                mappings[cls.GET_SCHEMA().node_id] = cls
    mappings.update(THEIRS)
    mappings.update(node_classes)
    yield lambda prompt: pack.bokeh_ops.host.graph.samplers_without_adapter(prompt, "k")
    mappings.clear()
    mappings.update(known)


def graph(**nodes: Any) -> dict[str, Any]:
    """A prompt. Each node is ``(class, inputs)``; an input of the form ``"node.output"`` is a link.

    Always there: ``plain`` (a model), ``adapted`` (with adapter), ``text``, and ``k`` (BokehCondition).
    """
    nodes = {
        "plain": ("CheckpointLoaderSimple", {"ckpt_name": "x"}),
        "adapted": ("LoadBokehAdapter", {"model": "plain.0", "adapter": "y"}),
        "text": ("CLIPTextEncode", {"clip": "plain.1", "text": "a. 1"}),
        "k": ("BokehCondition", {"positive": "text.0", "negative": "text.0", "bokeh": 8}),
        **nodes,
    }

    def value(given: Any) -> Any:
        node, dot, output = given.rpartition(".") if isinstance(given, str) else ("", "", "")
        return [node, int(output)] if dot and node in nodes else given

    return {
        name: {"class_type": kind, "inputs": {key: value(given) for key, given in inputs.items()}}
        for name, (kind, inputs) in nodes.items()
    }


def sampler(model: str, prompt: str = "k", **inputs: Any) -> tuple[str, dict[str, Any]]:
    return "KSampler", {"model": f"{model}.0", "positive": f"{prompt}.0", "negative": f"{prompt}.1", **inputs}


def lora(model: str) -> tuple[str, dict[str, Any]]:
    return "LoraLoader", {"model": f"{model}.0", "clip": "plain.1", "lora_name": "z"}


def merge(one: str, other: str) -> tuple[str, dict[str, Any]]:
    return "ModelMergeSimple", {"model1": f"{one}.0", "model2": f"{other}.0", "ratio": 0.5}


ADVANCED = {"noise": "n.0", "guider": "g.0", "sampler": "s.0", "sigmas": "i.0"}

# What is in the graph beside the four nodes, and the nodes that are to be named.
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing uses K": ({}, []),
    "the adapter feeds the sampler": ({"a": sampler("adapted")}, []),
    "no adapter": ({"a": sampler("plain")}, ["a"]),
    # The latent that comes from a model with adapter says nothing of the second sampler's model.
    "a second sampler without, fed by the first one's latent": (
        {"a": sampler("adapted"), "b": sampler("plain", latent_image="a.0")},
        ["b"],
    ),
    "a second sampler with, fed by one without K": (
        {"a": sampler("plain", "text"), "b": sampler("adapted", latent_image="a.0")},
        [],
    ),
    "two without": ({"a": sampler("plain"), "b": sampler("plain")}, ["a", "b"]),
    "K goes to the one, the adapter to the other": (
        {"a": sampler("plain"), "b": sampler("adapted", "text")},
        ["a"],
    ),
    "LoRA after the adapter": ({"l": lora("adapted"), "a": sampler("l")}, []),
    "LoRA alone": ({"l": lora("plain"), "a": sampler("l")}, ["a"]),
    "LoRA before the adapter": (
        {"l": lora("plain"), "b": ("LoadBokehAdapter", {"model": "l.0"}), "a": sampler("b")},
        [],
    ),
    "merged into the adapted": ({"m": merge("adapted", "plain"), "a": sampler("m")}, []),
    "the adapted merged into another": ({"m": merge("plain", "adapted"), "a": sampler("m")}, ["a"]),
    "merged, then adapted": (
        {"m": merge("plain", "plain"), "b": ("LoadBokehAdapter", {"model": "m.0"}), "a": sampler("b")},
        [],
    ),
    "the demo model": ({"d": ("LoadBokehDemoModel", {"demo_model": "world"}), "a": sampler("d")}, []),
    "the demo model without": (
        {"d": ("LoadBokehDemoModel", {"demo_model": "world", "with_adapter": False}), "a": sampler("d")},
        ["a"],
    ),
    "the demo model with one of the user's": (
        {
            "d": ("LoadBokehDemoModel", {"demo_model": "world", "with_adapter": False}),
            "b": ("LoadBokehAdapter", {"model": "d.0"}),
            "a": sampler("b"),
        },
        [],
    ),
    "grounded": (
        {"a": ("GroundedSampler", {"model": "adapted.0", "positive": "k.0", "negative": "k.1"})},
        [],
    ),
    "grounded without": (
        {"a": ("GroundedSampler", {"model": "plain.0", "positive": "k.0", "negative": "k.1"})},
        ["a"],
    ),
    # Custom sampling: the guider holds the model.
    "BasicGuider": (
        {
            "g": ("BasicGuider", {"model": "adapted.0", "conditioning": "k.0"}),
            "a": ("SamplerCustomAdvanced", ADVANCED),
        },
        [],
    ),
    "CFGGuider without": (
        {
            "g": ("CFGGuider", {"model": "plain.0", "positive": "k.0", "negative": "k.1"}),
            "a": ("SamplerCustomAdvanced", {**ADVANCED, "latent_image": "c.0"}),
            "i": ("BasicScheduler", {"model": "adapted.0"}),  # levels of noise alone
            "c": sampler("adapted", "text"),
        },
        ["g"],
    ),
    "GroundedSamplerAdvanced": (
        {
            "g": (
                "DualCFGGuider",
                {"model": "adapted.0", "cond1": "k.0", "cond2": "text.0", "negative": "k.1"},
            ),
            "a": ("GroundedSamplerAdvanced", ADVANCED),
        },
        [],
    ),
    "SamplerCustom without": ({"a": ("SamplerCustom", {"model": "plain.0", "positive": "k.0"})}, ["a"]),
    # Between BokehCondition and the sampler.
    "a chain of conditioning": (
        {
            "c": ("ControlNetApplyAdvanced", {"positive": "k.0", "negative": "k.1", "control_net": "net.0"}),
            "d": ("ConditioningCombine", {"conditioning_1": "c.0", "conditioning_2": "text.0"}),
            "e": ("FluxGuidance", {"conditioning": "d.0", "guidance": 3.5}),
            "a": sampler("adapted", "e"),
            "b": sampler("plain", "e", latent_image="a.0"),
        },
        ["b"],
    ),
    "inpainting": (
        {
            "c": ("InpaintModelConditioning", {"positive": "k.0", "negative": "k.1", "vae": "plain.2"}),
            "a": sampler("plain", "c", latent_image="c.2"),
        },
        ["a"],
    ),
    "its latent alone": (
        {
            "c": ("InpaintModelConditioning", {"positive": "k.0", "negative": "k.1", "vae": "plain.2"}),
            "a": sampler("plain", "text", latent_image="c.2"),
        },
        [],
    ),
    # Nodes of other extensions.
    "a reroute of the prompt": ({"r": ("Their Reroute", {"": "k.0"}), "a": sampler("plain", "r")}, ["a"]),
    "a reroute of the model": ({"r": ("Their Reroute", {"": "adapted.0"}), "a": sampler("r")}, []),
    "a reroute of the plain model": (
        {"r": ("Their Reroute", {"": "plain.0"}), "a": sampler("r"), "b": sampler("adapted")},
        ["a"],
    ),
    "a switch of models, one with": (
        {"w": ("Any Switch", {"any_1": "adapted.0", "any_2": "plain.0", "index": 0}), "a": sampler("w")},
        [],
    ),
    "a switch of models, both with": (
        {"w": ("Model Switch", {"a": "adapted.0", "b": "l.0"}), "l": lora("adapted"), "a": sampler("w")},
        [],
    ),
    "a switch of models, none with": (
        {
            "w": ("Model Switch", {"a": "plain.0", "b": "l.0", "first": "t.0"}),
            "l": lora("plain"),
            "a": sampler("w"),
            "b": sampler("adapted"),
        },
        ["a"],
    ),
    "a switch of prompts": (
        {
            "w": ("Any Switch", {"any_1": "k.0", "any_2": "text.0"}),
            "a": sampler("plain", "w"),
            "b": sampler("adapted", latent_image="a.0"),
        },
        ["a"],  # an adapter is nowhere in sight of it
    ),
    "a switch of prompts before a switch of models": (
        {
            "w": ("Any Switch", {"any_1": "k.0", "any_2": "text.0"}),
            "v": ("Any Switch", {"any_1": "adapted.0", "any_2": "plain.0"}),
            "a": sampler("v", "w"),
        },
        [],
    ),
    "a pipe": (
        {
            "p": ("To Pipe", {"model": "adapted.0", "positive": "k.0", "negative": "k.1"}),
            "a": ("Pipe Sampler", {"pipe": "p.0"}),
        },
        [],
    ),
    "a pipe without": (
        {
            "p": ("To Pipe", {"model": "plain.0", "positive": "k.0", "negative": "k.1"}),
            "a": ("Pipe Sampler", {"pipe": "p.0"}),
        },
        ["p"],
    ),
    "out of a pipe": (
        {
            "p": ("To Pipe", {"model": "adapted.0", "positive": "text.0", "negative": "text.0"}),
            "f": ("From Pipe", {"pipe": "p.0"}),
            "a": sampler("f"),
        },
        [],
    ),
    "out of a pipe without": (
        {
            "p": ("To Pipe", {"model": "plain.0", "positive": "text.0", "negative": "text.0"}),
            "f": ("From Pipe", {"pipe": "p.0"}),
            "a": sampler("f"),
            "b": sampler("adapted"),
        },
        ["a"],
    ),
    "a pipe of prompts": (
        {
            "p": ("Conditioning Pipe", {"positive": "k.0"}),
            "a": ("Pair Sampler", {"model": "plain.0", "pair": "p.0"}),
        },
        ["a"],
    ),
    "a sampler that hands everything on": (
        {"a": ("Efficient Sampler", {"model": "plain.0", "positive": "k.0"})},
        ["a"],
    ),
    "the adapter comes after what takes model and prompt": (
        {
            "m": ("Model And Prompt", {"model": "plain.0", "positive": "k.0"}),
            "b": ("LoadBokehAdapter", {"model": "m.0"}),
            "a": sampler("b", "m"),
        },
        [],
    ),
    "a sampler of two models, one with": (
        {"a": ("Two Models Sampler", {"base": "adapted.0", "refiner": "plain.0", "positive": "k.0"})},
        [],
    ),
    "a class that is not known": ({"a": ("Not Installed", {"model": "adapted.0", "positive": "k.0"})}, []),
    "a class that is not known, without": (
        {
            "a": ("Not Installed", {"model": "plain.0", "positive": "k.0"}),
            "b": sampler("adapted", latent_image="a.0"),
        },
        [],  # what it hands on is not known
    ),
    "its model from a class that is not known": (
        {"u": ("Not Installed", {"anything": "adapted.0"}), "a": sampler("u")},
        [],
    ),
    "a class that cannot say what it takes": ({"u": ("Broken", {"x": "plain.0"}), "a": sampler("u")}, ["a"]),
    "the sampler's name by a link": ({"n": ("Names", {}), "a": sampler("plain", sampler_name="n.0")}, ["a"]),
}


@pytest.mark.parametrize(("nodes", "expected"), CASES.values(), ids=CASES)
def test_the_models_of_the_samplers_that_get_k(
    find: Find, nodes: dict[str, Any], expected: list[str]
) -> None:
    assert find(graph(**nodes)) == expected


def test_links_in_a_circle_end(find: Find) -> None:
    assert find(graph(l=lora("m"), m=lora("l"), a=sampler("l"))) == []


@pytest.mark.parametrize("source", ["plain", "adapted"])
def test_a_large_graph_is_read_at_once(find: Find, source: str) -> None:
    """A chain of 2000 models, and trees of 2^40 ways through models and prompts."""
    chain = {f"l{i}": lora(f"l{i - 1}" if i else source) for i in range(2000)}
    models = {
        f"w{i}": _both(f"w{i - 1}.0" if i else "l1999.0", "Any Switch", "any_1", "any_2") for i in range(40)
    }
    prompts = {
        f"c{i}": _both(
            f"c{i - 1}.0" if i else "k.0", "ConditioningCombine", "conditioning_1", "conditioning_2"
        )
        for i in range(40)
    }
    found = find(graph(**chain, **models, **prompts, a=sampler("w39", "c39")))
    assert found == (["a"] if source == "plain" else [])


def _both(source: str, kind: str, *names: str) -> tuple[str, dict[str, str]]:
    return kind, dict.fromkeys(names, source)
