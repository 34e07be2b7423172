"""The best value of one number.

Ours and not scipy's, which stops by a tolerance: here a trial is a rendering, and their number is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def best_value(score: Callable[[float], float], low: float, high: float, trials: int) -> float:
    """The value with the largest score, by golden-section search over the logarithm.

    Args:
        score: larger is better; it rises to one maximum and falls again.
        low: the least value, > 0.
        high: the largest value.
        trials: how often ``score`` is asked, at least 2. What is left of the range is 0.618 of it for each beyond
            the first.
    """
    ratio = (5**0.5 - 1) / 2
    start, end = math.log(low), math.log(high)
    left, right = end - ratio * (end - start), start + ratio * (end - start)
    of_left, of_right = score(math.exp(left)), score(math.exp(right))
    for _ in range(trials - 2):
        if of_left > of_right:
            end, right, of_right = right, left, of_left
            left = end - ratio * (end - start)
            of_left = score(math.exp(left))
        else:
            start, left, of_left = left, right, of_right
            right = start + ratio * (end - start)
            of_right = score(math.exp(right))
    return math.exp(left if of_left > of_right else right)
