"""Files of Genfocus' LoRAs: safetensors with diffusers' names of FLUX's layers, as PEFT writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import BokehError
from ..low_rank import Pair, low_rank_pairs, some, whose
from ..render.checkpoint import load_weights
from . import Kind

_PREFIX = re.compile(r"^(?:base_model\.model\.|transformer\.)*")
_LAYERS = (
    r"transformer_blocks\.\d+\.(?:norm1\.linear|attn\.to_[qkv]|attn\.to_out\.0|ff\.net\.0\.proj|ff\.net\.2)",
    r"single_transformer_blocks\.\d+\.(?:norm\.linear|attn\.to_[qkv]|proj_mlp|proj_out)",
    r"x_embedder",
)
_LAYER = re.compile(rf"^(?:{'|'.join(_LAYERS)})$")
_DOES = {Kind.DEBLUR: "takes blur away", Kind.BOKEH: "makes blur"}
_TEXT = re.compile(r"(?:norm1_context|add_[qkv]_proj|to_add_out|ff_context|context_embedder|lora_te)\b")


@dataclass(frozen=True, eq=False)
class BranchLora:
    """A LoRA that acts on the tokens of conditions alone, at scale 1 whatever alpha its file tells.

    Attributes:
        name: to call it by in a message.
        kind: which network; None where nothing tells.
        pairs: by diffusers' names of FLUX's layers.
        pre_deblurred: whether it was trained with a second condition, deblurred by other means.
        strength: 1 as trained, 0 is off.
    """

    name: str
    kind: Kind | None
    pairs: Mapping[str, Pair]
    pre_deblurred: bool = False
    strength: float = 1.0

    def check(self, wanted: Kind) -> None:
        """Raise unless it may be of a kind.

        Raises:
            BokehError: it is told to be the other.
        """
        if self.kind not in (None, wanted):
            raise BokehError(
                f"{self.name} is {self.kind.network}, which {_DOES[self.kind]}; here {wanted.network} is needed, which "
                f"{_DOES[wanted]}. Choose that in Load Genfocus."
            )


def read_branch_lora(path: str | Path, kind: Kind | None = None) -> BranchLora:
    """A LoRA of Genfocus.

    It is told from other LoRAs by what it has, layers of FLUX by diffusers' names, and by what it lacks, layers of the
    text. Its two kinds have the same layers, so they are told by the file's name (``deblur``, ``bokeh``).

    Args:
        path: of a ``.safetensors`` file.
        kind: what it is, where the name does not tell.

    Raises:
        BokehError: no such file, something else, a damaged file, or a name that tells another kind.
    """
    path = Path(path)
    weights = {name: value for name, value in load_weights(path).items() if not name.endswith(".alpha")}
    pairs, strange = low_rank_pairs(path, weights, _layer)
    if strange or not pairs:
        text = [name for name in strange if _TEXT.search(name)]
        if pairs and text:
            raise BokehError(
                f"{path} is an ordinary LoRA of FLUX: it changes layers of the text too, such as {some(text)}. Load it "
                "with Load LoRA, on the model; here go Genfocus' deblurNet and bokehNet, which change the tokens of "
                "photographs alone."
            )
        raise BokehError(
            f"{path} is not a LoRA of Genfocus: {len(strange)} of its {len(weights)} tensors are something else, such "
            f"as {some(strange)}; expected 'transformer.transformer_blocks.0.attn.to_q.lora_A.weight' and so on. "
            f"{whose(strange, 'Genfocus')}"
        )
    told = _told_by(path.stem)
    if kind is not None and told not in (None, kind):
        raise BokehError(
            f"{path.name} is told to be {kind.network}, but its name says {told.network}. Choose the file that is "
            "meant, or rename it."
        )
    return BranchLora(path.name, kind or told, pairs, "pre_deblur" in path.stem.lower())


def _layer(name: str) -> str | None:
    bare = _PREFIX.sub("", name)
    return bare if _LAYER.match(bare) else None


def _told_by(stem: str) -> Kind | None:
    named = [kind for kind in Kind if kind.name.lower() in stem.lower()]
    return named[0] if len(named) == 1 else None
