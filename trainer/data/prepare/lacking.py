"""Before anything is computed: whether what is to be read beside the photographs lies there at all."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from bokeh_ops.errors import BokehError
from trainer.data.prepare.record import BESIDE, Record
from trainer.data.prepare.sources import PICTURES, items

LOOKED_AT = 1000
"""Photographs that are asked; of a parquet file one, since nothing can lie beside its rows."""

INSTEAD = {
    "depth": "transformers:depth-anything/Depth-Anything-V2-Metric-Outdoor-Large-hf",
    "mask": "nearest",
    "captions": "transformers:Salesforce/blip-image-captioning-large",
}
"""Providers that make what is missing, with nothing to be downloaded by hand."""


def what_is_lacking(source: str, out: Path, providers: Mapping[str, Sequence[str]]) -> str | None:
    """What to say where all photographs would be rejected, since none has something beside it; else None.

    Args:
        source, out: as the command has them.
        providers: the words for depth, mask and captions; where there are some for ``captions-else`` none need have
            captions.
    """
    wanted = {
        role: [pattern for word in words for pattern in ([word[6:]] if word[6:] else BESIDE[role])]
        for role, words in providers.items()
        if role in INSTEAD
        and f"{role}-else" not in providers
        and all(word.partition(":")[0] == "files" and "," not in word for word in words)
    }
    looked_at = 0
    try:
        for item in islice(items(source, lambda name: True, (), out), LOOKED_AT):
            looked_at += 1
            record = Record(item, PICTURES)
            told = {"captions"} if {"captions", "caption"} & set(item.given) else set()
            wanted = {
                role: names for role, names in wanted.items() if role not in told and not record.has(*names)
            }
            if not wanted or item.content is not None:
                break
    except BokehError:
        return None  # of a source that cannot be read more is told later
    if not looked_at or not wanted:
        return None
    missing = [
        f"{role} ({names[0] if '{' in names[0] else f'NAME.{names[0]}'})" for role, names in wanted.items()
    ]
    line = ["python", "-m", "trainer", "prepare", source, "--out", str(out)]
    for role, words in providers.items():
        for word in [INSTEAD[role]] if role in wanted else words:
            line += [] if word == "files" else [f"--{role}", word]
    return (
        f"None of {looked_at} photographs has beside it its {', its '.join(missing)}, so all would be rejected. "
        f"Models can make that:\n  {shlex.join(line)}\nNearest is a stand-in for a mask; a network is better, such as "
        "--mask onnx:birefnet.onnx,range=imagenet. `python -m trainer prepare --help` names the other ways."
    )
