"""A source that has nothing beside its photographs is told of before anything is computed."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

from tests.photographs import photograph
from trainer.data.prepare.lacking import what_is_lacking

ROOT = Path(__file__).resolve().parents[1]


def test_a_plain_folder_is_told_of_before_anything_is_computed(tmp_path: Path) -> None:
    """Without the packages that compute: they alone would take longer than a second to load."""
    for number in range(3):
        photograph(tmp_path / "in" / f"{number}.jpg", maps=False, caption=None)
    code = "import sys; from trainer.cli import main; status = main(sys.argv[1:]); assert 'torch' not in sys.modules"
    words = ["prepare", "in", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit(status)", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert (
        "None of 3 photographs has beside it its depth (NAME.depth.png), its mask (NAME.mask.png), its captions "
        "(NAME.txt), so all would be rejected. Models can make that:\n  python -m trainer prepare in --out out --depth "
        "transformers:depth-anything/Depth-Anything-V2-Metric-Outdoor-Large-hf --mask nearest --captions "
        "transformers:Salesforce/blip-image-captioning-large\n"
    ) in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_lacking(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for number in range(2):
        photograph(source / f"p0{number}.jpg", seed=number)
    photograph(source / "alone.jpg", maps=False, caption=None)
    files = {"depth": ["files"], "mask": ["files"], "captions": ["files"]}
    out = tmp_path / "out"
    assert what_is_lacking(str(source), out, files) is None
    assert what_is_lacking(str(tmp_path / "nowhere"), out, files) is None
    said = what_is_lacking(str(source), out, {**files, "depth": ["files:{stem}_d.png"], "mask": ["nearest"]})
    assert said is not None
    assert "beside it its depth ({stem}_d.png), so" in said
    assert (
        "--depth transformers:depth-anything/Depth-Anything-V2-Metric-Outdoor-Large-hf --mask nearest\n"
        in said
    )
    for path in source.glob("*.txt"):
        path.unlink()
    assert "its captions (NAME.txt), so" in str(what_is_lacking(str(source), out, files))
    (source / "list.jsonl").write_text('{"image": "p00.jpg", "caption": "a disc"}\n')
    assert what_is_lacking(str(source / "list.jsonl"), out, files) is None
    assert what_is_lacking(str(source), out, {**files, "captions": ["none"]}) is None
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for path in sorted(source.glob("p0*.jpg")):
            tar.add(path, path.name)
    assert "of 2 photographs has beside it its depth" in str(
        what_is_lacking(str(tmp_path / "a.tar"), out, files)
    )
