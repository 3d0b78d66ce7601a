"""What is left out of a corpus is what was asked for, and the first of equals stays."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cptjax.corpus.cleaning import (
    Cleaning,
    hash_ngrams,
    hash_text,
    hash_words,
    parse_condition,
    parse_steps,
    read_evaluation,
    signature,
)
from cptjax.corpus.repetitions import bands, near_duplicates, runs

few = settings(max_examples=50)
SENTENCE = "the heart is a hollow muscle that pumps blood through the vessels by rhythmic contraction of its walls"


# ---- conditions and weights


@pytest.mark.parametrize(
    ("text", "stay", "go"),
    [
        ("edu>=3", [3, 3.5, "4"], [2.9, "2", None]),
        ("edu < 3", [2], [3, None]),
        ("language==fr", ["fr"], ["en", None]),
        ("language != fr", ["en"], ["fr", None]),
        ("n==2", [2, 2.0, "2"], [3]),
        ("a b>=-1e2", [-100], [-101, ""]),
        ("ok==true", [True, "true"], [False, None]),
        ("name==nan", ["nan"], ["x"]),
    ],
)
def test_a_condition_keeps_what_meets_it(text, stay, go):
    # Broken by: `if value is None: return True`.
    condition = parse_condition(text)
    assert all(map(condition.holds, stay)) and not any(map(condition.holds, go))
    assert parse_condition(str(condition)) == condition


@pytest.mark.parametrize(
    ("text", "says"),
    [("edu", "is no condition"), (">=3", "is no condition"), ("edu>=high", "needs a number"), ("", "is no condition")],
)
def test_what_is_no_condition_is_refused(text, says):
    with pytest.raises(ValueError, match=says):
        parse_condition(text)


def test_a_value_that_is_no_number_is_named():
    with pytest.raises(ValueError, match="edu is 'high', not a number that edu>=3 could be asked of"):
        parse_condition("edu>=3").holds("high")


def test_weight_steps_are_those_of_the_french_recipe():
    # By the share of a document's good paragraphs, in percent (arXiv:2605.12438).
    cleaning = Cleaning(weight_steps=parse_steps("0:0,1:4.3,26:8.5,51:12.8,76:21.3,100:34.1"))
    shares = [-1, 0, 0.5, 1, 25, 26, 50.9, 76, 99, 100, 101]
    assert [cleaning.weight(share) for share in shares] == [0, 0, 0, 4.3, 4.3, 8.5, 8.5, 21.3, 21.3, 34.1, 34.1]
    assert Cleaning().weight(2.5) == 2.5
    with pytest.raises(ValueError, match="more than 1000 times"):
        Cleaning().weight(1e6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"duplicates": "all"}, "keep, exact or near"),
        ({"near_threshold": 0}, "--near-threshold is 0: it is a similarity from"),
        ({"near_threshold": 0.9, "duplicates": "exact"}, "--near-threshold is for --duplicates near"),
        ({"min_tokens": -1}, "--min-tokens is -1: no document has fewer than 0"),
        ({"min_tokens": 5, "max_tokens": 4}, "--max-tokens is 4: it is at least 1, and not below --min-tokens"),
        ({"drop_contaminated": True}, "--drop-contaminated is for --evaluation: name the files"),
        ({"weight_steps": ((2, 1), (1, 2))}, "--weight-steps 2:1,1:2: scores must rise"),
        ({"weight_steps": ((1, -2),)}, "weights of 0 or more"),
    ],
)
def test_options_that_contradict_are_refused(options, says):
    # Broken by: any one check of Cleaning left out.
    with pytest.raises(ValueError, match=says):
        Cleaning(**options)
    with pytest.raises(ValueError, match="write SCORE:WEIGHT"):
        parse_steps("1=2")


# ---- n-grams


def test_words_hide_neither_behind_case_nor_punctuation_nor_spacing():
    one, other = hash_words("The heart,\n is a MUSCLE."), hash_words("the heart is\u2028a muscle")
    assert one.tolist() == other.tolist() and len(set(one.tolist())) == 5


@few
@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 6))
def test_ngrams_are_equal_where_their_words_are(words, n):
    # Broken by: `_mix` left out of the loop, which would make "a b" and "b a" equal.
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    hashes = hash_ngrams(hash_words(" ".join(words)), n).tolist()
    assert len(hashes) == len(grams)
    assert len(set(zip(hashes, grams, strict=True))) == len(set(hashes)) == len(set(grams))


def test_hashes_are_the_same_in_another_process():
    # Broken by: Python's own hash() of a word.
    code = (
        "from cptjax.corpus.cleaning import hash_text, hash_words, signature; "
        "print(int(signature(hash_words('a b c d e f')).sum()), hash_text('a').hex())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert found == [str(int(signature(hash_words("a b c d e f")).sum())), hash_text("a").hex()]


# ---- repetitions


@few
@given(st.lists(st.sampled_from("abcde"), max_size=40), st.integers(1, 2))
def test_the_first_and_the_last_of_equal_keys_are_found(texts, width):
    # Broken by: `[:, 0]` of the keys compared in runs, which then takes (0, 1) for (0, 0).
    keys = np.array([(0, ord(text)) for text in texts], np.uint64).reshape(-1, 2)[:, 2 - width :]
    document_N = 10 * np.arange(len(texts))
    expected = {
        (10 * texts.index(text), 10 * max(i for i in range(place) if texts[i] == text), 10 * place)
        for place, text in enumerate(texts)
        if text in texts[:place]
    }
    assert set(map(tuple, runs(keys, document_N).tolist())) == expected


def changed(words, share, random):
    """A text with a share of its words replaced."""
    words = np.array(words)
    places = random.choice(len(words), round(share * len(words)), replace=False)
    words[places] = [f"other{random.integers(10**9)}" for _ in places]
    return " ".join(words)


def test_near_duplicates_are_found_and_only_those():
    random = np.random.default_rng(0)
    originals = [[f"w{random.integers(10**6)}" for _ in range(300)] for _ in range(60)]
    texts = [" ".join(words) for words in originals]
    near = [changed(words, 0.01, random) for words in originals]  # Jaccard of 5-grams about 0.9
    far = [changed(words, 0.2, random) for words in originals]  # about 0.2
    signatures = np.array([signature(hash_words(text)) for text in (*texts, *near, *far)])
    found = near_duplicates(signatures, 0.8)
    assert found[:60].tolist() == list(range(60))
    assert (found[60:120] == np.arange(60)).mean() > 0.9
    assert found[120:].tolist() == list(range(120, 180))
    # Broken by: `>= threshold` replaced by `>= 0`: a band of few numbers agrees by chance.
    assert near_duplicates(signatures, 0.4)[120:].tolist() == list(range(120, 180))


@few
@given(st.integers(0, 2**32 - 1), st.sampled_from((0.5, 0.8)))
def test_near_duplicates_are_those_of_all_pairs_that_share_a_band(seed, threshold):
    """Each with the one before it in its band and with the first, and what is joined by them."""
    # Broken by: only `(1,)` of the two others in join_alike; `lowest[of_F]` without first_F around it.
    random = np.random.default_rng(seed)
    made = random.integers(0, 2**32, (6, 128), np.uint32)[random.integers(0, 6, 60)]
    other = random.random(made.shape) < random.choice([0.0, 0.05, 0.15, 0.3], (60, 1))
    signature_NP = np.where(other, random.integers(0, 2**32, made.shape, np.uint32), made)
    first = list(range(60))
    for band_N in bands(signature_NP, threshold).tolist():
        for place, number in enumerate(band_N):
            before = [i for i in range(place) if band_N[i] == number]
            for i in {*before[:1], *before[-1:]}:
                if (signature_NP[i] == signature_NP[place]).mean() >= threshold:
                    low, high = sorted((first[i], first[place]))
                    first = [low if each == high else each for each in first]
    assert near_duplicates(signature_NP, threshold).tolist() == first


def test_chains_of_near_duplicates_are_one_cluster():
    random = np.random.default_rng(1)
    chain = [[f"w{random.integers(10**6)}" for _ in range(400)]]
    for _ in range(5):
        chain.append(changed(chain[-1], 0.005, random).split())
    signatures = np.array([signature(hash_words(" ".join(words))) for words in chain])
    assert near_duplicates(signatures, 0.8).tolist() == [0] * 6


@pytest.mark.parametrize("texts", [[], ["a"], ["a", "b", "a"], ["", "", "a b c d e f"]])
def test_few_or_short_texts_have_duplicates_too(texts):
    signatures = np.array([signature(hash_words(text)) for text in texts], np.uint32).reshape(-1, 128)
    assert near_duplicates(signatures, 0.8).tolist() == [texts.index(text) for text in texts]


def test_a_signature_does_not_depend_on_how_many_shingles_are_hashed_at_once(monkeypatch):
    words = hash_words(" ".join(f"w{i}" for i in range(500)))
    whole = signature(words)
    monkeypatch.setattr("cptjax.corpus.cleaning.SHINGLES_AT_ONCE", 7)
    assert signature(words).tolist() == whole.tolist()


# ---- evaluation sets


def tagged(text, between="\t"):
    lines = [f"{word}{between}{'B-x' if i % 5 == 0 else 'O'}" for i, word in enumerate(text.split())]
    return "\n".join([*lines[:6], "", *lines[6:]]) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", SENTENCE.encode()),
        ("a.tsv", tagged(SENTENCE).encode()),
        ("a.txt", tagged(SENTENCE, " ").encode()),
        ("a.csv", f'id,text\n1,"{SENTENCE}"\n'.encode()),
        ("a.json", json.dumps([{"q": {"text": SENTENCE, "n": 3}}]).encode()),
        ("a.jsonl", (json.dumps({"text": SENTENCE}) + "\n\n").encode()),
        ("a.jsonl.gz", gzip.compress(json.dumps({"text": SENTENCE}).encode(), mtime=0)),
        ("a.jsonl.zst", zstandard.compress(json.dumps({"text": SENTENCE}).encode())),
    ],
)
def test_thirteen_words_of_an_evaluation_text_are_found_in_a_document(tmp_path, name, content):
    # Broken by: TAG that matches nothing (tags then stand between the words).
    (tmp_path / "0.txt").write_text("something else")
    (tmp_path / name).write_bytes(content)
    evaluation = read_evaluation([str(tmp_path)])
    words = SENTENCE.split()
    inside = " ".join(["Before,", *words[2:15], "after"]).upper()
    assert evaluation.files == (f"{tmp_path.name}/0.txt", f"{tmp_path.name}/{name}")
    assert evaluation.match(hash_words(inside)) == 1
    assert evaluation.match(hash_words(" ".join(words[2:14]))) == -1  # twelve
    assert evaluation.match(hash_words("")) == -1


def test_parquet_evaluation_texts_are_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    pa.parquet.write_table(pa.table({"x": [1], "text": [SENTENCE]}), tmp_path / "a.parquet")
    assert read_evaluation([str(tmp_path / "a.parquet")]).match(hash_words(SENTENCE)) == 0


def test_an_evaluation_set_that_could_not_be_found_is_refused(tmp_path):
    # Broken by: the comparison with `before` left out.
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.txt").write_text("one two three")
    for name in ("empty", "short.txt"):
        with pytest.raises(ValueError, match=f"{name} holds no text of 13 words or more"):
            read_evaluation([str(tmp_path / name)])


def test_texts_too_short_to_be_found_are_counted(tmp_path):
    lines = ["one two three", SENTENCE, "", "four"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"t": line}) + "\n" for line in lines))
    evaluation = read_evaluation([str(tmp_path / "a.jsonl")])
    assert (evaluation.texts, evaluation.short) == (3, 2)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"\xff\xfe\x00"),
        ("a.json", b"{"),
        ("a.jsonl.gz", gzip.compress(b"x" * 99, mtime=0)[:-9]),
        ("a.jsonl.zst", b"x"),
    ],
)
def test_an_evaluation_file_that_cannot_be_read_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"evaluation file .*{name} is not text that can be read") as caught:
        read_evaluation([str(tmp_path / name)])
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="evaluation file .*gone does not exist"):
        read_evaluation([str(tmp_path / "gone")])
