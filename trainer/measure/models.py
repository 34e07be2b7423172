"""What can be measured by name: the lens models, the peers, and nothing at all."""

from __future__ import annotations

from torch import Tensor

from bokeh_ops.errors import BokehError
from bokeh_ops.render import MODELS, Lens, render
from trainer.measure.peers import NAMES, PREFIX, find_peer

UNCHANGED = "unchanged"
"""The model that does nothing: what any other has to beat."""

USUAL_STRENGTH = 0.5
"""A disc of radius r spreads light as far as a Gaussian whose deviation is r / 2."""


def check_model(name: str) -> None:
    """Refuse a name that stands for nothing.

    Raises:
        BokehError: it says which names there are.
    """
    if name.startswith(PREFIX):
        find_peer(name)
    elif name != UNCHANGED and name not in MODELS:
        known = ", ".join([*sorted(MODELS), UNCHANGED, *(PREFIX + each for each in NAMES)])
        raise BokehError(f"There is no lens model named {name!r}; there are: {known}.")


def apply_model(
    name: str, picture: Tensor, disparity: Tensor, lens: Lens, strength: float = USUAL_STRENGTH
) -> Tensor:
    """The picture as a model renders it.

    Args:
        name: as :func:`check_model` knows it.
        picture: ``[3, H, W]``, in the transfer that ``lens`` says.
        disparity: ``[H, W]``.
        lens: K, focus and transfer.
        strength: of a peer (:class:`trainer.measure.peers.Peer`); nothing to the others.

    Returns:
        ``[3, H, W]``, not clipped.

    Raises:
        BokehError: what the model refuses.
    """
    if name == UNCHANGED:
        return picture
    if name.startswith(PREFIX):
        return find_peer(name)(picture, lens.defocus(disparity[None, None])[0, 0], strength)
    return render(picture[None], disparity[None, None], lens, name).image[0]
