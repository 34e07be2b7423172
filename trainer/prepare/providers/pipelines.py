"""Depth, masks and captions by pipelines of the ``transformers`` library.

A model is named as on its hub, in which case the library may fetch it, or by a folder. Code that comes with a model
is not run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bokeh_ops.errors import BokehError
from trainer.prepare.providers.protocol import Photograph


class DepthPipeline:
    """``depth-estimation``. Its raw values are passed on; what they mean differs from model to model.

    Args:
        model: name or folder.
        device: as torch calls it.
    """

    def __init__(self, model: str, device: str = "cpu") -> None:
        self.pipe = _pipeline("depth-estimation", model, device)

    def __call__(self, photograph: Photograph) -> np.ndarray:
        """Depth ``[h, w]``, float32."""
        found = self.pipe(photograph.image)["predicted_depth"]
        return found.detach().float().cpu().numpy().squeeze()


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


def _pipeline(task: str, model: str, device: str) -> Any:
    try:
        from transformers import pipeline

        return pipeline(task, model=model, device=device, trust_remote_code=False)  # type: ignore[call-overload]
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise BokehError(f"The model {model} cannot be loaded for {task}: {error}") from error
