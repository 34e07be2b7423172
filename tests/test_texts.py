"""Captions through the host's own text encoders, several at a time, against each alone."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

CLIP = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
SMALL = {
    "clip_l_model_config": CLIP,
    "clip_g_model_config": {**CLIP, "hidden_size": 64, "projection_dim": 64},
    "t5xxl_model_config": {"num_layers": 2, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4},
}
TEXTS = [
    "a dog",
    "",
    "a (red:1.4) ball in front of a wall",
    ", ".join(f"thing {n}" for n in range(60)),
    "a cat on a mat",
    ", ".join(f"plant {n}" for n in range(60)),
]
"""Words with weights, and two texts of several sections."""


def made(name: str) -> Any:
    """A CLIP of the host's class with small encoders of random weights."""
    import comfy.sd
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.text_encoders.flux as flux

    kinds = {
        "sd15": (comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer, {}),
        "sdxl": (comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer, {}),
        "flux": (flux.FluxClipModel, flux.FluxTokenizer, {"dtype_t5": torch.float32}),
    }
    model, tokenizer, params = kinds[name]
    target = SimpleNamespace(clip=model, tokenizer=tokenizer, params=params)
    cpu = torch.device("cpu")
    options = {**SMALL, "load_device": cpu, "offload_device": cpu, "dtype": torch.float32}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        clip = comfy.sd.CLIP(target, model_options=options)
        for parameter in clip.cond_stage_model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return clip


@pytest.fixture(scope="module", params=["sd15", "sdxl", "flux"])
def clip(pack: ModuleType, request: pytest.FixtureRequest) -> Any:
    return made(request.param)


def encode_texts(clip: Any, texts: Sequence[str]) -> Any:
    from bokeh_ops.host.loading.texts import encode_texts

    return encode_texts(clip, texts)


def alone(clip: Any, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    context, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)[:2]
    return context[0], pooled[0]


def test_together_they_are_what_each_is_alone(clip: Any) -> None:
    calls: list[int] = []
    encode = clip.encode_from_tokens
    clip.encode_from_tokens = lambda tokens, **options: (calls.append(1), encode(tokens, **options))[1]
    together = encode_texts(clip, TEXTS)
    clip.encode_from_tokens = encode
    assert len(calls) < len(TEXTS)
    for (context, pooled), text in zip(together, TEXTS, strict=True):
        expected, expected_pooled = alone(clip, text)
        assert pooled is not None
        torch.testing.assert_close(context, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(pooled, expected_pooled, atol=1e-5, rtol=1e-5)


def test_nothing_stays_on_the_encoders(clip: Any) -> None:
    encode_texts(clip, TEXTS[:2])
    assert not any(module._forward_hooks for module in clip.cond_stage_model.modules())


def test_encoders_that_disagree_on_sections_are_asked_one_by_one(pack: ModuleType) -> None:
    """As a textual inversion does that has more tokens for one encoder than for the other."""
    clip = made("sdxl")
    tokenize = clip.tokenize

    def longer(text: str) -> Any:
        tokens = tokenize(text)
        return {**tokens, "g": tokens["g"] * 2}

    clip.tokenize = longer
    for (context, pooled), text in zip(encode_texts(clip, TEXTS[:3]), TEXTS, strict=False):
        expected, expected_pooled = alone(clip, text)
        assert pooled is not None
        torch.testing.assert_close(context, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(pooled, expected_pooled, atol=1e-5, rtol=1e-5)
