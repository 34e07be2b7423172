"""What this extension needs to know of a host model: its kind, and its attention layers by path.

Only attributes of modules are read, never their weights: an offloaded or quantised weight may not exist yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import comfy.model_base
import comfy.supported_models

from ...adapter.network import BokehAdapter
from ...errors import BokehError

Slot = tuple[str, int, int]
"""Where the UNet runs a transformer block: ``(input | middle | output, block number, index inside it)``."""


@dataclass(frozen=True)
class HostModel:
    """The attention layers of one diffusion model.

    Attributes:
        kind: ``"unet"`` (cross- and self-attention in transformer blocks) or ``"flux"`` (joint attention).
        title: what to call it in a message.
        widths: features of each attention by path inside the diffusion model. UNet paths end in ``attn1``
            (self) or ``attn2`` (cross); FLUX paths are ``double_blocks.N`` and ``single_blocks.N``.
        double_blocks: number of double blocks (FLUX), else 0.
        most_cfg: more classifier-free guidance than this burns its pictures, as its guidance is distilled; None: any.
    """

    kind: Literal["unet", "flux"]
    title: str
    widths: dict[str, int]
    double_blocks: int = 0
    most_cfg: float | None = None

    def slots(self) -> dict[str, Slot]:
        """UNet only: the host's ``(block, number, index)`` of every transformer block, by path."""
        found: dict[str, Slot] = {}
        for path in self.widths:
            name, number, *_, index, _attention = path.split(".")
            block = name.removesuffix("_blocks").removesuffix("_block")
            # The host numbers the middle block 0 whatever its path says.
            found[path.rpartition(".")[0]] = (block, 0 if block == "middle" else int(number), int(index))
        return found


def describe(patcher: Any) -> HostModel:
    """Recognise the diffusion model inside a ``MODEL``.

    Raises:
        BokehError: neither a UNet with transformer blocks nor a FLUX-style transformer, or one that another extension
            runs in its own way.
    """
    model = patcher.model.diffusion_model
    title = type(patcher.model).__name__
    if hasattr(model, "double_blocks") and hasattr(model, "single_blocks"):
        widths = {
            f"{kind}.{i}": block.hidden_size if hasattr(block, "hidden_size") else model.hidden_size
            for kind in ("double_blocks", "single_blocks")
            for i, block in enumerate(getattr(model, kind))
        }
        title = f"{title} ({len(model.double_blocks)} double and {len(model.single_blocks)} single blocks)"
        # With a real negative prompt some go a little above 1.
        return HostModel("flux", title, widths, len(model.double_blocks), most_cfg=3.0)
    if hasattr(model, "input_blocks") and hasattr(model, "output_blocks"):
        widths = {
            path: module.heads * module.dim_head
            for path, module in model.named_modules()
            if path.endswith((".attn1", ".attn2")) and hasattr(module, "heads")
        }
        if widths:
            return HostModel("unet", f"{title} (UNet, {len(widths)} attention layers)", widths)
    known = _known(patcher.model)
    if known is not None:
        raise BokehError(
            f"The model is {known}, but the network inside is {type(model).__name__} of {type(model).__module__}, not "
            "ComfyUI's own: it runs the model in kernels of its own (as Nunchaku and TensorRT do), so nothing can be "
            "added to its attention. Load the model with ComfyUI's own loaders, or as GGUF; fp8 works."
        )
    raise BokehError(
        f"The model is {title} ({type(model).__name__}); bokeh adapters and grounding know the UNet of SD1.5 and "
        "FLUX. Connect one of those."
    )


def _known(model: Any) -> str | None:
    """What a model of the host's class for FLUX or SD1.5 is, whatever network is inside."""
    if isinstance(model, comfy.model_base.Flux):
        return "FLUX"
    if isinstance(getattr(model, "model_config", None), comfy.supported_models.SD15):
        return "SD1.5"
    return None


def check_fits(adapter: BokehAdapter, model: HostModel, name: str) -> None:
    """Raise unless every layer of ``adapter`` exists in ``model`` with the same width.

    Raises:
        BokehError: the adapter is for the other architecture, or for a model of other dimensions.
    """
    wanted = "flux" if adapter.config.base == "flux" else "unet"
    if wanted != model.kind:
        made_for = "FLUX" if wanted == "flux" else "SD1.5"
        raise BokehError(f"{name} is a bokeh adapter for {made_for}, but the model is {model.title}.")
    absent = [path for path in adapter.widths if path not in model.widths]
    if absent:
        raise BokehError(
            f"{name} has weights for {len(absent)} layers that {model.title} does not have, such as {absent[0]}. "
            "It was trained on another model of this family."
        )
    for path, width in adapter.widths.items():
        if width != model.widths[path]:
            raise BokehError(
                f"{name}: {path} is {width} wide, but that layer of {model.title} is {model.widths[path]} wide. "
                "It was trained on another model of this family."
            )
