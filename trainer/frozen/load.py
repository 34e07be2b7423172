"""From the settings to a :class:`~trainer.frozen.model.Base`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from bokeh_ops.errors import BokehError
from bokeh_ops.host.architectures import named
from trainer.config import Base as Settings
from trainer.data import Dataset
from trainer.frozen.model import Base, Fingerprints, HostBase
from trainer.frozen.small import SmallBase

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}


class Wanted(Protocol):
    """Settings of a recipe that has a frozen model."""

    @property
    def base(self) -> Settings: ...

    @property
    def precision(self) -> str: ...


def check_size(dataset: Dataset, wanted: Settings) -> None:
    """Refuse pictures whose sides the architecture does not take.

    Raises:
        BokehError: it says which it takes.
    """
    multiple = wanted.known.size_multiple
    width, height = dataset.resolution
    if width % multiple or height % multiple:
        raise BokehError(
            f"The pictures of {dataset.folder} are {width} x {height}; {wanted.architecture} needs sides that are "
            f"multiples of {multiple}. Make the data set at another size, such as 512 x 512."
        )


def load_base(settings: Wanted, beside: Path, prints: Fingerprints) -> Base:
    """The base that the (resolved) settings name. ComfyUI has to be started.

    Args:
        settings: whose ``base`` it is.
        beside: folder that relative paths start from.
        prints: hashes of files.

    Raises:
        BokehError: a file is missing, unknown to the host or of another architecture; or a type of weights in which
            the host would compute less precisely than is asked for.
    """
    from bokeh_ops.host.loading import models as loading
    from bokeh_ops.host.small.model import small_description

    wanted = settings.base
    dtype = DTYPES[wanted.weights]
    kind = "checkpoints" if wanted.checkpoint is not None else "diffusion_models"
    name = wanted.checkpoint or wanted.diffusion_model
    assert name is not None  # the settings were checked
    path = loading.model_file(name, kind, beside)
    if small_description(path) is not None:
        base: Base = SmallBase(path, dtype, wanted.architecture, prints.of([path]))
    else:
        base = _host_base(settings, path, beside, prints)
    computed = loading.compute_dtype(base.patcher)
    if settings.precision == "fp32" and computed != torch.float32:
        raise BokehError(
            f"precision is fp32, but with base.weights {wanted.weights} ComfyUI computes in {computed}; set "
            "base.weights to fp32."
        )
    if wanted.prediction == "v":
        base.patcher = loading.use_v_prediction(base.patcher, wanted.zero_terminal_snr)
    return base


def _host_base(settings: Wanted, path: Path, beside: Path, prints: Fingerprints) -> HostBase:
    from bokeh_ops.host.loading import models as loading

    wanted = settings.base
    dtype = DTYPES[wanted.weights]
    text = [loading.model_file(file, "text_encoders", beside) for file in wanted.text_encoders]
    vae = [loading.model_file(wanted.vae, "vae", beside)] if wanted.vae is not None else []
    if wanted.checkpoint is not None:
        patcher = loading.load_checkpoint_model(path, dtype)
        text, vae = text or [path], vae or [path]
    else:
        patcher = loading.load_model(path, dtype)
    architecture = named(wanted.architecture)
    loading.check_architecture(patcher, architecture, str(path))
    return HostBase(architecture, patcher, {"model": [path], "text": text, "vae": vae}, prints)
