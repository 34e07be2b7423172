"""From a planned micro-batch to pictures, masks and captions: reading, rendering, and looking into the cache.

All of it runs in worker processes, ahead of the training.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bokeh_ops.camera.optics import TRAINING_WIDTH, k_at_width
from bokeh_ops.digest import content_key
from bokeh_ops.errors import BokehError
from bokeh_ops.render import DEFAULT_MODEL
from trainer.data.pairs.render import focus_of, render_levels
from trainer.data.sample import Sample
from trainer.files import replace_text
from trainer.frozen.cache import Store
from trainer.recipes.bokeh.plan import MicroBatch, Picture, Stock


class Photographs(Protocol):
    """What is asked of a data set (:class:`trainer.data.Dataset`)."""

    @property
    def resolution(self) -> tuple[int, int]: ...

    @property
    def settings(self) -> dict[str, Any]: ...

    def __len__(self) -> int: ...

    def key(self, index: int) -> str: ...

    def sample(self, index: int) -> Sample: ...

    def facts(self) -> tuple[np.ndarray, np.ndarray]: ...


def stock(photographs: Photographs, pairs: Any | None = None) -> Stock:
    """What there is to train on, with every K counted at 512 pixels, as adapters are told it.

    Args:
        photographs: the data set.
        pairs: the data set that `pairs` made, or None.

    Raises:
        BokehError: the folder of pairs is something else, or of another resolution.
    """
    k, all_in_focus = photographs.facts()
    at_512 = TRAINING_WIDTH / max(photographs.resolution)
    if pairs is None:
        return Stock(k * at_512, all_in_focus)
    levels = pairs.settings.get("pairs", {}).get("levels")
    if not isinstance(levels, int) or levels < 2 or len(pairs) % levels:
        raise BokehError(
            f"{pairs.folder} holds no contrastive sets; make some with `python -m trainer pairs`."
        )
    if pairs.resolution != photographs.resolution:
        raise BokehError(
            f"The sets in {pairs.folder} are {pairs.resolution[0]} x {pairs.resolution[1]} and the photographs "
            f"{photographs.resolution[0]} x {photographs.resolution[1]}; render them from this data set."
        )
    return Stock(k * at_512, all_in_focus, pairs.facts()[0].reshape(-1, levels) * at_512)


@dataclass
class Scene:
    """A photograph that is still to be rendered, where pictures are encoded.

    Attributes:
        image: uint8 ``[H, W, 3]``.
        disparity: float32 ``[H, W]``, dioptres.
        focus: dioptres.
        ks: K of the pictures, at the photograph's own resolution.
        lens: lens model.
    """

    image: Tensor
    disparity: Tensor
    focus: float
    ks: list[float]
    lens: str

    def render(self, device: torch.device | str) -> Tensor:
        """uint8 ``[len(ks), H, W, 3]``."""
        return render_levels(self.image.to(device), self.disparity.to(device), self.focus, self.ks, self.lens)


@dataclass
class Fed:
    """A micro-batch with what it takes to train on it.

    Attributes:
        micro: the plan.
        keys: names of the photographs, per row.
        captions: per row.
        masks: foreground, fp32 ``[R, H, W]``; None where nobody looks at it.
        latents: per row what the cache held, or None.
        pictures: of the rows without a latent, in their order: uint8 ``[N, H, W, 3]``, or a scene of N pictures.
        names: per row the name of the latent in the cache.
    """

    micro: MicroBatch
    keys: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    masks: Tensor | None = None
    latents: list[Tensor | None] = field(default_factory=list)
    pictures: list[Tensor | Scene] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def images(self, device: torch.device | str = "cpu") -> Tensor:
        """The pictures of the rows without a latent, uint8 ``[M, H, W, 3]``, rendered on ``device``."""
        made = [each.render(device) if isinstance(each, Scene) else each.to(device) for each in self.pictures]
        return torch.cat(made)


@dataclass(frozen=True)
class Facts:
    """What is asked of a photograph whose latents are kept: remembered, so that no picture is decoded for it.

    Attributes:
        key, captions: as the data set has them.
        picture: the name of its latent.
        scene: of what is rendered from it: the hash of picture, depth and focus; None where nothing can be.
    """

    key: str
    captions: list[str]
    picture: str
    scene: str | None


class Feeder:
    """Makes a :class:`Fed` of a :class:`~trainer.recipes.bokeh.plan.MicroBatch`.

    Args:
        photographs: the data set.
        pairs: contrastive sets on disk, or None to render them.
        latents: where latents are kept.
        fingerprint: of the autoencoder, part of their names.
        lens: lens model that renders.
        captions: how many captions of a photograph are used; 0 is all.
        masks: whether masks are looked at.
        here: whether sets are rendered here, rather than where pictures are encoded.
        memory: folder in which :class:`Facts` are remembered, of data sets by their ``identities``.
    """

    def __init__(
        self,
        photographs: Photographs,
        pairs: Photographs | None,
        latents: Store,
        fingerprint: str,
        lens: str = DEFAULT_MODEL,
        captions: int = 0,
        masks: bool = True,
        here: bool = True,
        memory: Path | None = None,
        identities: Sequence[str | None] = (),
    ) -> None:
        self.photographs, self.pairs = photographs, pairs
        self.latents, self.fingerprint, self.lens = latents, fingerprint, lens
        self.captions, self.masks, self.here = captions, masks, here
        self.memory, self.identities = memory, identities

    def __getitem__(self, micro: MicroBatch) -> Fed | BokehError:
        # An error is handed over rather than raised: from a worker it would arrive wrapped in its traceback.
        try:
            return self.feed(micro)
        except BokehError as error:
            return error

    def feed(self, micro: MicroBatch) -> Fed:
        """Read, and render where needed.

        Raises:
            BokehError: a photograph cannot be read or rendered.
        """
        fed = Fed(micro)
        masks: list[np.ndarray] = []
        for scene in _scenes(micro.pictures):
            if micro.kind == "contrastive" and not micro.stored:
                masks += self._rendered(scene, fed)
            else:
                for row in scene:
                    masks += self._taken(micro.kind == "contrastive", row, fed)
        if self.masks:
            fed.masks = torch.from_numpy(np.stack(masks))
        return fed

    def used(self, captions: Sequence[str]) -> Sequence[str]:
        """The captions of a photograph that are trained on."""
        return captions[: self.captions or None]

    def look(self, paired: bool, index: int, sample: Sample | None = None) -> tuple[Facts, Sample | None]:
        """What is known of a photograph, and the photograph itself where it had to be read for that.

        Args:
            paired: whether it is one of the folder of pairs.
            index: its number.
            sample: the photograph, where it has been read.
        """
        memory = self._memory(paired, index)
        if sample is None and not self.masks and memory is not None and memory.is_file():
            try:
                return Facts(**json.loads(memory.read_text(encoding="utf-8"))), None
            except (OSError, ValueError, TypeError):  # damaged: it is only a memory
                pass
        sample = sample or self._source(paired).sample(index)
        content = [sample.image.tobytes(), sample.disparity.tobytes()]
        scene = None
        if sample.all_in_focus and not paired:
            with contextlib.suppress(BokehError):  # raised where a set is to be rendered, if ever
                scene = content_key(*content, focus_of(sample))
        name = content_key(self.fingerprint, "picture", content[0])
        facts = Facts(sample.key, list(sample.captions), name, scene)
        if memory is not None and not memory.is_file():
            replace_text(memory, json.dumps(asdict(facts)))
        return facts, sample

    def _memory(self, paired: bool, index: int) -> Path | None:
        if self.memory is None or not self.identities:
            return None
        key = content_key(str(self.identities[int(paired)]), self.fingerprint, index)
        return self.memory / key[:2] / f"{key}.json"

    def _source(self, paired: bool) -> Photographs:
        source = self.pairs if paired else self.photographs
        assert source is not None
        return source

    def _taken(self, paired: bool, row: Picture, fed: Fed) -> list[np.ndarray]:
        """One row whose picture lies in a data set; its mask, where it is wanted."""
        facts, sample = self.look(paired, row.index)
        latent = self._note(fed, facts, row, facts.picture)
        if latent is None:
            sample = sample or self._source(paired).sample(row.index)
            fed.pictures.append(torch.from_numpy(sample.image)[None])
        return [sample.mask] if self.masks and sample is not None else []

    def _rendered(self, scene: Sequence[Picture], fed: Fed) -> list[np.ndarray]:
        """The rows of a scene that is rendered from one photograph; their masks."""
        index = scene[0].index
        facts, sample = self.look(False, index)
        if facts.scene is None:  # the photograph says why it cannot be
            focus_of(sample or self.photographs.sample(index))
        width = max(self.photographs.resolution)
        missing = []
        for row in scene:
            kept = content_key(self.fingerprint, "set", str(facts.scene), row.k, self.lens)
            if self._note(fed, facts, row, kept if row.k else facts.picture) is None:
                missing.append(float(k_at_width(row.k, width)))
        if missing:
            sample = sample or self.photographs.sample(index)
            image, disparity = torch.from_numpy(sample.image), torch.from_numpy(sample.disparity)
            waiting = Scene(image, disparity, focus_of(sample), missing, self.lens)
            fed.pictures.append(waiting.render("cpu") if self.here else waiting)
        return [sample.mask] * len(scene) if self.masks and sample is not None else []

    def _note(self, fed: Fed, facts: Facts, row: Picture, name: str) -> Tensor | None:
        """A row, by the name of its latent, which is returned where it is kept."""
        kept = self.latents.get(name)
        latent = None if kept is None else kept["latent"]
        fed.keys.append(facts.key)
        fed.captions.append(choose_caption(self.used(facts.captions), row.caption))
        fed.names.append(name)
        fed.latents.append(latent)
        return latent


def _scenes(pictures: Sequence[Picture]) -> Iterator[list[Picture]]:
    """Rows of the same scene, which follow one another."""
    scene: list[Picture] = []
    for picture in pictures:
        if scene and picture.scene != scene[0].scene:
            yield scene
            scene = []
        scene.append(picture)
    yield scene


def choose_caption(captions: Sequence[str], share: float | None) -> str:
    """One of several captions by a number 0 to 1; the empty one for None, or where there is none."""
    if share is None or not captions:
        return ""
    return captions[min(int(share * len(captions)), len(captions) - 1)]


def feed_ahead(feeder: Feeder, micros: Iterable[MicroBatch], workers: int) -> Iterator[Fed]:
    """Micro-batches in their order, made by ``workers`` processes ahead of time (0: when asked for).

    Raises:
        BokehError: what :meth:`Feeder.feed` raises.
    """
    made: Iterable[Fed | BokehError]
    if workers == 0:
        made = (feeder[micro] for micro in micros)
    else:
        from torch.utils.data import DataLoader

        loader = DataLoader(
            feeder,  # type: ignore[arg-type] (its indices are micro-batches)
            sampler=micros,
            batch_size=None,
            num_workers=workers,
            multiprocessing_context="spawn",
            worker_init_fn=_begin_worker,
        )
        with _signals_for_this_process_alone():
            made = iter(loader)
    for fed in made:
        if isinstance(fed, BokehError):
            raise fed
        yield fed


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _signals_for_this_process_alone() -> Iterator[None]:
    """Processes that are started meanwhile never hear of Ctrl-C, which a terminal sends to the whole group.

    They end when this process tells them to, or is gone; it needs what they make for the step it is in.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where _begin_worker does it
        yield
        return
    resource_tracker.ensure_running()  # which lets the signals through again once it has been started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
