"""What ComfyUI imports beyond PyTorch, in one list, and stand-ins for what is imported but not used here.

Whoever loads ComfyUI needs all of it; the command of this package computes with models alone, so that text encoders,
video files and the like may be missing on a machine without a package index.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

EXPECTED = ("torch", "numpy", "safetensors", "PIL", "psutil", "yaml")
"""Compiled, and used: these must be on the machine."""
PACKED = ("einops", "torchsde", "trampoline", "tqdm", "typing_extensions")
"""Pure Python, and used: ``--pack`` takes them along."""
PYTEST = ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments")
"""Pure Python, for the tests that take a device; without them those are left out."""
STOOD_IN = (
    "torchvision",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "av",
    "scipy",
    "torchaudio",
    "spandrel",
)
"""Imported, and not used: where they are missing, anything may be imported from them."""


class _Placeholders(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Placeholder

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return _Placeholder if cls is _Placeholder else super().__call__(*args, **kwargs)


class _Placeholder(metaclass=_Placeholders):
    """Stands for any class, function or value; what is derived from it is an ordinary class."""


class _Module(ModuleType):
    __path__: Sequence[str] = ()
    __version__ = "0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Placeholder


class _Finder(MetaPathFinder, Loader):
    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.split(".")[0] in self.names:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stand_in() -> list[str]:
    """Let what is missing of :data:`STOOD_IN` be imported; its names."""
    missing = [name for name in STOOD_IN if importlib.util.find_spec(name) is None]
    if missing:
        sys.meta_path.append(_Finder(missing))
    return missing
