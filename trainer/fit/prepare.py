"""Before the first step: latents and embeddings of the whole data set, so that encoders can be let go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.files import replace_text
from trainer.fit.base import Base
from trainer.fit.cache import Store, Texts, content_key
from trainer.fit.config import Fit
from trainer.fit.data import Feeder
from trainer.fit.processes import Processes


def fill_cache(
    settings: Fit,
    base: Base,
    feeder: Feeder,
    texts: Texts,
    latents: Store,
    processes: Processes,
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
    settings: Fit, base: Base, feeder: Feeder, texts: Texts, latents: Store, processes: Processes
) -> None:
    from tqdm import tqdm

    k, all_in_focus = feeder.photographs.facts()
    sources = [(feeder.photographs, index) for index in range(len(feeder.photographs))]
    if feeder.pairs is not None:
        sources += [(feeder.pairs, index) for index in range(len(feeder.pairs))]
    mine = sources[processes.rank :: processes.world]
    for source, index in tqdm(mine, desc="Encoding", unit="photo", disable=None if processes.first else True):
        sample = source.sample(index)
        if settings.cache.text:
            texts(texts.missing(feeder.used(sample)))
        # Of a photograph that sets are rendered from, K = 0 is the photograph itself.
        needed = source is feeder.pairs or k[index] == k[index] or all_in_focus[index]
        name = feeder.picture_name(sample.image)
        if settings.cache.latents and needed and name not in latents:
            latents.put(name, {"latent": base.encode_images(torch.from_numpy(sample.image)[None])[0]})
