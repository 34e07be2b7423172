"""The one place where the evaluation makes a lens."""

from __future__ import annotations

from bokeh_ops.errors import BokehError
from bokeh_ops.render import Lens
from trainer.measure.metrics import DISPLAY_GAMMA


def make_lens(k: float, focus_disparity: float, encoded: bool, highlights: str | None = None) -> Lens:
    """A round lens for a picture in linear light, or for one that is display-encoded.

    Args:
        k: pixels of blur radius per dioptre.
        focus_disparity: dioptres.
        encoded: whether the picture's values were raised to 1/2.2.
        highlights: the lens's ``highlight_recovery``; ``None`` leaves it alone.

    Raises:
        BokehError: not a number, or what :class:`Lens` refuses.
    """
    gamma = DISPLAY_GAMMA if encoded else 1.0
    if highlights is None:
        return Lens(k=k, focus_disparity=focus_disparity, gamma=gamma)
    try:
        recovery = float(highlights)
    except ValueError as error:
        raise BokehError(
            f"The highlight recovery is {highlights!r}; it must be a number, 0 (off) or larger."
        ) from error
    return Lens(k=k, focus_disparity=focus_disparity, gamma=gamma, highlight_recovery=recovery)
