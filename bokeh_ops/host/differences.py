"""Where ComfyUI's versions differ: the one table of it, from 0.3.64 to 0.33.

What stands here asks the host for what it has, never for its number, so that forks and later versions are met too.
Everything else in this package is written for all of them alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from comfy.ldm.flux.model import FluxParams
from torch import Tensor

# FLUX's norms: as its weights are published, and as 0.14 and later hold them.
_PUBLISHED, _LATER = ".scale", ".weight"


def weights_for_host(settings: Any, weights: dict[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Weights of a network under the names that this host's network has.

    0.14 and later rename FLUX's norms as they load a checkpoint, by a method that others have as well and that does
    nothing there; those are given what a later one has written.

    Args:
        settings: the host's configuration of the model (``model_config``).
        weights: by published name, or as any host names them.
        own: names of the network's weights.
    """
    own = set(own)
    found = settings.process_unet_state_dict(dict(weights))
    for name in set(found) - own:
        older = name.removesuffix(_LATER) + _PUBLISHED
        if older in own:
            found[older] = found.pop(name)
    return found


def published_weights(settings: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a host's network under their published names, which every host loads.

    Args:
        settings: as for :func:`weights_for_host`.
        weights: by this host's names.
    """
    published = {name.removesuffix(_LATER) + _PUBLISHED: name for name in weights if name.endswith(_LATER)}
    # Which of them the host knows: those that it makes its own names of.
    known = settings.process_unet_state_dict(dict(published))
    renamed = {name: older for older, name in published.items() if known.get(name) == name}
    return {renamed.get(name, name): value for name, value in weights.items()}


def flux_config(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the host's network class for FLUX.1.

    0.8 and later want to be told which axes of the positions count the text's tokens: none.
    """
    named = {"txt_ids_dims": []} if "txt_ids_dims" in {field.name for field in fields(FluxParams)} else {}
    return {**named, **config}
