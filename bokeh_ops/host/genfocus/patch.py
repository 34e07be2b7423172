"""Genfocus on a MODEL: an APPLY_MODEL wrapper that brings conditions into each model call, tile by tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_patcher
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor, nn

from ...errors import BokehError
from ...genfocus.files import BranchLora
from ...low_rank import Pair
from ...picture.tiles import Tile, from_tiles, tiled
from ..adapter.patch import check_rows
from ..sampling.conditioning import PictureCondition, with_conditions
from .branches import Change, Conditions, Kept, branches, changes_of

KEY = "genfocus"
"""Key of the wrapper on a model, and of the conditions in a prompt."""
_COMPILED = "torch.compile"
"""Key of the host's wrapper that compiles a model."""
_MASK = "attention_mask"
"""What the host calls a mask of FLUX's attention, such as Apply Style Model gives."""
OVERLAP = 1 / 8


class _Factors(nn.Module):
    """A LoRA's factors, for the host to load with the model they act in."""

    def __init__(self, changes: dict[str, list[Change]], dtype: torch.dtype) -> None:
        super().__init__()
        self.device: Any = None  # the host sets it
        self._places = [(path, change.first) for path, layer in changes.items() for change in layer]
        pairs = [change.pair for layer in changes.values() for change in layer]
        self.down, self.up = (
            nn.ParameterList(nn.Parameter(each.to(dtype), requires_grad=False) for each in factors)
            for factors in (zip(*pairs, strict=True) if pairs else ((), ()))
        )

    def changes(self) -> dict[str, list[Change]]:
        """The changes, with the factors where they are now."""
        found: dict[str, list[Change]] = {}
        for (path, first), *pair in zip(self._places, self.down, self.up, strict=True):
            found.setdefault(path, []).append(Change(first, Pair(*pair)))
        return found


class GenfocusPatch:
    """The wrapper.

    Args:
        factors: of changes of layers, for the conditions' tokens.
        strength: of the changes.
        columns: tokens to the right at which each condition lies; left out in tiles.
        side: tokens along a tile; None: the picture is one.
        keep: the conditions' keys and values of the first step serve all others.
    """

    def __init__(
        self,
        factors: _Factors,
        strength: float,
        columns: Sequence[int],
        side: int | None,
        keep: bool,
    ) -> None:
        self.factors, self.strength, self.columns = factors, strength, tuple(columns)
        self.side, self.keep = side, keep
        self._kept: dict[Any, Kept] = {}

    def __deepcopy__(self, memo: Any) -> GenfocusPatch:
        return self  # hosts copy what is on a model; tensors are shared

    def forget(self, *_args: Any, **_kwargs: Any) -> None:
        """Host callback before and after each run."""
        self._kept.clear()

    def tiles(self, size: Sequence[int], patch: int = 2) -> list[Tile]:
        """Tiles of latents ``[..., h, w]``, in places of the latent."""
        height, width = (-(-each // patch) for each in size)
        side = self.side or max(height, width)
        return [Tile(*(patch * each for each in tile)) for tile in tiled(height, width, side, OVERLAP)]

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """``(x, sigma, c_concat, c_crossattn, control, transformer_options, **conds)``."""
        shown = kwargs.pop(KEY, None)
        if shown is None:
            return executor(*args, **kwargs)
        x = args[0]
        check_rows(shown.shape[0], x.shape[0], "photographs")
        network = executor.class_obj.diffusion_model
        tiles = self.tiles(x.shape[-2:], network.patch_size)
        columns = self.columns if len(tiles) == 1 else [0] * len(self.columns)
        changes = self.factors.changes()
        in_keywords = "transformer_options" in kwargs
        given = kwargs["transformer_options"] if in_keywords else args[5]

        def make(tile: Tile) -> Tensor:
            part, words = (_cropped(each, x, tile, network.patch_size) for each in (args, kwargs))
            conditions = Conditions(tile.of(shown), columns, kwargs.get("y"))
            kept = None
            if self.keep:
                call = (tile, tuple(given.get("uuids", ())), tuple(x.shape))
                kept = self._kept.setdefault(call, {})
            with branches(given, network, conditions, changes, self.strength, kept) as options:
                if in_keywords:
                    words["transformer_options"] = options
                else:
                    part = (*part[:5], options, *part[6:])
                return executor(*part, **words)

        return from_tiles(x, tiles, make)


def _cropped(given: Any, x: Tensor, tile: Tile, patch: int) -> Any:
    """What a model call is given, of a tile alone.

    Maps over the latent are cut, and ControlNets' tokens; other pictures' latents and the text stay whole.
    """
    height, width = x.shape[-2:]
    if tile == (0, 0, height, width):
        return given
    rows, columns = (-(-each // patch) for each in (height, width))
    small = Tile(*(each // patch for each in tile))

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 2 and value.shape[-2:] == (height, width):
            return tile.of(value)
        if isinstance(value, Tensor) and value.ndim == 3 and value.shape[1] == rows * columns:
            grid = value.unflatten(1, (rows, columns)).movedim(-1, 1)
            return small.of(grid).flatten(2).movedim(1, -1)
        if isinstance(value, dict):
            return {name: cut(each) for name, each in value.items()}
        if isinstance(value, list):
            return [cut(each) for each in value]
        return value

    if isinstance(given, tuple):  # (x, sigma, c_concat, c_crossattn, control, ...)
        return tuple(cut(each) if place in (0, 2, 4) else each for place, each in enumerate(given))
    whole = ("c_crossattn", "transformer_options", "ref_latents", _MASK)
    cropped = {name: each if name in whole else cut(each) for name, each in given.items()}
    mask = given.get(_MASK)
    if mask is not None:  # [..., L, L] over the text's tokens and all of the picture's
        places = torch.arange(rows * columns, device=mask.device).unflatten(0, (rows, columns))
        text = mask.shape[-1] - rows * columns
        kept = torch.cat([torch.arange(text, device=mask.device), text + small.of(places).flatten()])
        cropped[_MASK] = mask[..., kept[:, None], kept]
    return cropped


def is_compiled(patcher: Any) -> bool:
    """Whether a MODEL is compiled while it samples; compiled modules leave out what is done where they are called."""
    return bool(patcher.wrappers.get(WrappersMP.APPLY_MODEL, {}).get(_COMPILED))


def with_branches(
    patcher: Any,
    lora: BranchLora,
    count: int,
    columns: Sequence[int] | None = None,
    side: int | None = None,
    keep: bool = False,
) -> Any:
    """A clone of a MODEL of FLUX that sees the pictures of a prompt (:func:`with_pictures`) as further tokens.

    Args:
        patcher: a MODEL of FLUX.1-dev; it is not touched. The clone is not compiled.
        lora: for their tokens.
        count: how many pictures each row sees.
        columns: tokens to the right at which each lies, but in tiles; 0 by default.
        side: tokens along a tile (32 is 512 pixels); None: the picture is one.
        keep: their keys and values of the first step serve all others: quicker, takes memory, and is not quite the
            same.

    Raises:
        BokehError: the LoRA does not fit the model.
    """
    changes = changes_of(lora, patcher)
    clone = patcher.clone()
    model = patcher.model
    factors = _Factors(changes, model.manual_cast_dtype or model.get_dtype())
    patch = GenfocusPatch(factors, lora.strength, columns or [0] * count, side, keep)
    clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, _COMPILED)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, patch)
    clone.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _announce_memory(patch, count))
    for moment in (CallbacksMP.ON_PRE_RUN, CallbacksMP.ON_CLEANUP):
        clone.add_callback_with_key(moment, KEY, patch.forget)
    if changes:
        loaded = comfy.model_patcher.ModelPatcher(
            factors, load_device=patcher.load_device, offload_device=patcher.offload_device
        )
        clone.set_additional_models(KEY, [loaded])
    return clone


def with_pictures(patcher: Any, positive: list[Any], latents: Tensor) -> list[Any]:
    """A copy of a CONDITIONING that shows pictures to a MODEL of :func:`with_branches`.

    Args:
        patcher: the MODEL.
        positive: by FLUX's text encoders.
        latents: ``[R, n, C, h, w]`` from the VAE: of each picture of the batch ``n`` that it sees.
    """
    own = torch.stack([patcher.model.process_latent_in(each) for each in latents.unbind(1)], 1)
    return with_conditions(positive, **{KEY: PictureCondition(own)})


def check_prompt(patcher: Any, positive: list[Any]) -> None:
    """Raise unless a prompt is one for a MODEL of FLUX.

    Raises:
        BokehError: there is none, or it is of other text encoders.
    """
    width = patcher.model.diffusion_model.params.context_in_dim
    if not positive:
        raise BokehError("The prompt is empty; encode one with FLUX's own text encoders.")
    for text, _ in positive:
        if text.shape[-1] != width:
            raise BokehError(
                f"The prompt has {text.shape[-1]} features a token, but the model takes {width}. Encode it with FLUX's "
                "own text encoders."
            )


def _announce_memory(patch: GenfocusPatch, count: int) -> Any:
    """The host's estimator knows neither of further tokens nor of tiles."""

    def prepare(executor: Any, model: Any, noise_shape: Sequence[int], *args: Any, **kwargs: Any) -> Any:
        largest = max(patch.tiles(noise_shape[-2:]), key=lambda tile: tile.height * tile.width)
        shape = [noise_shape[0] * (1 + count), *noise_shape[1:-2], largest.height, largest.width]
        return executor(model, shape, *args, **kwargs)

    return prepare
