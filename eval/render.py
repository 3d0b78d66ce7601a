"""How tables are written: for a terminal, as Markdown, for a paper, for a browser, for a program."""

import csv
import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cptjax.command.escape import markdown, printable, say
from cptjax.command.page import escape, page
from cptjax.files import write_text

Format = Literal["text", "markdown", "latex", "csv", "html"]
NOTE_WIDTH = 100  # columns of a terminal
NOTHING = "–"


def percent(share: float | None) -> str:
    """A share in percent, with two digits."""
    return NOTHING if share is None else f"{100 * share:.2f}"


def put(text: str, out: Path | None) -> None:
    """Write a file, or print where none is asked for."""
    if out is None:
        say(text.rstrip("\n"))
    else:
        write_text(out, text)
        say(f"wrote {out}")


@dataclass(frozen=True)
class Table:
    """An answer: a header, rows as wide, notes below. The first `named` columns are names, the others figures."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    named: int = 1


def as_text(made: Sequence[Table]) -> str:
    """Tables for a terminal."""
    lines = []
    for table in made:
        cells = [[printable(cell) for cell in row] for row in (table.header, *table.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += [printable(table.title)]
        lines += ["  ".join(_padded(table, row, widths)).rstrip() for row in cells]
        lines += [line for note in table.notes for line in textwrap.wrap(printable(note), NOTE_WIDTH)] + [""]
    return "\n".join(lines)


def _padded(table: Table, row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if column < table.named else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def as_markdown(made: Sequence[Table]) -> str:
    """Tables as Markdown."""
    lines = []
    for table in made:
        rule = [":--" if column < table.named else "--:" for column in range(len(table.header))]
        rows = [rule if row is None else [*map(markdown, row)] for row in (table.header, None, *table.rows)]
        lines += [f"## {markdown(table.title)}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
        lines += [line for note in table.notes for line in (markdown(note), "")]
    return "\n".join(lines)


TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "±": r"$\pm$"}
TEX |= {char: f"\\{char}" for char in "&%$#_{}"} | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}


def tex(words: str) -> str:
    """Text as LaTeX sets it."""
    return "".join(TEX.get(char, char) for char in printable(words))


def as_latex(made: Sequence[Table]) -> str:
    """Tables as LaTeX, with the package booktabs."""
    lines = []
    for table in made:
        columns = "".join("l" if column < table.named else "r" for column in range(len(table.header)))
        head, *rows = [" & ".join(map(tex, row)) + r" \\" for row in (table.header, *table.rows)]
        lines += [r"\begin{table}", r"\centering", f"\\caption{{{tex(' '.join([table.title + '.', *table.notes]))}}}"]
        lines += [f"\\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
        lines += [r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


SCRIPT = """
"use strict";
const rowsOf = table => [...table.tBodies[0].rows];
document.getElementById("filter").addEventListener("input", event => {
  const words = event.target.value.toLowerCase();
  for (const table of document.querySelectorAll("table"))
    for (const row of rowsOf(table)) row.hidden = !row.textContent.toLowerCase().includes(words);
});
const figure = cell => {
  const number = parseFloat(cell.textContent.replace(/,/g, ""));
  return isNaN(number) ? -Infinity : number;
};
for (const head of document.querySelectorAll("th[data-sort]"))
  head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], at = head.cellIndex;
    const isFigure = head.dataset.sort === "figure", up = head.dataset.up !== "true";
    head.dataset.up = up;
    const compare = (a, b) => isFigure ? figure(b.cells[at]) - figure(a.cells[at])
      : a.cells[at].textContent.localeCompare(b.cells[at].textContent);
    body.append(...[...body.rows].sort((a, b) => up ? compare(a, b) : compare(b, a)));
  });
"""


def as_html(made: Sequence[Table], title: str = "Evaluation", above: str = "", below: str = "") -> str:
    """Tables as a page whose rows can be sorted, by a click on a column's name, and filtered; `above` and `below` them
    stand other pieces of HTML."""
    search = "<p><label>Show rows with <input id='filter' type='search'></label></p>"
    return page(title, above + search + "\n".join([*map(_section, made), below]), script=SCRIPT)


def _section(table: Table) -> str:
    kinds = ["name" if column < table.named else "figure" for column in range(len(table.header))]
    marks = ["" if kind == "name" else " class='number'" for kind in kinds]
    head = "".join(
        f"<th data-sort='{kind}'{mark}>{escape(cell)}</th>"
        for kind, mark, cell in zip(kinds, marks, table.header, strict=True)
    )
    rows = "\n".join(
        f"<tr>{''.join(f'<td{mark}>{escape(cell)}</td>' for mark, cell in zip(marks, row, strict=True))}</tr>"
        for row in table.rows
    )
    notes = "".join(f"<p class='soft'>{escape(note)}</p>\n" for note in table.notes)
    grid = f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>"
    return f"<h2>{escape(table.title)}</h2>\n{grid}\n{notes}"


RENDERED: dict[str, Callable[[Sequence[Table]], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "latex": as_latex,
    "html": as_html,
}


def csv_lines(columns: Sequence[str], lines: Iterable[Mapping[str, object]]) -> str:
    """A header and a line for each of the lines; a column that a line has not is empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: _no_formula(value) for name, value in line.items()})
    return stream.getvalue()


def _no_formula(value: object) -> object:
    """A name such that a spreadsheet takes it for no formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
