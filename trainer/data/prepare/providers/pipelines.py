"""Depth, masks, captions and answers by models of the ``transformers`` library.

A model is named as on its hub, in which case the library may fetch it, or by a folder. Code that comes with a model
is not run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F

from bokeh_ops.depth.conventions import DepthKind, DepthUnit
from bokeh_ops.depth.estimate import estimate_one, known_kind, load_estimator, to_map
from bokeh_ops.errors import BokehError
from trainer.data.prepare.providers.protocol import Photograph
from trainer.data.prepare.providers.question import Question, plain


class DepthPipeline:
    """Depth by :mod:`bokeh_ops.depth.estimate`, as the node Estimate Depth has it.

    Args:
        model: name or folder.
        device: as torch calls it.
        own_unit: give dioptres, as the model tells what its values mean; else its values are passed on, and what they
            mean is for others to say.
        normalised: the unit will be forgotten, so that a model without one does.

    Raises:
        BokehError: a model that cannot be loaded, or does not measure though its own unit is asked for.
    """

    def __init__(
        self, model: str, device: str = "cpu", own_unit: bool = False, normalised: bool = False
    ) -> None:
        self.estimator = load_estimator(model, fetch=True)
        self.own_unit, self.normalised = own_unit, normalised
        if own_unit and known_kind(self.estimator) is not DepthKind.METRIC and not normalised:
            raise BokehError(
                f"{self.estimator.name} tells near and far and not metres, so its depth has no unit. Say what it means "
                "with --depth-kind disparity and --depth-scale, or add --depth-normalise, or take one that measures."
            )
        self.estimator.network.to(device)

    def __call__(self, photograph: Photograph) -> np.ndarray:
        """Depth ``[h, w]`` of the photograph's size, float32."""
        found = estimate_one(self.estimator, photograph.image)
        values = found.values[None, None]
        if self.own_unit:
            depth = to_map(self.estimator.name, known_kind(self.estimator), [found])
            if depth.unit is DepthUnit.RELATIVE and not self.normalised:
                raise BokehError(f"{self.estimator.name} could not tell the scale of this photograph.")
            values = depth.disparity
        size = (photograph.image.height, photograph.image.width)
        return F.interpolate(values, size=size, mode="bilinear", antialias=True)[0, 0].numpy()


class MaskPipeline:
    """``image-segmentation``: the foreground is whatever bears one of some labels.

    Args:
        model: name or folder.
        device: as torch calls it.
        labels: labels joined by ``+``, such as ``person+cat+dog``.
    """

    def __init__(self, model: str, device: str = "cpu", labels: str = "") -> None:
        self.labels = {label.strip().lower() for label in labels.split("+") if label.strip()}
        if not self.labels:
            raise BokehError(
                f"Say which labels of {model} are foreground: transformers:{model},labels=person+cat+dog."
            )
        self.pipe = _pipeline("image-segmentation", model, device)
        known = {str(label).lower() for label in self.pipe.model.config.id2label.values()}
        if not self.labels <= known:
            raise BokehError(
                f"{model} has no label {', '.join(sorted(self.labels - known))}; it knows "
                f"{', '.join(sorted(known)[:40])}."
            )

    def __call__(self, photograph: Photograph) -> np.ndarray:
        """The union of the labels' masks ``[h, w]``, 0 or 1."""
        mask = np.zeros((photograph.image.height, photograph.image.width), np.float32)
        for part in self.pipe(photograph.image):
            if str(part["label"]).lower() in self.labels:
                mask = np.maximum(mask, np.asarray(part["mask"], dtype=np.float32) / 255)
        return mask


class CaptionPipeline:
    """``image-to-text``, or ``image-text-to-text`` with a prompt.

    Args:
        model: name or folder.
        device: as torch calls it.
        task: one of the two.
        prompt: for the second.
        tokens: at most so many.
    """

    def __init__(self, model: str, device: str, task: str, prompt: str, tokens: int) -> None:
        if task not in ("image-to-text", "image-text-to-text"):
            raise BokehError(f"task={task} makes no captions; choose image-to-text or image-text-to-text.")
        self.task, self.tokens = task, tokens
        self.prompt = prompt or "Describe this photograph in one sentence."
        self.pipe = _pipeline(task, model, device)

    def __call__(self, photograph: Photograph) -> list[str]:
        """One caption, or none where the model says nothing."""
        if self.task == "image-to-text":
            found = self.pipe(photograph.image, max_new_tokens=self.tokens)
        else:
            asked: list[dict[str, Any]] = [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": photograph.image},
                        {"type": "text", "text": self.prompt},
                    ],
                }
            ]
            found = self.pipe(text=asked, max_new_tokens=self.tokens, return_full_text=False)
        text = " ".join(str(found[0]["generated_text"]).split())
        return [text] if text else []


class LabelPipeline:
    """``image-classification``: the answer whose labels are likeliest together.

    Args:
        question: what is asked.
        model: name or folder.
        device: as torch calls it.
        labels: of each answer but the last, the model's labels that mean it, joined by ``+``. All other labels mean
            the last answer.

    Raises:
        BokehError: a model that cannot be loaded, or has no such label.
    """

    def __init__(self, question: Question, model: str, device: str, labels: dict[str, str]) -> None:
        self.pipe = _pipeline("image-classification", model, device)
        known = {plain(str(label)) for label in self.pipe.model.config.id2label.values()}
        self.rest = question.answers[-1]
        self.meaning: dict[str, str] = {}
        for answer in question.answers[:-1]:
            wanted = {plain(label) for label in labels[answer].split("+")}
            if not wanted <= known:
                raise BokehError(
                    f"{model} has no label {', '.join(sorted(wanted - known))}; it knows "
                    f"{', '.join(sorted(known)[:40])}. Say which of them mean {answer!r}: "
                    f"--{question.role} 'transformers:{model},{answer}=LABEL+LABEL'."
                )
            self.meaning.update(dict.fromkeys(wanted, answer))

    def __call__(self, photograph: Photograph) -> str:
        """The likeliest answer."""
        sums: dict[str, float] = {}
        for found in self.pipe(photograph.image, top_k=None):
            answer = self.meaning.get(plain(str(found["label"])), self.rest)
            sums[answer] = sums.get(answer, 0.0) + float(found["score"])
        return max(sums, key=lambda answer: sums[answer])


class AskingPipeline:
    """``image-text-to-text``: a model that is asked in words (Shrivastava et al. ask InternVL).

    Args:
        question: what is asked.
        model: name or folder.
        device: as torch calls it.
        prompt: other words for the question, whose answers stay the same.
    """

    def __init__(self, question: Question, model: str, device: str, prompt: str) -> None:
        self.question, self.model = question, model
        self.ask = CaptionPipeline(model, device, "image-text-to-text", prompt or question.prompt, tokens=12)

    def __call__(self, photograph: Photograph) -> str:
        """What its sentence begins with.

        Raises:
            BokehError: that is none of the answers.
        """
        return self.question.heard(" ".join(self.ask(photograph)), self.model)


def _pipeline(task: str, model: str, device: str) -> Any:
    try:
        from transformers import pipeline

        return pipeline(task, model=model, device=device, trust_remote_code=False)  # type: ignore[call-overload]
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise BokehError(f"The model {model} cannot be loaded for {task}: {error}") from error
