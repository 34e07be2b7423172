"""Providers by their words on the command line."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bokeh_ops.errors import BokehError
from trainer.data.prepare.providers.beside import answer_beside, captions_beside, depth_beside, mask_beside
from trainer.data.prepare.providers.nearest import nearest_mask
from trainer.data.prepare.providers.protocol import CaptionProvider, Judge, MapProvider, Photograph
from trainer.data.prepare.providers.question import BLUR, PHOTOGRAPH, Question
from trainer.data.prepare.settings import OWN_KIND, Settings


@dataclass(frozen=True)
class Providers:
    """Those of one run; None is nobody."""

    depth: MapProvider
    mask: MapProvider
    captions: tuple[CaptionProvider, ...]
    captions_else: CaptionProvider | None = None
    blur: Judge | None = None
    photograph: Judge | None = None


def make_providers(settings: Settings) -> Providers:
    """Load what the settings name. Files are read and models loaded here, once in every process.

    Raises:
        BokehError: an unknown word, a file or model that is missing, or a function that cannot be imported.
    """
    return Providers(
        depth=_map_provider("depth", settings.depth, settings),
        mask=_map_provider("mask", settings.mask, settings),
        captions=tuple(
            provider for word in settings.captions if (provider := _caption_provider(word)) is not None
        ),
        captions_else=None if settings.captions_else is None else _caption_provider(settings.captions_else),
        blur=None if settings.blur is None else _judge(BLUR, settings.blur),
        photograph=None if settings.photograph is None else _judge(PHOTOGRAPH, settings.photograph),
    )


def split_word(word: str) -> tuple[str, str, dict[str, str]]:
    """``KIND:WHAT,option=value`` into its parts."""
    kind, _, rest = word.partition(":")
    what, *pairs = rest.split(",")
    options: dict[str, str] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise BokehError(f"In {word!r}, {pair!r} is no option; options are written name=value.")
        options[name.strip()] = value.strip()
    return kind, what, options


def take(options: dict[str, str], word: str, **known: Any) -> dict[str, str]:
    """The options, all of which must be known; those left out have the values given here."""
    unknown = set(options) - set(known)
    if unknown:
        raise BokehError(
            f"In {word!r} there is no option {', '.join(sorted(unknown))}; known are {', '.join(known) or 'none'}."
        )
    return {**known, **options}


def _map_provider(role: str, word: str, settings: Settings) -> MapProvider:
    kind, what, options = split_word(word)
    if kind == "files":
        take(options, word)
        return depth_beside(what) if role == "depth" else mask_beside(what)
    if kind == "onnx":
        from trainer.data.prepare.providers.onnx import OnnxMap

        chosen = take(options, word, range="255", size="", output="")
        return OnnxMap(what, chosen["range"], chosen["size"], chosen["output"])
    if kind == "transformers":
        from trainer.data.prepare.providers.pipelines import DepthPipeline, MaskPipeline

        if role == "depth":
            own = settings.depth_kind == OWN_KIND
            return DepthPipeline(
                what, take(options, word, device="cpu")["device"], own, settings.depth_normalise
            )
        return MaskPipeline(what, **take(options, word, device="cpu", labels=""))
    if kind == "python":
        take(options, word)
        function = _function(what, word)
        return lambda photograph: _as_map(function(photograph), word)
    if kind == "nearest" and role == "mask":
        return nearest_mask(
            **{name: float(value) for name, value in take(options, word, ratio="1.5").items()}
        )
    known = "files, onnx:FILE, transformers:MODEL, python:MODULE:FUNCTION"
    raise BokehError(f"{role} {word!r} is unknown; choose {known}{' or nearest' if role == 'mask' else ''}.")


def _caption_provider(word: str) -> CaptionProvider | None:
    kind, what, options = split_word(word)
    if kind == "none":
        return None
    if kind == "files":
        take(options, word)
        return captions_beside(what)
    if kind == "transformers":
        from trainer.data.prepare.providers.pipelines import CaptionPipeline

        chosen = take(options, word, device="cpu", task="image-to-text", prompt="", tokens="60")
        return CaptionPipeline(
            what, chosen["device"], chosen["task"], chosen["prompt"], int(chosen["tokens"])
        )
    if kind == "python":
        take(options, word)
        function = _function(what, word)
        return lambda photograph: _as_captions(function(photograph), word)
    raise BokehError(
        f"captions {word!r} is unknown; choose files, none, transformers:MODEL or python:MODULE:FUNCTION."
    )


def _judge(question: Question, word: str) -> Judge:
    kind, what, options = split_word(word)
    if word == "files":
        return answer_beside(question)
    if kind == "transformers" and "task" in options:
        from trainer.data.prepare.providers.pipelines import AskingPipeline

        chosen = take(options, word, device="cpu", task="", prompt="")
        if chosen["task"] != "image-text-to-text":
            raise BokehError(
                f"task={chosen['task']} answers no question; choose image-text-to-text, or leave it out for a network "
                "that gives labels."
            )
        return AskingPipeline(question, what, chosen["device"], chosen["prompt"])
    if kind == "transformers":
        from trainer.data.prepare.providers.pipelines import LabelPipeline

        known = {answer: answer for answer in question.answers[:-1]}
        labels = take(options, word, device="cpu", **known)
        return LabelPipeline(question, what, labels.pop("device"), labels)
    if kind == "python":
        take(options, word)
        function = _function(what, word)
        return lambda photograph: question.answer(function(photograph), word)
    raise BokehError(
        f"{question.role} {word!r} is unknown; choose files, transformers:MODEL or python:MODULE:FUNCTION."
    )


def _function(what: str, word: str) -> Callable[[Photograph], Any]:
    module, _, name = what.rpartition(":")
    if not module or not name:
        raise BokehError(f"{word!r} names no function; write python:MODULE:FUNCTION.")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does; the processes that work here are started otherwise
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise BokehError(
            f"{word!r} cannot be imported: {error}. It is looked for from {Path(here)} on."
        ) from error
    if not callable(found):
        raise BokehError(f"{word!r} is a {type(found).__name__}, expected a function.")
    return found


def _as_map(value: Any, word: str) -> np.ndarray:
    """A map from whatever a stranger's function returned: an array or a tensor with spare dimensions of 1."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy()
    array = np.asarray(value, dtype=np.float32)
    array = array.reshape([side for side in array.shape if side != 1] if array.ndim > 2 else array.shape)
    if array.ndim != 2:
        raise BokehError(f"{word} gave values of shape {list(np.shape(value))}; expected [h, w].")
    return array


def _as_captions(value: Any, word: str) -> Sequence[str]:
    texts = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(text, str) for text in texts):
        raise BokehError(f"{word} gave {str(texts)[:80]}; expected texts.")
    return texts
