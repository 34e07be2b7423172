# ruff: noqa: F811 (fixtures)
"""What differs between hosts, the same to us: weights by any host's names, and what hosts want to be told."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import models
from tests.models import one_thread  # noqa: F401
from tests.sampling import Sampling, adapter, base, kind, model, s, said, unloaded  # noqa: F401

SHIPPED = Path(__file__).parents[1] / "workflows" / "assets" / "world"


def renamed(weights: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """As ComfyUI 0.14 renamed the norms of FLUX, or back."""
    return {
        name.removesuffix(old) + new if name.endswith(f"_norm{old}") else name: value
        for name, value in weights.items()
    }


class Renaming:
    """The model's configuration on a host that renames as it loads, or on one that does not."""

    def __init__(self, later: bool) -> None:
        self.later = later

    def process_unet_state_dict(self, weights: dict[str, Any]) -> dict[str, Any]:
        return renamed(weights, ".scale", ".weight") if self.later else weights


OLDER = {
    "norm.query_norm.scale": 1,
    "norm.key_norm.scale": 2,
    "txt_in.weight": 3,
    "txt_in.bias": 4,
    "lin.scale": 5,
}
LATER = renamed(OLDER, ".scale", ".weight")


@pytest.mark.parametrize("later", [False, True], ids=["until 0.13", "from 0.14"])
def test_a_file_of_either_kind_of_host_fits_either(pack: ModuleType, later: bool) -> None:
    from bokeh_ops.host import differences

    own, settings = (LATER if later else OLDER), Renaming(later)
    for written in (OLDER, LATER):
        before = dict(written)
        assert differences.weights_for_host(settings, written, own) == own
        assert written == before
    assert differences.published_weights(settings, own) == OLDER
    assert list(differences.published_weights(settings, own).values()) == list(own.values())


def test_a_small_flux_written_by_either_host_is_read_by_this_one(pack: ModuleType, tmp_path: Path) -> None:
    """And what is written here has the published names, byte for byte as shipped."""
    from bokeh_ops.host.small import model as small

    shipped = SHIPPED / "flux.safetensors"
    published = load_file(shipped)
    later = renamed(published, ".scale", ".weight")
    assert len(published.keys() - later.keys()) > 8
    model = small.read_small(shipped)
    save_file(later, tmp_path / "later.safetensors", {small.METADATA: json.dumps(model.description)})
    other = small.read_small(tmp_path / "later.safetensors")
    assert models.same_bits(models.snapshot(model.patcher), models.snapshot(other.patcher))
    other.save(tmp_path / "again.safetensors", torch.float16)
    assert (tmp_path / "again.safetensors").read_bytes() == shipped.read_bytes()
    del later["network.img_in.weight"]
    save_file(later, tmp_path / "half.safetensors", {small.METADATA: json.dumps(model.description)})
    with pytest.raises(RuntimeError, match=r"Missing key.*img_in\.weight"):
        small.read_small(tmp_path / "half.safetensors")


# Out of memory, by whichever name


class DeviceError(getattr(torch, "AcceleratorError", RuntimeError)):  # type: ignore[misc]
    """What a device leaves behind that ran out of memory: a number, and words that need not say so."""

    def __init__(self, code: int = 2) -> None:
        super().__init__("CUDA error: see the log")
        self.error_code = code


@pytest.fixture
def cleared(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What a later host was asked about; it clears the device meanwhile."""
    import comfy.model_management as management

    asked: list[BaseException] = []

    def is_oom(error: BaseException) -> bool:
        asked.append(error)
        return isinstance(error, DeviceError) and error.error_code == 2

    monkeypatch.setattr(management, "is_oom", is_oom, raising=False)
    return asked


@pytest.mark.parametrize("later", [False, True])
def test_a_device_that_ran_out_is_known_by_its_number(
    pack: ModuleType, cleared: list[BaseException], monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    import comfy.model_management as management

    if not later:
        monkeypatch.delattr(management, "is_oom")
    out_of_memory = pack.bokeh_ops.host.differences.out_of_memory
    assert out_of_memory(DeviceError())
    assert not out_of_memory(DeviceError(700))  # an illegal access
    assert len(cleared) == 2 * later


def test_a_sweep_goes_on_with_fewer_targets_after_it(
    s: Sampling, base: Any, said: Any, cleared: list[BaseException]
) -> None:
    def short(_module: Any, args: tuple[Any, ...]) -> None:
        if args[0].shape[0] > 4:
            raise DeviceError

    handle = base.model.diffusion_model.register_forward_pre_hook(short)
    try:
        _, targets = s.grounded(target_bokeh="0, 4, 14, 20, 28", cfg=1.0)
    finally:
        handle.remove()
    assert targets["samples"].shape[0] == 5
    assert sum("do not fit in memory" in text for text in said()) == 1
    assert len(cleared) == 1


def test_a_preview_that_ran_out_leaves_nothing_on_the_device(
    s: Sampling, said: Any, cleared: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    import latent_preview

    class Previewer:
        def decode_latent_to_preview_image(self, *_: Any) -> None:
            raise DeviceError

    monkeypatch.setattr(latent_preview, "get_previewer", lambda *_: Previewer())
    assert torch.isfinite(s.grounded()[1]["samples"]).all()
    assert sum("goes on without previews" in text for text in said()) == 1
    assert len(cleared) == 1
