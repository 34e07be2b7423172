"""``python -m trainer export``: between this project's layout and the released FLUX layout, in any precision."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from trainer.cli import UsageError

DTYPES = ("same", "fp32", "bf16", "fp16")
LAYOUTS = ("project", "released")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write an adapter in another layout or precision. 'project' is one safetensors file with its configuration "
        "inside, for SD1.5 and FLUX; 'released' is the layout of the authors' FLUX adapter, model.safetensors beside "
        "config.json, for FLUX with low-rank pairs only. Whatever training wrote down is kept in both."
    )
    parser.add_argument(
        "adapter", type=Path, metavar="ADAPTER", help="safetensors file, or folder of the released layout"
    )
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="file to write (project), or folder (released); must not exist"
    )
    parser.add_argument(
        "--layout", choices=LAYOUTS, default="project", help="layout to write (default: project)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="same", help="precision of the tensors (default: same)"
    )
    parser.add_argument(
        "--double-blocks",
        type=int,
        metavar="N",
        help="double blocks of the FLUX model, where the adapter does not tell (FLUX.1: 19)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT")


def run(arguments: argparse.Namespace) -> int:
    from safetensors import SafetensorError

    from bokeh_ops.adapter.files import read_adapter, write_adapter
    from bokeh_ops.errors import BokehError

    double_blocks: int | None = arguments.double_blocks
    if double_blocks is not None and double_blocks < 0:
        raise UsageError(f"--double-blocks is {double_blocks}; it must be 0 or more.")
    released = arguments.layout == "released"
    written = arguments.out / "model.safetensors" if released else arguments.out
    if not released and arguments.out.suffix != ".safetensors":
        raise UsageError(f"{arguments.out} must end in .safetensors: the project's layout is one file.")
    if written.exists() and not arguments.force:
        raise UsageError(f"{written} exists; give --force to overwrite it, or another name.")
    adapter = read_adapter(arguments.adapter, double_blocks)
    dtype = _dtype(arguments.dtype)
    _check_range(adapter, dtype)
    try:
        if released:
            _write_released(adapter, arguments.out, double_blocks, dtype)
        else:
            write_adapter(adapter, arguments.out, dtype)
    except (OSError, SafetensorError) as error:
        raise BokehError(f"{written} could not be written: {error}. Is there room on the disk?") from error
    count = sum(parameter.numel() for parameter in adapter.parameters())
    print(
        f"{written}: {arguments.layout} layout, {adapter.config.base}, {count:,} parameters, "
        f"{written.stat().st_size / 1e6:.1f} MB.",
        file=sys.stderr,
    )
    return 0


def _write_released(adapter: Any, folder: Path, double_blocks: int | None, dtype: Any) -> None:
    from bokeh_ops.adapter.conditions import K
    from bokeh_ops.adapter.files import RELEASED_DOUBLE_BLOCKS, write_released
    from bokeh_ops.errors import BokehError

    blocks = {layer.partition(".")[0]: 0 for layer in adapter.widths}
    numbers = [int(layer.split(".")[1]) for layer in adapter.widths if layer.startswith("double_blocks.")]
    most = max(numbers, default=-1) + 1
    if double_blocks is None:
        double_blocks = max(RELEASED_DOUBLE_BLOCKS, most) if "single_blocks" in blocks else most
    if most > double_blocks:
        raise BokehError(
            f"The adapter has weights for double block {most - 1}, so the model has more than {double_blocks}; "
            "give the right --double-blocks."
        )
    if adapter.config.k_range != K.most:
        raise BokehError(
            f"The adapter counts K up to {adapter.config.k_range:g} as 1; the released layout always means "
            f"{K.most:g}. Use the project's layout."
        )
    _level_ranks(adapter)
    write_released(adapter, folder, double_blocks, dtype)


def _level_ranks(adapter: Any) -> None:
    """Fill smaller low-rank pairs up with zeros: config.json of the released layout has room for one rank.

    What ``lora_alpha`` makes of a larger rank is taken back, so the adapter computes what it computed.
    """
    from torch.nn import Parameter
    from torch.nn.functional import pad

    from bokeh_ops.adapter.network import LowRankProjection

    pairs = [module for module in adapter.modules() if isinstance(module, LowRankProjection)]
    rank = max((len(pair.down.weight) for pair in pairs), default=0)
    for pair in pairs:
        own = len(pair.down.weight)
        if own < rank:
            scale = 1.0 if adapter.config.lora_alpha is None else rank / own
            pair.down.weight = Parameter(pad(pair.down.weight, (0, 0, 0, rank - own)), False)
            pair.up.weight = Parameter(pad(pair.up.weight * scale, (0, rank - own)), False)


def _check_range(adapter: Any, dtype: Any) -> None:
    import torch

    from bokeh_ops.errors import BokehError

    if dtype is None:
        return
    largest = torch.finfo(dtype).max
    for name, value in adapter.state_dict().items():
        if float(value.abs().max()) > largest:
            raise BokehError(
                f"{name} holds {float(value.abs().max()):.3g}, more than {dtype} can ({largest:.3g}). Export as bf16 "
                "or fp32."
            )


def _dtype(name: str) -> Any:
    import torch

    return {"same": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
