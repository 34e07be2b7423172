"""Stage two: the pieces of all parts become one data set."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from bokeh_ops.errors import BokehError
from trainer.data.manifest import MANIFEST, SHARDS
from trainer.data.prepare.balance import Balance, bin_names, bin_of, choose, hash_of
from trainer.data.prepare.rejection import REASONS
from trainer.data.prepare.settings import differences
from trainer.data.prepare.work import Part, parts_in
from trainer.data.shard import Entry, read_files, read_index
from trainer.data.write import DatasetWriter
from trainer.files import atomic_file, read_json, write_json

REJECTED = "rejected.jsonl"
_EXAMPLES = 5
_FACTS = (
    "f_number",
    "f_mm",
    "s1_m",
    "foreground_area",
    "depth_range",
    "blur_px",
    "camera",
    "all_in_focus_by",
)


@dataclass(frozen=True)
class Taken:
    """An accepted photograph: what the choice and the report need of it.

    Attributes:
        key: its name.
        id: what its source calls it.
        tar: the piece it is in.
        sha256: of its file.
        k: K, or None.
        all_in_focus: whether it is.
        facts: what the report shows.
    """

    key: str
    id: str
    tar: Path
    sha256: str
    k: float | None
    all_in_focus: bool
    facts: dict[str, Any]


@dataclass
class Result:
    """What stage two made.

    Attributes:
        kept: in the data set, in its order.
        surplus: accepted, but left out to even out K.
        rejected: how many for which reason.
        examples: of each reason a few, id and detail.
        bins: names of the bins of K.
        settings: of stage one.
    """

    kept: list[Taken]
    surplus: list[Taken]
    rejected: Counter[str]
    examples: dict[str, list[tuple[str, str]]]
    bins: list[str]
    settings: dict[str, Any]
    balance: Balance
    unchanged: bool = False
    seen: int = field(default=0)

    def bin_of(self, taken: Taken) -> int:
        """The number of a photograph's bin."""
        return bin_of(taken.k, taken.all_in_focus, self.balance, self.settings["max_k"])


def collect_parts(folders: Iterable[Path]) -> list[Part]:
    """All parts of the folders, which must be complete and made alike.

    Raises:
        BokehError: a part is missing, unfinished or there twice, or settings differ.
    """
    folders = list(folders)
    parts: list[Part] = []
    for folder in folders:
        here = parts_in(folder)
        if not here:
            raise BokehError(f"{folder} holds no prepared photographs (no {folder / 'work'}).")
        unfinished = [part.folder.name for part in here if not part.done]
        if unfinished:
            raise BokehError(
                f"{folder}: {', '.join(unfinished)} is not finished. Give its command again; it goes on where it "
                "stopped."
            )
        parts += here
    first = parts[0].settings
    for part in parts[1:]:
        if changed := differences(first, part.settings):
            raise BokehError(
                f"{parts[0].folder} and {part.folder} were made with different settings:\n  "
                + "\n  ".join(changed)
            )
    if len(folders) == 1:  # several folders may be of several sources
        numbers, wanted = {part.part for part in parts}, parts[0].parts
        if missing := sorted(set(range(wanted)) - numbers):
            raise BokehError(
                f"{folders[0]} has {len(numbers)} of {wanted} parts; missing is --shard-of "
                f"{', '.join(f'{number}/{wanted}' for number in missing[:10])}."
            )
    return parts


def finish(
    parts: list[Part],
    out: Path,
    balance: Balance,
    samples_per_shard: int,
    progress: Callable[[Iterable[Taken], int], Iterable[Taken]],
) -> Result:
    """Choose, and write the data set. A killed run goes on behind its last whole shard.

    Args:
        parts: from :func:`collect_parts`.
        out: folder of the data set.
        balance: how K is evened out.
        samples_per_shard: photographs in a shard.
        progress: wraps what is gone through, given its number.

    Raises:
        BokehError: a piece is damaged, or something cannot be written.
    """
    settings = parts[0].settings
    result = _gather(parts, settings, balance, out)
    plan = hashlib.sha256(
        json.dumps([settings, samples_per_shard, [taken.key for taken in result.kept]]).encode()
    ).hexdigest()
    result.unchanged = _clear(out, plan)
    if result.unchanged or not result.kept:
        return result
    resolution = (int(settings["resolution"][0]), int(settings["resolution"][1]))
    made = {**settings, "balance": asdict(balance), "samples_per_shard": samples_per_shard}
    writer = DatasetWriter(out, resolution, made, samples_per_shard)
    for taken in progress(result.kept, len(result.kept)):
        if taken.key not in writer.keys:
            writer.add(taken.key, read_files(taken.tar, _index(taken.tar)[taken.key]))
    more = {
        "plan": plan,
        "accepted": len(result.kept) + len(result.surplus),
        "rejected": dict(sorted(result.rejected.items())),
    }
    writer.finish(more)
    return result


def _gather(parts: list[Part], settings: dict[str, Any], balance: Balance, out: Path) -> Result:
    """Go through all lines: accepted ones are remembered, rejected ones written down."""
    rejected: Counter[str] = Counter()
    examples: dict[str, list[tuple[str, str]]] = {}
    accepted: dict[str, Taken] = {}
    names = bin_names(balance, settings["max_k"])
    seen = 0
    with atomic_file(out / REJECTED) as file:

        def reject(id: str, reason: str, detail: str) -> None:
            rejected[reason] += 1
            if len(examples.setdefault(reason, [])) < _EXAMPLES:
                examples[reason].append((id, detail))
            line = {"id": id, "reason": reason, "meaning": REASONS.get(reason, ""), "detail": detail}
            file.write((json.dumps(line) + "\n").encode())

        for part in parts:
            for tar, row in part.rows():
                seen += 1
                if row["reason"] is not None:
                    reject(row["id"], row["reason"], row["detail"])
                    continue
                info = row["info"]
                facts = {name: info.get(name) for name in _FACTS}
                taken = Taken(
                    row["key"], row["id"], tar, row["sha256"], info["k"], info["all_in_focus"], facts
                )
                # Of two that are the same, the one that comes first by name; so the order of work is of no matter.
                other = accepted.get(taken.sha256)
                if other is not None:
                    first, second = sorted((other, taken), key=lambda each: (each.id, each.key))
                    accepted[taken.sha256] = first
                    reject(second.id, "duplicate", f"the same file as {first.id}")
                else:
                    accepted[taken.sha256] = taken
        ordered = sorted(accepted.values(), key=lambda each: hash_of(each.key))
        bins = [bin_of(each.k, each.all_in_focus, balance, settings["max_k"]) for each in ordered]
        keep, most = choose([each.key for each in ordered], bins, balance)
        for taken, number, stays in zip(ordered, bins, keep, strict=True):
            if not stays:
                reject(taken.id, "balance", f"{names[number]}: {most[number]} are enough")
    return Result(
        kept=[taken for taken, stays in zip(ordered, keep, strict=True) if stays],
        surplus=[taken for taken, stays in zip(ordered, keep, strict=True) if not stays],
        rejected=rejected,
        examples=examples,
        bins=names,
        settings=settings,
        balance=balance,
        seen=seen,
    )


def _clear(out: Path, plan: str) -> bool:
    """Whether the data set of a plan is finished; otherwise what belongs to another plan is removed."""
    manifest, note = out / MANIFEST, out / "work" / "plan.json"
    if manifest.exists():
        if read_json(manifest, "a data set's description").get("plan") == plan:
            return True
        manifest.unlink()  # first: without it the rest is no data set
    if not note.exists() or read_json(note, "the plan of a data set").get("plan") != plan:
        shutil.rmtree(out / SHARDS, ignore_errors=True)
        write_json(note, {"plan": plan})
    return False


@lru_cache(maxsize=512)
def _index(tar: Path) -> dict[str, Entry]:
    return {entry.key: entry for entry in read_index(tar)}
