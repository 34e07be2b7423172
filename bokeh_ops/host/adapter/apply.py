"""Applying an adapter to a MODEL."""

from __future__ import annotations

from typing import Any

from ...adapter.network import BokehAdapter
from ..architectures import check_fits, recognise
from .keeping import watch
from .patch import AppliedAdapter, BokehPatch, patch_of, set_patch
from .query_key import OutputLowRank, add_query_key


def apply_adapter(
    patcher: Any,
    adapter: BokehAdapter,
    strength: float = 1.0,
    query_key_strength: float = 1.0,
    name: str = "The adapter",
    node_id: str | None = None,
) -> Any:
    """A clone of ``patcher`` with ``adapter`` on it; ``patcher`` itself is not touched.

    Args:
        patcher: the host's MODEL.
        adapter: for the same architecture.
        strength: lambda of eq. 10. At 0 no bokeh term is computed at all.
        query_key_strength: factor on the query/key adapters. At 0 no weight is patched.
        name: what to call the adapter in a message.
        node_id: the node to speak through while sampling.

    Raises:
        BokehError: the adapter does not fit the model.
    """
    model = recognise(patcher)
    check_fits(adapter, model, name)
    clone = patcher.clone()
    if query_key_strength and adapter.query_key_layers:
        add_query_key(clone, adapter, model, query_key_strength, node_id)
    if (strength and adapter.cross_layers) or (query_key_strength and adapter.query_key_layers):
        watch(clone, OutputLowRank, node_id)
        # Also where no term is added: what is grounded may go by the blocks that an adapter names.
        patch = patch_of(clone) or BokehPatch(model)
        set_patch(clone, patch.with_adapter(AppliedAdapter(adapter, strength), node_id))
    return clone
