"""Small models of the host's classes, each in one file, and what the host needs of them: MODEL, CLIP and VAE.

The file is safetensors with a description in its metadata: ``architecture`` (``sd15``, ``flux``), ``config`` of the
host's network class, ``prediction`` (``epsilon``, ``v``, ``flow``), ``pictures`` (the codec: ``grey``, ``cosines``),
``tokens`` and ``vocabulary`` of the text encoder (:mod:`bokeh_ops.small`). Weights are under ``network.``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import BokehError
from ..small import Codec, Cosines, Grey, Words
from .loading import Architecture, small_model, use_flux_shift

METADATA = "bokeh_small"
NETWORK, TABLE, SIZES = "network.", "text.table", "pictures.sizes"


class SmallModel:
    """A small model: the host's network with a codec and a text encoder that have nothing to learn.

    Args:
        description: as in the metadata.
        dtype: of the network's weights, which are not set.
        table, sizes: numbers of text encoder and codec.

    Attributes:
        patcher: the host's MODEL.
        codec, words: see :mod:`bokeh_ops.small`.
    """

    def __init__(
        self,
        description: dict[str, Any],
        dtype: torch.dtype = torch.float32,
        table: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> None:
        self.description = description
        config = description["config"]
        self.architecture: Architecture = description["architecture"]
        channels = config["in_channels"]
        own: dict[str, Any] = {}
        if description["pictures"] == "cosines":
            assert sizes is not None
            self.codec: Codec = Cosines(sizes)
            own = {"channels": channels, "rgb_factors": Cosines(sizes).rgb_factors()}
        else:
            self.codec = Grey(channels)
        v = description["prediction"] == "v"
        self.patcher = small_model(self.architecture, config, dtype, v_prediction=v, **own)
        if description.get("shift") is not None:
            self.patcher = use_flux_shift(self.patcher, description["shift"])
        width = config.get("context_dim", config.get("context_in_dim"))
        self.words = Words(
            width, config.get("vec_in_dim"), description["tokens"], description["vocabulary"], table
        )

    @property
    def network(self) -> Any:
        return self.patcher.model.diffusion_model

    def encode_images(self, images: Tensor) -> Tensor:
        """LATENT samples of pictures ``[N, H, W, 3]``, 0..1."""
        return self.patcher.model.process_latent_out(self.codec.encode(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures ``[N, H, W, 3]``, 0..1, of LATENT samples."""
        return self.codec.decode(self.patcher.model.process_latent_in(latents.float().cpu()))

    def save(self, path: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the model to a file that :func:`read_small` reads.

        Args:
            path: of the file.
            dtype: that the network's weights are kept in.
        """
        state = {
            f"{NETWORK}{name}": value.detach().to("cpu", dtype).contiguous()
            for name, value in self.network.state_dict().items()
        }
        if self.words.table is not None:
            state[TABLE] = self.words.table
        if isinstance(self.codec, Cosines):
            state[SIZES] = self.codec.sizes
        save_file(state, path, metadata={METADATA: json.dumps(self.description)})


def small_description(path: Path) -> dict[str, Any] | None:
    """What the metadata of a small model says; None for any other file."""
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(METADATA)
    return None if text is None else json.loads(text)


def read_small(path: Path, dtype: torch.dtype = torch.float32) -> SmallModel:
    """A small model from its file.

    Args:
        path: written by :meth:`SmallModel.save`.
        dtype: of the weights in memory.

    Raises:
        BokehError: another kind of file.
    """
    description = small_description(path)
    if description is None:
        raise BokehError(f"{path} is not a small model of this project: its metadata has no {METADATA!r}.")
    with safe_open(path, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    model = SmallModel(description, dtype, state.pop(TABLE, None), state.pop(SIZES, None))
    model.network.load_state_dict(
        {key.removeprefix(NETWORK): value.to(dtype) for key, value in state.items()}
    )
    return model


class SmallClip:
    """A small model's text encoder, as far as the host's nodes use a CLIP."""

    def __init__(self, words: Words) -> None:
        self.words = words

    def clone(self) -> SmallClip:
        return SmallClip(self.words)

    def tokenize(self, text: str, **_: Any) -> str:
        """The text itself, once its words are known to be known."""
        self.words.split(text)
        return text

    def encode_from_tokens(self, tokens: str, return_pooled: bool = False, **_: Any) -> Any:
        context, pooled = self.words.encode(tokens)
        return (context[None], None if pooled is None else pooled[None]) if return_pooled else context[None]

    def encode_from_tokens_scheduled(self, tokens: str, *_: Any, **__: Any) -> list[Any]:
        context, pooled = self.words.encode(tokens)
        return [[context[None], {"pooled_output": None if pooled is None else pooled[None]}]]


class SmallVae:
    """A small model's codec, as far as the host's nodes use a VAE."""

    def __init__(self, model: SmallModel) -> None:
        self.model = model

    def encode(self, pixels: Tensor) -> Tensor:
        patch = self.model.codec.patch
        height, width = pixels.shape[1] // patch * patch, pixels.shape[2] // patch * patch
        return self.model.encode_images(pixels[:, :height, :width, :3].cpu())

    def decode(self, samples: Tensor) -> Tensor:
        return self.model.decode(samples)

    def encode_tiled(self, pixels: Tensor, **_: Any) -> Tensor:
        return self.encode(pixels)

    def decode_tiled(self, samples: Tensor, **_: Any) -> Tensor:
        return self.decode(samples)

    def spacial_compression_encode(self) -> int:
        return self.model.codec.patch

    def spacial_compression_decode(self) -> int:
        return self.model.codec.patch


@torch.no_grad()
def sample_texts(
    model: SmallModel,
    texts: Sequence[str],
    seed: int,
    size: tuple[int, int],
    steps: int,
    cfg: float,
    sampler: str,
    scheduler: str,
) -> Tensor:
    """A picture of each text with the host's ordinary sampler, ``[N, H, W, 3]``, 0..1.

    Args:
        size: width and height in pixels.
    """
    rows = []
    for text in texts:
        context, pooled = model.words.encode(text)
        rows.append((context, pooled))
    empty = model.words.encode("")

    def conditioning(pairs: Sequence[tuple[Tensor, Tensor | None]]) -> list[Any]:
        settings: dict[str, Any] = {}
        pools = [pooled for _, pooled in pairs if pooled is not None]
        if pools:
            settings = {"pooled_output": torch.stack(pools), "guidance": 1.0}
        return [[torch.stack([context for context, _ in pairs]), settings]]

    patch = model.codec.patch
    blank = torch.zeros(len(texts), model.codec.channels, size[1] // patch, size[0] // patch)
    noise = comfy.sample.prepare_noise(blank, seed)
    found = comfy.sample.sample(
        model.patcher,
        noise,
        steps,
        cfg,
        sampler,
        scheduler,
        conditioning(rows),
        conditioning([empty] * len(texts)),
        blank,
        disable_pbar=True,
        seed=seed,
    )
    return model.decode(found)
