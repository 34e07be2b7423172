"""What is minimised: distribution matching, and the steps that a picture is made in.

Source: Yin et al., "Improved Distribution Matching Distillation for Fast Image Synthesis" (arXiv 2405.14867), and for
the gradient Yin et al., "One-step Diffusion with Distribution Matching Distillation" (CVPR 2024), eqs. 7 and 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

LEAST_DIFFERENCE = 1e-6
"""Smallest mean difference that a gradient is divided by."""

Denoise = Callable[[Tensor, Tensor], Tensor]
"""Estimates ``x0 [R, C, h, w]`` of ``x`` at noise levels ``sigma [R]``."""


def few_steps(
    denoise: Denoise,
    begin: Callable[[Tensor, Tensor], Tensor],
    add_noise: Callable[[Tensor, Tensor, Tensor], Tensor],
    noise: Sequence[Tensor],
    sigmas: Tensor,
) -> Tensor:
    """A generator's picture: each step estimates ``x0``, which is noised anew to the next level.

    What the host's sampler ``lcm`` does. Gradients go through the last step alone: with fewer levels than a picture
    takes this is backward simulation (DMD2, sec. 4.5), a step trained on what the earlier ones make at sampling.

    Args:
        denoise: the generator.
        begin: makes of noise and ``sigma [R]`` what the first step is given.
        add_noise: makes of ``x0``, noise and ``sigma [R]`` what a later step is given.
        noise: of each step, ``[R, C, h, w]``.
        sigmas: noise levels of the steps, falling, ``[S]``.

    Returns:
        ``x0`` of the last step, ``[R, C, h, w]``.
    """
    rows = len(noise[0])
    levels = [sigma.expand(rows) for sigma in sigmas.to(noise[0].device)]
    x = begin(noise[0], levels[0])
    with torch.no_grad():
        for number in range(len(levels) - 1):
            x = add_noise(denoise(x, levels[number]), noise[number + 1], levels[number + 1])
    return denoise(x, levels[-1])


def matching_gradient(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Which way the generator's pictures are too likely: ``((x - real) - (x - fake)) / mean |x - real|`` per row.

    Args:
        x: pictures, ``[R, C, h, w]``.
        real, fake: what teacher and fake model estimate of them, noised.
    """
    size = (x - real).abs().flatten(1).mean(1).clamp(min=LEAST_DIFFERENCE)
    return (fake - real) / size.view(-1, *[1] * (x.ndim - 1))


def matching_loss(x: Tensor, gradient: Tensor) -> Tensor:
    """Half the mean square of ``gradient``, with a gradient of ``gradient / (C h w)`` to ``x``; per row, ``[R]``."""
    target = (x - gradient).detach()
    return 0.5 * (x - target).square().flatten(1).mean(1)


class Head(nn.Module):
    """Tells real pictures from made ones by the deepest features of the fake model (DMD2, sec. 4.3).

    Args:
        width: of the features.
        hidden: of the layers between.
    """

    def __init__(self, width: int, hidden: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``[R, L]`` of how real each place looks, of features ``[R, L, C]``."""
        return self.layers(features.float())[..., 0]
