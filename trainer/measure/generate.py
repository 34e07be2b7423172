"""Sweeps of a model with an adapter, sampled into the layout that :mod:`trainer.measure.sweeps` reads.

A scene is a folder; its ``sweep.json`` is written last, so a scene that has one is whole and is not sampled again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bokeh_ops.adapter.files import count_double_blocks, read_adapter
from bokeh_ops.errors import BokehError
from bokeh_ops.numbers import format_value
from bokeh_ops.picture.colour import match_lab
from bokeh_ops.picture.sheet import contact_sheet
from trainer.changes import differences
from trainer.config import Fit
from trainer.data.shard import file_sha256
from trainer.files import read_json
from trainer.frozen.model import Base, Embedding, Fingerprints
from trainer.measure.pictures import write_png
from trainer.measure.report import write_json
from trainer.measure.sweeps import read_picture
from trainer.recipes.bokeh.samples import Laid, check, large_enough, sweep
from trainer.settings import to_plain

if TYPE_CHECKING:
    from trainer.measure.references import Renderer

ROWS = 8
"""Scenes on one contact sheet."""


@dataclass(frozen=True)
class Scenes:
    """What is to be sampled.

    Attributes:
        settings: resolved; of it ``base``, ``device``, ``comfyui`` and ``samples``.
        adapter: file, or folder of the released layout.
        seeds: each prompt makes a scene with each.
        size: width and height in pixels.
        laid: how the adapter is laid on.
        match: ``none``, or a mode of :func:`bokeh_ops.picture.colour.match_lab` for the targets.
    """

    settings: Fit
    adapter: Path
    seeds: tuple[int, ...]
    size: tuple[int, int]
    laid: Laid
    match: str

    def __iter__(self) -> Iterator[tuple[str, str, int]]:
        """Name, prompt and seed of every scene."""
        for number, prompt in enumerate(self.settings.samples.prompts, 1):
            words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
            for seed in self.seeds:
                yield f"{number:03d}-{words or 'prompt'}-seed{seed}", prompt, seed

    def record(self) -> dict[str, Any]:
        """Everything that decides what the pictures are, but the contents of the files."""
        plain = to_plain(self.settings)
        samples = {k: v for k, v in plain["samples"].items() if k not in ("every", "seed", "prompts")}
        return {
            "base": plain["base"],
            "adapter": str(self.adapter),
            "samples": samples,
            "prompts": list(self.settings.samples.prompts),
            "seeds": list(self.seeds),
            "size": list(self.size),
            "laid": asdict(self.laid),
            "colour_match": self.match,
        }


def sample_scenes(scenes: Scenes, out: Path, beside: Path, renderer: Renderer | None = None) -> None:
    """Sample the scenes that are missing in ``out``, and render their references.

    Args:
        scenes: what to sample.
        out: folder of the evaluation.
        beside: folder that relative paths of the settings start from.
        renderer: renders the references, or None.

    Raises:
        BokehError: no ComfyUI, files that are missing or do not fit, or pictures in ``out`` of another model, another
            adapter or other settings.
    """
    from tqdm import tqdm

    names = [name for name, _, _ in scenes]
    if len(set(names)) < len(names):
        raise BokehError("A seed was given twice; expected each once.")
    record = {
        **{
            key: value for key, value in scenes.record().items() if key not in ("prompts", "seeds", "adapter")
        },
        "adapter_hash": _adapter_hash(scenes.adapter),
        "reference": None if renderer is None else renderer.record(),
    }
    try:
        (out / "sweeps").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BokehError(f"{out} cannot be made: {error}.") from error
    _same_as_before(out, record, set(names))
    missing = [scene for scene in scenes if not (out / "sweeps" / scene[0] / "sweep.json").is_file()]
    if not missing:
        return
    sampler = _Sampler(scenes, out, beside)
    for name, prompt, seed in tqdm(missing, desc="Sampling", unit="scene"):
        pictures = sampler.pictures(prompt, seed)
        _write_scene(scenes, out, name, prompt, seed, pictures, renderer)


def _adapter_hash(path: Path) -> str:
    try:
        return file_sha256(path / "model.safetensors" if path.is_dir() else path)
    except OSError as error:
        raise BokehError(f"The adapter {path} cannot be read: {error}.") from error


def _same_as_before(out: Path, record: dict[str, Any], names: set[str]) -> None:
    """Refuse to measure pictures of two kinds as one."""
    path = out / "model.json"
    there = {folder.name for folder in (out / "sweeps").iterdir() if folder.is_dir()}
    if path.is_file():
        before = read_json(path, "what was sampled before; choose another folder where it is damaged")
        changed = list(differences(before, json.loads(json.dumps(record))))
        if changed:
            raise BokehError(
                f"{out} holds pictures that were sampled otherwise:\n  "
                + "\n  ".join(changed)
                + "\nGive the same "
                "options again, or choose another folder."
            )
    elif there:
        raise BokehError(f"{out / 'sweeps'} holds sweeps but {path.name} is missing; choose another folder.")
    else:
        write_json(path, record)
    strange = sorted(there - names)
    if strange:
        raise BokehError(
            f"{out} holds scenes that were not asked for ({strange[0]}, {len(strange)} in all): prompts or seeds are "
            "others than before. More of them may be added behind those there were; or choose another folder."
        )


class _Sampler:
    """The model, loaded; made when the first scene is missing."""

    def __init__(self, scenes: Scenes, out: Path, beside: Path) -> None:
        from bokeh_ops.host.loading.start import start_comfyui
        from trainer.comfyui import find_comfyui

        settings = scenes.settings
        start_comfyui(find_comfyui(settings.comfyui, beside), cpu=settings.device == "cpu")
        from bokeh_ops.host.architectures import check_fits, recognise
        from bokeh_ops.host.loading import models as loading
        from trainer.frozen.load import load_base

        check(settings)
        self.scenes = scenes
        self.base: Base = load_base(settings, beside, Fingerprints(out / "files.json"))
        model = recognise(self.base.patcher)
        self.adapter = read_adapter(scenes.adapter, count_double_blocks(model.widths))
        check_fits(self.adapter, model, str(scenes.adapter))
        self.adapter = self.adapter.float().to(loading.device()).requires_grad_(False).eval()
        # All at once, so that the text encoder can be let go before the first picture.
        texts = [*settings.samples.prompts, settings.samples.negative]
        self.texts = dict(zip(texts, self.base.encode_text(texts), strict=True))
        self.base.release_text()

    def _encode(self, texts: Sequence[str]) -> list[Embedding]:
        return [self.texts[text] for text in texts]

    def pictures(self, prompt: str, seed: int) -> Tensor:
        """The pivot and the targets, ``[1 + targets, H, W, 3]``, 0..1."""
        scenes = self.scenes
        samples = replace(scenes.settings.samples, prompts=[prompt], seed=seed)
        settings = replace(scenes.settings, samples=samples)
        made = sweep(self.base, self.adapter, settings, self._encode, scenes.size, scenes.laid)[0]
        if scenes.match != "none":
            made = torch.cat((made[:1], match_lab(made[1:], made[:1], scenes.match)))
        return made


def _write_scene(
    scenes: Scenes,
    out: Path,
    name: str,
    prompt: str,
    seed: int,
    pictures: Tensor,
    renderer: Renderer | None,
) -> None:
    samples = scenes.settings.samples
    folder = out / "sweeps" / name
    folder.mkdir(parents=True, exist_ok=True)
    named = [
        (k, f"k{format_value(k)}.png", picture) for k, picture in zip(samples.k, pictures[1:], strict=True)
    ]
    if samples.pivot not in samples.k:
        named.append((samples.pivot, f"k{format_value(samples.pivot)}.png", pictures[0]))
    else:
        write_png(folder / "pivot.png", pictures[0])
    for _, file, picture in named:
        write_png(folder / file, picture)
    images = [{"file": file, "k": k} for k, file, _ in sorted(named, key=lambda entry: entry[0])]
    more: dict[str, Any] = {"prompt": prompt, "seed": seed, "pivot": samples.pivot}
    if renderer is not None:
        sharp = folder / next(image["file"] for image in images if image["k"] == 0)
        more["focus"] = renderer.render(sharp, images, out / "references" / name, folder / "focus.png")
    write_json(folder / "sweep.json", {"images": images, **more})


def write_sheets(scenes: Scenes, out: Path) -> list[Path]:
    """All scenes on contact sheets, one line each with its prompt above and K below; the files written."""
    lines = []
    for name, prompt, seed in scenes:
        listed = json.loads((out / "sweeps" / name / "sweep.json").read_text(encoding="utf-8"))
        pictures = [read_picture(out / "sweeps" / name / image["file"]) for image in listed["images"]]
        row = large_enough(torch.stack(pictures).permute(0, 2, 3, 1))
        labels = [
            f"K = {format_value(image['k'])}{' (pivot)' if image['k'] == listed['pivot'] else ''}"
            for image in listed["images"]
        ]
        title = f"{prompt} (seed {seed})"
        lines.append(contact_sheet(row, labels, columns=len(labels), cell_size=256, title=title)[0])
    written = []
    for start in range(0, len(lines), ROWS):
        path = out / f"sheet-{start // ROWS + 1:02d}.png"
        write_png(path, torch.cat(lines[start : start + ROWS]))
        written.append(path)
    return written
