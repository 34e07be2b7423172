"""What the autoencoder and the text encoders made, kept on disk by what it was made from.

A name is the hash of everything the content depends on (the pixels or the text, and the weights of the encoder),
so an entry is never wrong, and runs with other data or other models may share a folder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bokeh_ops.digest import content_key
from trainer.files import replace_file
from trainer.frozen.model import Base, Embedding


class Store:
    """Named groups of tensors in a folder, one safetensors file each.

    Args:
        folder: where; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        path = self.path(key)
        return path is not None and path.is_file()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """What is kept under a name, or None. A damaged file counts as none: it is made again."""
        path = self.path(key)
        if path is None or not path.is_file():
            return None
        try:
            return load_file(path)
        except (SafetensorError, OSError):
            path.unlink(missing_ok=True)
            return None

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        path = self.path(key)
        if path is not None:
            content = {name: value.contiguous() for name, value in tensors.items()}
            replace_file(path, lambda temporary: save_file(content, temporary))


class Texts:
    """Embeddings of captions.

    Args:
        base: whose text encoder it is.
        store: where they are kept.
        dtype: type they are kept in; the network's own loses nothing.
    """

    def __init__(self, base: Base, store: Store, dtype: torch.dtype) -> None:
        self.base, self.store, self.dtype = base, store, dtype

    def __call__(self, texts: Sequence[str]) -> list[Embedding]:
        """Embeddings of texts, from the store where they are there."""
        found = {text: self._kept(text) for text in dict.fromkeys(texts)}
        missing = [text for text, embedding in found.items() if embedding is None]
        if missing:
            for text, made in zip(missing, self.base.encode_text(missing), strict=True):
                pooled = None if made.pooled is None else made.pooled.to(self.dtype)
                embedding = Embedding(made.context.to(self.dtype), pooled)
                found[text] = embedding
                tensors = {"context": embedding.context}
                if embedding.pooled is not None:
                    tensors["pooled"] = embedding.pooled
                self.store.put(self._key(text), tensors)
        return [embedding for text in texts if (embedding := found[text]) is not None]

    def missing(self, texts: Sequence[str]) -> list[str]:
        """The texts, each once, that are not kept."""
        return [text for text in dict.fromkeys(texts) if self._key(text) not in self.store]

    def _key(self, text: str) -> str:
        return content_key(
            "text", self.base.text_fingerprint, self.base.architecture.name, str(self.dtype), text
        )

    def _kept(self, text: str) -> Embedding | None:
        tensors = self.store.get(self._key(text))
        return None if tensors is None else Embedding(tensors["context"], tensors.get("pooled"))


def stack(embeddings: Sequence[Embedding]) -> tuple[Tensor, Tensor | None]:
    """Embeddings of the rows of a batch, ``[R, L, C]`` and ``[R, P]``, fp32.

    SD1.5's captions of several lengths (multiples of 77 tokens) are repeated to a common one, as the host does:
    keys and values that occur twice change nothing in attention.
    """
    length = math.lcm(*(embedding.context.shape[0] for embedding in embeddings))
    contexts = [e.context.float().repeat(length // e.context.shape[0], 1) for e in embeddings]
    pooled = [e.pooled.float() for e in embeddings if e.pooled is not None]
    return torch.stack(contexts), torch.stack(pooled) if pooled else None
