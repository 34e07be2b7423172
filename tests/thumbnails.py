"""Thumbnails of the workflows that need no model of others: ``python -m tests.thumbnails [NAME ...]``.

Runs each shipped workflow in a real server, as a user does, and lays parts of its pictures side by side in
``workflows/NAME.jpg``, 512 pixels square. To be run again whenever the renderer gives other pictures.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageSequence

from tests.host.server import ComfyServer
from tests.host.workflow import to_api

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
SIDE = 512
MOST_BYTES = 58_000

Results = dict[str, list[Image.Image]]
"""Title of the node that rendered or saved -> its pictures."""


def square(picture: Image.Image, x: float, y: float = 0.5, share: float = 1.0) -> Image.Image:
    """A square cut out: ``share`` of the shorter side, at (x, y) of what room there is."""
    side = round(share * min(picture.size))
    left, top = round(x * (picture.width - side)), round(y * (picture.height - side))
    return picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def strips(parts: dict[str, Image.Image]) -> Image.Image:
    """Squares that show the same, each a strip of the whole."""
    whole, count = Image.new("RGB", (SIDE, SIDE)), len(parts)
    for index, (label, part) in enumerate(parts.items()):
        left, right = (round(SIDE * edge / count) for edge in (index, index + 1))
        whole.paste(part.crop((left, 0, right, SIDE)), (left, 0))
        _label(whole, label, (left + right) // 2, SIDE - 10)
        if index:
            ImageDraw.Draw(whole).line((left, 0, left, SIDE), fill="white", width=2)
    return whole


def quarters(parts: dict[str, Image.Image]) -> Image.Image:
    """Four squares, two by two."""
    whole, half = Image.new("RGB", (SIDE, SIDE)), SIDE // 2
    for index, (label, part) in enumerate(parts.items()):
        left, top = index % 2 * half, index // 2 * half
        whole.paste(part.resize((half, half), Image.Resampling.LANCZOS), (left, top))
        _label(whole, label, left + half // 2, top + half - 8)
    lines = ImageDraw.Draw(whole)
    lines.line((half, 0, half, SIDE), fill="white", width=2)
    lines.line((0, half, SIDE, half), fill="white", width=2)
    return whole


def _label(whole: Image.Image, text: str, centre: int, bottom: int) -> None:
    font = ImageFont.load_default(20)
    ImageDraw.Draw(whole).text(
        (centre, bottom), text, "white", font, anchor="ms", stroke_width=2, stroke_fill="black"
    )


def photo(found: Results) -> Image.Image:
    frames = found["Lens blur at six strengths"]
    return strips({"K = 0": square(frames[0], 0.45), "K = 28": square(frames[5], 0.45)})


def first(found: Results) -> Image.Image:
    return strips(
        {
            "as taken": square(found["as taken"][0], 0.45),
            "f/1.2": square(found["Through a fast lens"][0], 0.45),
        }
    )


def portrait(found: Results) -> Image.Image:
    point, whole = found["As a lens does it: only the face"][0], found["The whole subject sharp"][0]
    return quarters(
        {
            "focus on a point": square(point, 0.4, 0.9, 0.7),
            "on the whole subject": square(whole, 0.4, 0.9, 0.7),
            "its fur": square(point, 0.27, 0.9, 0.3),
            "its fur, sharp": square(whole, 0.27, 0.9, 0.3),
        }
    )


def pull(found: Results) -> Image.Image:
    frames = found["Lens blur at every focus"]
    names = {"focus 0.9": 0, "0.6": 3, "0.4": 6, "0": 11}
    return quarters({name: square(frames[index], 1.0) for name, index in names.items()})


def series(found: Results) -> Image.Image:
    frames = found["Lens blur at every f-number"]
    names = {"f/1.4": 0, "f/2.8": 2, "f/5.6": 4, "f/16": 7}
    return quarters({name: square(frames[index], 0.9, 1.0, 0.8) for name, index in names.items()})


def to_file(found: Results) -> Image.Image:
    frames = [*found["as taken"], *found["Photographs with their camera"]]
    names = {"as taken": 0, "f/1.4": 1, "f/2.8": 2, "f/8": 3}
    return quarters({name: square(frames[index], 0.95, 1.0, 0.7) for name, index in names.items()})


def shapes(found: Results) -> Image.Image:
    names = ("Hearts", "Six blades", "Anamorphic", "Soap bubbles")
    return quarters({name: square(found[f"{name}, the picture"][0], 0.0, 0.4, 0.66) for name in names})


def video(found: Results) -> Image.Image:
    frames = found["The same as an animated picture"]
    names = {"frame 1": 0, "11": 10, "15": 14, "24": 23}
    return quarters({name: square(frames[index], 0.5) for name, index in names.items()})


def generated(found: Results) -> Image.Image:
    frames = found["Large enough to be seen"]
    names = {"K = 0": 0, "8": 2, "18": 4, "28": 5}
    return quarters({name: square(frames[index], 0.5) for name, index in names.items()})


def edited(found: Results) -> Image.Image:
    frames = found["The edits, large enough to be seen"]
    names = {"from K = 14 to 0": 0, "7": 1, "21": 3, "28": 4}
    return quarters({name: square(frames[index], 0.5) for name, index in names.items()})


def any_aperture(found: Results) -> Image.Image:
    frames = found["Large enough to be seen"]
    names = {"from K = 14 to 0": 0, "14": 2, "21": 3, "28": 4}
    return quarters({name: square(frames[index], 0.5) for name, index in names.items()})


def main_thing(found: Results) -> Image.Image:
    frames = found["Picture, main thing, focused on it"]
    names = {"picture": 0, "main thing": 1, "focused on it": 2}
    parts = {name: square(frames[index], 0.5) for name, index in names.items()}
    return quarters({**parts, "its edge": square(frames[2], 0.55, 0.5, 0.4)})


def photographed(found: Results) -> Image.Image:
    frames = [found["All in focus"][0], *found["Photographs with their camera"]]
    names = {"in four steps": 0, "f/1.8": 1, "f/4": 2, "f/11": 3}
    large = [frame.resize((SIDE, SIDE), Image.Resampling.NEAREST) for frame in frames]
    return quarters({name: large[index] for name, index in names.items()})


MADE: dict[str, Callable[[Results], Image.Image]] = {
    "first_lens_blur": first,
    "photo_rerendered_from_depth": photo,
    "portrait_whole_subject": portrait,
    "focus_pull": pull,
    "aperture_series": series,
    "camera_to_file": to_file,
    "shaped_highlights": shapes,
    "video_focus_pull": video,
    "generated_sweep_demo": generated,
    "photo_edit_demo": edited,
    "any_aperture_demo": any_aperture,
    "find_main_thing_demo": main_thing,
    "generated_photograph_demo": photographed,
}


def results(server: ComfyServer, name: str) -> Results:
    """Run a workflow. Contact sheets are saved as the pictures they are made of, under the renderer's title."""
    prompt = to_api(
        json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")), server.object_info()
    )
    title: dict[str, str] = {node: entry["_meta"]["title"] for node, entry in prompt.items()}
    for node, entry in list(prompt.items()):
        source = entry["inputs"].get("images")
        if entry["class_type"] == "SaveImage" and prompt[source[0]]["class_type"] == "BokehContactSheet":
            entry["inputs"]["images"] = prompt[source[0]]["inputs"]["images"]
            title[node] = title[entry["inputs"]["images"][0]]
            del prompt[source[0]]
    done = server.wait(server.queue(prompt), timeout=3600)
    print(f"{name}: {done.seconds:.0f} s", flush=True)
    found: Results = {"as taken": [Image.open(WORKFLOWS / "assets" / "pug.jpg").convert("RGB")]}
    for node in done.outputs:
        for saved in done.images(node):
            if saved["filename"].endswith((".png", ".webp", ".jpg")):
                opened = Image.open(io.BytesIO(server.view(**saved)))
                pictures = [frame.convert("RGB") for frame in ImageSequence.Iterator(opened)]
                found[title[node]] = found.get(title[node], []) + pictures
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.thumbnails", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MADE))
    parser.add_argument("--keep", type=Path, help="also write every picture of the workflows here")
    args = parser.parse_args()
    names: list[Any] = args.names or list(MADE)
    unknown = sorted(set(names) - set(MADE))
    if unknown:
        parser.error(f"no thumbnail is made of {', '.join(unknown)}; there are: {', '.join(MADE)}")
    with ComfyServer() as server:
        for path in sorted((WORKFLOWS / "assets").iterdir()):
            if path.suffix in {".jpg", ".png", ".mp4"}:
                server.upload_image(path)
        for name in names:
            found = results(server, name)
            if args.keep:
                args.keep.mkdir(parents=True, exist_ok=True)
                for title, pictures in found.items():
                    for index, picture in enumerate(pictures):
                        picture.save(args.keep / f"{name}, {title.replace('/', '_')}, {index + 1}.png")
            thumbnail, quality = MADE[name](found), 92
            while True:
                data = io.BytesIO()
                thumbnail.save(data, "JPEG", quality=quality, optimize=True)
                if len(data.getvalue()) <= MOST_BYTES:
                    break
                quality -= 3
            (WORKFLOWS / f"{name}.jpg").write_bytes(data.getvalue())


if __name__ == "__main__":
    main()
