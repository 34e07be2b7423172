"""Small models of the host's classes, each in one file, and what the host needs of them: MODEL, CLIP and VAE.

The file is safetensors with a description in its metadata: ``architecture`` (its name), ``config`` of the
host's network class, ``prediction`` (``epsilon``, ``v``, ``flow``), ``pictures`` (the codec: ``grey``, ``cosines``,
``pixels``), ``tokens`` and ``vocabulary`` of the text encoder (:mod:`.parts`). Weights are under ``network.``, by the
names that the architecture's weights are published with.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.supported_models_base
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...errors import BokehError
from ..architectures import named
from ..differences import published_weights, tell_how_to_load_again, weights_for_host
from ..loading.models import small_model, use_flux_shift
from ..sampling.plain import sample_plain
from .parts import Codec, Cosines, Grey, Pixels, Words

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
        codec, words: see :mod:`bokeh_ops.host.small.parts`.
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
        self.architecture = named(description["architecture"])
        channels = config.get("out_channels", config["in_channels"])  # a lens may be told more than it makes
        own: dict[str, Any] = {}
        if description["pictures"] == "cosines":
            assert sizes is not None
            self.codec: Codec = Cosines(sizes)
            own = {"channels": channels, "rgb_factors": Cosines(sizes).rgb_factors()}
        elif description["pictures"] == "pixels":
            self.codec = Pixels()
            own = {"channels": channels}
        else:
            self.codec = Grey(channels)
        v = description["prediction"] == "v"
        self.patcher = small_model(self.architecture, config, dtype, v_prediction=v, **own)
        if description.get("shift") is not None:
            self.patcher = use_flux_shift(self.patcher, description["shift"])
        width, pooled = self.architecture.text_width(config), self.architecture.pooled_width(config)
        self.words = Words(width, pooled, description["tokens"], description["vocabulary"], table)

    @property
    def network(self) -> Any:
        return self.patcher.model.diffusion_model

    @property
    def _settings(self) -> Any:
        return self.patcher.model.model_config

    def load_network(self, weights: dict[str, Tensor]) -> None:
        """Set the network's weights, which are named as published or as any host names them."""
        network = self.network
        network.load_state_dict(weights_for_host(self._settings, weights, network.state_dict()))

    def encode_images(self, images: Tensor) -> Tensor:
        """LATENT samples of pictures ``[N, H, W, 3]``, 0..1."""
        return self.patcher.model.process_latent_out(self.codec.encode(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures ``[N, H, W, 3]``, 0..1, of LATENT samples."""
        return self.codec.decode(self.patcher.model.process_latent_in(latents.float().cpu())).clamp(0, 1)

    def save(
        self, path: Path, dtype: torch.dtype = torch.float32, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write the model to a file that :func:`read_small` reads.

        Args:
            path: of the file.
            dtype: that the network's weights are kept in.
            weights: of the network, by this host's names; None: its own.
        """
        own = self.network.state_dict() if weights is None else dict(weights)
        state = {
            f"{NETWORK}{name}": value.detach().to("cpu", dtype).contiguous()
            for name, value in published_weights(self._settings, own).items()
        }
        if self.words.table is not None:
            state[TABLE] = self.words.table
        if isinstance(self.codec, Cosines):
            state[SIZES] = self.codec.sizes
        save_file(state, path, metadata={METADATA: json.dumps(self.description)})


def small_description(path: Path) -> dict[str, Any] | None:
    """What the metadata of a small model says; None for any other file.

    Raises:
        BokehError: there is no such file.
    """
    if path.suffix != ".safetensors":
        return None
    if not path.is_file():
        raise BokehError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA)
    except SafetensorError:  # damaged: whoever reads it as something else says so
        return None
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
    model.load_network({key.removeprefix(NETWORK): value.to(dtype) for key, value in state.items()})
    tell_how_to_load_again(model.patcher, lambda: read_small(path, dtype).patcher)
    return model


_CPU = torch.device("cpu")
_BEGIN = "<begin>"


class SmallTokenizer:
    """A text as the host's tokenizers give it: chunks of ``(token, weight)``, here of the words themselves.

    Args:
        words: the text encoder.
        names: what the host's text encoders of that architecture are called, ``l`` and ``t5xxl``.
    """

    def __init__(self, words: Words, names: Sequence[str]) -> None:
        self.words, self.names = words, names

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **_: Any
    ) -> dict[str, list[list[tuple[Any, ...]]]]:
        """Raises:
        BokehError: words that are not known, or too many.
        """
        found = [_BEGIN, *self.words.split(text)]
        chunk = [(word, 1.0, place) if return_word_ids else (word, 1.0) for place, word in enumerate(found)]
        return {name: [list(chunk)] for name in self.names}

    def untokenize(self, chunk: Sequence[tuple[Any, ...]]) -> list[tuple[tuple[Any, ...], str]]:
        return [(token, token[0]) for token in chunk]

    def state_dict(self) -> dict[str, Any]:
        return {}


class SmallEncoder(nn.Module):
    """A small model's text encoder in the place of the host's: no layers to skip, nothing to learn."""

    dtypes = frozenset({torch.float32})

    def __init__(self, words: Words) -> None:
        super().__init__()
        self.words = words
        self.register_buffer("table", words.table)

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Layers and projections, which it has none of."""

    def reset_clip_options(self) -> None:
        pass

    def encode_token_weights(
        self, tokens: dict[str, list[list[tuple[Any, ...]]]]
    ) -> tuple[Tensor, Tensor | None]:
        """Rows ``[1, tokens, width]`` of the last encoder's text, and the sum ``[1, pooled]`` of the first one's."""
        first, *_, last = (*tokens.values(), *tokens.values())
        rows = torch.cat([self._encode(chunk)[0] for chunk in last])
        pooled = self._encode(first[0])[1]
        return rows[None], None if pooled is None else pooled[None]

    def _encode(self, chunk: Sequence[tuple[Any, ...]]) -> tuple[Tensor, Tensor | None]:
        return self.words.encode_words([word for word, *_ in chunk if word != _BEGIN])

    def load_sd(self, sd: dict[str, Tensor]) -> Any:
        return self.load_state_dict(sd, strict=False)


def small_clip(model: SmallModel) -> Any:
    """The host's CLIP around a small model's text encoder. It stays on the CPU, as it costs nothing."""
    names = model.architecture.text_encoders
    target = comfy.supported_models_base.ClipTarget(
        lambda **_: SmallTokenizer(model.words, names), lambda **_: SmallEncoder(model.words)
    )
    where = dict.fromkeys(("load_device", "offload_device", "initial_device"), _CPU)
    clip = comfy.sd.CLIP(target, model_options={**where, "dtype": torch.float32})
    tell_how_to_load_again(clip.patcher, lambda: small_clip(model).patcher)
    return clip


class SmallCodec(nn.Module):
    """A small model's codec in the place of the host's autoencoders: ``[N, 3, H, W]``, 0..1, and latents."""

    def __init__(self, codec: Codec, latent_format: Any) -> None:
        super().__init__()
        self.codec, self.latent_format = codec, latent_format
        if isinstance(codec, Cosines):
            self.register_buffer("sizes", codec.sizes)

    def encode(self, pixels: Tensor, **_: Any) -> Tensor:
        return self.latent_format.process_out(self.codec.encode(pixels[:, :3].movedim(1, -1)))

    def decode(self, latents: Tensor, **_: Any) -> Tensor:
        return self.codec.decode(self.latent_format.process_in(latents)).clamp(0, 1).movedim(-1, 1)


# The smallest autoencoder of the host's own class.
_STAND_IN = {
    "embed_dim": 4,
    "ddconfig": {
        "double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1],
        "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    },
}  # fmt: skip


def small_vae(model: SmallModel) -> Any:
    """The host's VAE around a small model's codec. It stays on the CPU, as it costs nothing."""
    # The host fills in whatever its version keeps for an autoencoder; then the codec takes the autoencoder's place.
    weights = AutoencoderKL(**copy.deepcopy(_STAND_IN)).state_dict()
    vae = comfy.sd.VAE(
        sd=weights, device=_CPU, config={"params": copy.deepcopy(_STAND_IN)}, dtype=torch.float32
    )
    patch = model.codec.patch
    vae.first_stage_model = SmallCodec(model.codec, model.patcher.model.latent_format).eval()
    vae.patcher = type(vae.patcher)(vae.first_stage_model, load_device=_CPU, offload_device=_CPU)
    vae.downscale_ratio = vae.upscale_ratio = patch
    vae.latent_channels = model.codec.channels
    vae.process_input = vae.process_output = lambda pixels: pixels
    # Bytes of one picture: a few copies of its pixels.
    vae.memory_used_encode = lambda shape, _dtype: 64 * shape[2] * shape[3]
    vae.memory_used_decode = lambda shape, _dtype: 64 * patch**2 * shape[2] * shape[3]
    vae.size = None  # hosts that keep it count anew
    tell_how_to_load_again(vae.patcher, lambda: small_vae(model).patcher)
    return vae


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
    positive, negative = conditioning(rows), conditioning([empty] * len(texts))
    found = sample_plain(model.patcher, positive, negative, blank, seed, steps, cfg, sampler, scheduler)
    return model.decode(found)
