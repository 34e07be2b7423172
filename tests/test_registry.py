"""What the registry is told and hands out: the archive alone, in ``custom_nodes``, is the whole extension.

The shared server of the tests (``comfy_server``) runs that archive, so the tests of nodes, templates, help pages,
translations, the demo model and the demo's workflows (test_server.py, test_docs.py, test_demo.py) are tests of it.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.host import archive
from tests.test_docs import PAGES, links

if TYPE_CHECKING:
    from tests.host.server import ComfyServer

ROOT = Path(__file__).resolve().parents[1]
TO_FILL_IN = "ADDRESS-OF-THIS-REPOSITORY"
PICTURES = {"Icon": 1, "Banner": 21 / 9}  # and width over height, as the registry wants it
MODULE = re.compile(r"python3? -m ([\w.]+)|python3? (run)\.py")


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"  # which pytest brings
    toml = importlib.import_module(name)
    return toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def packed() -> list[str]:
    return archive.files() or pytest.skip("git, which says what is packed, does not know this folder")


# ---- what it is told ----


def test_address_and_publisher_are_filled_in_everywhere_or_nowhere(told: dict[str, Any]) -> None:
    address, comfy = told["project"]["urls"]["Repository"], told["tool"]["comfy"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"git clone {address} comfyui-bokeh" in readme
    assert all(comfy[name].startswith(f"{address}/") for name in PICTURES)
    assert bool(comfy["PublisherId"]) == (address != TO_FILL_IN)
    assert ("not yet in the registry" in readme) == (address == TO_FILL_IN)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_as_the_registry_wants_them(told: dict[str, Any], name: str) -> None:
    path = ROOT / told["tool"]["comfy"][name].partition("/raw/HEAD/")[2]
    with Image.open(path) as picture:
        width, height = picture.size
    assert path.suffix == ".png"
    assert width / height == pytest.approx(PICTURES[name])
    assert name != "Icon" or width <= 400
    assert path.stat().st_size < 100_000


def test_the_host_reads_what_the_registry_is_told(pack: Any, told: dict[str, Any]) -> None:
    from comfy_config.config_parser import extract_node_configuration  # type: ignore[import-not-found]

    found = extract_node_configuration(str(ROOT))
    assert found.project.name == "comfyui-bokeh"
    assert found.project.supported_os == ["OS Independent"]
    assert found.project.supported_accelerators == []  # every one, and none: the CPU
    assert found.tool_comfy.icon == told["tool"]["comfy"]["Icon"]


def test_the_oldest_host_it_asks_for_is_the_oldest_tried(told: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    tried = re.findall(r"^\| (\d+\.\d+\.\d+) \|", page, re.M)
    oldest = min(tried, key=lambda version: [int(part) for part in version.split(".")])
    # One condition: with two the front end's manager, which reads it as npm would, finds nothing compatible.
    assert told["tool"]["comfy"]["requires-comfyui"] == f">={oldest}"


# ---- what it hands out ----


def test_the_archive_is_the_extension_and_the_trainer_whole(packed: list[str]) -> None:
    known = archive.listed("--cached")
    outside = {name for name in known if not name.startswith(("tests/", "."))} - {"run.py"}
    assert outside - set(packed) == {"docs/images/banner.png", "docs/images/icon.png"}
    assert not [name for name in packed if name.startswith(("tests/", ".")) or name == "run.py"]
    models = [name for name in packed if name.startswith("workflows/assets/world/")]
    assert sum((ROOT / name).stat().st_size for name in models) < 31e6  # each is below 9
    assert sum((ROOT / name).stat().st_size for name in set(packed) - set(models)) < 10e6


def test_nothing_in_the_archive_imports_what_it_leaves_out(packed: list[str]) -> None:
    for name in packed:
        if name.endswith(".py"):
            source = (ROOT / name).read_text(encoding="utf-8")
            assert not re.search(r"^\s*(from|import) (tests|run)\b", source, re.M), name


def test_pages_link_to_what_is_in_the_archive(packed: list[str]) -> None:
    """Help pages do too: their pictures are asked of the server that runs the archive."""
    for page in set(PAGES) & {ROOT / name for name in packed}:
        for _, link in links(page.read_text(encoding="utf-8")):
            target = (page.parent / link.partition("#")[0]).resolve()
            if "://" not in link and not target.is_dir():
                assert target.relative_to(ROOT).as_posix() in packed, f"{page.name} links to {link}"


def test_pages_say_where_commands_are_that_the_archive_leaves_out(packed: list[str]) -> None:
    """The changelog, which tells of a day, need not."""
    named = 0
    for name in packed:
        if name.endswith(".md") and name != "CHANGELOG.md":
            text = (ROOT / name).read_text(encoding="utf-8")
            modules = {"".join(found).replace(".", "/") for found in MODULE.findall(text)}
            absent = [m for m in modules if not {f"{m}.py", f"{m}/__init__.py"} & set(packed)]
            assert not absent or "a clone of this repository" in text, f"{name} names {absent}"
            named += len(absent)
    assert named


def test_the_shared_server_runs_the_archive_alone(
    packed: list[str], comfy_server: ComfyServer, installed: Path
) -> None:
    folder = comfy_server.base / "custom_nodes" / "comfyui-bokeh"
    assert folder.resolve() == installed.resolve()
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {name for name in found if "__pycache__" not in name} == set(packed)
