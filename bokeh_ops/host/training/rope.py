"""A gradient for the rotary embedding of hosts that compute it with an operator that has none.

Hosts from 0.8 on use ``comfy_kitchen::apply_rope``, a custom operator without autograd formula. For those that do not
go round it while they train (:func:`.differences.training`) the formula is given here, in the way torch asks for in its
error message. It changes nothing that already worked.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def give_rope_a_gradient() -> None:
    """Register the gradient of ``apply_rope`` and ``apply_rope1``, once, where a host has these operators.

    The operator multiplies pairs of features with 2 x 2 matrices, ``y_i = sum_j F_ij x_j``, so the gradient is
    multiplied with their transposes. The matrices themselves take none.
    """
    operators = getattr(torch.ops, "comfy_kitchen", None)
    if operators is None:
        return
    if hasattr(operators, "apply_rope"):
        torch.library.register_autograd(
            "comfy_kitchen::apply_rope",
            lambda context, grad_q, grad_k: (*_back(context, grad_q, grad_k), None),
            setup_context=_keep_matrices,
        )
    if hasattr(operators, "apply_rope1"):
        torch.library.register_autograd(
            "comfy_kitchen::apply_rope1",
            lambda context, grad: (*_back(context, grad), None),
            setup_context=_keep_matrices,
        )


def _keep_matrices(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[-1])


def _back(context: Any, *gradients: Tensor) -> list[Tensor]:
    (matrices,) = context.saved_tensors
    return [rotated_back(gradient, matrices) for gradient in gradients]


def rotated_back(gradient: Tensor, matrices: Tensor) -> Tensor:
    """``x_j = sum_i F_ij y_i`` for pairs of features.

    Args:
        gradient: ``[..., L, D]``.
        matrices: ``F``, ``[..., L', D / 2, 2, 2]`` with ``L'`` at least ``L``; the rest is not read.
    """
    if matrices.ndim > 2 and gradient.ndim > 2 and matrices.shape[2] > gradient.shape[2] != 1:
        matrices = matrices[:, :, : gradient.shape[2]]
    pairs = gradient.to(matrices.dtype).unflatten(-1, (-1, 2))
    back = matrices[..., 0, :] * pairs[..., :1] + matrices[..., 1, :] * pairs[..., 1:]
    return back.flatten(-2).to(gradient.dtype)
