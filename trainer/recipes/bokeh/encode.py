"""Before the first step: latents and embeddings of the whole data set, so that encoders can be let go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bokeh_ops.digest import content_key
from trainer.config import Fit
from trainer.files import replace_text
from trainer.frozen.cache import Store, Texts
from trainer.frozen.model import Base
from trainer.processes import Alone
from trainer.recipes.bokeh.feed import Feeder

TEXTS, PICTURES = 16, 8
"""How many are encoded at once."""


def fill_cache(
    settings: Fit,
    base: Base,
    feeder: Feeder,
    texts: Texts,
    latents: Store,
    processes: Alone,
    identities: dict[str, Any],
    folder: Path,
) -> None:
    """Encode what will be needed and is not kept; every process takes its share of the photographs.

    A mark says that a data set has been gone through with these encoders, so that a resumed run need not read it
    again; entries that are lost later are made again when they are needed.

    Args:
        settings: resolved.
        base: whose encoders they are.
        feeder: reads photographs and names latents.
        texts, latents: what is kept.
        processes: who shares the work.
        identities: of data and models.
        folder: of the cache.
    """
    prompts = [*settings.samples.prompts, settings.samples.negative] if settings.samples.every else []
    if settings.cache.text and processes.first:
        texts(texts.missing(["", *prompts]))
    processes.wait()
    if not (settings.cache.text or settings.cache.latents):
        return
    mark = (
        folder
        / "done"
        / content_key(
            str(sorted(identities.items())),
            base.text_fingerprint,
            base.image_fingerprint,
            str(texts.dtype),
            settings.data.captions,
            settings.cache.text,
            settings.cache.latents,
        )
    )
    if not mark.exists():
        _go_through(settings, base, feeder, texts, latents, processes)
        processes.wait()
        if processes.first:
            replace_text(mark, "")
    processes.wait()
    if settings.cache.text:
        base.release_text()


def _go_through(
    settings: Fit, base: Base, feeder: Feeder, texts: Texts, latents: Store, processes: Alone
) -> None:
    """First all captions, then all pictures: a card that holds one encoder only does not change between them."""
    from tqdm import tqdm

    k, all_in_focus = feeder.photographs.facts()
    sources = [(False, index) for index in range(len(feeder.photographs))]
    if feeder.pairs is not None:
        sources += [(True, index) for index in range(len(feeder.pairs))]
    mine = sources[processes.rank :: processes.world]
    quiet = None if processes.first else True
    captions: dict[str, None] = {}
    missing: list[tuple[bool, int]] = []
    for paired, index in tqdm(mine, desc="Reading", unit="photo", disable=quiet):
        facts, _ = feeder.look(paired, index)
        captions |= dict.fromkeys(feeder.used(facts.captions))
        # Of a photograph that sets are rendered from, K = 0 is the photograph itself.
        needed = paired or k[index] == k[index] or all_in_focus[index]
        if settings.cache.latents and needed and facts.picture not in latents:
            missing.append((paired, index))
    if settings.cache.text:
        wanted = texts.missing(list(captions))
        for start in tqdm(range(0, len(wanted), TEXTS), desc="Captions", unit="batch", disable=quiet):
            texts(wanted[start : start + TEXTS])
    for start in tqdm(range(0, len(missing), PICTURES), desc="Pictures", unit="batch", disable=quiet):
        part = missing[start : start + PICTURES]
        read = [(feeder.pairs if paired else feeder.photographs).sample(index) for paired, index in part]  # type: ignore[union-attr]
        made = base.encode_images(torch.stack([torch.from_numpy(sample.image) for sample in read]))
        for (paired, index), sample, latent in zip(part, read, made, strict=True):
            latents.put(feeder.look(paired, index, sample)[0].picture, {"latent": latent})
