"""Fixtures every test may use."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # for `import bokeh_ops`; a host, where one is loaded, goes ahead of it

from tests.host import archive, inprocess  # noqa: E402

if TYPE_CHECKING:
    from tests.host.server import ComfyServer


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of this repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Golden vectors, rendered scenes and data that lie beside the repository, or where BOKEH_SHARED says."""
    folder = Path(os.environ.get("BOKEH_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no shared data in {folder} (set BOKEH_SHARED)")
    return folder


@pytest.fixture(scope="session")
def pack() -> ModuleType:
    """The extension as the host imports it, in a real host, in this process; on the accelerator if there is one."""
    from tests import devices

    return devices.load_pack(devices.available()[-1])


@pytest.fixture(scope="module")
def device(request: pytest.FixtureRequest) -> str:
    """``cpu``, and the accelerator where there is one: a test that asks for it runs on each."""
    from tests import devices

    devices.prepare(request.param)
    return request.param


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        from tests import devices

        metafunc.parametrize("device", devices.available(), indirect=True, scope="module")


@pytest.fixture(scope="session")
def node_classes(pack: ModuleType) -> dict[str, Any]:
    """Node id -> class of every node of the extension."""
    return inprocess.node_classes(pack)


@pytest.fixture(scope="session")
def installed() -> Iterator[Path]:
    """The extension as the registry installs it: a copy of what its archive holds. Without git, this repository."""
    with tempfile.TemporaryDirectory(prefix="bokeh-archive-") as folder:
        yield archive.unpack(Path(folder) / "comfyui-bokeh") if archive.files() else ROOT


@pytest.fixture(scope="session")
def comfy_server(installed: Path) -> Iterator[ComfyServer]:
    """A running ComfyUI server with this extension, as installed, in its ``custom_nodes``. One for the whole run."""
    from tests.host.server import ComfyServer

    probe = ROOT / "tests" / "host" / "probe.py"
    with ComfyServer(extension=installed, custom_nodes=(probe,)) as server:
        yield server


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process of tests to each core, up to four: each holds a host. One alone shares an accelerator's memory."""
    from tests import devices

    cores = os.cpu_count() or 1
    workers = min(cores, 4) if devices.available() == [devices.CPU] else 1
    os.environ.setdefault("OMP_NUM_THREADS", str(cores // workers))
    return workers


LONG = ("test_demo", "test_fit_resume", "test_prepare_run", "test_devices", "test_host_sampling")
"""Files without a server that take a minute or so."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark a test by the fixtures it asks for, so that it can be left out by its mark; longest files first."""
    needs = {"device": "device", "pack": "host", "node_classes": "host", "comfy_server": "server"}
    for item in items:
        for name in getattr(item, "fixturenames", ()):
            if name in needs:
                item.add_marker(needs[name])
    long = {item.path for item in items for mark in ("browser", "server") if item.get_closest_marker(mark)}
    items.sort(key=lambda item: (item.path not in long, item.path.stem not in LONG))
