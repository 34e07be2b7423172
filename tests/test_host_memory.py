"""Memory of the host while pictures are rendered: asked for before, and what happens when it runs out."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from .test_node_render import call

pytestmark = pytest.mark.host


@pytest.fixture
def management(pack: ModuleType) -> Any:
    import comfy.model_management  # type: ignore[import-not-found]

    return comfy.model_management


@pytest.fixture
def said(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr(pack.nodes.render, "say", lambda text, node_id=None: texts.append(text))
    return texts


class Short:
    """A device on which only tiles up to a size fit: what is said when one does not, and which were tried."""

    def __init__(
        self, pack: ModuleType, monkeypatch: pytest.MonkeyPatch, fits: int, error: Exception
    ) -> None:
        self.tiles: list[int | None] = []
        memory = pack.bokeh_ops.host.memory
        render = memory.render

        def short(image: Any, disparity: Any, lens: Any, model: Any, progress: Any, tile: int | None) -> Any:
            self.tiles.append(tile)
            if tile is None or tile > fits:
                raise error
            return render(image, disparity, lens, model, progress, tile)

        monkeypatch.setattr(memory, "render", short)


WIDE = {"image": torch.rand(2, 8, 600, 3), "depth": torch.linspace(0, 1, 600).expand(1, 8, 600), "k": 2.0}


def test_memory_is_asked_of_the_host_before_a_picture_is_rendered(
    pack: ModuleType, management: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, Any]] = []
    monkeypatch.setattr(management, "free_memory", lambda needed, device, *_: asked.append((needed, device)))
    call(pack, **WIDE, model="layered", k_values="2, 3")
    ((needed, device),) = asked  # once for all pictures of a size
    assert device == management.get_torch_device()
    assert needed >= 8 * 600 * 250 + management.extra_reserved_memory()


def test_out_of_memory_goes_on_in_halved_tiles_and_stays_there(
    pack: ModuleType, management: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = call(pack, **WIDE, model="layered")[0]
    error = management.OOM_EXCEPTION("CUDA out of memory. Tried to allocate 9 GiB")
    short = Short(pack, monkeypatch, 160, error)
    parts = call(pack, **WIDE, model="layered")[0]
    assert short.tiles == [None, 300, 150, 150]  # the second picture begins with what did for the first
    assert float((whole - parts).abs().max()) < 5e-5
    assert ["tiles of 300" in text for text in said] == [True, False]
    assert "CUDA out of memory" in said[1]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: out of memory"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_name_for_it_is_known(
    pack: ModuleType, said: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    short = Short(pack, monkeypatch, 300, error)
    call(pack, **WIDE, model="classical")
    assert short.tiles == [None, 300, 300]
    assert len(said) == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), ValueError("out of memory"), KeyError("x")]
)
def test_no_other_error_is_swallowed(
    pack: ModuleType, management: Any, said: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Not even on a host whose PyTorch knows no error of that name, where it is Exception."""
    for known in (management.OOM_EXCEPTION, Exception):
        monkeypatch.setattr(management, "OOM_EXCEPTION", known)
        monkeypatch.setattr(
            management, "is_oom", lambda e: isinstance(e, management.OOM_EXCEPTION), raising=False
        )
        Short(pack, monkeypatch, 0, error)
        with pytest.raises(type(error)):
            call(pack, **WIDE)
    assert said == []


def test_an_interrupt_is_one_in_tiles_too(
    pack: ModuleType, management: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Short(pack, monkeypatch, 300, management.OOM_EXCEPTION("out of memory"))
    management.interrupt_current_processing(True)
    try:
        with pytest.raises(management.InterruptProcessingException):
            call(pack, **WIDE)
    finally:
        management.interrupt_current_processing(False)


def test_where_nothing_fits_the_cpu_does_it(
    pack: ModuleType, management: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU itself there is nowhere else to go, and the host reports it."""
    memory, ops = pack.bokeh_ops.host.memory, pack.bokeh_ops
    Short(pack, monkeypatch, 0, management.OOM_EXCEPTION("out of memory"))
    with pytest.raises(management.OOM_EXCEPTION):
        call(pack, **WIDE)
    monkeypatch.undo()
    texts: list[str] = []
    tried: list[tuple[str, int | None]] = []

    def render(image: Any, disparity: Any, lens: Any, model: Any, progress: Any, tile: int | None) -> Any:
        tried.append((image.device.type, tile))
        if image.device.type == "meta":
            raise management.OOM_EXCEPTION("out of memory")
        return ops.render.Rendered(image, disparity)

    monkeypatch.setattr(memory, "render", render)
    monkeypatch.setattr(management, "free_memory", lambda *_: [])
    # A tensor without memory stands for one on a device: it has no content to bring to the CPU.
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: torch.zeros(self.shape))
    renderer = memory.within_memory("layered", texts.append)
    picture = torch.empty(1, 3, 8, 500, device="meta")
    for _ in range(2):
        out = renderer(picture, picture[:, :1], ops.render.Lens(1.0))
        assert out.image.device.type == "cpu"
    assert tried == [("meta", None), ("meta", 250), ("meta", 128), ("cpu", 128), ("meta", 128), ("cpu", 128)]
    assert [text[:20] for text in texts] == ["a picture does not f"] * 2 + ["not even tiles of 12"]


def test_a_radius_beyond_the_picture_is_said_with_what_is_drawn(pack: ModuleType, said: list[str]) -> None:
    """16 x 16 pixels and a radius of 60,000: metres taken for dioptres, or a K of many thousands."""
    image, depth = torch.rand(1, 16, 16, 3), torch.linspace(0, 1, 16).expand(1, 16, 16)
    for model in ("layered", "classical"):
        said.clear()
        out = call(pack, image=image, depth=depth, k=60_000.0, model=model)
        assert bool(torch.isfinite(out[0]).all())
        (text,) = said
        assert "The largest blur radius is 60000 pixels" in text
        assert "drawn with 45 pixels, twice the picture's diagonal" in text
