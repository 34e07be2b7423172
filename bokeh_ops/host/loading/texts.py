"""Many texts through the host's text encoders at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.sd1_clip
import torch
from torch import Tensor


def encode_texts(clip: Any, texts: Sequence[str]) -> list[tuple[Tensor, Tensor | None]]:
    """What a CLIP makes of each of several texts, as ``encode_from_tokens`` makes it of each alone.

    The host takes one text at a time, but cuts a long one into sections that go through each encoder as a batch. Texts
    of the same lengths are handed over as sections of one; of the pooled output it returns the first section's only,
    so that the others are taken where the encoder puts them out.

    Args:
        clip: the host's CLIP.
        texts: any number of them.

    Returns:
        Of each text: context ``[L, C]`` and pooled ``[P]``, or None where the encoders make none; on the device where
        the host leaves them.
    """
    tokens = [clip.tokenize(text) for text in texts]
    alike: dict[Any, list[int]] = {}
    for index, each in enumerate(tokens):
        lengths = tuple((name, tuple(len(section) for section in each[name])) for name in sorted(each))
        alike.setdefault(lengths, []).append(index)
    found: dict[int, tuple[Tensor, Tensor | None]] = {}
    for indices in alike.values():
        made = _encode_alike(clip, [tokens[index] for index in indices])
        if made is None:  # encoders that are not built as the host's: as the host would
            made = [row for index in indices for row in _encode_alike(clip, [tokens[index]]) or ()]
        found |= zip(indices, made, strict=True)
    return [found[index] for index in range(len(texts))]


def _encode_alike(clip: Any, tokens: Sequence[Any]) -> list[tuple[Tensor, Tensor | None]] | None:
    """Texts of the same lengths; None where the host's answer cannot be told apart by text."""
    count = len(tokens)
    joined = {name: [section for each in tokens for section in each[name]] for name in tokens[0]}
    put_out: list[tuple[Tensor, Tensor | None]] = []
    encoders = [m for m in clip.cond_stage_model.modules() if isinstance(m, comfy.sd1_clip.SDClipModel)]
    handles = [each.register_forward_hook(lambda *call: put_out.append(call[-1][:2])) for each in encoders]
    try:
        with torch.no_grad():
            context, pooled = clip.encode_from_tokens(joined, return_pooled=True)[:2]
    finally:
        for handle in handles:
            handle.remove()
    if count == 1:
        return [(context[0], None if pooled is None else pooled[0])]
    # Contexts of several encoders side by side are cut to the shortest: right only where all have as many sections.
    one_encoder = any(rows.shape[-1] == context.shape[-1] for rows, _ in put_out)
    if not one_encoder and len({len(each) for each in joined.values()}) > 1:
        return None
    contexts = context[0].chunk(count)
    if pooled is None:
        return [(each, None) for each in contexts]
    for _, rows in put_out:
        if (
            rows is not None
            and rows.shape[1:] == pooled.shape[1:]
            and torch.equal(rows[:1].to(pooled), pooled)
        ):
            sections = len(rows) // count  # one more row, the last, where words have weights
            return [(each, rows[row * sections]) for row, each in enumerate(contexts)]
    return None
