"""Lists of numbers as people type them: ``0, 4, 8``, ``0:30:5``, and the labels made of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation

from .errors import BokehError

MOST_VALUES = 4096
"""More values than this in one text are taken for a slip of the pen (``0:30:0.0001``)."""

PER_DIOPTRE = "px/dioptre"
"""Written behind numbers: they are pixels of blur radius per dioptre."""


class PerDioptre(float):
    """A K whose unit is known: pixels of blur radius per dioptre, as a camera has it.

    A plain number is K in whatever unit the disparity has that it is used with.

    Attributes:
        f_number: that of the camera, where it is known. K goes by 1 / f-number, so that of any other follows.
    """

    f_number: float | None

    def __new__(cls, k: float, f_number: float | None = None) -> PerDioptre:
        self = super().__new__(cls, k)
        self.f_number = f_number
        return self


_SEPARATORS = re.compile(r"[\s,;，、；]+")
_F_NUMBER = re.compile(r"[fF]/?([\d.]+)")


def parse_values(
    text: str | float | Iterable[float],
    what: str = "K",
    camera: float | None = None,
    stops: bool = False,
) -> list[float]:
    """Read one or more numbers.

    Args:
        text: numbers separated by commas, semicolons, spaces or line breaks, and ranges ``start:stop:step``
            that include ``stop`` when the steps hit it (``30:0:-10`` counts down). The decimal sign is a point.
            A number, or a sequence of numbers, is taken as it is. With ``px/dioptre`` at the end of a text its numbers
            are :class:`PerDioptre`. With ``f/`` before it a number is an f-number, and becomes that camera's K.
        what: what the numbers are, for the message.
        camera: the K of a camera (:class:`PerDioptre` that knows its f-number), for f-numbers.
        stops: the numbers are f-numbers, or are not looked into: with ``f/`` before it a number is just that.

    Returns:
        The numbers in the order given, at least one, all finite.

    Raises:
        BokehError: nothing to read, something that is no number (named), NaN or infinity, a range without
            end or in the wrong direction, more than :data:`MOST_VALUES` numbers, an f-number of 0 or without camera.
    """
    if isinstance(text, str):
        bare = text.strip().removesuffix(PER_DIOPTRE)
        if bare != text.strip():
            return [PerDioptre(value) for value in parse_values(bare, what, camera, stops)]
        tokens = _SEPARATORS.split(re.sub(r"\s*:\s*", ":", text.replace("\N{MINUS SIGN}", "-")).strip())
        values: list[float] = []
        for token in filter(None, tokens):
            if stop := _F_NUMBER.fullmatch(token):
                number = float(_number(stop[1], token, what))
                values.append(number if stops else _at_f_number(number, token, what, camera))
            else:
                values += _range(token, what) if ":" in token else [float(_number(token, token, what))]
            if len(values) > MOST_VALUES:
                raise BokehError(
                    f"{what}: {token!r} makes more than {MOST_VALUES} values; use a larger step or fewer values."
                )
    else:
        given = text.tolist() if hasattr(text, "tolist") else text  # type: ignore[union-attr]  # arrays, tensors
        given = list(given) if isinstance(given, Iterable) else [given]
        values = [_plain(value, what) for value in given]
    if not values:
        raise BokehError(f"{what}: no value was given. Write numbers such as '0, 4, 8' or a range '0:30:5'.")
    return values


def all_f_numbers(text: str) -> bool:
    """Whether every number of a list (:func:`parse_values`) has ``f/`` before it."""
    return all(map(_F_NUMBER.fullmatch, filter(None, _SEPARATORS.split(text.strip()))))


def format_value(value: float) -> str:
    """A short label: ``4``, ``4.5``, ``10.13``; at most two decimals unless the number is smaller than that."""
    rounded = f"{value:.2f}".rstrip("0").rstrip(".")
    if rounded in {"0", "-0"}:
        return "0" if value == 0 else f"{value:.2g}"
    return rounded


def _plain(value: object, what: str) -> float:
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise BokehError(f"{what}: {value!r} is not a number.") from error
    if not math.isfinite(number):
        raise BokehError(f"{what}: {value!r} is not a finite number.")
    return value if isinstance(value, PerDioptre) else number


def _at_f_number(f_number: float, token: str, what: str, camera: float | None) -> PerDioptre:
    if not (isinstance(camera, PerDioptre) and camera.f_number):
        raise BokehError(
            f"{what}: {token!r} is an f-number, and becomes a K only with a camera. Link the output 'K' of Bokeh K "
            "From Camera to this node's K, or write its f_numbers there and link 'K values'."
        )
    if f_number <= 0:
        raise BokehError(f"{what}: {token!r} is no aperture; an f-number is above 0, such as f/2.8.")
    return PerDioptre(camera * camera.f_number / f_number, f_number)


def _number(part: str, token: str, what: str) -> Decimal:
    try:
        number = Decimal(part)
    except InvalidOperation as error:
        inside = "" if part == token else f" in {token!r}"
        raise BokehError(
            f"{what}: {part!r}{inside} is not a number. Write numbers such as '0, 4, 8' or a range '0:30:5'."
        ) from error
    if not math.isfinite(float(number)):
        raise BokehError(f"{what}: {token!r} is not a finite number.")
    return number


def _range(token: str, what: str) -> list[float]:
    """``start:stop:step``, in decimal arithmetic so that ``0:1:0.1`` holds 0.3 and ends with 1."""
    parts = token.split(":")
    if len(parts) != 3:
        raise BokehError(f"{what}: {token!r} is not a range; write start:stop:step, for example 0:30:5.")
    start, stop, step = (_number(part, token, what) for part in parts)
    if float(step) == 0 or (stop - start) * step < 0:
        raise BokehError(
            f"{what}: the range {token!r} never gets from {parts[0]} to {parts[1]} by {parts[2]}."
        )
    steps = (stop - start) / step
    if steps >= MOST_VALUES:
        raise BokehError(
            f"{what}: {token!r} makes more than {MOST_VALUES} values; use a larger step or fewer values."
        )
    return [float(start + index * step) for index in range(int(steps) + 1)]
