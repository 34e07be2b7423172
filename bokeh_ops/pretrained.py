"""Networks of ``transformers``, from folders as its hub has them.

Such a folder holds ``config.json``, ``preprocessor_config.json`` and weights. Code that comes with a model is not run.
The library is imported when a model is loaded, and not before.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from .errors import BokehError

FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
"""What a model's folder holds, as a hub names it; larger models have an index and several weight files."""

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_UNUSED = ("fusion_stage.layers.0.residual_layer1.", "mask_token")
"""Weights that released models leave out: nothing is added to the deepest layer, and nothing is masked."""
_CANNOT_LOAD = (
    OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, EOFError, SafetensorError,
    pickle.UnpicklingError,
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What models are wanted for.

    Attributes:
        name: the library's, such as ``depth-estimation``.
        loader: its class that loads them.
        mapping: where it lists the kinds of models that can do it.
        word: part of the names of their classes.
        examples: kinds that are known to do it.
        advice: for who has a model that is none of ``transformers``.
    """

    name: str
    loader: str
    mapping: str
    word: str
    examples: tuple[str, ...]
    advice: str


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A model with what belongs to it.

    Attributes:
        network: on the CPU, in fp32, without gradients.
        processor: its image processor.
        name: what it is called: folder or hub name.
    """

    network: Any
    processor: Any
    name: str


def load_pretrained(model: str | Path, task: Task, fetch: bool = False) -> Pretrained:
    """A model from its folder.

    Args:
        model: the folder, or with ``fetch`` a name on the library's hub.
        task: what it is wanted for.
        fetch: the library may download what is not there.

    Raises:
        BokehError: no such folder, part of a model, a model for something else, or files that cannot be read.
    """
    given = Path(model)
    if given.is_dir():
        _check_folder(given, task)
    elif not fetch:
        raise BokehError(f"There is no folder {given}; expected one with {', '.join(FILES)}.")
    name = given.name if given.is_dir() else str(model)
    local = given.is_dir() or not fetch
    try:
        import transformers
        from transformers.models.auto import modeling_auto

        loader, processors = getattr(transformers, task.loader), transformers.AutoImageProcessor
    except (ImportError, RuntimeError) as error:
        raise BokehError(
            f"A model for {task.name} needs the package transformers, which ComfyUI brings, but it cannot be "
            f"imported: {error}"
        ) from error
    where: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    try:
        with _quietly():
            config: Any = transformers.AutoConfig.from_pretrained(model, **where)
            _check_task(config, name, task, getattr(modeling_auto, task.mapping))
            if getattr(config, "backbone", None):
                _check_backbone(config, name, local)
            network, report = loader.from_pretrained(model, config=config, output_loading_info=True, **where)
            processor = processors.from_pretrained(model, **where)
    except BokehError:
        raise
    except _CANNOT_LOAD as error:
        raise BokehError(
            f"The model {name} cannot be loaded for {task.name}: {_first_line(error)} If a file is damaged or was not "
            "downloaded whole, download it again."
        ) from error
    _check_weights(network, report, name)
    return Pretrained(network.float().eval().requires_grad_(False), processor, name)


def as_pillow(picture: Tensor) -> Image.Image:
    """``[C, H, W]``, 0..1, as the library's processors take it: 8 bits, RGB."""
    colours = picture[:3] if len(picture) > 1 else picture.expand(3, -1, -1)
    pixels = colours.detach().float().nan_to_num(0.0).clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(np.ascontiguousarray(pixels.movedim(0, -1).cpu().numpy()))


def pixel_values(processor: Any, picture: Image.Image, name: str) -> Tensor:
    """What a network sees of a picture: ``[1, 3, h, w]`` on the CPU.

    Args:
        processor: the network's.
        picture: RGB, upright.
        name: the network's, for the error.

    Raises:
        BokehError: a picture that is too small or too narrow.
    """
    try:
        return processor(images=picture, return_tensors="pt")["pixel_values"]
    except (ValueError, RuntimeError) as error:  # a side that would have no pixels left
        raise BokehError(
            f"{name} cannot look at a picture of {picture.width} x {picture.height} pixels: {_first_line(error)} Give "
            "a larger one, or one that is less narrow."
        ) from error


def _check_folder(folder: Path, task: Task) -> None:
    missing = [name for name in FILES[:2] if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in _WEIGHTS):
        missing.append(FILES[2])
    if missing:
        have = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise BokehError(
            f"The model in {folder} is not whole and cannot be loaded for {task.name}: {', '.join(missing)} is "
            f"missing; found {have}. Put all files of its repository there."
        )
    try:
        named = json.loads((folder / FILES[0]).read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return  # told by the library, which reads it too
    if not named:
        raise BokehError(
            f"{folder / FILES[0]} names no model_type, so it is not a model of transformers. {task.advice}"
        )


def _check_task(config: Any, name: str, task: Task, kinds: Collection[str]) -> None:
    expected = f"Expected a model for {task.name.replace('-', ' ')}: {', '.join(task.examples)}."
    if config.model_type not in kinds:
        raise BokehError(f"{name} is a model of another task: its kind is {config.model_type!r}. {expected}")
    made_for = getattr(config, "architectures", None) or []
    if made_for and not any(task.word in each for each in made_for):
        raise BokehError(f"{name} is a model of another task: it is a {', '.join(made_for)}. {expected}")


def _check_backbone(config: Any, name: str, local: bool) -> None:
    if local and not config.use_timm_backbone:
        raise BokehError(
            f"{name} is not whole by itself: its config.json names another repository ({config.backbone}) as its "
            "backbone instead of describing it in backbone_config. Use a model that does."
        )
    config.use_pretrained_backbone = False  # its weights are in this model's own


def _check_weights(network: Any, report: Any, name: str) -> None:
    parameters = {key for key, _ in network.named_parameters()}
    missing = sorted(key for key in report["missing_keys"] if key in parameters and not _is_unused(key))
    if missing:
        raise BokehError(
            f"The weights of {name} are not whole: {len(missing)} of {len(parameters)} are missing, the first is "
            f"{missing[0]!r}. Its files belong to another model, or were not downloaded whole."
        )


def _is_unused(key: str) -> bool:
    return any(part in key for part in _UNUSED)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the library's remarks on loading, which are for those who train: what matters is told as an error."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _first_line(error: BaseException) -> str:
    return f"{(str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip('.')}."
