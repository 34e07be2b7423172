"""The architectures: one module each, found by being here."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from ...adapter.network import BokehAdapter
from ...errors import BokehError
from .architecture import Architecture, HostModel

__all__ = ["Architecture", "HostModel", "architectures", "check_fits", "named", "recognise", "titles"]


@cache
def architectures() -> Mapping[str, Architecture]:
    """All of them, by name."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        each = getattr(importlib.import_module(f"{__name__}.{module.name}"), "ARCHITECTURE", None)
        if each is not None:
            found[each.name] = each
    return MappingProxyType(found)


def named(name: str) -> Architecture:
    """The architecture of a name.

    Raises:
        BokehError: there is none.
    """
    found = architectures().get(name)
    if found is None:
        raise BokehError(f"There is no architecture {name!r}; there are {', '.join(architectures())}.")
    return found


def titles(word: str = "and") -> str:
    """All of them in a sentence, the last one after ``word``."""
    *others, last = (each.title for each in architectures().values())
    return f"{', '.join(others)} {word} {last}"


def recognise(patcher: Any) -> HostModel:
    """What the diffusion model inside a ``MODEL`` is, and its attention layers.

    Raises:
        BokehError: of no architecture that is known, or one that another extension runs in its own way.
    """
    model = patcher.model
    network = model.diffusion_model
    title = type(model).__name__
    for each in architectures().values():
        if each.matches(model):
            return HostModel(each, f"{title} ({each.summary(network)})", each.widths(network))
    known = next((each.title for each in architectures().values() if each.claims(model)), None)
    if known is not None:
        raise BokehError(
            f"The model is {known}, but the network inside is {type(network).__name__} of "
            f"{type(network).__module__}, not ComfyUI's own: it runs the model in kernels of its own (as Nunchaku and "
            "TensorRT do), so nothing can be added to its attention. Load the model with ComfyUI's own loaders, or as "
            "GGUF; fp8 works."
        )
    raise BokehError(
        f"The model is {title} ({type(network).__name__}); bokeh adapters and grounding know {titles()}. Connect one "
        "of those."
    )


def check_fits(adapter: BokehAdapter, model: HostModel, name: str) -> None:
    """Raise unless every layer of ``adapter`` exists in ``model`` with the same width.

    Raises:
        BokehError: the adapter is for another architecture, or for a model of other dimensions.
    """
    base = adapter.config.base
    if base != model.architecture.name:
        if base not in architectures():
            raise BokehError(
                f"{name} is a bokeh adapter for {base!r}, which this version does not know; it knows {titles()}. "
                "Update the extension."
            )
        raise BokehError(
            f"{name} is a bokeh adapter for {named(base).title}, but the model is {model.title}."
        )
    absent = [path for path in adapter.widths if path not in model.widths]
    if absent:
        raise BokehError(
            f"{name} has weights for {len(absent)} layers that {model.title} does not have, such as {absent[0]}. "
            "It was trained on another model of this family."
        )
    for path, width in adapter.widths.items():
        if width != model.widths[path]:
            raise BokehError(
                f"{name}: {path} is {width} wide, but that layer of {model.title} is {model.widths[path]} wide. "
                "It was trained on another model of this family."
            )
