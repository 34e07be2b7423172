"""``python -m tests.gpu --pack DIR``: a folder with what a bare card machine lacks.

In it: ``host``, ComfyUI's source without its large files and web page; ``site``, the pure-Python packages that the host
and the tests import, as they are installed here; ``shared/golden``; and ``run.sh``, which starts the command with them.
What is compiled cannot be carried from another Python or system: :mod:`.standins` says what must be there.
"""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import shutil
import sys
from pathlib import Path

from tests.golden_genfocus import LORAS
from tests.golden_lens import LORA
from tests.host.setup import host_folder

from .parts import golden_folders
from .standins import EXPECTED, PACKED, PYTEST, STOOD_IN

LIMIT = 64 * 2**20
"""Bytes that the folder may hold."""

_LARGE = 2 * 2**20
"""Bytes of a file of the host that is left out: pictures, fonts and the like; never Python."""
_HOST_NEEDS = {".py", ".json", ".yaml", ".txt", ".model", ".toml"}
_HOST_LEAVES = {
    "tests",
    "tests-unit",
    "web",
    "models",
    "input",
    "output",
    "custom_nodes",
    "user",
    "__pycache__",
    ".git",
}
_PYTHON_LEAVES = {"__pycache__", "tests", "test"}


class TooLarge(Exception):
    """More than may be carried; the message says how much of what."""


def pack(folder: Path) -> int:
    """Fill ``folder``, which must be new or empty; the exit status."""
    try:
        sizes = fill(folder)
    except TooLarge as error:
        print(error, file=sys.stderr)
        return 1
    for name, size in sizes.items():
        print(f"{size / 2**20:6.1f} MiB  {name}")
    print(f"{sum(sizes.values()) / 2**20:6.1f} MiB  in all, of {LIMIT / 2**20:.0f} MiB at most")
    print(f"To be on the machine: {', '.join(EXPECTED)}. May be missing there: {', '.join(STOOD_IN)}.")
    print(f"There, in the repository: sh {folder.name}/run.sh")
    return 0


def fill(folder: Path, limit: int = LIMIT) -> dict[str, int]:
    """Bytes by what they are of.

    Raises:
        TooLarge: it is more than ``limit``; the folder is as it was.
        FileExistsError: there is something in the folder.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    wanted: dict[str, list[tuple[Path, Path]]] = {}
    host = host_folder()
    wanted["host"] = [(path, Path("host") / path.relative_to(host)) for path in _host_files(host)]
    for name in (*PACKED, *PYTEST):
        wanted[name] = [(path, Path("site") / inside) for path, inside in _package_files(name)]
    wanted["golden outputs"] = [
        (path, Path("shared") / "golden" / golden.name / path.name)
        for golden in golden_folders()
        if any((golden / name).is_file() for name in ("model.safetensors", LORA, *LORAS))
        for path in sorted(golden.iterdir())
        if path.name != "base_diffusers.safetensors"  # the same weights again
    ]
    sizes = {name: sum(path.stat().st_size for path, _ in files) for name, files in wanted.items()}
    if sum(sizes.values()) > limit:
        most = ", ".join(
            f"{name} {sizes[name] / 2**20:.1f}" for name in sorted(sizes, key=sizes.__getitem__)[:-5:-1]
        )
        raise TooLarge(
            f"That would be {sum(sizes.values()) / 2**20:.1f} MiB, and {limit / 2**20:.1f} may be carried. Most of it: "
            f"{most} MiB."
        )
    for files in wanted.values():
        for path, inside in files:
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / inside)
    (folder / "run.sh").write_text(_RUN)
    return sizes


_RUN = """#!/bin/sh
# Started in the root of the repository.
here=$(CDPATH= cd "$(dirname "$0")" && pwd)
export BOKEH_COMFYUI="$here/host" BOKEH_SHARED="$here/shared" PYTHONPATH="$here/site"
exec "${BOKEH_PYTHON:-python3}" -m tests.gpu "$@"
"""


def _host_files(host: Path) -> list[Path]:
    found = []
    for path in sorted(host.rglob("*")):
        inside = path.relative_to(host)
        if not path.is_file() or path.suffix not in _HOST_NEEDS or inside.parts[0] in _HOST_LEAVES:
            continue
        if "__pycache__" not in inside.parts and (path.suffix == ".py" or path.stat().st_size < _LARGE):
            found.append(path)
    return found


def _package_files(name: str) -> list[tuple[Path, Path]]:
    """Python files and data of an installed package, and what its metadata says, by the path inside ``site``."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return []
    origin = Path(spec.origin)
    if not spec.submodule_search_locations:
        found = [(origin, Path(origin.name))]
    else:
        root = origin.parent
        found = [
            (path, path.relative_to(root.parent))
            for path in sorted(root.rglob("*"))
            if path.is_file()
            and path.suffix not in {".so", ".pyd", ".pyc", ".dll", ".dylib"}
            and not _PYTHON_LEAVES & set(path.relative_to(root).parts)
        ]
    # Versions are asked for by the names in the metadata.
    for distribution in metadata.packages_distributions().get(name, ())[:1]:
        site = Path(str(metadata.distribution(distribution).locate_file("")))
        folder = Path(str(metadata.distribution(distribution)._path))  # type: ignore[attr-defined]
        found += [
            (path, path.relative_to(site)) for path in folder.glob("*") if path.name in ("METADATA", "RECORD")
        ]
    return found
