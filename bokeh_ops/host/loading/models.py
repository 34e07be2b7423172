"""The user's own model files, read by the host's own loaders, for training.

Nothing here is used by the nodes: there the host loads models.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import torch
from safetensors.torch import save_file
from torch import Tensor

from ...adapter.files import read_tensors
from ...errors import BokehError
from ..architectures import Architecture, architectures
from ..differences import published_weights, weights_for_host


def model_file(name: str, kind: str, beside: Path) -> Path:
    """A model file by its path (from the folder ``beside``) or by its name in the host's folder for ``kind``.

    Raises:
        BokehError: there is none; the message says where was searched.
    """
    path = beside / Path(name).expanduser()
    if path.is_file():
        return path
    found = folder_paths.get_full_path(kind, name)
    if found is not None:
        return Path(found)
    searched = [str(path), *(str(Path(folder) / name) for folder in folder_paths.get_folder_paths(kind))]
    raise BokehError(f"There is no model file {name!r}; searched {', '.join(searched)}.")


def load_checkpoint_model(path: Path, dtype: torch.dtype) -> Any:
    """The MODEL of a single-file checkpoint, its weights held as ``dtype``."""
    return _recognised(
        lambda: comfy.sd.load_checkpoint_guess_config(
            str(path), output_vae=False, output_clip=False, output_model=True, model_options={"dtype": dtype}
        )[0],
        path,
    )


def load_checkpoint_parts(path: Path) -> tuple[Any, Any]:
    """CLIP and VAE of a single-file checkpoint."""
    clip, vae = _recognised(
        lambda: comfy.sd.load_checkpoint_guess_config(
            str(path),
            output_vae=True,
            output_clip=True,
            output_model=False,
            embedding_directory=folder_paths.get_folder_paths("embeddings"),
        )[1:3],
        path,
    )
    if clip is None:
        raise BokehError(f"{path} holds no text encoder; name a checkpoint that does.")
    return clip, vae


def load_model(path: Path, dtype: torch.dtype) -> Any:
    """The MODEL of a file that holds the diffusion model alone."""
    return _recognised(lambda: comfy.sd.load_diffusion_model(str(path), {"dtype": dtype}), path)


def _recognised(load: Any, path: Path) -> Any:
    try:
        found = load()
    except RuntimeError as error:  # the host's own word for a file that it does not know
        raise BokehError(f"ComfyUI cannot load {path}: {error}") from error
    if found is None or (isinstance(found, tuple) and found[0] is None and found[1] is None):
        raise BokehError(f"ComfyUI does not recognise {path} as a model; is it an adapter or a LoRA?")
    return found


def load_text_encoders(paths: Sequence[Path], architecture: Architecture) -> Any:
    """A CLIP of the host from text encoder files."""
    kind = architecture.text_encoder_kind()
    return _recognised(
        lambda: comfy.sd.load_clip(
            [str(path) for path in paths], folder_paths.get_folder_paths("embeddings"), kind
        ),
        paths[0],
    )


def load_vae(path: Path) -> Any:
    """A VAE of the host from a file of its own."""
    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    vae = comfy.sd.VAE(sd=state)
    if vae.first_stage_model is None:
        raise BokehError(f"ComfyUI does not recognise {path} as an autoencoder.")
    return vae


def check_architecture(patcher: Any, wanted: Architecture, source: str) -> None:
    """Raise unless a MODEL is of the architecture that is to be trained.

    Raises:
        BokehError: it is another one.
    """
    if wanted.claims(patcher.model):
        return
    other = next((each for each in architectures().values() if each.claims(patcher.model)), None)
    found = type(patcher.model.model_config).__name__ if other is None else other.title
    raise BokehError(
        f"{source} is {found}, but base.architecture is {wanted.name} ({wanted.title}). "
        + ("Choose another model." if other is None else f"Set it to {other.name}.")
    )


def compute_dtype(patcher: Any) -> torch.dtype:
    """The type that the host computes a MODEL in."""
    return patcher.model.manual_cast_dtype or patcher.model.get_dtype()


def use_v_prediction(patcher: Any, zero_terminal_snr: bool) -> Any:
    """A clone of ``patcher`` that takes the network's output for v, as the host's ModelSamplingDiscrete does."""

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
        pass

    clone = patcher.clone()
    clone.add_object_patch("model_sampling", Sampling(patcher.model.model_config, zsnr=zero_terminal_snr))
    return clone


def use_flux_shift(patcher: Any, shift: float) -> Any:
    """A clone of ``patcher`` with another timestep shift, as the host's ModelSamplingFlux makes it."""

    class Sampling(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):
        pass

    sampling = Sampling(patcher.model.model_config)
    sampling.set_parameters(shift=shift)
    clone = patcher.clone()
    clone.add_object_patch("model_sampling", sampling)
    return clone


def twin(patcher: Any) -> Any:
    """A MODEL that is a copy of ``patcher``, which has not been loaded, with weights of its own."""
    settings = (
        patcher.model.model_config
    )  # shared: it says what the model is, and later hosts' cannot be copied
    model = copy.deepcopy(patcher.model, {id(settings): settings})
    found = type(patcher)(model, patcher.load_device, patcher.offload_device)
    found.model_options = copy.deepcopy(patcher.model_options)
    for name, value in patcher.object_patches.items():
        found.add_object_patch(name, copy.deepcopy(value))
    return found


def save_model(patcher: Any, weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights of a MODEL's network as a file that the host's Load Diffusion Model reads.

    Args:
        patcher: the MODEL; what it predicts is told in the file, where the host looks for that.
        weights: of the network, whole, by this host's names; written in the type that the host prefers for the model.
        path: of the file.
    """
    settings = patcher.model.model_config
    dtype = settings.supported_inference_dtypes[0]
    found = {
        name: value.detach().to("cpu", dtype).contiguous()
        for name, value in published_weights(settings, dict(weights)).items()
    }
    sampling = patcher.get_model_object("model_sampling")
    if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
        found["v_pred"] = torch.tensor([])
        if getattr(sampling, "zsnr", False):
            found["ztsnr"] = torch.tensor([])
    save_file(found, path, {"format": "pt"})


def read_model(patcher: Any, path: Path) -> dict[str, Tensor]:
    """Weights of a MODEL's network, by this host's names, of a file that :func:`save_model` wrote.

    Raises:
        BokehError: no such file, a damaged one, or one of another network.
    """
    found, _ = read_tensors(path)
    own = patcher.model.diffusion_model.state_dict()
    made = weights_for_host(patcher.model.model_config, found, own)
    strange = sorted(name for name in own if name not in made or made[name].shape != own[name].shape)
    if strange:
        raise BokehError(
            f"{path} is not of this network: of {len(own)} weights {len(strange)} are missing or of other shapes, such "
            f"as {strange[0]}. Give a file that was trained from the same model."
        )
    return {name: made[name] for name in own}


class Kept(comfy.model_patcher.ModelPatcher):
    """A MODEL whose weights the host neither moves, nor counts, nor patches: they stay where someone else put them."""

    def model_size(self) -> int:
        return 0

    def loaded_size(self) -> int:
        return 0

    def load(self, *_: Any, **__: Any) -> None:
        pass

    def partially_unload(self, *_: Any, **__: Any) -> int:
        return 0

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        super().unpatch_model(None, False)


def kept(patcher: Any) -> Any:
    """``patcher``, which is not loaded, from now on out of the host's management of memory."""
    found = Kept(patcher.model, patcher.load_device, patcher.load_device)
    found.model_options, found.object_patches = patcher.model_options, patcher.object_patches
    found.model.device = patcher.load_device
    return found


def on_device(patcher: Any) -> None:
    """Load a MODEL's weights, whole, where the host computes; nothing happens where they are."""
    comfy.model_management.load_models_gpu([patcher], force_full_load=True)


def unload() -> None:
    """Take every model off the device; weight patches are undone."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def device() -> torch.device:
    """Where the host computes."""
    return comfy.model_management.get_torch_device()


def small_model(
    architecture: Architecture,
    config: dict[str, Any],
    dtype: torch.dtype,
    v_prediction: bool = False,
    channels: int | None = None,
    rgb_factors: list[list[float]] | None = None,
) -> Any:
    """A MODEL of the host's class for ``architecture`` with dimensions of one's own, weights not set.

    Args:
        architecture: which class.
        config: arguments of the host's network class, such as ``UNetModel`` or ``Flux``.
        dtype: of the weights.
        v_prediction: of a discrete schedule: the network predicts v instead of the noise.
        channels: the latents have that many and are given to the network as they are; None: those of the
            architecture, in its scale.
        rgb_factors: rough colours of such latents, for previews, ``[channels][3]``.
    """
    cpu = torch.device("cpu")
    settings, make = architecture.small_model({**config, "dtype": dtype}, v_prediction)
    if channels is not None:
        settings.latent_format = comfy.latent_formats.LatentFormat()
        settings.latent_format.latent_channels = channels
        settings.latent_format.latent_rgb_factors = rgb_factors
    return comfy.model_patcher.ModelPatcher(make(cpu), load_device=device(), offload_device=cpu)
