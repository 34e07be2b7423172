"""What importing the extension does to a process. Run in a process of its own: prints one JSON object.

    python -m tests.host.house

The host is imported first, as its server would have it; then the extension, watched.
"""

from __future__ import annotations

import json
import sys
import time
from types import FunctionType, ModuleType
from typing import Any

NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"}
WATCHED = (
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "nodes",
    "execution",
    "folder_paths",
    "torch",
)


def callables() -> dict[str, int]:
    """Identity of every function and class of the watched modules, and of the members of those classes."""
    found: dict[str, int] = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] not in WATCHED or not isinstance(module, ModuleType):
            continue
        for key, value in list(vars(module).items()):
            if isinstance(value, FunctionType | type):
                found[f"{name}.{key}"] = id(value)
            if isinstance(value, type) and value.__module__ == name:
                members = {k: v for k, v in vars(value).items() if callable(v) or hasattr(v, "__func__")}
                found.update({f"{name}.{key}.{k}": id(v) for k, v in members.items()})
    return found


def watch() -> dict[str, Any]:
    from tests.host import inprocess

    host = inprocess.load_host()
    import comfy.sd  # noqa: F401  # type: ignore[import-not-found]
    import comfy_api.latest  # noqa: F401  # type: ignore[import-not-found]
    import execution  # noqa: F401  # type: ignore[import-not-found]

    import nodes  # noqa: F401  # type: ignore[import-not-found]

    calls: list[str] = []
    sys.addaudithook(lambda event, args: calls.append(f"{event}{args}") if event in NETWORK else None)
    functions, modules, paths = callables(), set(sys.modules), list(sys.path)

    start = time.process_time()  # which other programs of a busy machine do not lengthen
    pack = inprocess.import_pack()
    found = inprocess.node_classes(pack)
    seconds = time.process_time() - start

    after = callables()
    new = {name: sys.modules[name] for name in set(sys.modules) - modules}
    return {
        "seconds": seconds,
        "nodes": sorted(found),
        "network": calls,
        "patched": sorted(name for name, value in functions.items() if after.get(name) != value),
        "watched": len(functions),
        "paths": [path for path in sys.path if path not in paths],
        "modules": sorted(
            name
            for name, module in new.items()
            if not name.startswith(pack.__name__)
            and not str(getattr(module, "__file__", None) or "").startswith(str(host))
        ),
    }


if __name__ == "__main__":
    print(json.dumps(watch()))
