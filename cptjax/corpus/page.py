"""The data report for people: lines for a terminal (`text`) and a page for a browser (`page`), of the same tables."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cptjax.command.escape import printable
from cptjax.command.page import escape
from cptjax.command.page import page as html_page

COUNTED = ("documents", "tokens", "words", "text_bytes", "unknown_tokens")
SHARES = ("fill", "pairs", "longer_documents_share", "longer_tokens_share", "documents_cut_share")
WIDTH = 100  # columns of a terminal


class _Figure(str):
    """A cell that is a number: it stands to the right."""


class _Bar(float):
    """A cell that is a bar, this share of the longest."""


@dataclass(frozen=True)
class _Table:
    """The answer to a question, with notes below it. One that is not `brief` is for the page only."""

    question: str
    header: tuple[str, ...] = ()
    rows: Sequence[Sequence[str | _Bar]] = ()
    notes: Sequence[str] = ()
    brief: bool = True


def _count(number: float) -> _Figure:
    return _Figure(f"{number:,}")


def percent(share: float) -> _Figure:
    """A share as it is written."""
    return _Figure(f"{100 * share:.2f} %")


def _tables(report: dict[str, Any]) -> list[_Table]:
    """What a reader asks, in order."""
    total, weights, held, overlap = (report[name] for name in ("totals", "weights", "held_out", "contamination"))

    def fit(of: dict[str, Any]) -> list[str]:
        ratios = [_Figure(f"{of[name]:.2f}") for name in ("tokens_per_word", "bytes_per_token")]
        return [*ratios, percent(of["unknown_rate"])]

    amount = [[name.replace("_", " "), _count(total[name])] for name in COUNTED]
    amount += [
        [name, figure] for name, figure in zip(("tokens/word", "bytes/token", "unknown"), fit(total), strict=True)
    ]
    if weights:
        amount += [["tokens a pass shows", _count(weights["tokens"])]]
        amount += [["a pass shows a document", _Figure(f"{weights['least']:,g} to {weights['most']:,g} times")]]
    if held:
        amount += [[f"held-out {name}", _count(held[name])] for name in ("documents", "tokens")]
        amount += [["held-out share of tokens", percent(held["share"])]]
    notes = [f"Fingerprint {report['fingerprint'][:16]}. Tokens per word and bytes per token leave out special tokens."]
    tables = [_Table("How much text is it?", rows=amount, notes=notes)]

    rows = [
        [of["name"], _count(of["documents"]), _count(of["tokens"]), percent(of["share"]), *fit(of)]
        + ([_count(of["pass_tokens"]), percent(of["pass_share"])] if weights else [])
        for of in report["sources"]
    ]
    header = ("source", "documents", "tokens", "share", "tok/word", "B/tok", "unknown")
    header += ("in a pass", "share") if weights else ()
    notes = ["Held-out documents are counted here."] if held else []
    needed = report["plain_sentences"]
    if languages := sorted({of["compared_with"] for of in report["sources"]} - {None}):
        plain = (
            f"{needed[x]['tokens_per_word']:.2f} and {needed[x]['bytes_per_token']:.2f} of plain {x}" for x in languages
        )
        notes += [f"To compare with, tokens per word and bytes per token: {'; '.join(plain)}."]
    tables += [_Table("Where does it come from, and does the tokenizer fit it?", header, rows, notes)]
    rows = [
        [language, *(_Figure(f"{of[name]:.2f}") for name in ("tokens_per_word", "bytes_per_token"))]
        for language, of in needed.items()
    ]
    notes = [
        "The same two sentences in each language, where it knows all of their letters. A source is compared with "
        "that of its letters which has most bytes per token: rather for it than for others the tokenizer was made."
    ]
    header = ("language", "tok/word", "B/tok")
    tables += [_Table("What does the tokenizer need for plain sentences?", header, rows, notes, brief=False)]

    bins, quantiles = report["lengths"]["histogram"], report["lengths"]["quantiles"].items()
    most = {of: max(b[of] for b in bins) for of in ("documents", "tokens")}
    rows = [
        [_Figure(f"{b['from']:,} to {b['below'] - 1:,}")]
        + [cell for of, top in most.items() for cell in (_count(b[of]), _Bar(b[of] / top))]
        for b in bins
    ]
    named = ", ".join(f"{name}{' %' if name.isdigit() else ''} {length:,}" for name, length in quantiles)
    notes = [f"Tokens of a document: mean {report['lengths']['mean']:,.1f}; quantiles {named}."]
    tables += [_Table("How long are documents?", ("tokens", "documents", "", "their tokens", ""), rows, notes)]

    def by_row(*names: str) -> list[list[str]]:
        return [[percent(of[n]) if n in SHARES else _count(of[n]) for n in names] for of in report["rows"]]

    rows = by_row(
        "sequence_length", "longer_documents", "longer_documents_share", "longer_tokens", "longer_tokens_share"
    )
    notes = ["They are split over rows, never truncated."]
    header = ("row", "documents", "share", "their tokens", "share")
    tables += [_Table("How many are longer than a row?", header, rows, notes)]
    rows = by_row("sequence_length", "rows", "fill", "padding", "documents_cut", "documents_cut_share", "pairs")
    header = ("row", "rows", "full", "padding", "documents cut", "share", "pairs")
    notes = ["Pairs: of the pairs of tokens that attention goes through in whole rows, those that lie in one document."]
    tables += [_Table("How do they fill rows?", header, rows, notes)]

    repeats = report["duplicates"]
    near = "nobody looked" if repeats["near"] is None else f"{repeats['near']:,}"
    rows = [["exact", _count(repeats["exact"])], ["near", _Figure(near)], ["of these kept", _count(repeats["kept"])]]
    drawn = report["drawn"]
    notes = [
        f"Of {drawn['documents']:,} documents drawn by lot {drawn['near']:,} are almost the same as another of them; "
        f"{percent(drawn['repeated'])} of five words in a row stood in the same document before."
    ]
    tables += [_Table("How many documents repeat another?", rows=rows, notes=notes)]
    rows, notes = [], ["Nobody looked: no evaluation files were given."]
    if overlap:
        rows = [[name, _count(documents)] for name, documents in overlap["found"].items()]
        read = f"{overlap['texts']:,} texts of {overlap['files']:,} files, {overlap['short']:,} too short to match"
        notes = [f"{overlap['documents']:,} documents share a passage with {read}."]
    tables += [_Table("Does it overlap with evaluation texts?", ("file", "documents"), rows, notes)]

    rows = [[why, _count(of["rows"]), percent(of["share"])] for why, of in report["dropped"].items()]
    notes = [f"{report['other_files']:,} files of other kinds were not read.", *report["left_out"].values()]
    tables += [_Table("What was left out?", ("why", "rows", "share"), rows, notes)]
    rows = [
        [why, row["where"], row.get("like") or row.get("message", "")]
        for why, of in report["dropped"].items()
        for row in of["examples"]
    ]
    tables += [_Table("For example?", ("why", "where", "like, or message"), rows, brief=False)]
    for name, field in report["fields"].items():
        values = {**field["values"], f"({field['others']['values']:,} other values)": field["others"]}
        rows = [
            [value, _count(of["documents"]), _count(of["tokens"])] for value, of in values.items() if of["documents"]
        ]
        tables += [_Table(f"What is its {name}?", (name, "documents", "tokens"), rows, brief=False)]
    rows = [[_count(of["tokens"]), of["origin"], of.get("begins", "not shown")] for of in report["longest"]]
    return [*tables, _Table("Which documents are longest?", ("tokens", "origin", "begins"), rows, brief=False)]


def text(report: dict[str, Any]) -> str:
    """The report in lines of at most 100 columns; examples and samples are left to the page."""
    lines = [f"{printable(report['store'])}, warnings: {len(report['warnings'])}"]
    lines += [line for warning in report["warnings"] for line in textwrap.wrap(printable(f"! {warning}"), WIDTH)]
    for table in _tables(report):
        if table.brief:
            notes = [line for note in table.notes for line in textwrap.wrap(printable(note), WIDTH)]
            lines += ["", table.question, *_lines(table), *notes]
    return "\n".join(line[:WIDTH].rstrip() for line in lines) + "\n"


def _lines(table: _Table) -> list[str]:
    if not table.rows:
        return []
    rows = [["█" * round(16 * x) if isinstance(x, _Bar) else printable(x) for x in row] for row in table.rows]
    rows = [list(table.header), *rows] if table.header else rows
    right = [isinstance(cell, _Figure) for cell in table.rows[0]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    figures = sum(width for width, is_right in zip(widths, right, strict=True) if is_right)
    room = max(8, (WIDTH - figures - 2 * len(widths)) // max(1, right.count(False)))  # names share what is left
    widths = [width if is_right else min(width, room) for width, is_right in zip(widths, right, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if is_right else _fit(cell, width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        )
        for row in rows
    ]


def _fit(words: str, width: int) -> str:
    """In exactly this many columns; of long words the two ends."""
    if len(words) > width:
        return f"{words[: width // 2]}…{words[len(words) - (width - 1) // 2 :]}"
    return words.ljust(width)


def page(report: dict[str, Any]) -> str:
    """The report as one HTML file that needs no other, runs nothing and fetches nothing."""
    warnings = "".join(f"<li>{escape(warning)}</li>\n" for warning in report["warnings"])
    shown = _shown(report) if report["samples"] else "<p class='soft'>No text of a document is on this page.</p>"
    body = f"""<h2>What should be looked at twice?</h2>
<ul class="warnings">
{warnings or "<li>Nothing stands out.</li>"}
</ul>
{"".join(map(_section, _tables(report)))}
{shown}"""
    return html_page(f"{report['store']}: data report", body, heading=report["store"])


def _shown(report: dict[str, Any]) -> str:
    """Texts, and the tokens of the first."""
    samples = "".join(map(_sample, report["samples"]))
    tokens = "\n".join(
        f"<code title='{escape(of['token'])}, {of['id']}'>{escape(of['text'])}</code>" for of in report["first_tokens"]
    )
    return f"""<h2>What does the model read?</h2>
<p class="soft">{len(report["samples"])} documents drawn by lot, decoded from their tokens: whoever has this page reads
them. With --no-samples there are none.</p>
{samples}
<h2>How is the first of them cut into tokens?</h2>
<p>{tokens}</p>"""


def _section(table: _Table) -> str:
    kinds = [" class='number'" if isinstance(cell, _Figure) else "" for cell in table.rows[0]] if table.rows else []
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(table.header, kinds, strict=False))
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in table.rows)
    filled = f"<div class='wide'><table>\n<tr>{head}</tr>\n{rows}</table></div>\n" if rows else ""
    notes = "".join(f"<p class='soft'>{escape(note)}</p>\n" for note in table.notes)
    return f"<h2>{escape(table.question)}</h2>\n{filled}{notes}"


def _cell(cell: str | _Bar) -> str:
    if isinstance(cell, _Bar):
        return f"<td class='bar'><div style='width: {100 * cell:.1f}%'></div></td>"
    return f"<td{' class=number' if isinstance(cell, _Figure) else ''}>{escape(cell)}</td>"


def _sample(of: dict[str, Any]) -> str:
    shown = f"<pre dir='auto'>\n{escape(of['head'])}</pre>\n"
    if of["left_out"]:
        shown += f"<p class='soft'>… {of['left_out']:,} tokens not shown …</p>\n"
        shown += f"<pre dir='auto'>\n{escape(of['tail'])}</pre>\n"
    return f"<h3>{escape(of['origin'])} <span class='soft'>{of['tokens']:,} tokens</span></h3>\n{shown}"
