"""What a provider is given, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from PIL import Image

from trainer.data.prepare.record import Record


@dataclass(frozen=True)
class Photograph:
    """A photograph, whole, upright and reduced, as providers see it.

    Attributes:
        key: its name.
        image: RGB, sRGB, its short side that of the training resolution.
        focal_px: focal length in pixels of ``image``, which some depth networks ask for; None where unknown.
        record: what lies beside the picture.
        given: what is known of it.
        disparity: float32 ``[h, w]`` in dioptres, of the size of ``image``; None for the depth provider itself, and
            for judges, which are asked before it.
    """

    key: str
    image: Image.Image
    focal_px: float | None
    record: Record
    given: Mapping[str, Any]
    disparity: np.ndarray | None = None

    def with_disparity(self, disparity: np.ndarray) -> Photograph:
        """The same with its depth known."""
        return replace(self, disparity=disparity)


class MapProvider(Protocol):
    """Gives depth, in the meaning and units that the user declares, or a foreground mask, 0..1."""

    def __call__(self, photograph: Photograph) -> np.ndarray:
        """A map ``[h, w]`` of the whole photograph; of another size it is resized.

        Raises:
            Rejected: there is none for this photograph.
        """
        ...


class CaptionProvider(Protocol):
    """Gives captions."""

    def __call__(self, photograph: Photograph) -> Sequence[str]:
        """Any number of captions, also none."""
        ...


class Judge(Protocol):
    """Answers a :class:`~.question.Question`."""

    def __call__(self, photograph: Photograph) -> str:
        """One of the question's answers.

        Raises:
            Rejected: there is none for this photograph.
            BokehError: it is another one.
        """
        ...
