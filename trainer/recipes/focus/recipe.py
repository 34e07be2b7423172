"""The recipe of a focus transformer: pictures and depth in, saliency and through it the focus out."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bokeh_ops.depth.focus import focus_by_weight
from bokeh_ops.depth.focus_transformer import (
    FocusTransformer,
    MainThing,
    read_focus_transformer,
    write_focus_transformer,
)
from bokeh_ops.digest import file_key
from bokeh_ops.errors import BokehError
from bokeh_ops.picture.sheet import contact_sheet
from trainer.config import fixed_but_free
from trainer.data import open_dataset
from trainer.data.pairs.identity import identity
from trainer.files import replace_file
from trainer.learner import Average, Learner, learning_rate, make_optimizer
from trainer.processes import Alone
from trainer.recipes.bokeh.samples import large_enough, write_png
from trainer.recipes.command import carry_out
from trainer.recipes.focus.config import FocusFit
from trainer.recipes.focus.examples import Example, drawn, example, stacked, told
from trainer.recipes.recipe import Recipe, Rows, Turn
from trainer.settings import to_plain

RESULT = "focus.safetensors"
SHOWN = 8
"""Pictures on a sheet of samples."""

Job = tuple[int, int, int]
"""A micro-batch: step, number of its first picture in it, and how many."""


def train_focus(settings: FocusFit, beside: Path) -> bool:
    """Train a focus transformer, from the last checkpoint in ``out`` where there is one.

    Args:
        settings: what to train, on what.
        beside: folder that relative paths in the settings start from.

    Returns:
        Whether all steps are done (else someone asked to stop, and a checkpoint was written).

    Raises:
        BokehError: as the parts say.
    """
    settings = settings.resolved()
    return carry_out(settings, lambda processes: Focusing(settings, beside, processes), lambda _: RESULT)


class Focusing(Recipe):
    """A focus transformer in training.

    The scale of the focus distance (eq. 5) does not train here: in the paper it learns through the losses of a
    generator alone.

    Args:
        settings: resolved.
        beside: as for :func:`train_focus`.
        processes: of this run.

    Raises:
        BokehError: as for :func:`train_focus`.
    """

    def __init__(self, settings: FocusFit, beside: Path, processes: Alone) -> None:
        self.settings, self.processes, self.device = settings, processes, processes.device
        self.out = beside / Path(settings.out).expanduser()
        self.dataset = open_dataset(beside / Path(settings.data.dataset).expanduser())
        self.kept = min(settings.samples.scenes, len(self.dataset) - 1)
        if self.kept < 1:
            raise BokehError(f"{self.dataset.folder} has a single photograph; training needs two and more.")
        self.identities = {"dataset": identity(self.dataset)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = FocusTransformer(settings.network.sizes)
        if settings.network.init is not None:
            self._take_over(beside / Path(settings.network.init).expanduser())
        self.network.to(self.device)
        self.reference: FocusTransformer | None = None
        if settings.losses.reference is not None:
            path = beside / Path(settings.losses.reference).expanduser()
            self.reference = read_focus_transformer(path).to(self.device)
            self.identities["reference"] = file_key(path)
        weights = dict(self.network.named_parameters())
        trained = [value for name, value in weights.items() if not name.startswith("scale")]
        wanted = settings.optimizer
        self.learner = Learner(
            weights,
            trained,
            make_optimizer(trained, wanted),
            lambda step: learning_rate(wanted, step, settings.steps),
            wanted.clip,
            Average(weights, settings.ema) if settings.ema else None,
        )

    def _take_over(self, path: Path) -> None:
        found = read_focus_transformer(path)
        if found.sizes != self.network.sizes:
            raise BokehError(
                f"network.init is {path}, a network of {found.sizes}, but the settings say {self.network.sizes}; make "
                "them alike."
            )
        self.network.load_state_dict(found.state_dict())
        self.identities["init"] = file_key(path)

    def describe(self) -> str:
        count = sum(parameter.numel() for parameter in self.learner.parameters)
        return (
            f"{count:,} parameters train on {len(self.dataset) - self.kept} pictures, {self.settings.batch.total} a "
            f"step, on {self.device}."
        )

    def trainables(self) -> Mapping[str, Learner]:
        return {"focus": self.learner}

    def turns(self, step: int) -> list[Turn]:
        batch, losses = self.settings.batch, self.settings.losses
        rank, world = self.processes.rank, self.processes.world
        starts = range(rank * batch.micro, batch.total, world * batch.micro)
        jobs: list[Job] = [(step, first, min(batch.micro, batch.total - first)) for first in starts]
        weights = {"bce": losses.bce, "huber": losses.huber}
        return [
            Turn(("focus",), jobs, batch.total, {name: weight for name, weight in weights.items() if weight})
        ]

    def losses(self, turn: Turn, fed: Job) -> Rows:
        step, first, count = fed
        data, seed = self.settings.data, self.settings.seed
        among = len(self.dataset) - self.kept
        slots = range(first, first + count)
        batch = stacked(
            [drawn(self.dataset, among, data.worse_depth, data.no_depth, seed, step, slot) for slot in slots],
            self.device,
        )
        found = self.network(batch.picture, batch.told)
        mask, focus = batch.mask, batch.focus
        if self.reference is not None:
            with torch.no_grad():
                mask = self.reference(batch.picture, batch.near).saliency
                focus = focus_by_weight(batch.near, mask)
        wanted = losses(found, batch.near, mask, focus)
        # Who is not told the depth cannot know where it is wrong, and would learn to make up for it everywhere.
        wanted["huber"] = wanted["huber"] * batch.known
        return Rows(wanted, slots)

    def record(self) -> dict[str, Any]:
        return {"settings": to_plain(self.settings), "identities": self.identities}

    def fixed(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return fixed_but_free(settings, "scenes")

    def result(self, step: int) -> None:
        with self.learner.averaged():
            replace_file(self.out / RESULT, lambda path: write_focus_transformer(path, self.network))

    @torch.no_grad()
    def _kept_apart(self, first: int, count: int, known: bool = True) -> tuple[Example, MainThing]:
        """Pictures that are not trained on, with exact depth or none, and what the network says of them."""
        start = len(self.dataset) - self.kept + first
        found = [example(self.dataset, start + number) for number in range(count)]
        batch = stacked([told(*each, each[1], known) for each in found], self.device)
        with self.learner.averaged():
            return batch, self.network(batch.picture, batch.told)

    def validation(self) -> Mapping[str, float]:
        """Means over pictures: ``error`` of the focus, as a share of the map's range, and ``overlap`` of the saliency
        above one half with the mask (intersection over union); and both where the network is told no depth."""
        values: dict[str, list[Tensor]] = defaultdict(list)
        step = self.settings.batch.micro
        for first, known in itertools.product(range(0, self.kept, step), (True, False)):
            batch, found = self._kept_apart(first, min(step, self.kept - first), known)
            name = "" if known else "_without_depth"
            values[f"error{name}"].append((focus_by_weight(batch.near, found.saliency) - batch.focus).abs())
            one, other = found.saliency > 0.5, batch.mask > 0.5
            values[f"overlap{name}"].append((one & other).sum((1, 2)) / (one | other).sum((1, 2)))
        return {name: float(torch.cat(each).mean()) for name, each in values.items()}

    def samples(self, step: int) -> Tensor:
        batch, found = self._kept_apart(0, min(SHOWN, self.kept))
        grey = torch.stack([batch.near[:, 0], found.saliency, batch.mask])[..., None].expand(
            -1, -1, -1, -1, 3
        )
        pictures = torch.cat([batch.picture.movedim(1, -1)[None], grey]).flatten(0, 1).cpu()
        labels = ["picture", "depth", "saliency", "mask"]
        sheet = contact_sheet(large_enough(pictures), labels, columns=len(labels), cell_size=256)[0]
        write_png(self.out / "samples" / f"step-{step:08d}.png", sheet)
        return sheet


def losses(found: MainThing, near: Tensor, mask: Tensor, focus: Tensor) -> dict[str, Tensor]:
    """Losses of each picture, ``[B]``.

    Args:
        found: by the network.
        near: ``[B, 1, H, W]``, disparity, 0..1.
        mask: ``[B, H, W]``, 0..1, that the saliency is to be.
        focus: ``[B]``, that eq. 4 is to give.

    Returns:
        ``bce``, the mean binary cross entropy of the map, and ``huber``, the Huber loss of the focus (sec. 3.2).
    """
    bce = F.binary_cross_entropy_with_logits(found.logits, mask, reduction="none").mean((1, 2))
    huber = F.huber_loss(focus_by_weight(near, found.saliency), focus, reduction="none")
    return {"bce": bce, "huber": huber}
