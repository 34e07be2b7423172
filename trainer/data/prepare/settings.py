"""How photographs are looked at, and how a preparation runs. Every option is stated here, once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from bokeh_ops.errors import BokehError
from trainer.data.prepare.sets import SETS
from trainer.options import check, option

OWN_KIND = "model"
"""What the depth's values mean is known from the model that gives them."""
DEPTH_KINDS = ("metric", "disparity", "inverted", OWN_KIND)
KNOWING = "transformers:"
"""How words of providers begin that know what their values mean."""

ABOVE_0 = (lambda value: value > 0), "expected a number above 0"
GROUPS = ("annotation", "picture", "focus", "filters", "balance over K", "running")


def kind_of(depth: str, declared: str | None) -> str | None:
    """What depth's values mean: as declared, else as the model that gives them knows; None where nobody does.

    Args:
        depth: the provider's word.
        declared: one of ``DEPTH_KINDS``.
    """
    return declared or (OWN_KIND if depth.startswith(KNOWING) else None)


def _resolution(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) not in (1, 2) or not all(side.isdigit() for side in sides):
        raise BokehError(f"--resolution is {text!r}; write 512 or 768x512.")
    return int(sides[0]), int(sides[-1])


@dataclass(frozen=True)
class Settings:
    """Settings of stage one: everything that decides what it makes of a photograph.

    Photographs prepared with different ones do not mix. Fields of a dataclass and not of pydantic's: besides a type
    each has a place in the help and a range told in its own words, which is all that is needed of it.
    """

    resolution: tuple[int, int] = option(
        (512, 512),
        "picture",
        "of training, in pixels",
        "N or WxH",
        read=_resolution,
        shown="512",
        within=(
            lambda value: all(side >= 64 and side % 8 == 0 for side in value),
            "expected multiples of 8 from 64",
        ),
    )
    crop: str = option(
        "foreground",
        "picture",
        "the crop is put over the foreground, or in the middle",
        choices=("foreground", "centre"),
    )
    picture: str = option("jpg", "picture", "format of the pictures", choices=("jpg", "png"))
    depth: str = option("files", "annotation", "where depth is from", "PROVIDER")
    depth_kind: str = option(
        "metric",
        "annotation",
        "what its values mean, which nobody can guess: metric (distance; far is large), disparity (one over distance; "
        "near is large), inverted (0 near to 1 far), model (what a model of transformers says itself; the default for "
        "these). Required for others",
        choices=DEPTH_KINDS,
        shown="",
    )
    depth_normalise: bool = option(
        False,
        "annotation",
        "stretch each map to 0..1 first, for depth without units; K is then only as right as --depth-scale",
    )
    depth_scale: float = option(
        1.0,
        "annotation",
        "metres at value 1 for metric, dioptres at value 1 otherwise; the value of white is 1 in 8- and 16-bit "
        "pictures",
        "X",
        within=ABOVE_0,
    )
    depth_offset: float = option(0.0, "annotation", "dioptres to be added", "D")
    mask: str = option("files", "annotation", "where the foreground is from", "PROVIDER")
    captions: tuple[str, ...] = option(
        ("files",),
        "annotation",
        "where captions are from; give it several times to have all",
        "PROVIDER",
        several=True,
        read=tuple,
        shown="files",
        within=(lambda value: "none" not in value or len(value) == 1, "--captions none excludes others"),
    )
    captions_else: str | None = option(
        None, "annotation", "where they are from of a photograph for which these have none", "PROVIDER"
    )
    blur: str | None = option(
        None,
        "annotation",
        "who says how a photograph is blurred: no blur, desired blur, undesired blur; what has the last is not taken",
        "PROVIDER",
    )
    photograph: str | None = option(
        None,
        "annotation",
        "who says whether it is a photograph at all; what is none is not taken",
        "PROVIDER",
    )
    nearest: float = option(
        0.25,
        "focus",
        "the focus is at the median distance of this nearest share of the foreground",
        "SHARE",
        within=(lambda value: 0 < value <= 1, "expected a share above 0, at most 1"),
    )
    flat: float = option(
        1.25,
        "focus",
        "a foreground that is no deeper than this (far distance over near) is at one distance",
        "RATIO",
        within=(lambda value: value >= 1, "expected a ratio of 1 or more"),
    )
    subject_distance: bool = option(
        False,
        "focus",
        "where the camera wrote SubjectDistance, believe it instead; its scale must be that of the depth",
    )
    set: str | None = option(
        None,
        "filters",
        "a set of deep depth of field (f/10 to f/50, exposed no longer than --sharp-exposure, all in focus) or of a "
        "shallow one (below f/10, not all in focus)",
        choices=tuple(SETS),
    )
    smartphones: bool = option(
        False,
        "filters",
        "phones compute blur, and hardly have any of their own",
        choices=("reject", "keep"),
        read=lambda word: word == "keep",
        shown="reject",
    )
    min_foreground: float = option(0.05, "filters", "least share of the crop that is foreground", "SHARE")
    max_foreground: float = option(0.8, "filters", "most", "SHARE")
    min_depth_range: float = option(
        0.1,
        "filters",
        "least depth of the crop, dioptres, from its 2nd to its 98th percentile",
        "D",
        within=(lambda value: value >= 0, "expected 0 or more dioptres"),
    )
    max_k: float = option(30.0, "filters", "largest K", "K", within=ABOVE_0)
    sharp_radius: float = option(
        1.0, "focus", "all in focus is what has a blur radius up to this in 95 %% of the picture", "PX"
    )
    sharp_exposure: float = option(
        0.1, "focus", "and was exposed no longer than this, seconds, where that is known", "S"
    )
    min_side: int = option(
        0,
        "filters",
        "least short side; smaller than the resolution means enlarging",
        "PX",
        shown="that of the resolution",
    )
    max_aspect: float = option(
        2.4,
        "filters",
        "longest shape; beyond are panoramas",
        "RATIO",
        within=(lambda value: value >= 1, "expected 1 or more"),
    )
    max_megapixels: float = option(
        100.0,
        "filters",
        "largest picture to be decoded; baseline JPEGs, decoded at a reduced size, may have eight times as many",
        "MP",
        within=ABOVE_0,
    )
    source: str | None = option(
        None, "annotation", "noted as the source of photographs that tell none", "TEXT", name="source-name"
    )
    licence: str | None = option(
        None, "annotation", "noted as the licence of photographs that tell none", "TEXT"
    )

    def __post_init__(self) -> None:
        check(self)
        if not 0 <= self.min_foreground < self.max_foreground <= 1:
            raise BokehError(
                f"--min-foreground is {self.min_foreground!r}; expected below max-foreground, in 0..1."
            )
        if self.depth_kind == OWN_KIND and not self.depth.startswith(KNOWING):
            raise BokehError(
                f"--depth-kind is {OWN_KIND!r}; expected another kind, as only depth by {KNOWING}MODEL knows its own."
            )

    @property
    def shortest(self) -> int:
        """Least short side of a photograph in pixels."""
        return self.min_side or min(self.resolution)

    def to_json(self) -> dict[str, Any]:
        """As kept beside what was made with them."""
        return {**asdict(self), "resolution": list(self.resolution), "captions": list(self.captions)}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two settings' JSON, one line each: ``name: old -> new``."""
    names = [each.name for each in fields(Settings)]
    names += sorted((set(old) | set(new)) - set(names))
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in dict.fromkeys(names)
        if old.get(name) != new.get(name)
    ]


def _at_least(least: float) -> tuple[Any, str]:
    return (lambda value: value is None or value >= least), f"it must be at least {least}"


@dataclass(frozen=True)
class Balance:
    """How K is evened out.

    Attributes:
        at_least: never fewer of a bin than this, unless ``per_bin`` says so.
    """

    bins: int = option(10, "balance over K", "of K", "N", within=_at_least(1))
    per_bin: int | None = option(
        None,
        "balance over K",
        "most photographs of a bin, 0 for any number; by default twice the median, and at least 100",
        "N",
        within=_at_least(0),
    )
    at_least: int = 100
    sharp_share: float | None = option(
        None,
        "balance over K",
        "most of all that is all in focus, such as 0.1; by default a bin like the others",
        "SHARE",
        within=(lambda value: value is None or 0 <= value <= 1, "it is a share, 0 to 1"),
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Limits:
    """What one photograph may take."""

    timeout: float = option(300.0, "running", "seconds for one photograph", "S", within=_at_least(1))
    memory: float = option(8.0, "running", "of one process, models included", "GIB")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Share:
    """Which share of the work is this machine's: ``part`` of ``parts``, from 0."""

    part: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.part < self.parts <= 99_999:
            raise BokehError(f"There is no share {self.part} of {self.parts}; they are numbered from 0.")

    @staticmethod
    def read(text: str) -> Share:
        """``I/N``, or ``env``: as started by torchrun, SLURM, MPI or a Kubernetes job with an index.

        Raises:
            BokehError: neither, or by none of them.
        """
        part, slash, parts = text.partition("/")
        if text != "env":
            if not (slash and part.isdigit() and parts.isdigit()):
                raise BokehError(f"--shard-of is {text!r}; write I/N, such as 0/4, or env.")
            return Share(int(part), int(parts))
        for part, parts in (
            ("RANK", "WORLD_SIZE"),
            ("SLURM_PROCID", "SLURM_NTASKS"),
            ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
            ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
            ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
        ):
            if part in os.environ and parts in os.environ:
                try:
                    return Share(int(os.environ[part]), int(os.environ[parts]))
                except ValueError as error:
                    raise BokehError(f"{part} and {parts} are in the environment, but no numbers.") from error
        raise BokehError(
            "--shard-of env: neither RANK and WORLD_SIZE nor SLURM's, MPI's or Kubernetes' like is in the environment. "
            "Write --shard-of N/M."
        )


@dataclass(frozen=True)
class Plan:
    """How a preparation runs; none of it changes what becomes of a photograph."""

    workers: int = option(
        os.cpu_count() or 1,
        "running",
        "processes, each with models of its own; 0: none but this, for searching errors",
        "N",
        within=_at_least(0),
    )
    share: Share = option(  # noqa: RUF009 (it is frozen)
        Share(),
        "running",
        "look at share I of N only, from 0; `env` takes both from torchrun, SLURM, MPI or Kubernetes. --merge makes "
        "the data set afterwards",
        "I/N",
        name="shard-of",
        read=Share.read,
        shown="0/1",
    )
    piece: int = option(64, "running", "save after so many photographs", "N", within=_at_least(1))
    samples_per_shard: int = option(256, "running", "in the data set", "N", within=_at_least(1))
    limits: Limits = field(default_factory=Limits)
    balance: Balance = field(default_factory=Balance)

    def __post_init__(self) -> None:
        check(self)
