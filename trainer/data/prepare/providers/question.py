"""What may be asked of a photograph, and which answers there are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from bokeh_ops.errors import BokehError
from trainer.data.prepare.sets import BLURS


@dataclass(frozen=True)
class Question:
    """A question with a fixed set of answers.

    Attributes:
        role: the option that names its provider, and the field beside a photograph that answers it.
        answers: all there are. The last is what remains: a network's labels that are none of the others mean it.
        prompt: the question in words, for a model that reads.
    """

    role: str
    answers: tuple[str, ...]
    prompt: str

    def answer(self, value: Any, by: str) -> str:
        """One of the answers, from what somebody said: in any case, ``_`` for blanks, true and false for yes and no.

        Raises:
            BokehError: it is none of them.
        """
        said = plain(str(value))
        found = {"true": "yes", "false": "no"}.get(said, said)
        if found in self.answers:
            return found
        raise BokehError(f"{by} says {str(value)[:80]!r}; expected {', '.join(self.answers)}.")

    def heard(self, text: str, by: str) -> str:
        """One of the answers, from the sentence of a model that was given the prompt: what the sentence begins with.

        Raises:
            BokehError: it begins with none of them.
        """
        begun = (each for each in self.answers if re.match(rf"\W*{each}\b", plain(text)))
        return self.answer(next(begun, text), by)


def plain(text: str) -> str:
    """The text in small letters, with single blanks."""
    return " ".join(text.replace("_", " ").lower().split())


BLUR = Question(
    "blur",
    BLURS,
    "How is this photograph blurred? Answer 'no blur' if all of it is sharp, 'desired blur' if its subject is sharp "
    "and what is nearer or farther is out of focus, 'undesired blur' if its subject is out of focus or blurred by "
    "motion.",
)
PHOTOGRAPH = Question(
    "photograph",
    ("yes", "no"),
    "Is this a real photograph, taken by a camera, and neither an illustration nor rendered nor made by AI? Answer yes "
    "or no.",
)
