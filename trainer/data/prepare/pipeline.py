"""Both stages, as the command runs them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bokeh_ops.errors import BokehError
from trainer.data.prepare.finish import Result, collect_parts, finish
from trainer.data.prepare.pool import look_at_all
from trainer.data.prepare.record import Item
from trainer.data.prepare.rejection import OF_THE_MACHINE
from trainer.data.prepare.report import rejection_table, write_report
from trainer.data.prepare.settings import Plan, Settings
from trainer.data.prepare.sources import PICTURES, items, shard_of
from trainer.data.prepare.work import PieceWriter, finish_part, open_part


def look_at_source(source: str, out: Path, settings: Settings, plan: Plan) -> int:
    """Stage one: go through a source, from where an earlier run stopped.

    Returns:
        How many photographs the share has, by now all dealt with.

    Raises:
        BokehError: there is no such source, nothing in it, or nowhere to write.
    """
    share = plan.share
    with open_part(out, share.part, share.parts, settings) as part:
        seen = {str(row["id"]) for _, row in part.rows() if row["reason"] not in OF_THE_MACHINE}
        before = len(seen)
        (part.folder / "done.json").unlink(missing_ok=True)
        writer = PieceWriter(part, plan.piece)
        mine = shard_of(share.part, share.parts)
        todo = _noted(items(source, mine, seen, out), seen)
        accepted = rejected = 0
        with _bar(None, "looking at photographs", before) as bar:
            try:
                for outcome in look_at_all(todo, settings, plan.workers, plan.limits):
                    writer.add(outcome)
                    accepted += outcome.reason is None
                    rejected += outcome.reason is not None
                    bar.set_postfix(accepted=accepted, rejected=rejected, refresh=False)
                    bar.update()
            except KeyboardInterrupt:
                writer.flush()
                raise
        writer.flush()
        if not seen and share.parts == 1:
            raise BokehError(f"{source} holds no photographs (files ending in {', '.join(PICTURES)}).")
        finish_part(part, len(seen))
        return len(seen)


def make_dataset(folders: list[Path], out: Path, plan: Plan) -> Result:
    """Stage two: bring the parts together, and write data set and report.

    Raises:
        BokehError: a part is missing, or not one photograph was accepted; the message tells why.
    """
    parts = collect_parts(folders)
    result = finish(parts, out, plan.balance, plan.samples_per_shard, lambda rows, n: _progress(rows, n))
    page = write_report(out, result)
    if not result.kept:
        raise BokehError(
            f"None of {result.seen} photographs was accepted:\n{rejection_table(result)}\nEach is in "
            f"{out / 'rejected.jsonl'} with its reason; the report is {page}.{trouble(result)}"
        )
    return result


def trouble(result: Result) -> str:
    """What to say of photographs that the machine had trouble with; empty where there are none."""
    met = [f"{reason} {result.rejected[reason]}" for reason in OF_THE_MACHINE if result.rejected[reason]]
    if not met:
        return ""
    return (
        f" The machine had trouble with some ({', '.join(met)}): the same command tries those again, with the "
        "--memory, --timeout and --workers that it is given then."
    )


def _noted(found: Iterable[Item], seen: set[str]) -> Iterator[Item]:
    """The same photographs; each is noted, so that one that a list names twice comes once."""
    for item in found:
        if item.id not in seen:
            seen.add(item.id)
            yield item


def _progress(rows: Iterable[Any], count: int) -> Iterator[Any]:
    with _bar(count, "writing the data set", 0) as bar:
        for row in rows:
            yield row
            bar.update()


def _bar(total: int | None, what: str, initial: int) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=total, desc=what, unit="", initial=initial, file=sys.stderr, dynamic_ncols=True, mininterval=0.5
    )
