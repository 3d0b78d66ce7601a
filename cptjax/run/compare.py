"""Runs side by side: what they were told, what they spent, and where their held-out text ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cptjax.command.escape import html, printable
from cptjax.command.page import page as html_page
from cptjax.config import incompatible_fields
from cptjax.files import read_json
from cptjax.run.events import read_events
from cptjax.run.plots import Events, together

SHOWN = 24  # columns of a cell on a terminal

STYLE = """
body { max-width: 70rem; }
td, th { text-align: right; }
td:first-child, th:first-child { text-align: left; }
svg { background: white; max-width: 100%; height: auto; }
"""


@dataclass(frozen=True)
class Side:
    """A run: its folder's name, what it was told, and its events."""

    name: str
    told: dict[str, Any]
    events: Events

    @property
    def evaluations(self) -> Events:
        """Those with a result of the held-out text."""
        return [event for event in self.events if event.get("held_out")]

    @property
    def objectives(self) -> list[str]:
        """What its held-out text was measured by, in the order of its phases."""
        return list(dict.fromkeys(name for event in self.evaluations for name in event["held_out"]))


def sides(folders: Sequence[Path]) -> list[Side]:
    """The runs in these folders. Raises FileNotFoundError or ValueError where one is no run that has begun, ValueError
    for fewer than two."""
    if len(folders) < 2:
        raise ValueError("name two runs or more to compare")
    names = [folder.name for folder in folders]
    made = []
    for folder in folders:
        if not (folder / "config.json").is_file() or not (folder / "events.jsonl").is_file():
            raise FileNotFoundError(f"{folder} holds no run: config.json and events.jsonl are needed")
        name = folder.name if names.count(folder.name) == 1 else str(folder)
        made.append(Side(name, read_json(folder / "config.json"), read_events(folder / "events.jsonl")))
    return made


def table(runs: Sequence[Side]) -> list[list[str]]:
    """A row for each thing to know, its name first."""
    rows = [["", *(run.name for run in runs)]]

    def row(name: str, values: Sequence[str | None]) -> None:
        if any(values):
            rows.append([name, *(value or "-" for value in values)])

    updates = [[event for event in run.events if "loss" in event] for run in runs]
    row("steps", [f"{len(each):,}" for each in updates])
    row("tokens", [f"{sum(event['tokens'] for event in each):,.0f}" for each in updates])
    seconds = [sum(event["seconds"] for event in each) for each in updates]
    row("hours in steps", [f"{each / 3600:.2f}" for each in seconds])
    row(
        "tokens a second",
        [
            f"{sum(event['tokens'] for event in each) / spent:,.0f}" if spent else None
            for each, spent in zip(updates, seconds, strict=True)
        ],
    )
    for objective in dict.fromkeys(name for run in runs for name in run.objectives):
        results = [[e["held_out"][objective] for e in run.evaluations if objective in e["held_out"]] for run in runs]
        for what, form in (("loss", "{:.3f}"), ("accuracy", "{:.1%}")):
            for when, place in (("first", 0), ("last", -1)):
                told = [form.format(each[place][what]) if each else None for each in results]
                row(f"{objective}, {what}, {when}", told)
    return rows


def differences(runs: Sequence[Side]) -> list[str]:
    """What each run was told otherwise than the first, a line each."""
    first = runs[0]
    return [
        f"{run.name}: {changed}"
        for run in runs[1:]
        for changed in incompatible_fields(first.told, run.told, free=()) or [f"told the same as {first.name}"]
    ]


def text(runs: Sequence[Side]) -> str:
    """Table and differences as lines for a terminal."""
    rows = [[printable(cell)[:SHOWN] for cell in row] for row in table(runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([*lines, "", *differences(runs)])


def page(runs: Sequence[Side]) -> str:
    """The same with a picture for each objective, as one HTML file that needs no other and fetches nothing."""
    cells = [[f"<td>{html(cell)}</td>" for cell in row] for row in table(runs)]
    head = "".join(cells[0]).replace("td>", "th>")
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in cells[1:])
    pictures = "\n".join(_picture(runs, name) for name in dict.fromkeys(n for run in runs for n in run.objectives))
    told = "\n".join(f"<li>{html(line)}</li>" for line in differences(runs))
    compared = f"""<div class="wide"><table>
<tr>{head}</tr>
{body}
</table></div>
<h2>What were they told otherwise than the first?</h2>
<ul>
{told}
</ul>
{pictures}"""
    return html_page(" and ".join(run.name for run in runs), compared, heading="Runs side by side", style=STYLE)


def _picture(runs: Sequence[Side], objective: str) -> str:
    drawn = together({run.name: run.events for run in runs}, objective)
    return f"<h2>Held-out text under {html(objective)}</h2>\n{drawn}"
