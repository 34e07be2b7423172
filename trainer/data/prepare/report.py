"""The report of a preparation: one HTML page with its pictures, to look at before training."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from trainer.data import open_dataset
from trainer.data.prepare.figures import histograms, sheet
from trainer.data.prepare.finish import REJECTED, Result, Taken
from trainer.data.prepare.rejection import REASONS
from trainer.files import write_bytes

REPORT = "report"
_SHOWN = 12  # of each bin

_STYLE = """
body { font: 15px/1.45 sans-serif; max-width: 1240px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { text-align: left; padding: .25em .8em; border-bottom: 1px solid #ddd;
vertical-align: top } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100%; border: 1px solid #ddd } code { background: #f3f3f3; padding: 0 .2em; overflow-wrap: anywhere }
small { color: #666 }
"""


def write_report(out: Path, result: Result) -> Path:
    """Write ``report/report.html`` and its pictures.

    Args:
        out: folder of the data set, which is finished, or empty where nothing was kept.
        result: what stage two made.

    Returns:
        The page.
    """
    folder = out / REPORT
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.*"):
        old.unlink()
    parts = [f"<h1>Prepared photographs</h1>\n<p>{_summary(result)}</p>"]
    if result.kept:
        facts = [[{**taken.facts, "k": taken.k} for taken in rows] for rows in (result.kept, result.surplus)]
        histograms(folder / "histograms.png", facts[0], facts[1], result.settings["max_k"])
        parts += ["<h2>Distributions</h2>", '<img src="histograms.png" alt="histograms">', _bins(result)]
        parts += _sheets(out, folder, result)
    parts += [_rejections(result), _settings(result)]
    body = "\n".join(parts)
    page = (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Prepared photographs</title>"
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )
    write_bytes(folder / "report.html", page.encode("utf-8", "replace"))
    return folder / "report.html"


def rejection_table(result: Result) -> str:
    """The reasons and their numbers, for people at a terminal."""
    width = max((len(reason) for reason in result.rejected), default=0)
    return "\n".join(
        f"{count:8d}  {reason:{width}}  {REASONS.get(reason, '')}"
        for reason, count in result.rejected.most_common()
    )


def _summary(result: Result) -> str:
    sharp = sum(taken.all_in_focus for taken in result.kept)
    share = f" ({100 * sharp / len(result.kept):.0f} %)" if result.kept else ""
    return (
        f"{result.seen} photographs were looked at. <b>{len(result.kept)}</b> are in the data set, {sharp}{share} of "
        f"them all in focus; {sum(result.rejected.values())} are not, {len(result.surplus)} of those only to "
        f"even out K. "
        f"Each of them is in <code>{REJECTED}</code> with its reason."
    )


def _bins(result: Result) -> str:
    kept, surplus = _by_bin(result, result.kept), _by_bin(result, result.surplus)
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td class='n'>{len(kept[i])}</td><td class='n'>{len(surplus[i])}</td></tr>"
        for i, name in enumerate(result.bins)
        if kept[i] or surplus[i] or name.startswith("K ")
    )
    return (
        "<h2>Bins of K</h2><table><tr><th>bin</th><th class='n'>kept</th><th class='n'>left out</th></tr>"
        f"{rows}</table>"
    )


def _by_bin(result: Result, rows: list[Taken]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in result.bins]
    for index, taken in enumerate(rows):
        found[result.bin_of(taken)].append(index)
    return found


def _sheets(out: Path, folder: Path, result: Result) -> list[str]:
    dataset = open_dataset(out)
    parts = [
        "<h2>Samples</h2><p>At each picture, as it is trained on: its disparity (near is bright), and its foreground. "
        "<small>Does the blur grow from bin to bin? Is the sharp part foreground?</small></p>"
    ]
    for number, members in enumerate(_by_bin(result, result.kept)):
        if members:
            name = f"bin-{number:02d}.jpg"
            chosen = sorted(members[:_SHOWN], key=lambda index: result.kept[index].k or 0)
            sheet(folder / name, [dataset.sample(index) for index in chosen])
            title = escape(f"{result.bins[number]}: {len(chosen)} of {len(members)}")
            parts.append(f'<h3>{title}</h3><img src="{name}" alt="{title}">')
    return parts


def _rejections(result: Result) -> str:
    rows = []
    for reason, count in result.rejected.most_common():
        examples = "<br>".join(
            f"<code>{escape(id)}</code> <small>{escape(detail[:200])}</small>"
            for id, detail in result.examples[reason]
        )
        meaning = escape(REASONS.get(reason, ""))
        rows.append(
            f"<tr><td>{escape(reason)}</td><td class='n'>{count}</td><td>{meaning}</td><td>{examples}</td></tr>"
        )
    return (
        "<h2>Rejected</h2><table><tr><th>reason</th><th class='n'>number</th><th>meaning</th><th>for example</th></tr>"
        f"{''.join(rows)}</table>"
        if rows
        else "<h2>Rejected</h2><p>None.</p>"
    )


def _settings(result: Result) -> str:
    values: dict[str, Any] = {
        **result.settings,
        **{f"balance: {n}": v for n, v in vars(result.balance).items()},
    }
    rows = "".join(f"<tr><td>{escape(n)}</td><td>{escape(str(v))}</td></tr>" for n, v in values.items())
    return f"<h2>Settings</h2><table>{rows}</table>"
