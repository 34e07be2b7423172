"""What an adapter is told of every picture: fields with names and ranges, of which K is the one that there is today."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BokehError
from ..numbers import format_value


@dataclass(frozen=True)
class Field:
    """One number that is told.

    Attributes:
        name: in files.
        title: for people.
        least, most: the range that models are trained on.
        negative: what the negative branch of guidance is told by the released code.
    """

    name: str
    title: str
    least: float
    most: float
    negative: float

    def outside(self, values: Iterable[float]) -> str | None:
        """A warning where any value lies outside the trained range; None where all are inside."""
        found = [format_value(value) for value in values if not self.least <= value <= self.most]
        if not found:
            return None
        return (
            f"{self.title} = {', '.join(found)} is outside {self.least:g} to {self.most:g}, the range the model is "
            "trained on; the result may not follow it."
        )


K = Field("k", "K", 0.0, 30.0, -30.0)
"""Defocus: pixels of blur radius per unit of disparity at 512 pixels (sec. 3.1); the released negative is -30."""

FIELDS: tuple[Field, ...] = (K,)
"""All that this version knows, in the order of the columns of :class:`Conditions`."""


@dataclass(frozen=True)
class Conditions:
    """What each row of a batch is told.

    Attributes:
        values: fp32 ``[R, fields]``, of :data:`FIELDS`.
        active: bool ``[R]``: rows that are told anything; the others run without the adapter's terms.
    """

    values: Tensor
    active: Tensor

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != len(FIELDS) or not len(self.values):
            raise BokehError(
                f"Conditions have the shape {list(self.values.shape)}; expected a row for each picture and "
                f"{len(FIELDS)} columns ({', '.join(field.name for field in FIELDS)})."
            )

    @classmethod
    def of_k(cls, k: Sequence[float] | Tensor, active: bool = True) -> Conditions:
        """Conditions of K alone.

        Args:
            k: per row.
            active: whether the rows are told it.

        Raises:
            BokehError: no value at all, or one that is no finite number.
        """
        values = torch.as_tensor(k, dtype=torch.float32).reshape(-1, 1)
        if not len(values):
            raise BokehError("The list of K values is empty; give at least one.")
        if not bool(torch.isfinite(values).all()):
            raise BokehError(
                f"K is {', '.join(map(str, values[:, 0].tolist()))}; expected finite numbers. A row without bokeh is "
                "one that is not active."
            )
        return cls(values, torch.full((len(values),), active))

    @classmethod
    def unpack(cls, packed: Tensor) -> Conditions:
        """The inverse of :meth:`pack`."""
        return cls(packed[:, :-1].float(), packed[:, -1] > 0)

    def pack(self) -> Tensor:
        """All in one tensor ``[R, fields + 1]``; its last column is 1 where a row is active, else 0."""
        return torch.cat((self.values, self.active[:, None].to(self.values)), 1)

    def of(self, names: Sequence[str]) -> Tensor:
        """The columns of these fields ``[R, len(names)]``."""
        known = [field.name for field in FIELDS]
        return self.values[:, [known.index(name) for name in names]]
