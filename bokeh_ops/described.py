"""Small networks in safetensors files whose metadata says what they are: a version, and what sizes follow from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import BokehError


class Described(NamedTuple):
    """A kind of such files.

    Attributes:
        key: of the metadata, under which JSON has ``version`` and ``field``.
        version: of the format.
        field: what else the JSON says.
        what: is in the file, for messages, such as ``a focus transformer``.
        by: what has written it, such as a command.
    """

    key: str
    version: int
    field: str
    what: str
    by: str

    def write(self, path: Path, weights: Mapping[str, Tensor], said: Any, dtype: torch.dtype) -> None:
        """Write weights and what is said of them.

        Args:
            path: of the file.
            weights: by name.
            said: the value of ``field``, as JSON has it.
            dtype: that the weights are kept in.
        """
        kept = {name: value.detach().to("cpu", dtype).contiguous() for name, value in weights.items()}
        save_file(kept, path, {self.key: json.dumps({"version": self.version, self.field: said})})

    def read(self, path: Path) -> tuple[Any, dict[str, Tensor]]:
        """What a file says of itself, and its weights.

        Raises:
            BokehError: no such file, a damaged one, another kind of file, or one of a newer version.
        """
        if not path.is_file():
            raise BokehError(f"There is no file {path}; expected {self.what}, a .safetensors file.")
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(self.key)
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise BokehError(
                f"{path} ({path.stat().st_size} bytes) cannot be read as safetensors ({error}). Expected {self.what}, "
                f"which {self.by} writes; if it is one, copy or download it again."
            ) from error
        if text is None:
            names = ", ".join(sorted(weights)[:3]) or "none"
            raise BokehError(
                f"{path} is not {self.what}: it has {len(weights)} tensors such as {names}, and no {self.key!r} in its "
                f"metadata. Give a file that {self.by} has written."
            )
        try:
            description = json.loads(text)
            version, said = description["version"], description[self.field]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BokehError(
                f"{path} says {text[:80]!r} of itself; expected JSON with version and {self.field}. The file is "
                "damaged."
            ) from error
        if version != self.version:
            raise BokehError(
                f"{path} is {self.what} of version {version}; this extension reads version {self.version}. Update the "
                "extension, or train another."
            )
        return said, weights
