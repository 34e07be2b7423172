"""ComfyUI and this extension in the process of the tests, without a server.

The extension comes in the way the host brings it in: as a package whose name is made from its path. So its
classes are not those of a plain ``import bokeh_ops``: an error that it raises is a
``pack.bokeh_ops.errors.BokehError`` (a ValueError either way), not a ``bokeh_ops.errors.BokehError``.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib
import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from .launch import make_torchvision_importable
from .setup import ROOT, SetupError, host_folder


def load_host(*, cpu: bool = True) -> Path:
    """Make ``import comfy``, ``import nodes`` and the like mean the host's; return the host's folder.

    Models, inputs and outputs are looked for in a temporary folder (``folder_paths.base_path``).
    """
    host = host_folder()
    if str(host) in sys.path:
        return host
    taken = sorted({"nodes", "server", "execution", "comfy"} & set(sys.modules))
    if taken:
        raise SetupError(f"Modules named {', '.join(taken)} are loaded already and are not the host's.")
    sys.path.insert(0, str(host))  # ahead of this repository, whose `nodes` is not the host's `nodes`
    make_torchvision_importable()

    from comfy.cli_args import args  # type: ignore[import-not-found]

    args.cpu = cpu
    args.base_directory = tempfile.mkdtemp(prefix="bokeh-host-")
    atexit.register(shutil.rmtree, args.base_directory, ignore_errors=True)
    importlib.import_module("nodes")  # now, while the host is first on the path: later some test may not be
    return host


def import_pack() -> ModuleType:
    """Import this repository under the name the host would give it. The host has to be loaded."""
    name = str(ROOT).replace(".", "_x_")
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def node_classes(pack: ModuleType) -> dict[str, Any]:
    """Node id -> class, by way of the extension's entry point, as the host registers them."""

    async def listed() -> list[Any]:
        return await (await pack.comfy_entrypoint()).get_node_list()

    return {cls.GET_SCHEMA().node_id: cls for cls in asyncio.run(listed())}


def load_pack(*, cpu: bool = True) -> ModuleType:
    """Host and extension, ready for ``pack.nodes.colour.LabColorMatch.execute(...)``."""
    load_host(cpu=cpu)
    pack = import_pack()
    from comfy_api.latest._io import HiddenHolder  # type: ignore[import-not-found]

    for cls in node_classes(pack).values():
        cls.hidden = HiddenHolder.from_dict(None)  # the host does this on the copy of the class that it runs
    return pack
