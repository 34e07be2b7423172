"""Genfocus: blur taken away from a photograph and made anew, by two LoRAs on FLUX.1-dev.

Mu et al., "Generative Refocusing" (arXiv 2512.16923; code and weights Apache-2.0). Each LoRA sees pictures as further
tokens beside those of the picture that is made ("branches"), and acts on these tokens alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import Tensor

LARGEST = 100.0
"""Pixels of blur radius that a defocus map of Genfocus shows as white."""
STEPS = 28
"""Of its sampling."""
PRE_DEBLURRED_SHIFT = 32
"""Tokens to the right of the photograph at which a picture lies that was deblurred before by other means."""


@dataclass(frozen=True)
class Task:
    """What one of the two networks does.

    Attributes:
        prompt: that it was trained with.
        guidance: FLUX's distilled guidance of the picture that is made.
    """

    prompt: str
    guidance: float


class Kind(Enum):
    """The two networks."""

    DEBLUR = Task("a sharp photo with everything in focus", 3.5)
    BOKEH = Task("an excellent photo with a large aperture", 1.0)

    @property
    def network(self) -> str:
        return f"{self.name.lower()}Net"


def defocus_picture(defocus: Tensor) -> Tensor:
    """What bokehNet is told of blur: the one place where it is brought into its unit.

    Args:
        defocus: signed defocus in pixels of blur radius, of any shape.

    Returns:
        The same shape: 0 in focus, 1 from :data:`LARGEST` pixels on, for the autoencoder as its picture's values are,
        which for others run from -1 to 1.
    """
    return (defocus.abs() / LARGEST).clamp(0, 1)
