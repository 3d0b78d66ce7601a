"""What others wrote comes back as the same text, whatever shows it, and brings nothing along."""

import html as escapes
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from cptjax.command import escape

MARKS = list("\\`*_[]()<>&|~$#:@!-+=.01 \n\t\r\x1b\u202e\u2028\u200b\"'/a") + [
    "---",
    "```",
    "<script>",
    "](http://x.y)",
]
MARKS += ["![a](b)", "1. ", "    ", "www.a.b", "&lt;", "http://a.b", "<!--", "{{", "é", "\ud800", "\u3000", "2) "]
TEXT = st.one_of(st.text(), st.lists(st.sampled_from(MARKS), max_size=12).map("".join))
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def shown(text: str) -> str:
    """As the parser writes text that is nothing but text."""
    return escapes.escape(escape.printable(text).strip()).replace("&#x27;", "'")


@given(TEXT)
def test_in_markdown_text_is_text_and_no_element(text):
    # Broken by: any one character left out of MARKUP, NUMBERED not used, or printable not used.
    piece, right = escape.markdown(text), shown(text)
    if not right:
        return
    assert MARKDOWN.render(piece) == f"<p>{right}</p>\n"
    assert MARKDOWN.render(f"# {piece}") == f"<h1>{right}</h1>\n"
    assert MARKDOWN.render(f"* **{piece}**: {piece}.") == f"<ul>\n<li><strong>{right}</strong>: {right}.</li>\n</ul>\n"
    table = MARKDOWN.render(f"| a | {piece} |\n| --- | --- |\n| **{piece}** | {piece} |\n")
    assert table.count(right) >= 3 and table.count("<th>") == table.count("<td>") == 2
    assert f"<td><strong>{right}</strong></td>\n<td>{right}</td>" in table


@given(TEXT.filter(bool))
def test_in_code_text_is_text(text):
    # Broken by: one backtick, or no spaces at the ends.
    right = escapes.escape(escape.printable(text)).replace("&#x27;", "'")
    assert MARKDOWN.render(f"a {escape.code(text)} b") == f"<p>a <code>{right}</code> b</p>\n"


@given(TEXT)
def test_in_html_text_is_text(text):
    # Broken by: quote=False in html.
    found = escape.html(text)
    assert not set("<>\"'") & set(found) and escapes.unescape(found) == escape.printable(text)


def test_addresses_become_no_links():
    # Broken by: `:`, `@` or the dot left out of MARKUP. Renderers differ in what they take for an address.
    found = escape.markdown("http://a.org www.b.org c@d.org f.io 2.0")
    assert found == r"http\://a\.org www\.b\.org c\@d\.org f\.io 2.0"


@given(TEXT)
def test_what_is_printed_steers_nothing_and_is_one_line(text):
    # Broken by: text.isascii() alone for what needs no care.
    found = escape.printable(text)
    assert all(char.isprintable() or char.isspace() for char in found) and len(found.splitlines()) <= 1
    found.encode()  # which lone surrogates, as in names of files, cannot be
    assert escape.printable(found) == found


@pytest.mark.parametrize(
    ("names", "how", "right"),
    [
        ("ab", {}, "a, b"),
        ("abc", {"most": 3}, "a, b, c"),
        ("abcd", {"most": 3}, "a, b, c and 1 more"),
        ("abcd", {"most": 2, "between": "; "}, "a; b; and 2 more"),
        ("a" * (1000 + escape.MOST_LISTED), {}, ", ".join("a" * escape.MOST_LISTED) + " and 1,000 more"),
    ],
)
def test_a_list_cut_short_says_how_much_is_left(names, how, right):
    # Broken by: `more >= 0`, `names[: most + 1]`, or no comma in large numbers.
    assert escape.listed(names, **how) == right


def test_what_is_said_is_lines(capsys):
    # Broken by: printable of the whole text, or none.
    escape.say("a\x1b[2J\r\nb\u202e")
    escape.say("c\x07", stream=sys.stderr)
    assert capsys.readouterr() == ("a\\x1b[2J\\r\nb\\u202e\n", "c\\x07\n")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udcff", "\\udcff"),
        ("l\u2019été\u00a0: 中文", "l\u2019été\u00a0: 中文"),
        ("a\U000e0041", "a\\U000e0041"),
    ],
)
def test_hidden_characters_are_shown_as_python_writes_them(text, right):
    # Broken by: "?" for what is hidden, or spaces of other languages taken for it.
    assert escape.printable(text) == right
    assert escape.printable(text, keep=text) == text
