"""The one place where the evaluation makes a lens."""

from __future__ import annotations

from dataclasses import fields

from bokeh_ops.errors import BokehError
from bokeh_ops.render import Lens
from trainer.metrics import DISPLAY_GAMMA


def make_lens(k: float, focus_disparity: float, encoded: bool, highlights: str | None = None) -> Lens:
    """A round lens for a picture in linear light, or for one that is display-encoded.

    Args:
        k: pixels of blur radius per dioptre.
        focus_disparity: dioptres.
        encoded: whether the picture's values were raised to 1/2.2.
        highlights: value of the lens's field of that name; ``None`` leaves it alone.

    Raises:
        BokehError: the lens has no such field, or what :class:`Lens` refuses.
    """
    lens = Lens(k=k, focus_disparity=focus_disparity, gamma=DISPLAY_GAMMA if encoded else 1.0)
    if highlights is None:
        return lens
    names = {field.name for field in fields(Lens)}
    if "highlights" not in names:
        raise BokehError(f"The lens has no `highlights`; its fields are {', '.join(sorted(names))}.")
    from dataclasses import replace

    try:
        value: float | str = float(highlights)
    except ValueError:
        value = highlights
    return replace(lens, **{"highlights": value})
