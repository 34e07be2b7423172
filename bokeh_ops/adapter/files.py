"""Adapter files: the released FLUX layout and this project's, told apart by what is in them.

Both layouts are safetensors; nothing here ever unpickles. The released layout is ``model.safetensors`` with an
optional ``config.json`` beside it; this project's is one file whose metadata says ``format = bokeh-adapter``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import BokehError
from .conditions import K
from .network import CROSS, QUERY_KEY, AdapterConfig, BokehAdapter, LayerSpec, LowRankProjection

FORMAT = "bokeh-adapter"
VERSION = "1"
RELEASED_DOUBLE_BLOCKS = 19
"""Double blocks of FLUX.1, assumed for a released file of FLUX.1's width when nothing else tells."""
RELEASED_WIDTH = 3072

_RELEASED_KEY = re.compile(r"^adapter_modules\.(\d+)\.(to_[kv]_bokeh|to_[qk]_adp)\.(down|up)\.weight$")
_PROJECT_KEY = re.compile(
    r"^(.+)\.(to_k_bokeh|to_v_bokeh|to_q_adp|to_k_adp)\.(weight|down\.weight|up\.weight)$"
)
_EMBEDDING = {f"embedding_layer.{i}.{n}" for i in (0, 2) for n in ("weight", "bias")}
_FLUX = ("double_blocks.", "single_blocks.")
_BLOCK_NAME = re.compile(r"^(single_)?transformer_blocks\.(\d+)$")


def read_adapter(path: str | os.PathLike[str], double_blocks: int | None = None) -> BokehAdapter:
    """Read an adapter of either layout.

    Args:
        path: a ``.safetensors`` file, or a folder that holds ``model.safetensors``.
        double_blocks: number of double blocks of the model that it is meant for (:func:`count_double_blocks`). The
            released layout numbers FLUX's blocks through and needs it when there is no ``config.json`` and the width
            is not FLUX.1's.

    Raises:
        BokehError: not a safetensors file, neither layout, missing or extra or misshapen tensors, NaN weights.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    tensors, metadata = read_tensors(path)
    released = [key for key in tensors if _RELEASED_KEY.match(key)]
    if released:
        config_file = path.parent / "config.json"
        config = _read_json(config_file) if config_file.is_file() else None
        tensors = _rename_released(tensors, config, double_blocks, path)
        base: str | None = "flux"
        settings: dict[str, Any] = dict(config or {})
        for name in ("blocks", "attn_hidden_dim", "bokeh_input_dim", "lora_rank", "unfreeze_q", "unfreeze_k"):
            settings.pop(name, None)  # they describe shapes, which the tensors themselves say
    elif any(_PROJECT_KEY.match(key) for key in tensors):
        settings = _project_settings(metadata, path)
        base = settings.pop("base", None)
    else:
        raise BokehError(
            f"{path} is a safetensors file but not a bokeh adapter: it has {len(tensors)} tensors such as "
            f"{_some(tensors)}; an adapter has 'adapter_modules.0.to_v_bokeh...' (the released FLUX layout) or "
            "'<layer>.to_v_bokeh...' (this project's). Is it a LoRA or a checkpoint?"
        )
    return _build(tensors, base, settings, path)


def count_double_blocks(layers: Iterable[str]) -> int | None:
    """How many of the layers' paths are FLUX's double blocks; None where none is."""
    return sum(layer.startswith("double_blocks.") for layer in layers) or None


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file, without executing anything in it.

    Raises:
        BokehError: the file is missing or is something else; the message says what it looks like.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*")) if path.parent.is_dir() else []
        found = (
            f"the folder holds {', '.join(near[:8]) or 'nothing'}"
            if path.parent.is_dir()
            else "no such folder"
        )
        raise BokehError(f"No adapter file {path}: {found}.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        # Only now: the first bytes of a sound file are a length, and may look like anything.
        with open(path, "rb") as file:
            looks = _looks_like(file.read(512))
        if looks:
            raise BokehError(f"{path} is not a safetensors file: {looks}") from error
        raise BokehError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as safetensors ({error}). "
            "The download is probably cut short: fetch it again and compare its size."
        ) from error


def _looks_like(head: bytes) -> str | None:
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            "it is a web page, saved in place of the file. Download it again, logged in where that is needed."
        )
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer. Run 'git lfs pull', or download the file itself."
    if head.startswith(b"PK\x03\x04") or head[:1] == b"\x80":
        return (
            "it is a pickle or an archive (.ckpt, .pt, .pth, .bin), which can run code when loaded and is not read "
            "here. Ask for, or convert it to, safetensors."
        )
    if head.startswith(b"GGUF"):
        return "it is a GGUF model; adapters are .safetensors files."
    if len(head) < 10:
        return f"it is {len(head)} bytes long. Download it again."
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BokehError(
            f"{path} cannot be read as JSON ({error}); download it again, or move it away if it is another file's."
        ) from error
    if not isinstance(value, dict):
        raise BokehError(f"{path} holds a JSON {type(value).__name__}, expected an object.")
    return value


def _project_settings(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    if metadata.get("format", FORMAT) != FORMAT:
        raise BokehError(f"{path} says its format is {metadata['format']!r}, expected {FORMAT!r}.")
    if metadata.get("version", VERSION) != VERSION:
        raise BokehError(
            f"{path} has layout version {metadata['version']!r}; this extension reads version {VERSION}. Update it."
        )
    try:
        settings = json.loads(metadata.get("config", "{}"))
    except ValueError as error:
        raise BokehError(f"{path}: the 'config' in its metadata is not JSON ({error}).") from error
    if not isinstance(settings, dict):
        raise BokehError(f"{path}: the 'config' in its metadata is not a JSON object.")
    settings.pop("bokeh_input_dim", None)  # how many fields there are, as their names say
    return settings


def _rename_released(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None, double_blocks: int | None, path: Path
) -> dict[str, Tensor]:
    numbers = sorted({int(m.group(1)) for key in tensors if (m := _RELEASED_KEY.match(key))})
    blocks = config.get("blocks") if config else None
    if blocks is not None:
        names = _ordered_blocks(blocks, path)
        if len(names) != len(numbers):
            raise BokehError(
                f"{path}: config.json names {len(names)} blocks but the file has weights for {len(numbers)}. "
                "They do not belong together: download both again."
            )
        paths = dict(zip(numbers, names, strict=True))
    else:
        if double_blocks is None:
            widths = {t.shape[0] for k, t in tensors.items() if k.endswith("to_v_bokeh.up.weight")}
            if widths != {RELEASED_WIDTH}:
                raise BokehError(
                    f"{path} numbers its blocks through and there is no config.json beside it that names them; "
                    "put the config.json it came with next to it."
                )
            double_blocks = RELEASED_DOUBLE_BLOCKS
        paths = {
            n: f"double_blocks.{n}" if n < double_blocks else f"single_blocks.{n - double_blocks}"
            for n in numbers
        }
    renamed = {}
    for key, tensor in tensors.items():
        match = _RELEASED_KEY.match(key)
        renamed[
            f"{paths[int(match.group(1))]}.{match.group(2)}.{match.group(3)}.weight" if match else key
        ] = tensor
    return renamed


def _ordered_blocks(blocks: Any, path: Path) -> list[str]:
    if not isinstance(blocks, list):
        raise BokehError(
            f"{path}: the 'blocks' of config.json is {blocks!r}, expected a list of block names."
        )
    found = []
    for name in blocks:
        match = _BLOCK_NAME.match(str(name))
        if not match:
            raise BokehError(
                f"{path}: config.json names a block {name!r}; expected 'transformer_blocks.N' or "
                "'single_transformer_blocks.N'."
            )
        found.append((bool(match.group(1)), int(match.group(2))))
    if len(set(found)) != len(found):
        raise BokehError(f"{path}: config.json names a block twice. Download it again.")
    return [f"{'single' if single else 'double'}_blocks.{index}" for single, index in sorted(found)]


def _build(
    tensors: Mapping[str, Tensor], base: str | None, settings: dict[str, Any], path: Path
) -> BokehAdapter:
    unknown = [k for k in tensors if k not in _EMBEDDING and not _PROJECT_KEY.match(k)]
    if unknown:
        raise BokehError(
            f"{path} has {len(unknown)} tensors that no bokeh adapter has, such as {_some(unknown)}. "
            "It is damaged, or was written by a newer version."
        )
    missing = sorted(_EMBEDDING - set(tensors))
    if missing:
        raise BokehError(f"{path} lacks {', '.join(missing)}: the embedding of K is incomplete.")
    if base is None:
        base = "flux" if any(k.startswith(_FLUX) for k in tensors) else "sd15"
    cross, query_key = _layers(tensors, path)
    present = tuple(name for name in QUERY_KEY if any(f".{name}." in key for key in tensors))
    contexts = {
        tensors[key].shape[1]
        for key in tensors
        if (m := _PROJECT_KEY.match(key)) and m.group(2) in CROSS and m.group(3) in ("weight", "down.weight")
    }
    out_dim, hidden = _matrix(tensors["embedding_layer.2.weight"], "embedding_layer.2.weight", path)
    context = contexts.pop() if contexts else int(settings.get("bokeh_context_dim", out_dim))
    if contexts:
        raise BokehError(
            f"{path}: its layers read bokeh tokens of different widths ({context} and {contexts})."
        )
    if not context or out_dim % context:
        raise BokehError(
            f"{path}: the embedding makes {out_dim} numbers, which is no whole number of tokens of width {context}."
        )
    settings.update(bokeh_hidden_dim=hidden, bokeh_context_dim=context, tokens=out_dim // context)
    if "fields" in settings:
        if not isinstance(settings["fields"], list):
            raise BokehError(f"{path}: its 'fields' are {settings['fields']!r}, expected a list of names.")
        settings["fields"] = tuple(settings["fields"])
    try:
        config = _config(base, settings)
    except BokehError as error:
        raise BokehError(f"{path}: {error}") from error
    adapter = BokehAdapter(config, cross, query_key, present)
    wanted = adapter.state_dict()
    lacking = sorted(_counterparts(tensors) | set(wanted) - set(tensors))
    if lacking:
        raise BokehError(
            f"{path} lacks {len(lacking)} tensors: {_some(lacking)}. It is incomplete: download it again."
        )
    for key, tensor in tensors.items():
        if tensor.shape != wanted[key].shape:
            raise BokehError(f"{path}: {key} is {list(tensor.shape)}, expected {list(wanted[key].shape)}.")
        if not tensor.is_floating_point():
            raise BokehError(f"{path}: {key} is {tensor.dtype}, expected floating point numbers.")
        if not torch.isfinite(tensor.float()).all():
            raise BokehError(
                f"{path}: {key} has NaN or infinite weights: its training diverged, or the file is damaged."
            )
    # `assign` keeps the file's own precision and memory map.
    adapter.load_state_dict(dict(tensors), assign=True)
    return adapter.requires_grad_(False).eval()


def _layers(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, LayerSpec], dict[str, LayerSpec]]:
    cross: dict[str, LayerSpec] = {}
    query_key: dict[str, LayerSpec] = {}
    for key, tensor in tensors.items():
        match = _PROJECT_KEY.match(key)
        if not match:
            continue
        layer, name, part = match.groups()
        rows, columns = _matrix(tensor, key, path)
        table = cross if name in CROSS else query_key
        if name in QUERY_KEY and part == "weight":
            raise BokehError(
                f"{path}: {key} is a full matrix; query/key adapters are low-rank (down and up)."
            )
        if part == "weight":
            table.setdefault(layer, LayerSpec(rows))
        elif part == "up.weight":
            table.setdefault(layer, LayerSpec(rows, columns))
    return dict(sorted(cross.items())), dict(sorted(query_key.items()))


def _counterparts(tensors: Mapping[str, Tensor]) -> set[str]:
    """The other halves of the low-rank pairs of which ``tensors`` has only one."""
    halves = {key for key in tensors if (m := _PROJECT_KEY.match(key)) and m.group(3) != "weight"}
    swap = {"down.weight": "up.weight", "up.weight": "down.weight"}
    others = {
        f"{m.group(1)}.{m.group(2)}.{swap[m.group(3)]}" for key in halves if (m := _PROJECT_KEY.match(key))
    }
    return others - halves


def _matrix(tensor: Tensor, key: str, path: Path) -> tuple[int, int]:
    if tensor.ndim != 2:
        raise BokehError(
            f"{path}: {key} has {tensor.ndim} dimensions {list(tensor.shape)}, expected a matrix."
        )
    return tensor.shape[0], tensor.shape[1]


def _config(base: str, settings: Mapping[str, Any]) -> AdapterConfig:
    known = {f.name for f in fields(AdapterConfig)} - {"base", "extra"}
    named: dict[str, Any] = {
        k: v for k, v in settings.items() if k in known and (v is not None or k == "lora_alpha")
    }
    return AdapterConfig(base=base, **named, extra={k: v for k, v in settings.items() if k not in known})


def _some(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (" ..." if len(listed) > 3 else "")


def write_adapter(
    adapter: BokehAdapter, path: str | os.PathLike[str], dtype: torch.dtype | None = None
) -> Path:
    """Write this project's layout, atomically.

    Args:
        path: the ``.safetensors`` file to make or replace.
        dtype: precision of the tensors; None keeps them as they are.
    """
    config = {f.name: getattr(adapter.config, f.name) for f in fields(AdapterConfig) if f.name != "extra"}
    if adapter.config.fields == (K.name,):
        del config["fields"]  # as earlier versions know it
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "config": json.dumps({**adapter.config.extra, **config}),
    }
    return _save({k: _cast(v, dtype) for k, v in adapter.state_dict().items()}, Path(path), metadata)


def write_released(
    adapter: BokehAdapter,
    folder: str | os.PathLike[str],
    double_blocks: int = RELEASED_DOUBLE_BLOCKS,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the released FLUX layout: ``model.safetensors`` and ``config.json`` in ``folder``.

    Raises:
        BokehError: the adapter is not a low-rank FLUX adapter, so that layout cannot hold it.
    """
    layers = {*adapter.cross_layers, *adapter.query_key_layers}
    if not all(layer.startswith(_FLUX) for layer in layers):
        raise BokehError(f"The released layout is for FLUX; this adapter is for {adapter.config.base}.")
    if adapter.config.fields != (K.name,):
        raise BokehError(f"The released layout knows K alone; this adapter is told {adapter.config.fields}.")
    blocks: dict[str, int] = {}
    for layer in layers:
        kind, _, index = layer.partition(".")
        blocks[layer] = int(index) + (0 if kind == "double_blocks" else double_blocks)
    tensors, rank = {}, None
    for key, tensor in adapter.state_dict().items():
        match = _PROJECT_KEY.match(key)
        if match:
            if match.group(3) == "weight":
                raise BokehError(f"{key} is a full matrix; the released layout holds low-rank pairs only.")
            projection = adapter.projection(match.group(1), match.group(2))
            assert isinstance(projection, LowRankProjection)
            rank = projection.down.weight.shape[0]
            key = f"adapter_modules.{blocks[match.group(1)]}.{match.group(2)}.{match.group(3)}"
        tensors[key] = _cast(tensor, dtype)
    config = adapter.config
    named = [
        f"{'single_' if layer.startswith('single') else ''}transformer_blocks.{layer.split('.')[1]}"
        for layer in sorted(blocks, key=lambda layer: blocks[layer])
    ]
    settings = {
        **config.extra,
        "blocks": named,
        "attn_hidden_dim": next(iter(adapter.widths.values())),
        "bokeh_input_dim": 1,
        "bokeh_hidden_dim": config.bokeh_hidden_dim,
        "bokeh_context_dim": config.bokeh_context_dim,
        "lora_rank": rank,
        "lora_alpha": config.lora_alpha,
        "lora_scale": config.lora_scale,
        "bokeh_scale": config.bokeh_scale,
        "unfreeze_q": bool(adapter.query_key_layers) and "to_q_adp" in adapter.query_key_names,
        "unfreeze_k": bool(adapter.query_key_layers) and "to_k_adp" in adapter.query_key_names,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = _save(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return written


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # `save_file` makes files that only their owner may read
        save_file(tensors, temporary, metadata=metadata)
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
