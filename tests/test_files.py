"""Names of files in a graph: they lead into the host's folders and nowhere else, whichever node reads them."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.host

NODES = {"BokehLoadDepth": "file", "BokehFromCamera": "photograph"}
"""Every node that reads a file of the input folder, and the input that names it."""
CAMERA: dict[str, Any] = {
    "f_number": 1.8,
    "focal_length": 50.0,
    "focus_distance": 2.0,
    "sensor": "Full frame",
    "sensor_width": 10.0,
    "image_width": 512,
}


@pytest.fixture
def folders(pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A grey picture in each of the host's folders, in a sub-folder, beside them and in one of a similar name."""
    import folder_paths  # type: ignore[import-not-found]

    for kind in ("input", "output", "temp"):
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(tmp_path / kind))
    for place in ("input", "input/sub", "output", "temp", ".", "input2"):
        (tmp_path / place).mkdir(exist_ok=True)
        Image.new("L", (8, 8), 128).save(tmp_path / place / "x.png")
    return tmp_path


def run(node: Any, entry: str, name: Any) -> Any:
    settings = CAMERA if entry == "photograph" else {}
    return node.execute(**settings, **{entry: name})


@pytest.mark.parametrize("node_id", NODES)
@pytest.mark.parametrize(
    "name",
    [
        "../x.png",
        "sub/../../x.png",
        "../input2/x.png",
        "../output/x.png",
        "../x.png [output]",
        "../x.png [input]",
        "{}/x.png",
        "{}/x.png [temp]",
        "{}/input/../x.png",
        "..",
        ".",
    ],
)
def test_a_name_that_leads_out_is_refused(
    node_classes: dict[str, Any], folders: Path, node_id: str, name: str
) -> None:
    """In validation, and where a link brings the name and the host validates nothing."""
    node, entry, name = node_classes[node_id], NODES[node_id], name.format(folders)
    message = f"outside the input folder {folders / 'input'}"
    assert message in node.validate_inputs(**{entry: name})
    for read in (lambda: node.fingerprint_inputs(**{entry: name}), lambda: run(node, entry, name)):
        with pytest.raises(ValueError, match="outside the input folder"):
            read()


@pytest.mark.parametrize("node_id", NODES)
@pytest.mark.parametrize(
    "name",
    [
        "x.png",
        "sub/x.png",
        "sub/../x.png",
        "x.png [input]",
        "x.png [output]",
        "sub/x.png [input]",
        "x.png [temp]",
    ],
)
def test_a_name_that_leads_in_is_read(
    node_classes: dict[str, Any], folders: Path, node_id: str, name: str
) -> None:
    node, entry = node_classes[node_id], NODES[node_id]
    assert node.validate_inputs(**{entry: name}) is True
    assert len(node.fingerprint_inputs(**{entry: name})) == 32
    run(node, entry, name)


@pytest.mark.parametrize("node_id", NODES)
def test_a_name_that_comes_by_a_link_is_checked_as_it_arrives(
    node_classes: dict[str, Any], folders: Path, node_id: str
) -> None:
    """The host gives None for it beforehand; the file behind it may change, so it is looked at anew each time."""
    node, entry = node_classes[node_id], NODES[node_id]
    assert node.validate_inputs(**{entry: None}) is True
    assert math.isnan(node.fingerprint_inputs(**{entry: None}))
    for name, message in {"gone.png": "no file 'gone.png'", "sub": "no file 'sub'", 5: "got int"}.items():
        assert message in node.validate_inputs(**{entry: name})
        with pytest.raises(ValueError, match=message):
            run(node, entry, name)


def test_an_adapter_s_name_leads_nowhere_else_on_any_host(
    pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths  # type: ignore[import-not-found]

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    (tmp_path / "models" / "bokeh").mkdir(parents=True)
    (tmp_path / "models" / "x.safetensors").write_bytes(b"")

    def careless(kind: str, name: str) -> str | None:
        """As a host would that takes names as they are."""
        path = Path(folder_paths.get_folder_paths(kind)[0]) / name
        return str(path) if path.is_file() else None

    node = pack.nodes.adapter.LoadBokehAdapter
    for host in (folder_paths.get_full_path, careless):
        monkeypatch.setattr(folder_paths, "get_full_path", host)
        for name in ("../x.safetensors", str(tmp_path / "models" / "x.safetensors"), 5):
            assert f"No adapter {name!r}" in node.validate_inputs(name)
            with pytest.raises(ValueError, match="No adapter"):
                node.fingerprint_inputs(name)
    assert node.validate_inputs(None) is True
    assert math.isnan(node.fingerprint_inputs(None))
