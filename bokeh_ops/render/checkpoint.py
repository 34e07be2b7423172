"""Weights of small networks from files of strangers, without executing anything in them.

``.safetensors`` holds tensors only. A ``.pth`` of ``torch.save`` holds a pickle, which is a program. The one here
is run by an interpreter that knows three things: dictionaries, tensors and their storages. Names that a training
checkpoint may hold beside the weights (NumPy arrays, for one) become empty stand-ins that do nothing; any other
name ends the reading before anything is called.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import BokehError

LARGEST = 256 * 2**20
"""Bytes that a checkpoint's parts may have once unpacked."""

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


# The pickle's BUILD instruction sets attributes of any object, classes too, unless that has a __setstate__.


class _Nothing:
    """Takes the place of what is not wanted."""

    __slots__ = ()

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _Dict(dict):
    """Takes the place of an ordered dictionary; what else hangs on a state dict is not wanted."""

    __slots__ = ()

    def __setstate__(self, _: Any) -> None:
        pass


class _Call:
    """A function that a pickle may call and not change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *given: Any) -> Any:
        return self._function(*given)

    def __setstate__(self, _: Any) -> None:
        pass


_IGNORED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
}


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Named tensors of a ``.safetensors`` file, or of a ``.pth`` file's ``model`` (or of the file itself).

    Args:
        path: a file written by safetensors, or by ``torch.save`` of PyTorch 1.6 or newer: a state dict, or a
            checkpoint with one under ``model`` or ``state_dict``, whatever is beside it.

    Returns:
        Tensors on the CPU by name. Where the file has dictionaries of tensors alone, such as one a module, names are
        joined with dots.

    Raises:
        BokehError: no such file, neither of the formats, damaged, too large, or a pickle that names anything
            but tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise BokehError(f"There is no file {path}. Give the path of a .safetensors or .pth file.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise BokehError(f"{path} is not a whole safetensors file: {error}.") from error
    if not zipfile.is_zipfile(path):
        raise BokehError(
            f"{path} is not a checkpoint of torch.save (a zip archive, PyTorch 1.6 or newer). Files of older "
            "formats are not read; convert the weights to .safetensors."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            found = _Reader(archive, path).read()
    except BokehError:
        raise
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
        ValueError,
        RuntimeError,
        OverflowError,
        MemoryError,
        zlib.error,
    ) as error:
        raise BokehError(f"{path} is damaged, or no checkpoint of torch.save: {error}.") from error
    for name in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
            break
    if not isinstance(found, dict):
        raise BokehError(f"{path} holds no dictionary of weights.")
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)} or dict(
        _leaves(found)
    )
    if not tensors:
        raise BokehError(f"{path} holds no tensors, neither at its top nor under 'model' or 'state_dict'.")
    return tensors


def _leaves(found: dict[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of dictionaries in a dictionary, by their names joined with dots."""
    for key, value in found.items():
        if isinstance(value, dict):
            for name, tensor in _leaves(value):
                yield f"{key}.{name}", tensor
        elif isinstance(value, Tensor):
            yield str(key), value


def fill(module: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Put weights into a module whose names and shapes they must have exactly.

    Args:
        module: changed in place.
        weights: by the module's own names.
        path: where they come from, for messages.

    Raises:
        BokehError: names missing or not known, other shapes, or numbers that are NaN or infinite.
    """
    own = module.state_dict()
    kind = type(module).__name__
    missing, extra = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    if missing or extra:
        raise BokehError(
            f"{path} does not hold a {kind}: of its {len(own)} tensors {len(missing)} are missing "
            f"({', '.join(missing[:3]) or 'none'}), and {len(extra)} are not known ({', '.join(extra[:3]) or 'none'})."
        )
    for name, tensor in own.items():
        if weights[name].shape != tensor.shape:
            raise BokehError(
                f"{path}: {name} is {tuple(weights[name].shape)}; a {kind} has {tuple(tensor.shape)}."
            )
        if not bool(torch.isfinite(weights[name]).all()):
            raise BokehError(f"{path}: {name} holds numbers that are NaN or infinite; the file is damaged.")
    module.load_state_dict({name: weights[name].to(tensor.dtype) for name, tensor in own.items()})


class _Reader(pickle.Unpickler):
    """Reads ``data.pkl`` of an archive of ``torch.save``."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive, self._path = archive, path
        names = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
        size = sum(info.file_size for info in archive.infolist())
        if len(names) != 1:
            raise BokehError(f"{path} holds {len(names)} files data.pkl; a checkpoint of torch.save has one.")
        if size > LARGEST:
            raise BokehError(
                f"{path} unpacks to {size / 2**20:.0f} MiB; at most {LARGEST / 2**20:.0f} are read."
            )
        self._folder = names[0][: -len("data.pkl")]
        if f"{self._folder}byteorder" in archive.namelist():
            order = archive.read(f"{self._folder}byteorder")
            if order != b"little":
                raise BokehError(f"{path} has the byte order {order[:16]!r}; only 'little' is read.")
        self._read: dict[str, Tensor] = {}
        program = archive.read(names[0])
        for instruction, argument, _ in pickletools.genops(program):
            # The interpreter makes room up to the place that is named, however little the file holds.
            if "PUT" in instruction.name and isinstance(argument, int) and argument > len(program):
                raise BokehError(f"{path} is damaged: its pickle notes something at place {argument}.")
        super().__init__(io.BytesIO(program))

    def read(self) -> Any:
        """The pickled object."""
        return self.load()

    def find_class(self, module_name: str, global_name: str) -> Any:
        """What a name in the pickle stands for: never an import."""
        known = (module_name, global_name)
        if known == ("collections", "OrderedDict"):
            return _Dict
        if known == ("torch._utils", "_rebuild_tensor_v2"):
            return _Call(self._tensor)
        if known == ("torch._utils", "_rebuild_parameter"):
            return _Call(_parameter)
        if module_name == "torch" and global_name in _STORAGES:
            return _STORAGES[global_name]
        if known in _IGNORED:
            return _Nothing
        raise BokehError(
            f"{self._path} names {module_name}.{global_name}, which has no place among weights and could run code. "
            "Nothing of it was run. Use a file from its maker, or one in .safetensors."
        )

    def persistent_load(self, pid: Any) -> Tensor:
        """A storage, as a flat tensor."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise BokehError(f"{self._path} has a storage this cannot read.")
        if key not in self._read:
            raw = self._archive.read(f"{self._folder}data/{key}")
            self._read[key] = (
                torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
            )
        storage = self._read[key]
        if storage.dtype != dtype or storage.numel() != count:
            raise BokehError(
                f"{self._path} is damaged: storage {key} has {storage.numel()} numbers, not {count}."
            )
        return storage

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        if not isinstance(storage, Tensor) or math.prod(size) > storage.numel():
            raise BokehError(
                f"{self._path} is damaged: a tensor of {tuple(size)} is larger than its storage."
            )
        return torch.as_strided(storage, tuple(size), tuple(stride), offset).clone()


def _parameter(data: Any, *_: Any) -> Any:
    return data
