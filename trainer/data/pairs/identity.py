"""What tells one data set from another."""

from __future__ import annotations

import hashlib
from typing import Any


def identity(dataset: Any) -> str:
    """16 hexadecimal digits from keys, K and what is all in focus, and from the hashes of the shards."""
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        digest.update(dataset.key(index).encode() + b"\0")
    k, all_in_focus = dataset.facts()
    digest.update(k.tobytes() + all_in_focus.tobytes())
    for shard in dataset.manifest.shards:
        digest.update(str(shard.get("sha256", "")).encode())
    return digest.hexdigest()[:16]
