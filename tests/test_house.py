"""The house rules that a machine can check: the way imports run, what importing costs, how long files are."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
STANDARD = set(sys.stdlib_module_names)
BROUGHT = {
    "torch",
    "numpy",
    "safetensors",
    "einops",
    "PIL",
    "av",
}  # what ComfyUI has and the extension may import
WHEN_RUN = {
    "transformers"
}  # ComfyUI has it too, but importing it takes seconds: never as the extension is imported
WHERE_INSTALLED = {"onnxruntime"}  # ComfyUI does not bring it: asked for where a user's file needs it
HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths"}
HOST |= {"latent_preview", "node_helpers", "nodes", "server"}
LONGEST = 600  # lines
SLOWEST = 0.3  # seconds of the processor that importing the extension may take beyond torch and the host


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names a file imports, wherever in it, and whether each is relative, so the extension's own."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = [*above, *([node.module] if node.module else [])]
            yield from ((".".join([*base, alias.name]), node.level > 0) for alias in node.names)


def room(name: str) -> str:
    """The part of the house that a module of the extension belongs to."""
    return "bokeh_ops.host" if (name + ".").startswith("bokeh_ops.host.") else name.split(".")[0]


# Which packages each room may import, and which other rooms. The trainer may import what it installs.
PACKAGES = {
    "bokeh_ops": STANDARD | BROUGHT | WHEN_RUN | WHERE_INSTALLED,
    "bokeh_ops.host": STANDARD | BROUGHT | HOST,
    "nodes": STANDARD | BROUGHT | HOST,
}
ROOMS = {
    "bokeh_ops": {"bokeh_ops"},
    "bokeh_ops.host": {"bokeh_ops", "bokeh_ops.host"},
    "nodes": {"bokeh_ops", "bokeh_ops.host", "nodes"},
    "trainer": {"bokeh_ops", "bokeh_ops.host", "trainer"},
}


@pytest.mark.parametrize("path", sources("bokeh_ops", "nodes"), ids=module_name)
def test_imports_from_outside(path: Path) -> None:
    allowed = PACKAGES[room(module_name(path))]
    outside = {name.split(".")[0] for name, relative in imports(path) if not relative}
    assert outside <= allowed, f"{module_name(path)} imports {sorted(outside - allowed)}"


@pytest.mark.parametrize("path", sources("bokeh_ops", "nodes", "trainer"), ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    name = module_name(path)
    inside = {room(imported) for imported, relative in imports(path) if relative}
    inside |= {
        room(imported) for imported, _ in imports(path) if imported.split(".")[0] in {"bokeh_ops", "trainer"}
    }
    assert inside <= ROOMS[room(name)], f"{name} imports {sorted(inside - ROOMS[room(name)])}"
    if room(name) == "trainer":
        assert not any(imported.split(".")[0] == "nodes" for imported, _ in imports(path))


def test_no_cycles() -> None:
    files = {module_name(path): path for path in sources("bokeh_ops", "nodes", "trainer")}

    def module_of(imported: str) -> str:
        while imported and imported not in files:
            imported = imported.rpartition(".")[0]
        return imported

    graph = {
        name: {module_of(imported) for imported, _ in imports(path)} - {"", name}
        for name, path in files.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError and names the cycle


@pytest.mark.parametrize(
    "path",
    [ROOT / "run.py", ROOT / "__init__.py", *sources("bokeh_ops", "nodes", "trainer", "tests")],
    ids=module_name,
)
def test_no_file_is_hard_to_hold_in_the_head(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{path.relative_to(ROOT)} has {lines} lines"


def test_no_javascript() -> None:
    assert not [path for path in (ROOT / "web").rglob("*") if path.suffix in {".js", ".mjs", ".ts", ".vue"}]


def watched_import() -> dict[str, Any]:
    """With compiled files, which every start but the first has, whatever this process keeps."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.host.house"],
        cwd=ROOT,
        env=kept,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def watched() -> dict[str, Any]:
    """What importing the extension did to a fresh process with a host in it (tests/host/house.py)."""
    return watched_import()


@pytest.mark.host
def test_importing_brings_in_nothing_the_host_does_not_bring(watched: dict[str, Any]) -> None:
    foreign = {name.split(".")[0] for name in watched["modules"]} - STANDARD - BROUGHT
    assert not foreign
    assert not watched["paths"], "importing the extension changed sys.path"


@pytest.mark.host
def test_importing_leaves_the_host_as_it_was(watched: dict[str, Any]) -> None:
    assert watched["watched"] > 10_000  # functions, classes and members: it did look
    assert not watched["patched"]


@pytest.mark.host
def test_importing_asks_nothing_of_the_network(watched: dict[str, Any]) -> None:
    assert not watched["network"]


@pytest.mark.host
def test_importing_costs_next_to_nothing(watched: dict[str, Any]) -> None:
    seconds = watched["seconds"]
    for _ in range(3):  # the first start compiles, and a busy machine may be slow once, not every time
        if seconds < SLOWEST:
            break
        seconds = min(seconds, watched_import()["seconds"])
    assert seconds < SLOWEST


@pytest.mark.host
def test_every_node_explains_its_inputs_and_outputs(node_classes: dict[str, Any]) -> None:
    for node_id, cls in node_classes.items():
        schema = cls.GET_SCHEMA()
        assert schema.description, f"{node_id} has no description"
        assert schema.display_name, f"{node_id} has no display name"
        assert schema.category.split("/")[0] == "Bokeh"
        for entry in [*schema.inputs, *schema.outputs]:
            assert entry.tooltip, f"{node_id}: {entry.id or entry.display_name} has no tooltip"


ARCHITECTURES = ROOT / "bokeh_ops" / "host" / "architectures"
MAY_NAME = {
    "bokeh_ops/adapter/files.py",  # the released layout is FLUX's, and files that name no base are told apart
    "trainer/world",  # has networks of its own for two of them
    "trainer/toy.py",  # the toy is of one of them
}


@pytest.mark.parametrize("path", sources("bokeh_ops", "nodes", "trainer"), ids=module_name)
def test_architectures_are_asked_and_not_named(path: Path) -> None:
    names = {file.stem for file in ARCHITECTURES.glob("*.py")} & {"sd15", "sdxl", "flux"}
    assert len(names) == 3
    own = path.relative_to(ROOT).as_posix()
    if path.parent == ARCHITECTURES or own.startswith(tuple(MAY_NAME)):
        return
    found = [
        f"line {node.lineno}: {node.value!r}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert not found, f"{own} names architectures: {found}"
