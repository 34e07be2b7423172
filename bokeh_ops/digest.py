"""Names for contents: what is made from the same has the same name."""

from __future__ import annotations

import hashlib
import os

import torch
from torch import Tensor


def content_key(*parts: Tensor | bytes | str | float | None) -> str:
    """A name for what is made from ``parts``, 40 hexadecimal digits.

    Tensors count by type, shape and every byte: about 1 s for each GB.
    """
    digest = hashlib.blake2b(digest_size=20)
    for part in parts:
        if isinstance(part, Tensor):
            plain = part.detach().cpu().contiguous()
            digest.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
            continue
        content = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def file_key(path: str | os.PathLike[str]) -> str:
    """A name for the content of a file, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()
