"""The frozen base model: the user's own files, through the host's loaders."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bokeh_ops.digest import file_key
from bokeh_ops.errors import BokehError
from bokeh_ops.host.architectures import Architecture
from trainer.files import replace_text


class Embedding(NamedTuple):
    """What the text encoders make of one text."""

    context: Tensor
    """``[L, C]``."""
    pooled: Tensor | None
    """``[P]``, or None where the model takes none."""


class Base(ABC):
    """A frozen model with its text encoder and autoencoder.

    Attributes:
        architecture: of the model.
        patcher: the host's MODEL; its weights take no gradient.
        fingerprint: of the model's weights; ``text_fingerprint`` and ``image_fingerprint`` of the other two.
        encoded: how often an encoder was put to work, and may have driven the model from the device.
    """

    encoded = 0

    text_fingerprint: str
    image_fingerprint: str

    def __init__(self, architecture: Architecture, patcher: Any, fingerprint: str) -> None:
        self.architecture = architecture
        self.patcher, self.fingerprint = patcher, fingerprint
        patcher.model.requires_grad_(False)

    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> list[Embedding]:
        """Embeddings of texts, on the CPU."""

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """Latents, as LATENT holds them, fp32 on the CPU, of uint8 pictures ``[N, H, W, 3]``."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures ``[N, H, W, 3]``, 0..1, of latents as LATENT holds them."""

    def encoder_layers(self) -> dict[str, torch.nn.Parameter]:
        """What of the encoder trains with a diffusion lens, by the host's names; nothing where it cannot learn."""
        return {}

    @abstractmethod
    def closed(self, images: Tensor) -> Tensor:
        """Latents in the model's own scale of pictures ``[N, H, W, 3]``, 0..1, with a gradient to the encoder."""

    @abstractmethod
    def opened(self, latents: Tensor) -> Tensor:
        """Pictures ``[N, H, W, 3]``, about 0..1, of latents in the model's own scale, with a gradient to them."""

    @abstractmethod
    def write(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """Write a file like the model's own in which the network has other weights, which are by the host's names."""

    @abstractmethod
    def read(self, path: Path) -> dict[str, Tensor]:
        """The network's weights, by the host's names, of a file that :meth:`write` wrote.

        Raises:
            BokehError: it is of another network, or damaged.
        """

    def release_text(self) -> None:  # noqa: B027 (nothing to do is a good answer)
        """Let go of the text encoder; it comes back when it is needed again."""

    def release_images(self) -> None:  # noqa: B027
        """Let go of the autoencoder; it comes back when it is needed again."""


class HostBase(Base):
    """The user's own checkpoint. Text encoder and autoencoder are loaded when first asked for."""

    def __init__(
        self,
        architecture: Architecture,
        patcher: Any,
        files: dict[str, list[Path]],
        prints: Fingerprints,
    ) -> None:
        super().__init__(architecture, patcher, prints.of(files["model"]))
        self._files = files
        self.text_fingerprint = prints.of(files["text"]) if files["text"] else ""
        self.image_fingerprint = prints.of(files["vae"]) if files["vae"] else ""
        self._clip: Any = None
        self._vae: Any = None

    def encode_text(self, texts: Sequence[str]) -> list[Embedding]:
        from bokeh_ops.host.loading.texts import encode_texts

        self.encoded += 1
        length = self.architecture.text_tokens
        return [
            Embedding(
                context[:length].float().cpu(),
                pooled.float().cpu() if pooled is not None and self.architecture.pooled else None,
            )
            for context, pooled in encode_texts(self._text_encoder(), texts)
        ]

    def encode_images(self, images: Tensor) -> Tensor:
        self.encoded += 1
        with torch.no_grad():
            return self._autoencoder().encode(images.float() / 255).float().cpu()

    def decode(self, latents: Tensor) -> Tensor:
        with torch.no_grad():
            return self._autoencoder().decode(latents).float().cpu().clamp(0, 1)

    def encoder_layers(self) -> dict[str, torch.nn.Parameter]:
        from bokeh_ops.host.diffusion_lens.weights import encoder_layers

        return encoder_layers(self._autoencoder())

    def closed(self, images: Tensor) -> Tensor:
        vae, held = self._loaded()
        pixels = vae.process_input(images.movedim(-1, 1)).to(held)
        return self.patcher.model.process_latent_in(vae.first_stage_model.encode(pixels).float())

    def _loaded(self) -> tuple[Any, Tensor]:
        """The autoencoder where it computes, and a weight of it."""
        from bokeh_ops.host.loading.models import on_device

        vae = self._autoencoder()
        on_device(vae.patcher)
        return vae, next(vae.first_stage_model.parameters())

    def opened(self, latents: Tensor) -> Tensor:
        vae, held = self._loaded()
        own = self.patcher.model.process_latent_out(latents).to(held)
        pixels = vae.process_output(vae.first_stage_model.decode(own).float())
        return pixels.movedim(1, -1).to(latents.device)

    def write(self, weights: Mapping[str, Tensor], path: Path) -> None:
        from bokeh_ops.host.loading.models import save_model

        save_model(self.patcher, weights, path)

    def read(self, path: Path) -> dict[str, Tensor]:
        from bokeh_ops.host.loading.models import read_model

        return read_model(self.patcher, path)

    def _autoencoder(self) -> Any:
        from bokeh_ops.host.loading.models import load_vae

        if self._vae is None:
            files = self._files["vae"]
            if not files:
                raise BokehError("A picture has to be encoded and there is no autoencoder: name base.vae.")
            if files == self._files["model"]:
                self._load_parts()
            else:
                self._vae = load_vae(files[0])
            assert self._vae is not None
            self._vae.first_stage_model.requires_grad_(False)
        return self._vae

    def _text_encoder(self) -> Any:
        from bokeh_ops.host.loading.models import load_text_encoders

        if self._clip is None:
            files = self._files["text"]
            if not files:
                raise BokehError(
                    "A caption has to be encoded and there is no text encoder: name base.text_encoders "
                    f"({self.architecture.text_files})."
                )
            if files == self._files["model"]:
                self._load_parts()
            else:
                self._clip = load_text_encoders(files, self.architecture)
        return self._clip

    def _load_parts(self) -> None:
        """Text encoder and autoencoder of a single-file checkpoint, both at once where both are from there."""
        from bokeh_ops.host.loading.models import load_checkpoint_parts

        clip, vae = load_checkpoint_parts(self._files["model"][0])
        if self._files["text"] == self._files["model"]:
            self._clip = clip
        if self._files["vae"] == self._files["model"]:
            self._vae = vae

    def release_text(self) -> None:
        self._clip = None
        _unload()

    def release_images(self) -> None:
        self._vae = None
        _unload()


def _unload() -> None:
    from bokeh_ops.host.loading.models import unload

    unload()


class Fingerprints:
    """Hashes of large files, remembered in a file by path, size and time of change.

    Args:
        memory: the file to remember them in.
    """

    def __init__(self, memory: Path) -> None:
        self.memory = memory

    def of(self, paths: Sequence[Path]) -> str:
        """One hash, 32 hexadecimal digits, for the contents of one or several files."""
        parts = [self._one(path) for path in paths]
        return (
            parts[0]
            if len(parts) == 1
            else hashlib.blake2b("".join(parts).encode(), digest_size=16).hexdigest()
        )

    def _one(self, path: Path) -> str:
        status = path.stat()
        name = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        known = self._known()
        if name not in known:
            known = {**self._known(), name: file_key(path)}
            replace_text(self.memory, json.dumps(known, indent=1))
        return known[name]

    def _known(self) -> dict[str, str]:
        try:
            found = json.loads(self.memory.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not there yet, or damaged: it is only a memory
            return {}
        return found if isinstance(found, dict) else {}
