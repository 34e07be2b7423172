"""The device that an option names."""

from __future__ import annotations

import torch

from trainer.cli import UsageError


def find_device(name: str) -> torch.device:
    """The device of a name such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        UsageError: there is no such device here.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"The device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device
