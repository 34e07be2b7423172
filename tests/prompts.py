"""Prompts in the server's format: making them small, changing them, and running them up to their sampler."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.host.server import ComfyServer, Run

SIDE, STEPS, FRAMES = 64, 2, 3
SAMPLERS = {"KSampler", "GroundedSampler", "GroundedSamplerAdvanced"}
OUTPUTS = {"SaveImage", "PreviewImage", "SaveAnimatedWEBP", "BokehSavePhotograph"}
Prompt = dict[str, Any]


def small(prompt: Prompt) -> Prompt:
    """The same with small pictures, few steps and few values, and a text encoder that fits a test machine."""
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        inputs = node["inputs"]
        if node["class_type"] == "PrimitiveString":  # K, f-numbers or focus values, parted by commas
            inputs["value"] = ", ".join(inputs["value"].split(", ")[:2])
        if node["class_type"] == "BokehFocus" and isinstance(
            inputs["values"], str
        ):  # a value for every frame, where there are several
            inputs["values"] = ", ".join(inputs["values"].split(", ")[:FRAMES])
        if node["class_type"] == "DualCLIPLoader":
            node["class_type"] = "ShallowDualCLIPLoader"  # see tests/host/shallow_t5.py
        lower = {"width": SIDE, "height": SIDE, "steps": STEPS}
        if node["class_type"] == "ImageScale":  # of a photograph, whose mask has its shape
            lower["height"] = round(SIDE * inputs["height"] / inputs["width"])
        inputs.update({name: value for name, value in lower.items() if name in inputs})
        if inputs.get("grounding_steps", 0) > STEPS:
            inputs["grounding_steps"] = 1
    return prompt


def find(prompt: Prompt, *kinds: str) -> str:
    """Id of the only node of these kinds."""
    (found,) = [node_id for node_id, node in prompt.items() if node["class_type"] in kinds]
    return found


def with_inputs(prompt: Prompt, kind: str, **inputs: Any) -> Prompt:
    """A copy in which the only node of a kind has other inputs."""
    prompt = copy.deepcopy(prompt)
    prompt[find(prompt, kind)]["inputs"].update(inputs)
    return prompt


def without(prompt: Prompt, kind: str, *through: str) -> Prompt:
    """A copy without the only node of a kind; what read its outputs reads its inputs ``through`` instead."""
    prompt = copy.deepcopy(prompt)
    gone = find(prompt, kind)
    sources = [prompt[gone]["inputs"][name] for name in through]
    del prompt[gone]
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == gone:
                node["inputs"][name] = sources[value[1]]
    return prompt


def stock(prompt: Prompt) -> Prompt:
    """A single-K workflow without anything of this extension in it."""
    return without(without(prompt, "LoadBokehAdapter", "model"), "BokehCondition", "positive", "negative")


def sampled(server: ComfyServer, prompt: Prompt, **options: Any) -> tuple[Run, list[Tensor]]:
    """Run a prompt up to its sampler; the latents it gave: one for KSampler, pivot and targets for ours."""
    sampler = find(prompt, *SAMPLERS)
    prompt = {node_id: node for node_id, node in prompt.items() if node["class_type"] not in OUTPUTS}
    count = 1 if prompt[sampler]["class_type"] == "KSampler" else 2
    for output in range(count):
        inputs = {"samples": [sampler, output], "filename_prefix": "latent"}
        prompt[f"latent {output}"] = {"class_type": "SaveLatent", "inputs": inputs}
    run = server.run(prompt, **options)
    saved = [run.outputs[f"latent {output}"]["latents"][0] for output in range(count)] if run.outputs else []
    paths = [server.base / "output" / file["subfolder"] / file["filename"] for file in saved]
    return run, [load_file(path)["latent_tensor"] for path in paths]


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.int32), other.view(torch.int32))


def relative(one: Tensor, other: Tensor) -> float:
    """``max |one - other| / max |other|``."""
    return float((one - other).abs().max() / other.abs().max())


def pictures(server: ComfyServer, run: Run, node: str | None = None) -> list[np.ndarray]:
    """The pictures that a run wrote or showed, of one node or of all."""
    return [np.asarray(Image.open(io.BytesIO(server.view(**image)))) for image in run.images(node)]


def texts(run: Run) -> str:
    """All that the nodes said while it ran."""
    return "\n".join(text for _, text in run.texts)
