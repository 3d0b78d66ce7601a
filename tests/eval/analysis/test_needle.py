"""Pairs of needle and haystack that nothing but reading both tells; the probe; the command."""

import json
import re
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest

from convert import to_hf
from cptjax.data.tokenizer import Encoder
from cptjax.families import encoder
from cptjax.model import init_params
from cptjax.shape import BertConfig, ModernBertConfig
from eval.__main__ import main
from eval.analysis import collect, haystack, needle
from eval.analysis.haystack import FOUR, Four, make_fours, sizes
from eval.analysis.two_layers import Answered, Asked, answer
from eval.protocols import Protocol
from eval.tasks.task import Answer, Example
from eval.texts import tokenise
from tests.fixtures_text import WORDS, make_bert_tokenizer, make_tokenizer

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
MODELS = {  # shape, tokenizer
    "modern": (ModernBertConfig(vocab_size=320, max_position_embeddings=512, **SIZES), make_tokenizer),
    "bert": (BertConfig(vocab_size=160, max_position_embeddings=512, **SIZES), make_bert_tokenizer),
}
LENGTHS, FOURS = [128, 192], 60


def text_of(number: int, sentences: int = 12) -> str:
    """Sentences that begin with the number of their text."""
    random = np.random.default_rng(number)
    words = [" ".join(random.choice(WORDS, int(random.integers(4, 12)))) for _ in range(sentences)]
    return " ".join(f"t{number} {each}." for each in words)


TEXTS = [text_of(number) for number in range(240)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("needle")
    for name, (config, tokenizer) in MODELS.items():
        tokenizer(folder / f"{name}_tokenizer")
        params = init_params(encoder(config), jax.random.key(0))
        to_hf.save(config, params, folder / name, tokenizer=folder / f"{name}_tokenizer")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return folder


@pytest.fixture(scope="module")
def reader(folder) -> Encoder:
    return Encoder(folder / "modern_tokenizer")


@pytest.fixture(scope="module")
def fours(reader) -> dict[str, dict[int, list[Four]]]:
    return make_fours(reader, TEXTS, LENGTHS, FOURS, seed=0)


def texts_in(words: str) -> set[str]:
    return {*re.findall(r"\bt(\d+) ", words)}


def every(fours) -> list[tuple[int, Four]]:
    return [(length, four) for of_split in fours.values() for length in LENGTHS for four in of_split[length]]


# ---- pairs


@pytest.mark.parametrize("name", MODELS)
def test_every_row_has_as_many_tokens_as_asked_and_the_needle_whole(folder, name):
    # Broken by: haystacks cut at `least - 1`, without the rest of their word; a place that may be any of all, with no
    # look at where the needle ends.
    reader, config = Encoder(folder / f"{name}_tokenizer"), MODELS[name][0]
    made = make_fours(reader, TEXTS, LENGTHS, FOURS, seed=0)
    around = sum(map(len, reader.around_two()))
    for length in LENGTHS:
        pairs = needle.pairs_of(made, length)
        examples = [Example("", words, Answer(), second=other) for words, other in pairs]
        split = tokenise(reader, config, examples, "single_label", Protocol(name="needle", max_length=length))
        assert {len(text.token_L) for text in split.texts} == {length} and len(pairs) == 4 * FOURS
        for words, other in pairs:
            room = length - around - len(reader.with_offsets([words])[0][0])
            offset_L2 = reader.with_offsets([other])[0][1]
            if words in other:
                assert offset_L2[room - 1, 1] >= other.index(words) + len(words)


def test_a_needle_and_a_haystack_stand_as_often_on_either_side(fours):
    # Broken by: the last of FOUR (1, 1); the second haystack's needle at another place; no look at what else is there.
    for _, four in every(fours):
        holds = [four.needles[n] in four.haystacks[h] for n, h in FOUR]
        assert holds == [n == h for n, h in FOUR] == [True, True, False, False]
        assert sorted(n for n, _ in FOUR) == sorted(h for _, h in FOUR) == [0, 0, 1, 1]
        (before, after), (other_before, other_after) = (
            four.haystacks[number].split(four.needles[number]) for number in (0, 1)
        )
        short = min(len(after), len(other_after))
        assert before == other_before and after[:short] == other_after[:short]
        assert abs(len(after) - len(other_after)) < 30  # a token more or fewer in either


def test_texts_stay_in_their_split_and_needles_out_of_their_texts(fours):
    # Broken by: sentences in a drawn order cut into splits; the look for texts that a couple is of left out.
    of_split = {
        split: [texts_in(words) for four in sum(by_length.values(), []) for words in (*four.needles, *four.haystacks)]
        for split, by_length in fours.items()
    }
    used = [set().union(*texts) for texts in of_split.values()]
    assert all(used) and not used[0] & used[1] and not used[0] & used[2] and not used[1] & used[2]
    assert {split: len(by_length[128]) for split, by_length in fours.items()} == {"train": 42, "dev": 9, "test": 9}
    assert {split: len(by_length[128]) for split, by_length in fours.items()} == sizes(FOURS)
    for _, four in every(fours):
        base = texts_in(four.haystacks[0].replace(four.needles[0], ""))
        assert base.isdisjoint(texts_in(" ".join(four.needles))) and len(texts_in(" ".join(four.needles))) == 2
    sentences = [
        sentence
        for of_split in fours.values()
        for four in of_split[128]
        for sentence in re.findall(r"t\d+ [^.]*\.", four.haystacks[0].replace(four.needles[0], ""))
    ]
    assert len({*sentences}) == len(sentences)


def test_places_are_drawn_from_all(fours):
    # Broken by: place = 0; half of the places.
    share = np.array([four.haystacks[0].index(four.needles[0]) / len(four.haystacks[0]) for _, four in every(fours)])
    counts = np.histogram(share / share.max(), 4, (0, 1))[0]
    assert counts.min() > len(share) / 8


def test_pairs_are_made_by_the_seed(reader, fours):
    # Broken by: a random number generator without the seed; a text that stands twice kept twice.
    assert make_fours(reader, [*TEXTS, *TEXTS[:9]], LENGTHS, FOURS, seed=0) == fours
    assert make_fours(reader, TEXTS, LENGTHS, FOURS, seed=1)["test"][128] != fours["test"][128]


def test_a_sentence_that_stands_twice_is_no_needle(reader):
    # Broken by: `times >= 1`.
    same = "the heart is a muscle that pumps blood through vessels."
    made = make_fours(
        reader, [text.replace(f"t{n} ", f"{same} t{n} ", 1) for n, text in enumerate(TEXTS)], [128], 40, 0
    )
    needles = [words for by_length in made.values() for four in by_length[128] for words in four.needles]
    assert len(needles) == 80 and same not in needles


def test_sentences_are_cut_where_they_end(reader):
    # Broken by: a line that goes on with the last; LONGEST_SENTENCE = 50.
    text = "The heart is. A muscle?\nBlood  pumps 1.5 times\n\n" + "mind " * 90
    (made,) = haystack.cut(reader, [text, "  "])
    words = [sentence.words for sentence in made]
    assert words[:3] == ["The heart is.", "A muscle?", "Blood pumps 1.5 times"]
    assert [len(each.split()) for each in words[3:]] == [40, 40, 10]
    assert sum(sentence.tokens for sentence in made) == len(reader.with_offsets([" ".join(words)])[0][0])


# ---- the probe


def asked_of(fours, feature) -> list[Asked]:
    """What a model would have of each pair, if its state were this feature."""
    splits = []
    for by_length in fours.values():
        pairs = needle.pairs_of({"": by_length}, 128)
        state_MD = np.stack([feature(*pair) for pair in pairs]).astype(np.float32)
        splits.append(Asked(state_MD, np.resize(needle.HOLDS_4, len(pairs))))
    return splits


def vector(words: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(words.encode())).normal(size=16)


def oracle(words: str, other: str) -> np.ndarray:
    return np.full(16, 1.0 if words in other else -1.0)


def shares(splits: list[Asked]) -> list[float]:
    return (answer(*splits, 2).yes_SM == splits[2].yes_M).mean(1).tolist()


def test_only_who_reads_both_can_tell(fours):
    """A probe of the needle alone, or of the haystack alone, is right in half of all pairs, whatever it has learnt."""
    # Broken by: FOUR without its last two.
    assert shares(asked_of(fours, lambda words, _: vector(words))) == [0.5, 0.5]
    assert shares(asked_of(fours, lambda _, other: vector(other))) == [0.5, 0.5]
    assert shares(asked_of(fours, oracle)) == [1, 1]


def test_the_probe_reads_what_a_line_cannot_divide(fours):
    """Whether two signs are the same."""
    # Broken by: gelu left out.
    random, u_D, v_D = np.random.default_rng(0), vector("u"), vector("v")

    def drawn(number: int) -> Asked:
        signs_M2 = random.choice([-1, 1], (number, 2))
        state_MD = signs_M2 @ np.stack([u_D, v_D]) + 0.1 * random.normal(size=(number, 16))
        return Asked(state_MD.astype(np.float32), signs_M2.prod(1) > 0)

    assert min(shares([drawn(number) for number in (168, 36, 36)])) > 0.9


# ---- numbers


def test_accuracy_and_differences_are_of_the_same_pairs(fours):
    # Broken by: lengths in the place of fours; a difference the other way round; an interval for all lengths.
    def compared(number: int) -> dict:
        right_M = np.concatenate([needle.HOLDS_4] * 2 * number)  # so many fours of each length
        four_M = np.arange(len(right_M)) // 4
        half_M = right_M ^ (four_M >= number) & (four_M % 2 == 0) & (np.arange(len(right_M)) % 2 == 0)
        counts = [needle._counts(Answered(np.stack([yes_M] * 2), [], [], []), fours) for yes_M in (right_M, half_M)]
        return {(each.model, each.length, each.measure): each for each in needle.compared(["a", "b"], counts)}

    told = compared(12)
    value = {key: each.value for key, each in told.items()}
    assert [value["a", length, "accuracy"] for length in ("128", "192", "all")] == [1, 1, 1]
    assert [value["b", length, "accuracy"] for length in ("128", "192", "all")] == [1, 0.75, 0.875]
    assert [value["b", length, "difference"] for length in ("128", "192", "all")] == [0, -0.25, -0.125]
    apart = told["b", "192", "difference"]
    assert -0.5 < apart.low < -0.25 < apart.high < 0
    assert told["b", "all", "accuracy"].low is None  # lengths are made of the same texts
    assert compared(9)["b", "192", "accuracy"].low is None


def test_what_is_all_right_has_an_interval_that_other_texts_could_give(fours):
    """Twelve fours of twelve: the exact interval of a share begins at 0.025 ** (1 / 12)."""
    # Broken by: the interval of draws, from 1 to 1.
    yes_M = np.concatenate([needle.HOLDS_4] * 24)
    counts = [needle._counts(Answered(yes_M[None], [], [], []), fours)] * 2
    told = {(each.model, each.length, each.measure): each for each in needle.compared(["a", "b"], counts)}
    low = 0.025 ** (1 / 12)
    assert (told["a", "128", "accuracy"].low, told["a", "128", "accuracy"].high) == pytest.approx((low, 1))
    assert (told["b", "128", "difference"].low, told["b", "128", "difference"].high) == pytest.approx(
        (low - 1, 1 - low)
    )


# ---- the command


def command(folder: Path, models: str, *words: str) -> int:
    names = ",".join(str(folder / name) for name in models.split(","))
    return main(["needle", names, "--text", str(folder / "texts.jsonl"), "--pairs", "80", *words])


def test_states_come_to_the_pairs_that_they_are_of(folder, tmp_path, monkeypatch):
    """A model that knows at one of the two lengths."""
    # Broken by: lengths before splits in `_answered`; the longest first.

    def knows(model, texts, pooling, length, kept, *, second, first_layer):
        made = [oracle(*pair) if length == 128 else 0 * oracle(*pair) for pair in zip(texts, second, strict=True)]
        return collect.States(np.array(made, np.float32)[None], 0, length, "")

    monkeypatch.setattr(needle, "collect", knows)
    out = tmp_path / "needle.json"
    assert command(folder, "modern", "--lengths", "192,128", "--json", str(out)) == 0
    value = {each["length"]: each["value"] for each in json.loads(out.read_text())["figures"]}
    assert value == {"128": 1, "192": 0.5, "all": 0.75}


def test_models_beside_each_other(folder, tmp_path, capsys, monkeypatch):
    """Of two tokenizers; then from the states that were kept."""
    # Broken by: --states that is not passed on; rows that the second model cuts; the note on tokens left out.
    out = {name: tmp_path / f"out.{name}" for name in ("json", "png")}
    words = ["--lengths", "128", "--seeds", "2", "--states", str(tmp_path / "states")]
    paths = ["--json", str(out["json"]), "--plot", str(out["png"])]
    assert command(folder, "modern,bert", *words, *paths) == 0
    told, said = json.loads(out["json"].read_text()), capsys.readouterr()
    assert "80 pairs of each length: 10,240 tokens" in said.err and "Points above" in said.out
    assert [len(model["probes"]) for model in told["models"]] == [2, 2] and out["png"].stat().st_size > 10_000
    (most,) = re.findall(r"bert makes up to (\d+) of 128", " ".join(told["notes"]))
    assert int(most) > 128
    monkeypatch.setattr(collect, "by_text", None)  # it is not computed again
    assert command(folder, "modern,bert", *words, "--format", "csv") == 0
    lines = [line.split(",") for line in capsys.readouterr().out.splitlines()[1:]]
    assert [float(line[3]) for line in lines] == [each["value"] for each in told["figures"]]


@pytest.mark.parametrize(
    ("models", "words", "says"),
    [
        ("modern", "--lengths 512 --pairs 4000", "has text for"),
        ("modern", "--lengths 512,1024", "modern reads at most 512 tokens: take 1024 out"),
        ("modern,bert", "--lengths 448", "name it first, or take 448 out"),
        ("modern", "--lengths 512,64", "each at least 128"),
        ("modern", "--lengths long", "each at least 128"),
        ("modern", "--pairs 39", "--pairs is 39: at least 40"),
        ("modern", "--seeds 0", "--seeds is 0: at least 1"),
        ("modern", "--plot x.txt", "ends in none of"),
        ("modern", f"--states {__file__}", "is a file"),
        ("modern", "--lengths 128 --text absent.jsonl", "absent.jsonl"),
        ("modern", "--lengths 128 --text-field body", "body"),
        ("absent", "", "absent"),
        ("bare", "--lengths 128", "tokenizer"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line(folder, models, words, says, capsys):
    # Broken by: the check of each.
    if models == "bare" and not (folder / "bare").exists():
        to_hf.save(MODELS["bert"][0], init_params(encoder(MODELS["bert"][0]), jax.random.key(0)), folder / "bare")
    assert command(folder, models, *words.split()) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
