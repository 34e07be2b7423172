"""Deep and shallow depth of field: which photographs make a set of either (Shrivastava et al., supp. D)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.data.prepare.rejection import Rejected

NO_BLUR, DESIRED_BLUR, UNDESIRED_BLUR = BLURS = ("no blur", "desired blur", "undesired blur")
"""What a classifier of blur answers. Undesired is what no aperture makes: motion, misfocus."""


@dataclass(frozen=True)
class DepthOfField:
    """What a set takes.

    Attributes:
        name: of the set.
        takes: whether it takes an f-number. No f-number is taken by two sets, so neither is a photograph.
        f_numbers: the same in words.
        sharp: whether its photographs are all in focus; the others have blur that was meant.
        still: whether a long exposure is refused, since what moved would not be sharp.
    """

    name: str
    takes: Callable[[float], bool]
    f_numbers: str
    sharp: bool
    still: bool

    def check_lens(self, f_number: float | None, exposure: float | None, longest: float) -> None:
        """Refuse a photograph for how it was taken.

        Args:
            f_number: N; None is unknown.
            exposure: seconds; None is unknown, which is no ground for refusal.
            longest: exposure of what counts as sharp, seconds.

        Raises:
            Rejected: ``no_lens_data``, ``f_number`` or ``exposure``.
        """
        if f_number is None:
            raise Rejected("no_lens_data", f"no f-number, on which a {self.name} set depends")
        if not self.takes(f_number):
            raise Rejected("f_number", f"f/{f_number:g}; a {self.name} set takes {self.f_numbers}")
        if self.still and exposure is not None and exposure > longest:
            raise Rejected("exposure", f"{exposure:g} s; a {self.name} set takes at most {longest:g}")

    def check_sharpness(self, sharp: bool, found: str) -> None:
        """Refuse a photograph that is sharp where the set is not, or blurred where it is sharp.

        Args:
            sharp: whether it is all in focus.
            found: who says so, for the detail.

        Raises:
            Rejected: ``blur``.
        """
        if sharp is not self.sharp:
            wanted = "what is all in focus" if self.sharp else "what is not all in focus"
            raise Rejected("blur", f"{found}; a {self.name} set takes {wanted}")


SETS = {
    each.name: each
    for each in (
        DepthOfField("deep", lambda n: 10 <= n <= 50, "f/10 to f/50", sharp=True, still=True),
        DepthOfField("shallow", lambda n: n < 10, "f-numbers below 10", sharp=False, still=False),
    )
}


def check_answer(answer: str, wanted: DepthOfField | None) -> None:
    """Refuse a photograph for what a classifier says of its blur.

    Args:
        answer: one of :data:`BLURS`.
        wanted: the set that is made, or None.

    Raises:
        Rejected: ``blur``: it is undesired, which nobody wants, or not that of the set.
    """
    if answer == UNDESIRED_BLUR:
        raise Rejected("blur", f"the classifier says {answer!r}, which no aperture makes")
    if wanted is not None:
        wanted.check_sharpness(answer == NO_BLUR, f"the classifier says {answer!r}")
