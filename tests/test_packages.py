"""pyproject.toml: the packages that setuptools finds, and what `python -m trainer` needs beside ComfyUI's own."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

MODULES = {
    "opencv-python-headless": "cv2",
    "pillow-heif": "pillow_heif",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "tensorboard": "torch.utils.tensorboard",
}
"""What is imported of a package that is called otherwise."""

AT_RUN_TIME = (
    "world/classes.safetensors",
    "world/mask.safetensors",
    "configs/tiny.yaml",
    "configs/sd15-12gb.yaml",
    "configs/flux-24gb.yaml",
)
"""Files of the trainer that are not Python; it runs from a clone, so they have to lie in it."""


def settings(repo: Path) -> dict:
    return tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))


def test_setuptools_finds_every_package(repo: Path) -> None:
    setuptools = pytest.importorskip("setuptools")
    found = settings(repo)["tool"]["setuptools"]["packages"]["find"]
    assert found["namespaces"] is False  # else folders of data are packages too
    packages = setuptools.find_packages(str(repo), include=found["include"])
    there = {
        path.parent.relative_to(repo).as_posix().replace("/", ".")
        for top in ("bokeh_ops", "trainer")
        for path in (repo / top).rglob("__init__.py")
    }
    assert set(packages) == there
    assert {"trainer", "trainer.data.prepare.providers", "trainer.world"} <= there
    scripts = {path.parent for top in ("bokeh_ops", "trainer") for path in (repo / top).rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in scripts)


@pytest.mark.parametrize("name", AT_RUN_TIME)
def test_files_that_the_trainer_reads_lie_in_a_clone(repo: Path, name: str) -> None:
    assert (repo / "trainer" / name).stat().st_size > 0


def imported(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {each.name for each in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
    return names


def test_every_package_of_the_extra_train_is_used(repo: Path) -> None:
    used = imported(repo / "trainer") | imported(repo / "bokeh_ops")
    named = {
        each: MODULES.get(each, each) for each in settings(repo)["project"]["optional-dependencies"]["train"]
    }
    idle = {
        each
        for each, module in named.items()
        if not any(name == module or name.startswith(f"{module}.") for name in used)
    }
    assert idle == set()
