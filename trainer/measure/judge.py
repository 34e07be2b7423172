"""A vision-language model as a judge of sweeps (Bokeh Diffusion, supplement B.3).

It sits behind any OpenAI-compatible endpoint. The endpoint, the model and where the key lies are named by the user;
nothing is sent anywhere otherwise. The two questions are the paper's, word for word: figures compare only under the
same words.

Pictures are shown in an order drawn at random, the same at every run: in the order of K a judge may count, not look.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image
from torch import Tensor

from bokeh_ops.errors import BokehError
from bokeh_ops.numbers import format_value

ACCURACY = (
    "We have several images below, each with a different bokeh strength. For each image, please provide a "
    "numeric bokeh strength score between 0 and {most}. A very low score means the image is in deep "
    "focus, while a high score means very strong defocus blur in the background. You should return only "
    "the scores and nothing else, in a single line, comma-separated, in the same order as the images."
)
CONSISTENCY = (
    "We have several images below of presumably the same scene but with varying depths-of-field. Please "
    "provide a single numeric score from 0 to 100 indicating how consistent the scene/subjects are across "
    "all these images, ignoring pure defocus blur differences but penalizing any other changes. A score "
    "of 100 means all images show precisely the same structure, while 0 means they're drastically changed "
    "in arrangement. Any minor variations in any of the images aside from bokeh should also be penalized. "
    "The only numeric score you should return is the scene consistency score."
)

_ASKED = 3  # times for an answer that can be read
_TRIES = 4  # times while the server is busy or not there
_LARGEST = 1 << 20  # bytes of an answer
_WORTH_WAITING = {408, 409, 425, 429, 500, 502, 503, 504}


class UnreadableAnswer(BokehError):
    """The judge answered, but not with the numbers it was asked for."""


class _StayHere(urllib.request.HTTPRedirectHandler):
    """No redirect is followed: the key would go along."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass
class Judge:
    """Asks one model.

    Args:
        url: of the endpoint, such as ``http://localhost:8000/v1``.
        model: its name there.
        key: sent as a bearer token; empty for none.
        extra: what else belongs into the request, such as ``temperature``.
        side: longest side at which pictures are sent, in pixels.
        log: a file of answers, one JSON object a line. What is in it is not asked again.
        timeout: seconds to wait for an answer.
        wait: called to wait a number of seconds before another try.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    extra: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})
    side: int = 512
    log: Path | None = None
    timeout: float = 120
    wait: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise BokehError(f"The judge's address is {self.url!r}; expected one like https://host/v1.")
        if not re.fullmatch(r"[\x21-\x7e]*", self.key):
            raise BokehError(
                "The judge's key has spaces or characters beyond ASCII in it; it cannot be sent."
            )
        self._answers = _read_log(self.log)
        self._opener = urllib.request.build_opener(_StayHere)

    def strengths(self, pictures: Sequence[Tensor], most: float = 30, seed: str = "") -> list[float]:
        """How strong the judge finds the blur of each picture, 0..``most``.

        Args:
            pictures: ``[3, H, W]`` each, values 0..1.
            most: the upper end of the scale.
            seed: of the order in which they are shown.

        Raises:
            UnreadableAnswer: no list of as many numbers came back.
            BokehError: the endpoint cannot be reached or refuses.
        """
        order = _order(len(pictures), seed)
        found = self._ask(
            ACCURACY.format(most=format_value(most)), [pictures[i] for i in order], len(order), most
        )
        scores = [math.nan] * len(order)
        for place, score in zip(order, found, strict=True):
            scores[place] = score
        return scores

    def consistency(self, pictures: Sequence[Tensor], seed: str = "") -> float:
        """How much the pictures show the same scene, 0..100; arguments and errors as of :meth:`strengths`."""
        order = _order(len(pictures), seed)
        return self._ask(CONSISTENCY, [pictures[i] for i in order], 1, 100)[0]

    def _ask(self, question: str, pictures: Sequence[Tensor], count: int, most: float) -> list[float]:
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        content += [
            {"type": "image_url", "image_url": {"url": _data_url(picture, self.side)}} for picture in pictures
        ]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], **self.extra}
        data = json.dumps(body).encode()
        name = hashlib.sha256(self.url.encode() + b"\0" + data).hexdigest()
        if name in self._answers:
            return read_numbers(self._answers[name], count, most)
        problem: UnreadableAnswer | None = None
        for _ in range(_ASKED):
            text = self._post(data)
            try:
                numbers = read_numbers(text, count, most)
            except UnreadableAnswer as error:
                problem = error
                continue
            self._answers[name] = text
            self._write_log(name, text)
            return numbers
        assert problem is not None
        raise problem

    def _post(self, data: bytes) -> str:
        url = self.url.rstrip("/")
        if not url.endswith("/chat/completions"):
            url += "/chat/completions"
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        problem = ""
        for number in range(_TRIES):
            if number:
                self.wait(2.0 ** (number - 1))
            try:
                request = urllib.request.Request(url, data, headers, method="POST")
                with self._opener.open(request, timeout=self.timeout) as response:
                    return _content(response.read(_LARGEST + 1), url)
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}: {error.read(500).decode(errors='replace').strip()}"
                if error.code not in _WORTH_WAITING:
                    break
            except (urllib.error.URLError, OSError) as error:
                problem = str(getattr(error, "reason", error))
        raise BokehError(f"The judge at {url} did not answer. {problem}")

    def _write_log(self, name: str, text: str) -> None:
        if self.log is None:
            return
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"request": name, "model": self.model, "answer": text}) + "\n")
        except OSError as error:
            raise BokehError(f"The judge's answers cannot be written: {error}.") from error


def read_numbers(text: str, count: int, most: float) -> list[float]:
    """The numbers of an answer; what a model thinks aloud in ``<think>`` is left out.

    Raises:
        UnreadableAnswer: not as many numbers as asked, or one outside 0..``most``.
    """
    said = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL).strip()
    numbers = [float(word) for word in re.findall(r"-?\d+(?:\.\d+)?", said)]
    if len(numbers) != count or not all(0 <= number <= most for number in numbers):
        raise UnreadableAnswer(
            f"The judge answered {said[:200]!r}; expected {count} number{'s' if count > 1 else ''} from 0 to "
            f"{format_value(most)}."
        )
    return numbers


def _content(raw: bytes, url: str) -> str:
    try:
        if len(raw) > _LARGEST:
            raise ValueError("over 1 MiB")
        text = json.loads(raw)["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise TypeError("no text")
    except (ValueError, KeyError, IndexError, TypeError) as error:
        start = raw[:200].decode(errors="replace")
        raise BokehError(f"{url} did not answer as an OpenAI-compatible endpoint does: {start!r}") from error
    return text


def _data_url(picture: Tensor, side: int) -> str:
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _order(count: int, seed: str) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def _read_log(path: Path | None) -> dict[str, str]:
    if path is None or not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n"):  # the last run was killed while it wrote
            text = text[: text.rfind("\n") + 1]
            path.write_text(text, encoding="utf-8")
        entries = [json.loads(line) for line in text.splitlines()]
        return {entry["request"]: entry["answer"] for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BokehError(f"{path} is not a file of a judge's answers: {error!r}.") from error
