"""The data report: what to look at in a token store before GPU hours are spent on it.

As numbers for programs (`data_report`); `page.py` makes lines and a page of them.

N documents, S spans of a packing plan, L tokens of one document, B bins of a histogram.
"""

import bisect
import dataclasses
import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cptjax.corpus import fit, sample
from cptjax.corpus.page import COUNTED, page, percent
from cptjax.data.packing import packing_plan
from cptjax.data.store import Manifest, Source, Store, sentences
from cptjax.data.tokenizer import Encoder, cautions
from cptjax.files import parse_json, write_json, written

# Where a researcher should look twice.
MOST_UNKNOWN = 0.001  # of the tokens: more, and a script or a symbol of this text is lost to the model
MOST_TOKENS = (
    1.25  # for what takes one in plain sentences: ModernBERT's takes 1 for English of medicine, 1.4 for French
)
MOST_DUPLICATES = 0.01  # of the documents: repeats are learned by heart (arXiv:2107.06499)
MOST_REPEATED = 0.15  # of a text's passages: a document with more was no training text for arXiv:2112.11446, table A1
LEAST_FILL = 0.99  # of the rows but one, for the last is as full as it comes
LEAST_PAIRS = 0.05  # of the pairs of tokens in full rows: what lies in two documents is no use to attention
MOST_SHARE = 0.5  # of one document or source: the model learns that one
MOST_REPEATS = 30  # in one pass; past 16 repeats bring little, past 40 nothing (arXiv:2305.16264)
MOST_BAD_ROWS = 0.01  # of the rows read: more is no accident but a wrong field or file

SEED = 0  # of the samples and of the packing, so that equal stores give equal reports
SAMPLES, SAMPLE_TOKENS = 8, 40
HEAD, TAIL = 500, 200  # characters of a sample that are shown
LONGEST, FIRST_WORDS = 10, 80
EXAMPLES = 5  # rows dropped, of each reason
FIELD_VALUES = 20  # of each counted field, those with most tokens
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
QUANTILES = {"min": 0, "10": 10, "50": 50, "90": 90, "99": 99, "max": 100}  # name -> percent of the documents


def data_report(
    store: Path | str, sequence_lengths: Sequence[int] = (1024, 8192), *, samples: bool = True
) -> dict[str, Any]:
    """Numbers and examples of a store, ready for JSON; equal stores give equal reports. Without `samples` no word of a
    document is in it.

    Counts are of the store; those of sources, duplicates, contamination, fields and dropped rows are
    of the whole run of `prepare`, held-out documents included. Tokens per word, bytes per token and
    the unknown rate are of the text: the special tokens around each document do not count.
    ValueError or OSError when a file of the store is missing, damaged or of another store.
    """
    opened = Store(store)
    manifest, length_N, weight_N = opened.manifest, opened.length_N, opened.weight_N
    encoder = Encoder(opened.path / "tokenizer")
    shown_N = length_N if weight_N is None else length_N * weight_N
    drawn, needed = sample.draw(opened, encoder, SEED), fit.needs(encoder)
    report = {
        "store": opened.path.resolve().name,
        "fingerprint": manifest.fingerprint,
        "totals": _counts(manifest, encoder),
        "plain_sentences": needed,
        "sources": _sources(opened, encoder, shown_N, drawn, needed),
        "weights": None
        if weight_N is None
        else {"least": weight_N.min().item(), "most": weight_N.max().item(), "tokens": round(shown_N.sum().item())},
        "largest_share": _share(shown_N.max().item(), shown_N.sum().item()),
        "lengths": _lengths(length_N),
        "rows": [_rows(length_N, weight_N, length) for length in sequence_lengths],
        "duplicates": _duplicates(manifest),
        "drawn": sample.facts(list(drawn.values()), manifest.documents),
        "contamination": manifest.contamination and dataclasses.asdict(manifest.contamination),
        "dropped": _dropped(opened.path / "dropped.jsonl", manifest),
        "other_files": manifest.dropped.get("other_files", 0),
        "written_specials": manifest.written_specials,
        "cautions": cautions(opened.path / "tokenizer", encoder.tokenizer),
        "left_out": sentences(opened.files().left_out),
        "same_files": _same_files(opened),
        "fields": {name: _field(values) for name, values in manifest.fields.items()},
        **_documents(opened, encoder, samples),
        "held_out": _held_out(opened.path / "held_out", manifest),
    }
    return {"warnings": _warnings(report), **report}


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _counts(of: Manifest | Source, encoder: Encoder) -> dict[str, Any]:
    around = len(encoder.encode([""])[0])
    text_tokens = of.tokens - around * of.documents
    return {name: getattr(of, name) for name in COUNTED} | {
        "tokens_per_word": _share(text_tokens, of.words),
        "bytes_per_token": _share(of.text_bytes, text_tokens),
        "unknown_rate": _share(of.unknown_tokens, text_tokens),
    }


def _sources(
    store: Store,
    encoder: Encoder,
    shown_N: np.ndarray,
    drawn: dict[int, str],
    needed: dict[str, dict[str, float]],
) -> list[dict[str, Any]]:
    """Counts of each source, and the language of plain sentences that it is compared with, None where none of it was
    drawn; where documents have weights, also the tokens that a pass shows of it."""
    sources, source_N = store.manifest.sources, store.source_N
    total = sum(source.tokens for source in sources)
    counted = [{"name": s.name, **_counts(s, encoder), "share": _share(s.tokens, total)} for s in sources]
    for number, source in enumerate(counted):
        text = "".join(text[:HEAD] for document, text in drawn.items() if source_N[document] == number)
        source["compared_with"] = fit.compared_with(needed, text) if text else None
    if store.weight_N is not None:
        shown = np.bincount(source_N, weights=shown_N, minlength=len(sources)).tolist()
        for source, tokens in zip(counted, shown, strict=True):
            source |= {"pass_tokens": round(tokens), "pass_share": _share(tokens, sum(shown))}
    return counted


def _lengths(length_N: np.ndarray) -> dict[str, Any]:
    quantiles = np.percentile(length_N, list(QUANTILES.values()), method="inverted_cdf").tolist()
    bin_N = np.frexp(length_N)[1] - 1  # floor of the binary logarithm, exact
    documents_B, tokens_B = np.bincount(bin_N).tolist(), np.bincount(bin_N, weights=length_N).tolist()
    return {
        "mean": length_N.mean().item(),
        "quantiles": dict(zip(QUANTILES, quantiles, strict=True)),
        "histogram": [
            {"from": 2**b, "below": 2 ** (b + 1), "documents": documents_B[b], "tokens": round(tokens_B[b])}
            for b in range(bin_N.min(), len(documents_B))
        ],
    }


def _rows(length_N: np.ndarray, weight_N: np.ndarray | None, sequence_length: int) -> dict[str, Any]:
    """What rows of this length make of the documents: how many are longer, and how they are packed."""
    longer_L = length_N[length_N > sequence_length]
    plan = packing_plan(length_N, sequence_length, SEED, weight_N)
    room, tokens = len(plan) * sequence_length, plan.length_S.sum().item()
    cut = np.unique(plan.document_S[plan.length_S < length_N[plan.document_S]])
    return {
        "sequence_length": sequence_length,
        "longer_documents": len(longer_L),
        "longer_documents_share": len(longer_L) / len(length_N),
        "longer_tokens": longer_L.sum().item(),
        "longer_tokens_share": longer_L.sum().item() / length_N.sum().item(),
        "rows": len(plan),
        "fill": _share(tokens, room),
        "padding": room - tokens,
        "pairs": _share((plan.length_S.astype(float) ** 2).sum().item(), tokens * sequence_length),
        "documents_cut": len(cut),
        "documents_cut_share": len(cut) / len(length_N),
    }


def _duplicates(manifest: Manifest) -> dict[str, Any]:
    duplicates, dropped = manifest.duplicates, manifest.dropped
    kept = (
        duplicates.exact + (duplicates.near or 0) - dropped.get("exact duplicate", 0) - dropped.get("near duplicate", 0)
    )
    documents = sum(source.documents for source in manifest.sources)
    return {"exact": duplicates.exact, "near": duplicates.near, "kept": kept, "kept_share": _share(kept, documents)}


def _dropped(path: Path, manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Rows and their share by reason, and examples drawn evenly from any number of them (reservoir sampling)."""
    counts = {why: rows for why, rows in manifest.dropped.items() if why != "other_files"}
    read = sum(counts.values()) + sum(source.documents for source in manifest.sources)
    dropped = {why: {"rows": rows, "share": _share(rows, read), "examples": []} for why, rows in counts.items()}
    seen = dict.fromkeys(counts, 0)
    draw = random.Random(SEED)
    if path.is_file():  # a held-out store has none of its own
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    row = parse_json(line, str(path))
                    examples = dropped[row["why"]]["examples"]
                except (ValueError, TypeError, KeyError):
                    raise ValueError(f"{path}:{number} is no row the manifest counts: copy the store again") from None
                seen[row["why"]] += 1
                place = draw.randrange(seen[row["why"]])
                if len(examples) < EXAMPLES:
                    examples.append(row)
                elif place < EXAMPLES:
                    examples[place] = row
    return dropped


def _same_files(store: Store) -> list[list[str]]:
    """The names of files of equal content, in groups."""
    names: dict[str, list[str]] = {}
    for file in store.files().files:
        names.setdefault(file.sha256, []).append(file.name)
    return [group for digest, group in names.items() if len(group) > 1 and digest != EMPTY_SHA256]


def _field(values: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Counts of the values with most tokens, and of all others together."""
    ordered = sorted(values.items(), key=lambda item: (-item[1]["tokens"], item[0]))
    others = [count for _, count in ordered[FIELD_VALUES:]]
    summed = {of: sum(count[of] for count in others) for of in ("documents", "tokens")}
    return {"values": dict(ordered[:FIELD_VALUES]), "others": {"values": len(others), **summed}}


def _documents(store: Store, encoder: Encoder, samples: bool) -> dict[str, Any]:
    """The longest documents, a sample of all, and the first tokens of the sample's first document; without `samples`
    how long the longest are, and where they are from."""
    length_N, tokenizer = store.length_N, encoder.tokenizer
    longest = np.argsort(-length_N, kind="stable")[:LONGEST].tolist()
    if not samples:
        from_N = zip(store.origins(longest), length_N[longest].tolist(), strict=True)
        described = [{"origin": origin, "tokens": tokens} for origin, tokens in from_N]
        return {"longest": described, "samples": [], "first_tokens": []}
    drawn = np.random.default_rng(SEED).choice(len(length_N), min(SAMPLES, len(length_N)), replace=False)
    chosen = longest + np.sort(drawn).tolist()
    hidden = set(store.manifest.special_token_ids) - {encoder.special.unk}

    def decode(ids: Sequence[int]) -> str:  # an unknown token is shown, those around a document are not
        return tokenizer.decode([i for i in ids if i not in hidden], skip_special_tokens=False)

    ids = [token_L.tolist() for token_L in store.tokens(chosen)]
    described: list[dict[str, Any]] = [
        {"origin": origin, "tokens": len(token_L)} for origin, token_L in zip(store.origins(chosen), ids, strict=True)
    ]
    for document, token_L in zip(described[: len(longest)], ids, strict=False):
        document["begins"] = " ".join(decode(token_L[: 4 * FIRST_WORDS]).split())[:FIRST_WORDS]
    for document, token_L in zip(described[len(longest) :], ids[len(longest) :], strict=True):
        document["head"], document["left_out"], document["tail"] = _view(decode, token_L)
    first = [
        {"id": i, "token": tokenizer.id_to_token(i), "text": tokenizer.decode([i], skip_special_tokens=False)}
        for i in ids[len(longest)][:SAMPLE_TOKENS]
    ]
    return {"longest": described[: len(longest)], "samples": described[len(longest) :], "first_tokens": first}


def _view(decode: Callable[[Sequence[int]], str], token_L: list[int]) -> tuple[str, int, str]:
    """Head and tail of a document, of whole tokens, and how many tokens lie between."""

    def enough(characters: int, part: Callable[[int], list[int]]) -> int:
        counts = range(min(len(token_L), 4 * characters))  # a character has at most four tokens, its bytes
        return bisect.bisect_left(counts, characters, key=lambda n: len(decode(part(n))))

    head = enough(HEAD, lambda n: token_L[:n])
    tail = len(token_L) - enough(TAIL, lambda n: token_L[len(token_L) - n :])
    if head >= tail:
        return decode(token_L), 0, ""
    # A character cut in two is no part of the view.
    return decode(token_L[:head]).rstrip("\ufffd"), tail - head, decode(token_L[tail:]).lstrip("\ufffd")


def _held_out(path: Path, manifest: Manifest) -> dict[str, Any] | None:
    if not path.is_dir():
        return None
    held = Manifest.read(path)
    share = held.tokens / (held.tokens + manifest.tokens)
    return {"documents": held.documents, "tokens": held.tokens, "share": share}


def _warnings(report: dict[str, Any]) -> list[str]:
    """One sentence for each number that should make a researcher look twice."""
    unknown, duplicates, drawn = report["totals"]["unknown_rate"], report["duplicates"], report["drawn"]
    overlaps = (report["contamination"] or {}).get("documents", 0)
    left_out = report["dropped"].get("contaminated", {}).get("rows", 0)
    repeats = (report["weights"] or {}).get("most", 1)
    bad = report["dropped"].get("bad row", {"rows": 0, "share": 0.0})
    several = report["sources"] if len(report["sources"]) > 1 else []  # one alone is all of the tokens by right
    shares = {f"Source {source['name']}": source.get("pass_share", source["share"]) for source in several}
    shares = {"One document": report["largest_share"], **shares}
    looked = f"Of {drawn['documents']:,} documents" + " drawn by lot" * (drawn["documents"] < drawn["of"])
    misread, right = drawn["misread_letters"] or ("", "")
    same = report["same_files"]
    checks = [
        *((True, report["left_out"][why]) for why in ("kind", "again") if why in report["left_out"]),
        (
            bool(same),
            f"{sum(map(len, same)):,} files are {len(same):,} by content, such as {' and '.join((same or [[]])[0])}.",
        ),
        *((True, sentence) for sentence in report["cautions"]),
        (unknown > MOST_UNKNOWN, f"{percent(unknown)} of the tokens are unknown to the tokenizer."),
        (
            report["written_specials"] > 0,
            f"In {report['written_specials']:,} places the text reads like a special token, such as [MASK]. "
            "It stays text.",
        ),
        *_misfits(report),
        (
            drawn["misread"] > MOST_BAD_ROWS * drawn["documents"],
            f"{looked} {drawn['misread']:,} hold letters that were misread before they came here, such as {misread} "
            f"for {right}.",
        ),
        (
            duplicates["kept_share"] > MOST_DUPLICATES,
            f"{duplicates['kept']:,} documents ({percent(duplicates['kept_share'])}) repeat another and were kept.",
        ),
        (
            drawn["near"] > MOST_DUPLICATES * drawn["documents"],
            f"{looked} {drawn['near']:,} are almost the same as another of them: --duplicates near keeps one of each.",
        ),
        (
            drawn["repeated"] > MOST_REPEATED,
            f"{looked}, {percent(drawn['repeated'])} of five words in a row stood in the same document before.",
        ),
        (
            overlaps > 0,
            f"{overlaps:,} documents share a passage with an evaluation text; {left_out:,} of them were left out.",
        ),
        *(
            (
                rows["fill"] * rows["rows"] < LEAST_FILL * (rows["rows"] - 1),
                f"Rows of {rows['sequence_length']:,} tokens are {percent(rows['fill'])} full.",
            )
            for rows in report["rows"]
        ),
        *(
            (
                rows["pairs"] < LEAST_PAIRS,
                f"Documents are short for rows of {rows['sequence_length']:,} tokens: {percent(rows['pairs'])} of the "
                "pairs of tokens there lie in one document, and attention on CPUs goes through all: shorter rows do.",
            )
            for rows in report["rows"][:1]
        ),
        *((share > MOST_SHARE, f"{what} is {percent(share)} of the tokens.") for what, share in shares.items()),
        (repeats > MOST_REPEATS, f"A pass shows some document {repeats:,g} times."),
        (bad["share"] > MOST_BAD_ROWS, f"{bad['rows']:,} rows ({percent(bad['share'])}) were dropped as bad."),
    ]
    return [sentence for is_so, sentence in checks if is_so]


def _misfits(report: dict[str, Any]) -> list[tuple[bool, str]]:
    """A sentence for each source that takes more tokens than the plain sentences it is compared with."""
    checks = []
    for source in report["sources"]:
        if source["compared_with"] is not None:
            plain = report["plain_sentences"][source["compared_with"]]["bytes_per_token"]
            times = _share(plain, source["bytes_per_token"])
            what = source["name"] if len(report["sources"]) > 1 else "this text"
            said = (
                f"The tokenizer takes {times:.2f} times as many tokens for {what} as for as much plain "
                f"{source['compared_with']} ({source['bytes_per_token']:.2f} bytes per token, {plain:.2f} there): "
                "another language, capitals, damaged letters, or no sentences?"
            )
            checks.append((times > MOST_TOKENS, said))
    return checks


def write(store: Path | str, out: Path | None = None, *, samples: bool = True) -> dict[str, Any]:
    """Write report.json and report.html into `out`, by default the store itself, with `samples` of the text or without;
    returns the report.

    Errors as `data_report` raises them; OSError when `out` cannot be written. Neither file is there then,
    or both are what they were before.
    """
    report = data_report(store, samples=samples)
    folder = Path(out or store)
    folder.mkdir(parents=True, exist_ok=True)
    with written(folder / "report.html") as partial:
        partial.write_text(page(report), encoding="utf-8")
        write_json(folder / "report.json", report)
    return report
