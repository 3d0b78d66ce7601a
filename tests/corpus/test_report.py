"""The data report against counts by hand, and its page and lines against what they may not do."""

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from cptjax.corpus import report
from cptjax.corpus.fit import SENTENCES, compared_with
from cptjax.corpus.page import page, text
from cptjax.corpus.report import data_report, write
from cptjax.data.store import STORE_VERSION, Contamination, Duplicates, Manifest, Source, file_hashes, write_shard
from cptjax.data.tokenizer import Encoder
from cptjax.files import sha256, write_json
from tests.fixtures_text import make_tokenizer

WORDS = ("the", "heart", "pumps", "blood")


def word_tokenizer(folder: Path) -> Path:
    """Four words, an unknown token for all others, and [SEP] at the end."""
    vocabulary = {token: i for i, token in enumerate(("[UNK]", "[SEP]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[UNK]", "[SEP]"])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def make_store(
    folder: Path,
    sources: Mapping[str, Sequence[str]],
    tokenizer=make_tokenizer,
    weight_N: Sequence[float] | None = None,
    rows: Sequence[dict] = (),
    **changes,
) -> Path:
    """A store of these texts, as `prepare` makes it; `rows` those dropped, `changes` fields of the manifest."""
    folder.mkdir(parents=True)
    encoder = Encoder(tokenizer(folder / "tokenizer"))
    assert encoder.eos is not None
    ids, file_N, row_N, counted = [], [], [], []
    for number, (name, texts) in enumerate(sources.items()):
        token_L = encoder.encode(texts)
        ids += token_L
        file_N += [number] * len(texts)
        row_N += range(1, len(texts) + 1)
        counted.append(
            Source(
                name,
                "0" * 64,
                1,
                len(texts),
                sum(map(len, token_L)),
                sum(len(t.encode()) for t in texts),
                sum(len(t.split()) for t in texts),
                sum(int((x == encoder.special.unk).sum()) for x in token_L),
            )
        )
    shard = write_shard(folder / "tokens-00000.array_record", ids)
    np.save(folder / "length_N.npy", np.array([len(x) for x in ids], np.int64))
    np.save(folder / "crc32_N.npy", np.array([zlib.crc32(x.tobytes()) for x in ids], np.uint32))
    if weight_N is not None:
        np.save(folder / "weight_N.npy", np.array(weight_N))
    np.save(folder / "file_N.npy", np.array(file_N))
    np.save(folder / "row_N.npy", np.array(row_N))
    listed = [{"source": number, "name": name, "sha256": f"{number:064x}"} for number, name in enumerate(sources)]
    write_json(folder / "files.json", {"files": listed})
    (folder / "dropped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    special = encoder.special
    manifest = Manifest(
        STORE_VERSION,
        shard.documents,
        shard.tokens,
        sum(source.text_bytes for source in counted),
        sum(source.words for source in counted),
        sum(source.unknown_tokens for source in counted),
        encoder.dtype.name,
        encoder.vocab_size,
        sha256(folder / "tokenizer" / "tokenizer.json"),
        encoder.bos,
        encoder.eos,
        special.pad,
        special.mask,
        special.all,
        tuple(counted),
        {},
        Duplicates(0, 0),
        None,
        {},
        file_hashes(folder),
        {},
        (shard,),
        0,
    )
    dataclasses.replace(manifest, **changes).write(folder)
    return folder


class Page(HTMLParser):
    """What a browser would show of a page; fails on a tag that is closed twice, late or never."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.shown: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.shown.append(data)


def words(count: int) -> str:
    return " ".join(WORDS[i % len(WORDS)] for i in range(count))


# ---- numbers


def test_counts_are_those_made_by_hand(tmp_path):
    # Broken by: `around = 0`, of.words and of.text_bytes exchanged, or unknown tokens over all tokens.
    sources = {"a.jsonl": ["the heart, pumps", "blood"], "b.jsonl": ["the zeal\u00e9 heart"]}
    total = data_report(make_store(tmp_path / "s", sources, word_tokenizer), (8,))
    # Tokens: the heart [UNK] pumps | blood | the [UNK] heart, and a [SEP] each. Words: 3, 1, 3.
    assert total["totals"] == {
        "documents": 3,
        "tokens": 11,
        "words": 7,
        "text_bytes": 16 + 5 + 16,
        "unknown_tokens": 2,
        "tokens_per_word": 8 / 7,
        "bytes_per_token": 37 / 8,
        "unknown_rate": 2 / 8,
    }
    first, second = total["sources"]
    assert (first["name"], first["documents"], first["tokens"], first["share"]) == ("a.jsonl", 2, 7, 7 / 11)
    assert (first["tokens_per_word"], first["unknown_rate"]) == (5 / 4, 1 / 5)
    assert (second["name"], second["bytes_per_token"], second["share"]) == ("b.jsonl", 16 / 3, 4 / 11)


def test_lengths_fall_into_bins_of_powers_of_two_and_none_is_lost(tmp_path):
    # Broken by: the bin one higher, an edge in the lower bin, quantiles that interpolate, or `>=` a row.
    lengths = [2, 3, 4, 7, 8, 15, 16, 16, 17, 1000]
    texts = [words(length - 1) for length in lengths]
    found = data_report(make_store(tmp_path / "s", {"a": texts}, word_tokenizer), (16, 1000))
    bins = found["lengths"]["histogram"]
    assert [(b["from"], b["below"], b["documents"], b["tokens"]) for b in bins] == [
        (2, 4, 2, 5),
        (4, 8, 2, 11),
        (8, 16, 2, 23),
        (16, 32, 3, 49),
        (32, 64, 0, 0),
        (64, 128, 0, 0),
        (128, 256, 0, 0),
        (256, 512, 0, 0),
        (512, 1024, 1, 1000),
    ]
    assert sum(b["documents"] for b in bins) == found["totals"]["documents"]
    assert sum(b["tokens"] for b in bins) == found["totals"]["tokens"]
    assert found["lengths"]["quantiles"] == {"min": 2, "10": 2, "50": 8, "90": 17, "99": 1000, "max": 1000}
    short, long = found["rows"]
    assert (short["longer_documents"], short["longer_documents_share"]) == (2, 0.2)
    assert (short["longer_tokens"], short["longer_tokens_share"]) == (1017, 1017 / sum(lengths))
    assert (long["longer_documents"], long["longer_tokens"]) == (0, 0)


def test_rows_are_those_of_the_packing(tmp_path):
    # Broken by: padding without the last row, or a document in one whole row counted as cut.
    texts = [words(129), words(63)]  # 130 tokens fill two rows of 64 and begin a third; 64 fill one
    (rows,) = data_report(make_store(tmp_path / "s", {"a": texts}, word_tokenizer), (64,))["rows"]
    assert (rows["rows"], rows["padding"], rows["fill"]) == (4, 62, 194 / 256)
    assert (rows["documents_cut"], rows["documents_cut_share"]) == (1, 0.5)


def test_weights_count_in_what_a_pass_shows(tmp_path):
    # Broken by: lengths instead of weighted lengths in _sources, or no weights given to the packing.
    sources = {"a": [words(7), words(7)], "b": [words(15)]}
    store = make_store(tmp_path / "s", sources, word_tokenizer, weight_N=[1, 3, 4])
    found = data_report(store, (16,))
    assert [source["pass_tokens"] for source in found["sources"]] == [32, 64]
    assert [source["pass_share"] for source in found["sources"]] == [1 / 3, 2 / 3]
    assert [source["tokens"] for source in found["sources"]] == [16, 16]
    assert found["weights"] == {"least": 1, "most": 4, "tokens": 96}
    assert found["rows"][0]["rows"] * 16 - found["rows"][0]["padding"] == 96
    assert "96" in text(found)


def test_held_out_documents_are_set_against_the_rest(tmp_path):
    # Broken by: the share taken of the store alone.
    store = make_store(tmp_path / "s", {"a": [words(29)]}, word_tokenizer)
    assert data_report(store)["held_out"] is None
    make_store(store / "held_out", {"a": [words(9)]}, word_tokenizer)
    assert data_report(store)["held_out"] == {"documents": 1, "tokens": 10, "share": 0.25}


def test_fields_show_the_values_with_most_tokens_and_sum_up_the_others(tmp_path):
    # Broken by: values in the order of the manifest, or the others left out.
    values = {f"v{i:02}": {"documents": 1, "tokens": i} for i in range(1, 31)}
    store = make_store(tmp_path / "s", {"a": ["the heart"]}, fields={"licence": values})
    found = data_report(store)["fields"]["licence"]
    assert list(found["values"])[:2] == ["v30", "v29"]
    assert len(found["values"]) == report.FIELD_VALUES
    assert found["others"] == {"values": 10, "documents": 10, "tokens": sum(range(1, 11))}


# ---- documents


TEXTS = ["Le c\u0153ur bat: 72\u00a0min\u207b\u00b9.\n\n\tEt \U0001fac0?", "[MASK] and [SEP] stay text", "the heart"]


def test_samples_come_back_as_the_very_text(tmp_path):
    # Broken by: skip_special_tokens=True with ids unfiltered (then no change), or specials shown.
    found = data_report(make_store(tmp_path / "s", {"a.jsonl": TEXTS}))
    assert [sample["head"] for sample in found["samples"]] == TEXTS
    assert [(sample["origin"], sample["left_out"]) for sample in found["samples"]] == [
        ("a.jsonl:1", 0),
        ("a.jsonl:2", 0),
        ("a.jsonl:3", 0),
    ]
    assert [token["text"] for token in found["first_tokens"][:3]] == ["[CLS]", "L", "e"]
    assert len(found["first_tokens"]) == min(found["samples"][0]["tokens"], 40)


def test_without_samples_no_word_of_a_document_is_written(tmp_path):
    # Broken by: the longest documents with how they begin.
    store = make_store(tmp_path / "store", {"a.txt": ["the heart pumps", "zebra blood"]})
    assert "zebra" in json.dumps(write(store)) and "whoever has this page reads" in (store / "report.html").read_text()
    made = write(store, samples=False)
    assert "zebra" not in json.dumps(made)
    html = (store / "report.html").read_text()
    assert "zebra" not in html and "pumps" not in html and "No text of a document is on this page" in html
    assert [of["tokens"] for of in made["longest"]] == [of["tokens"] for of in data_report(store)["longest"]]


def test_an_unknown_token_is_seen_in_a_sample(tmp_path):
    # Broken by: every special token hidden.
    found = data_report(make_store(tmp_path / "s", {"a": ["the zeal heart"]}, word_tokenizer))
    assert found["samples"][0]["head"] == "the [UNK] heart"


def test_a_long_sample_shows_both_ends_and_counts_what_lies_between(tmp_path):
    # Broken by: `tail - head` + 1, or the tail taken from the front.
    long = " ".join(f"{WORDS[i % 4]}" for i in range(10_000))
    store = make_store(tmp_path / "s", {"a": [long]}, word_tokenizer)
    (sample,) = data_report(store)["samples"]
    assert long.startswith(sample["head"]) and long.endswith(sample["tail"])
    assert 500 <= len(sample["head"]) < 510 and 200 <= len(sample["tail"]) < 210
    shown = len(sample["head"].split()) + len(sample["tail"].split()) + 1  # [SEP]
    assert sample["left_out"] == sample["tokens"] - shown == 10_001 - shown


def test_a_character_cut_in_two_is_not_shown(tmp_path):
    # Broken by: no rstrip, no lstrip.
    long = "x" + "\u4e2d\u6587" * 2000  # three byte tokens a character
    (sample,) = data_report(make_store(tmp_path / "s", {"a": [long]}))["samples"]
    assert sample["left_out"] > 0
    assert long.startswith(sample["head"]) and long.endswith(sample["tail"])


def test_the_longest_documents_come_first_and_equals_in_their_order(tmp_path):
    # Broken by: a sort that is not stable, or ascending.
    texts = [words(count) for count in (3, 9, 3, 9, *range(10, 30))]
    found = data_report(make_store(tmp_path / "s", {"a.jsonl": texts}, word_tokenizer))["longest"]
    assert [of["tokens"] for of in found] == list(range(30, 20, -1))
    assert found[0]["origin"] == "a.jsonl:24" and found[0]["begins"] == texts[-1][:80]
    few = data_report(make_store(tmp_path / "t", {"a.jsonl": texts[:4]}, word_tokenizer))["longest"]
    assert [of["origin"] for of in few] == ["a.jsonl:2", "a.jsonl:4", "a.jsonl:1", "a.jsonl:3"]


def test_a_store_of_one_document_has_a_report(tmp_path):
    # Broken by: SAMPLES documents drawn whatever there is.
    found = data_report(make_store(tmp_path / "s", {"a": ["the heart"]}))
    assert len(found["samples"]) == len(found["longest"]) == 1
    assert found["lengths"]["quantiles"]["min"] == found["lengths"]["quantiles"]["max"]
    Page(page(found))


def test_two_reports_of_equal_stores_are_equal(tmp_path):
    # Broken by: a generator without a seed, in the samples or the examples.
    texts = [words(i % 50 + 1) for i in range(300)]
    rows = [{"where": f"a:{i}", "why": "empty"} for i in range(100)]
    stores = [make_store(tmp_path / n / "s", {"a": texts}, rows=rows, dropped={"empty": 100}) for n in "xy"]
    one, two = map(data_report, stores)
    assert one == two and page(one) == page(two) and text(one) == text(two)
    assert len(one["dropped"]["empty"]["examples"]) == report.EXAMPLES


# ---- what was dropped


def test_examples_are_drawn_from_all_that_was_dropped(tmp_path):
    # Broken by: only the first lines kept, only the last, or one list for all reasons.
    rows = [{"where": f"a:{i}", "why": "near duplicate", "like": "a:0"} for i in range(1000)]
    rows.append({"where": "b:7", "why": "bad row", "message": "is not JSON"})
    counts = {"near duplicate": 1000, "bad row": 1, "other_files": 3}
    found = data_report(make_store(tmp_path / "s", {"a": ["x"] * 999}, rows=rows, dropped=counts))
    near, bad = found["dropped"]["near duplicate"], found["dropped"]["bad row"]
    assert (near["rows"], near["share"], bad["share"]) == (1000, 0.5, 1 / 2000)
    assert bad["examples"] == rows[-1:]
    assert len(near["examples"]) == report.EXAMPLES
    numbers = [int(row["where"][2:]) for row in near["examples"]]
    assert min(numbers) < 500 < max(numbers)
    assert found["other_files"] == 3
    assert "is not JSON" in page(found) and "3 files of other kinds" in text(found)


@pytest.mark.parametrize("line", ['{"where": "a:1", "wh', "[]", '{"why": "unheard of"}'])
def test_a_list_of_dropped_rows_that_is_damaged_is_named(tmp_path, line):
    # Broken by: an `except` that passes.
    store = make_store(tmp_path / "s", {"a": ["x"]}, dropped={"empty": 1})
    (store / "dropped.jsonl").write_text('{"where": "a:1", "why": "empty"}\n' + line)
    with pytest.raises(ValueError, match=r"dropped\.jsonl:2 is no row"):
        data_report(store)


# ---- warnings


def varied(count: int) -> str:
    """So many words of WORDS, in an order that hardly comes back."""
    return " ".join(np.random.default_rng(0).choice(WORDS, count))


def sound_store(folder: Path, documents: int = 3, length: int = 64, **changes) -> Path:
    """A store that gives no reason to look twice, when rows have 64 tokens."""
    texts = [changes.pop("words", varied)(length - 1)] * documents
    return make_store(folder, {"a": texts, "b": texts}, word_tokenizer, **changes)


def counts(**dropped: int) -> dict[str, int]:
    return {why.replace("_", " "): count for why, count in dropped.items()}


# What is wrong, what is just not wrong yet, and how the warning begins. 378 tokens of text, 6 documents.
WRONG = {
    "unknown": ({"unknown_tokens": 1}, {"unknown_tokens": 0}, "0.26 % of the tokens are unknown"),
    "specials": ({"written_specials": 1}, {"written_specials": 0}, "In 1 places the text reads like a special token"),
    "duplicates": (
        {"duplicates": Duplicates(1, 4), "dropped": counts(near_duplicate=4)},
        {"duplicates": Duplicates(1, 4), "dropped": counts(exact_duplicate=1, near_duplicate=4)},
        "1 documents (16.67 %) repeat another and were kept",
    ),
    "contamination": (
        {"contamination": Contamination(1, 9, 0, 2, {"test": 2}), "dropped": counts(contaminated=1)},
        {"contamination": Contamination(1, 9, 0, 0, {"test": 0})},
        "2 documents share a passage with an evaluation text; 1 of them were left out",
    ),
    "repeated": (
        {"words": words},
        {},
        "Of 6 documents, 93.22 % of five words in a row stood in the same document before",
    ),
    "fill": (
        {"length": 63, "documents": 200},
        {"length": 63},  # a row in which tokens are missing is the last one's right
        "Rows of 64 tokens are 98.44 % full",
    ),
    "pairs": (
        {"length": 2, "documents": 64},
        {"length": 4, "documents": 64},
        "Documents are short for rows of 64 tokens: 3.12 % of the pairs",
    ),
    "document": ({"weight_N": [6, 1, 1, 1, 1, 1]}, {"weight_N": [3, 0, 0, 1, 1, 1]}, "One document is 54.55 %"),
    "source": ({"weight_N": [2, 1, 1, 1, 1, 1]}, {"weight_N": [2, 1, 1, 2, 1, 1]}, "Source a is 57.14 %"),
    "repeats": ({"weight_N": [31] * 6}, {"weight_N": [30] * 6}, "A pass shows some document 31 times"),
    "bad rows": (
        {"dropped": counts(bad_row=1)},
        {"dropped": counts(bad_row=0, empty=1)},
        "1 rows (14.29 %) were dropped as bad",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_warning_stands_where_it_should_and_nowhere_else(tmp_path, name):
    # Broken by: each `>` of _warnings made `>=` or `<`, each line of it left out.
    wrong, right, begins = WRONG[name]
    warnings = data_report(sound_store(tmp_path / "wrong", **wrong), (64,))["warnings"]
    alone = [warning for warning in warnings if warning.startswith(begins)]
    assert len(alone) == 1 and alone[0].endswith(".")
    assert len(warnings) == 1 + (name == "document")  # its source is too large then, too
    assert data_report(sound_store(tmp_path / "right", **right), (64,))["warnings"] == []


def test_a_single_source_may_be_all_of_the_tokens(tmp_path):
    # Broken by: `several = report["sources"]`.
    store = make_store(tmp_path / "s", {"a": [varied(63)] * 2}, word_tokenizer)
    assert data_report(store, (64,))["warnings"] == []


PLAIN = "They came home late, and she read the letter to the children before they had to go to sleep."


def english(folder: Path) -> Path:
    """A tokenizer made for the English sentences, and of bytes for the others."""
    return make_tokenizer(folder, seed_text=" ".join([*[SENTENCES["English"], PLAIN] * 9]))


@pytest.mark.parametrize(
    ("change", "unlike"),
    [
        (str, False),
        (str.upper, True),
        (lambda _: "Quand elle l'eut lue, ils dormaient déjà, et le médecin était près de la fenêtre.", True),
    ],
    ids=["plain", "capitals", "French"],
)
def test_a_text_is_compared_with_plain_sentences_of_the_tokenizers_own_language(tmp_path, change, unlike):
    # Broken by: `min` in compared_with; plain sentences' tokens per word for bytes per token; `times < MOST_TOKENS`.
    made = data_report(make_store(tmp_path / "s", {"a": [change(PLAIN)], "b": [PLAIN]}, english), (32,))
    assert [source["compared_with"] for source in made["sources"]] == ["English", "English"]
    said = [warning for warning in made["warnings"] if "as many tokens for a as for as much plain English" in warning]
    assert not [warning for warning in made["warnings"] if "tokens for b" in warning]
    assert len(said) == unlike
    plain = made["plain_sentences"]["English"]
    assert f"{plain['tokens_per_word']:.2f} and {plain['bytes_per_token']:.2f} of plain English" in text(made)
    assert made["plain_sentences"]["French"]["bytes_per_token"] < plain["bytes_per_token"]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([PLAIN, "« CAFÉ » : l’eau était là."], None),
        (
            [PLAIN, "l’eau chaude".encode().decode("cp1252")],
            "1 hold letters that were misread before they came here",
        ),
        ([PLAIN, PLAIN], None),  # counted as exact repetitions, in the whole store
        ([PLAIN * 9, PLAIN * 9 + " Good night."], "1 are almost the same as another of them: --duplicates near"),
    ],
    ids=["accents", "misread", "equal", "near"],
)
def test_a_sample_tells_what_nobody_asked_for(tmp_path, texts, said):
    # Broken by: "cp1252" left out of misread; texts in place of dict.fromkeys(texts).
    made = data_report(make_store(tmp_path / "s", {"a": texts}, english), (32,))
    looked = [warning for warning in made["warnings"] if "misread" in warning or "almost" in warning]
    assert len(looked) == (said is not None) and all(said in warning for warning in looked)
    assert made["drawn"]["documents"] == 2


def test_a_large_store_is_looked_at_in_part(tmp_path, monkeypatch):
    # Broken by: no TOKENS; the first documents in place of some by lot.
    monkeypatch.setattr("cptjax.corpus.sample.TOKENS", 200)
    made = data_report(make_store(tmp_path / "s", {"a": [f"{PLAIN} {i}" * 2 for i in range(90)]}, english), (32,))
    assert 1 <= made["drawn"]["documents"] < 9 and made["drawn"]["of"] == 90
    assert "documents drawn by lot, " in " ".join(made["warnings"])


def test_letters_that_no_sentence_has_are_compared_with_latin_ones():
    # Broken by: `alike` of the text's own letters alone; script() of the first letter.
    needed = {name: {"bytes_per_token": size} for name, size in (("English", 4.0), ("Russian", 7.0), ("Chinese", 3.0))}
    assert (
        compared_with(needed, "не ABC знала") == "Russian"
        and compared_with(needed, "医生, doctor 晚上回来的时候") == "Chinese"
    )
    assert compared_with(needed, "नमस्ते") == "English" and compared_with({}, "a") is None


# ---- the page and the lines


NASTY = "<script>alert('x')</script> & \"quoted\" </pre> \x1b[31m\x00"


def nasty_report(folder: Path) -> dict:
    name = "long/" * 60 + NASTY
    row = {"where": f"{name}:3", "why": "bad row", "message": NASTY}
    store = make_store(
        folder,
        {name: [NASTY, NASTY * 100], "b": ["the heart"]},
        weight_N=[1, 2.5, 1],
        rows=[row],
        dropped={"bad row": 1, NASTY: 10**12},
        contamination=Contamination(1, 10**9, 10**8, 10**7, {NASTY * 20: 10**7}),
        fields={NASTY: {NASTY: {"documents": 1, "tokens": 10**13}}},
        unknown_tokens=1,
    )
    make_store(store / "held_out", {"a": [NASTY]})
    return data_report(store)


def test_the_page_is_well_nested_and_runs_and_fetches_nothing(tmp_path):
    # Broken by: html.escape without quotes, no _escape in _cell, _sample, _section, the title, or a tag left open.
    found = nasty_report(tmp_path / "<b>&s")
    shown = Page(page(found))
    assert not shown.tags & {"script", "link", "img", "iframe", "b", "object", "svg"}
    known = {"lang", "charset", "http-equiv", "content", "name", "class", "style", "dir", "title"}
    assert shown.attributes <= known
    everything = "".join(shown.shown)
    assert "<script>alert('x')</script> & \"quoted\" </pre> " in everything  # as text
    assert "<b>&s" in everything
    assert not {"\x00", "\x1b"} & set(everything)
    assert ">&lt;</code>" in page(found)


def test_the_page_shows_what_the_report_holds(tmp_path):
    # Broken by: samples or the last table left out.
    found = data_report(make_store(tmp_path / "s", {"a.jsonl": TEXTS}))
    shown = "".join(Page(page(found)).shown)
    for sample in found["samples"]:
        assert sample["head"] in shown and sample["origin"] in shown
    assert all(shown.count(of["origin"]) == 2 for of in found["longest"])  # each is in the sample, too
    assert all(warning in shown for warning in found["warnings"])
    assert "\U0001fac0" in shown


def test_lines_fit_a_terminal_and_do_not_steer_it(tmp_path):
    # Broken by: names as wide as they are, notes or warnings unwrapped, no _plain, or no [:WIDTH].
    lines = text(nasty_report(tmp_path / "s")).split("\n")
    assert max(map(len, lines)) <= 100
    assert all(line.isprintable() for line in lines)
    # A long name costs no number its place, and a long sentence goes on in the next line.
    assert any("…" in line and line.endswith("%") for line in lines)
    assert any("1,000,000,000,000" in line for line in lines)
    assert " ".join(lines).count("% of the tokens.") == 2
    assert "100,000,000 too short to match." in " ".join(lines)


def test_lines_hold_the_numbers_in_columns(tmp_path):
    # Broken by: no thousands separators, or figures to the left.
    found = data_report(make_store(tmp_path / "s", {"a": [words(1999)]}, word_tokenizer))
    lines = text(found).splitlines()
    amount = lines[lines.index("How much text is it?") + 1 :][:4]
    assert [line.split()[-1] for line in amount] == ["1", "2,000", "1,999", f"{len(words(1999)):,}"]
    assert len({len(line) for line in amount}) == 1
    assert any(line.startswith("1,024 to 2,047") and line.count("█") == 32 for line in lines)


# ---- files


def test_write_leaves_both_files_in_the_store(tmp_path):
    # Broken by: either file left out, or in the wrong folder.
    store = make_store(tmp_path / "s", {"a": TEXTS})
    found = write(store)
    assert json.loads((store / "report.json").read_text(encoding="utf-8")) == found
    assert (store / "report.html").read_text(encoding="utf-8") == page(found)
    write(store, tmp_path / "new" / "folder")
    assert {p.name for p in (tmp_path / "new" / "folder").iterdir()} == {"report.json", "report.html"}
    assert found == write(store)  # its own report changes nothing


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    # Broken by: report.json written before the page, or no `finally`.
    store = make_store(tmp_path / "s", {"a": TEXTS})
    before = sorted(p.name for p in store.iterdir())

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(report, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        write(store)
    assert sorted(p.name for p in store.iterdir()) == before
    monkeypatch.undo()
    monkeypatch.setattr(report, "page", full)
    with pytest.raises(OSError, match="No space"):
        write(store)
    assert sorted(p.name for p in store.iterdir()) == before
