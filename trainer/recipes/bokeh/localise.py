"""The localisation regulariser: bokeh attention is to look at the background rather than at the foreground.

Source: Fortes et al., "Bokeh Diffusion" (SIGGRAPH Asia 2025), supp. A.2, after Xiao et al., "FastComposer" (2023):
``mean(A | foreground) - mean(A | background)``, averaged over layers, times a small weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bokeh_ops.adapter.attention import split_heads
from bokeh_ops.adapter.conditions import Conditions
from bokeh_ops.adapter.network import BokehAdapter
from bokeh_ops.errors import BokehError


def bokeh_share(queries: Tensor, text_keys: Tensor, bokeh_keys: Tensor, heads: int) -> Tensor:
    """The bokeh tokens' share ``A`` in a joint softmax over text and bokeh keys.

    Eq. 10 takes the softmax over the bokeh keys alone. Measured there, ``A`` of a single token is 1 everywhere and
    its regulariser is the constant 0: degenerate. In the joint softmax ``A`` says which of the two keys a place
    would rather look at, it differs from place to place, and it has a gradient.

    What it can do: with several tokens the same ``W'_k`` decides what eq. 10 mixes where. With one token ``W'_k`` is
    inert in the network's output, so the term acts on the picture only through the queries (hence through the
    bokeh terms of the layers before) and through the embedding of K that all layers share.

    Args:
        queries: ``[R, L, C]``.
        text_keys: ``[R, M, C]``.
        bokeh_keys: ``[R, T, C]``.
        heads: of the attention.

    Returns:
        ``[R, L]``, 0..1, the mean over heads.
    """
    q = split_heads(queries, heads).float()
    q = q * q.shape[-1] ** -0.5
    text = (q @ split_heads(text_keys, heads).float().transpose(-1, -2)).logsumexp(-1)
    bokeh = (q @ split_heads(bokeh_keys, heads).float().transpose(-1, -2)).logsumexp(-1)
    return torch.sigmoid(bokeh - text).mean(1)


def foreground_less_background(share: Tensor, mask: Tensor) -> Tensor:
    """``mean(A | foreground) - mean(A | background)`` per row; 0 where a row lacks one of the two.

    Args:
        share: ``A``, ``[R, L]``.
        mask: how much of each place is foreground, 0..1, ``[R, L]``.
    """
    inside, outside = mask.sum(1), (1 - mask).sum(1)
    both = (inside > 0) & (outside > 0)
    front = (share * mask).sum(1) / inside.clamp(min=1e-6)
    back = (share * (1 - mask)).sum(1) / outside.clamp(min=1e-6)
    return torch.where(both, front - back, torch.zeros_like(front))


def mask_at(mask: Tensor, places: int) -> Tensor:
    """Foreground masks averaged down to the grid of an attention layer.

    Args:
        mask: ``[R, H, W]``.
        places: number of queries; the grid has the proportions of the mask.

    Returns:
        ``[R, places]``.

    Raises:
        BokehError: no grid of these proportions has that many places.
    """
    height, width = mask.shape[1:]
    rows = round((places * height / width) ** 0.5)
    if rows < 1 or places % rows:
        raise BokehError(f"Attention over {places} places does not fit pictures of {width} x {height}.")
    return F.adaptive_avg_pool2d(mask[:, None], (rows, places // rows)).flatten(1)


class Localiser:
    """Collects the regulariser while the network runs; called by :func:`.gradients.apply_for_training`.

    Args:
        adapter: whose ``W'_k`` gives the bokeh keys.
    """

    def __init__(self, adapter: BokehAdapter) -> None:
        self.adapter = adapter
        self._terms: dict[str, Tensor] = {}
        self._context = self._masks = self._active = torch.empty(0)

    def begin(self, k: Tensor, masks: Tensor, active: Sequence[bool]) -> None:
        """Before a forward.

        Args:
            k: K per row ``[R]``.
            masks: foreground ``[R, H, W]``.
            active: rows that count; one whose condition is dropped has no blur to place.
        """
        self._terms = {}
        self._context = self.adapter.embed(Conditions.of_k(k))
        device = self._context.device
        self._masks = masks.to(device)
        self._active = torch.tensor(active, dtype=torch.float32, device=device)

    def __call__(self, path: str, queries: Tensor, text_keys: Tensor, heads: int) -> None:
        # The same operations whenever it is called: gradient checkpointing calls it again on the way back.
        with torch.autocast(queries.device.type, enabled=False):
            keys = self.adapter.projection(path, "to_k_bokeh")(self._context)
            share = bokeh_share(queries, text_keys, keys, heads)
            term = foreground_less_background(share, mask_at(self._masks, share.shape[1])) * self._active
        self._terms.setdefault(path, term)

    def finish(self) -> Tensor:
        """After the forward: the regulariser per row ``[R]``, the mean over layers."""
        return torch.stack(list(self._terms.values())).mean(0)
