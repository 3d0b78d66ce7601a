"""`python -m eval errors`: a page to look at what was answered wrongly, text by text, with the answers side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from cptjax.command.escape import say
from cptjax.command.line import Options
from cptjax.command.page import escape, page
from cptjax.files import check_out, write_text
from eval.metrics import overlap
from eval.predictions import Head, Prediction, read_predictions
from eval.tasks.task import Answer, Span

KINDS = ("boundary", "type", "missed", "invented")
SCRIPT = (Path(__file__).parent / "errors.js").read_text(encoding="utf-8")
STYLE = """
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; }
.text { unicode-bidi: plaintext; white-space: pre-wrap; overflow-wrap: anywhere; }
mark { color: inherit; background: #9995; border-radius: .2rem; }
sub { margin-left: .15rem; }
.right { background: #3a35; } .boundary { background: #fc06; } .type { background: #a5f6; }
.missed { background: #f446; } .invented { background: #38f6; }
"""


@dataclass(frozen=True, kw_only=True)
class ErrorsCommand(Options):
    """A page of the errors of one model or several, from files of predictions."""

    predictions: Annotated[Positional[tuple[Path, ...]], arg(metavar="PREDICTIONS [PREDICTIONS ...]")]
    out: Annotated[Path, arg(metavar="FILE.html")]

    def __call__(self, rest: Sequence[str]) -> None:
        """Read, compare, write."""
        if not self.predictions:
            raise ValueError("no file of predictions is given: name at least one")
        check_out(self.out, *self.predictions)
        read = [read_predictions(path) for path in self.predictions]
        write_text(self.out, errors_page(read))
        say(f"wrote {self.out}: {sum(len(predictions) for _, predictions in read):,} answers")


@dataclass(frozen=True)
class Mistake:
    """What was to be said and what was said instead: a span, a label of a text, or nothing."""

    kind: str  # one of KINDS
    gold: Span | str | None
    predicted: Span | str | None


def mistakes(gold: Answer, predicted: Answer) -> list[Mistake]:
    """How one answer differs from the other. An entity that overlaps one of its label has a wrong boundary, one that
    overlaps another label's a wrong type, and both count once; what overlaps none is missed or invented. Of a text's
    labels one for another is a wrong type."""
    made = list(_of_spans([x for x in gold.spans if x not in predicted.spans], [*predicted.spans], gold))
    lost = [name for name in gold.labels if name not in predicted.labels]
    extra = [name for name in predicted.labels if name not in gold.labels]
    if len(gold.labels) == len(predicted.labels) == len(lost) == 1:
        return [*made, Mistake("type", lost[0], extra[0])]
    made += [Mistake("missed", name, None) for name in lost]
    return made + [Mistake("invented", None, name) for name in extra]


def _of_spans(lost: list[Span], predicted: list[Span], gold: Answer) -> Iterator[Mistake]:
    extra = [span for span in predicted if span not in gold.spans]
    for kind, fits in (
        ("type", lambda span, other: span.ranges == other.ranges),
        ("boundary", lambda span, other: span.label == other.label and overlap(span, other)),
        ("type", overlap),
    ):
        for span in [*lost]:
            if other := next((each for each in extra if fits(span, each)), None):
                lost.remove(span)
                extra.remove(other)
                yield Mistake(kind, span, other)
    yield from (Mistake("missed", span, None) for span in lost)
    yield from (Mistake("invented", None, span) for span in extra)


def errors_page(read: Sequence[tuple[Head, Sequence[Prediction]]]) -> str:
    """The page of these files of predictions."""
    texts: dict[str, int] = {}
    items = [
        _item(number, texts.setdefault(each.text, len(texts)), each)
        for number, (_, predictions) in enumerate(read)
        for each in predictions
    ]
    files = [{"model": h.model, "task": h.task, "seed": h.seed, "kind": h.kind} for h, _ in read]
    data = {"texts": list(texts), "files": files, "items": items}
    return page("Errors", BODY, style=STYLE, script=SCRIPT, data=data)


def _item(file: int, text: int, of: Prediction) -> dict[str, Any]:
    errors = mistakes(of.gold, of.predicted)
    kinds = {id_: each.kind for each in errors for id_ in (("gold", each.gold), ("predicted", each.predicted))}
    shown = {
        side: [_answer(each, kinds.get((side, each), "right")) for each in (*answer.spans, *answer.labels)]
        for side, answer in (("gold", of.gold), ("predicted", of.predicted))
    }
    told = [{"kind": each.kind, "gold": _label(each.gold), "predicted": _label(each.predicted)} for each in errors]
    more = {"scores": of.scores, "second": of.second, "choices": of.choices}
    return {"file": file, "text": text, "id": of.id, **shown, "errors": told, **more}


def _answer(answer: Span | str, kind: str) -> dict[str, Any]:
    ranges = {"ranges": answer.ranges} if isinstance(answer, Span) else {}
    return {"label": _label(answer), "kind": kind, **ranges}


def _label(answer: Span | str | None) -> str | None:
    return answer.label if isinstance(answer, Span) else answer


def _choice(name: str, first: str, values: Sequence[str] = ()) -> str:
    options = "".join(f"<option value='{value}'>{value}</option>" for value in values)
    return f"<label>{name} <select id='{name}'><option value=''>{first}</option>{options}</select></label>\n"


BODY = f"""<p>
{_choice("task", "all")}{_choice("model", "all")}{_choice("seed", "all")}{_choice("label", "all")}
{_choice("kind", "every error", (*KINDS, "right"))}
<label>words <input id='words' type='search'></label> <span id='count' class='soft'></span>
</p>
<p class='soft'>{" ".join(f"<code class='{kind}'>{escape(kind)}</code>" for kind in ("right", *KINDS))}</p>
<h2>Most frequent confusions</h2>
<table><thead><tr><th>kind</th><th>gold</th><th>predicted</th><th class='number'>times</th></tr></thead>
<tbody id='confusions'></tbody></table>
<h2>Texts</h2>
<div id='items'></div>
<p><button id='more' type='button' hidden>show more</button></p>
"""
