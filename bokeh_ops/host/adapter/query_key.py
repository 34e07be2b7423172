"""Query/key adapters as weight patches in the host's own system, so they follow offloading, fp8 and GGUF.

The released adapters act on the *projected* query and key, ``q <- q + s U(D q)``, so on the weights
``W' = (I + s U D) W`` and ``b' = (I + s U D) b``. An ordinary LoRA (``W + U D``) cannot express that: the base
weight itself is needed, which the host hands to a weight adapter at the moment it applies the patch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import comfy.model_management
import torch
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor

from ...adapter.network import PROJECTED, BokehAdapter
from ...errors import BokehError
from ..architectures import HostModel
from .keeping import say_where_merged


class OutputLowRank(WeightAdapterBase):
    """``W' = W + strength * s * U (D W)`` on the rows the patch's offset names; the same for a bias.

    ``weights`` is ``[up, down, s, speaker]``: hosts rebuild a weight adapter as ``type(self)(loaded_keys, weights)``,
    so all state is there. ``speaker`` is None but in one of an adapter's patches, which speaks where the model is
    merged into another: the id of the node to speak through, empty for none.
    """

    name = "bokeh_output_low_rank"

    def __init__(self, loaded_keys: set[str], weights: list[Any]) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: tuple[int, int, int] | None,
        function: Any,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        up, down, scale, speaker = self.weights
        if speaker is not None:
            say_where_merged(speaker or None)
        up, down = (
            comfy.model_management.cast_to_device(factor, weight.device, intermediate_dtype)
            for factor in (up, down)
        )
        delta = up @ (down @ weight.to(intermediate_dtype))
        # In place: with an offset the host goes on with the whole tensor, of which ``weight`` is a view.
        weight += function((strength * scale) * delta).to(weight.dtype)
        return weight


def query_key_patches(
    adapter: BokehAdapter, model: HostModel, node_id: str | None = None
) -> Iterator[tuple[Any, OutputLowRank]]:
    """``(patch key, weight adapter)`` for every query/key adapter, the bias keys included.

    A key is the parameter's name, or ``(name, (dimension, start, length))`` for the rows of a fused projection.
    """
    speaker: str | None = node_id or ""
    for path, name, projection in adapter.low_rank_pairs():
        width = model.widths[path]
        parameter, first = model.architecture.projection(path, PROJECTED[name], width)
        place = None if first is None else (0, first, width)
        scale = projection.scale * adapter.config.lora_scale
        for kind in ("weight", "bias"):
            patch = OutputLowRank(
                {f"{path}.{name}.up.weight", f"{path}.{name}.down.weight"},
                [projection.up.weight.detach(), projection.down.weight.detach(), scale, speaker],
            )
            speaker = None
            key = f"diffusion_model.{parameter}.{kind}"
            yield (key if place is None else (key, place)), patch


def add_query_key(
    patcher: Any, adapter: BokehAdapter, model: HostModel, strength: float, node_id: str | None = None
) -> int:
    """Add the query/key adapters of ``adapter`` to ``patcher`` (a clone of the user's model).

    Returns:
        How many parameters are patched.

    Raises:
        BokehError: the host did not take a weight's patch (it drops unknown keys without a word).
    """
    present = set(patcher.model.state_dict().keys())
    wanted: dict[Any, OutputLowRank] = {}
    for key, patch in query_key_patches(adapter, model, node_id):
        name = key if isinstance(key, str) else key[0]
        if name.endswith(".bias") and name not in present:
            continue  # SD1.5 has no query and key bias; FLUX has
        wanted[key] = patch
    # Query and key share one fused parameter: the host stores both under its name, in this order.
    taken = set(patcher.add_patches(wanted, strength))
    lost = [key for key in wanted if key not in taken]
    if lost:
        name = lost[0] if isinstance(lost[0], str) else lost[0][0]
        raise BokehError(
            f"The model has no parameter for {len(lost)} of the adapter's {len(wanted)} query/key changes, such as "
            f"{name}. It is not the plain model the adapter was made for; set query_key_strength to 0 to go without."
        )
    return len(wanted)
