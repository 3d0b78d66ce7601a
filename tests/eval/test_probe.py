"""Masks filled as one by one in transformers; what a linear probe reads, and from which layer; the command."""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from convert import to_hf
from cptjax.command.line import parse
from cptjax.data.tokenizer import Encoder
from cptjax.families import encoder
from cptjax.model import encode, init_params
from cptjax.shape import BertConfig, ModelConfig, ModernBertConfig, Precision
from eval import linear_probe, probe
from eval.__main__ import COMMANDS, main
from eval.fill_mask import count_words, draw, fill, frequent_words, kinds_of, windows
from eval.heads import TextHead
from eval.packed import by_text
from eval.tasks.task import Example
from tests.eval.small import examples, problem_of, splits_of
from tests.fixtures_text import make_bert_tokenizer, make_tokenizer

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = BertConfig(vocab_size=160, max_position_embeddings=64, initializer_range=0.2, **SIZES)
MODERNBERT = ModernBertConfig(vocab_size=320, initializer_range=0.2, **SIZES)
CONFIGS = {"bert": (BERT, make_bert_tokenizer), "modernbert": (MODERNBERT, make_tokenizer)}
TEXTS = ["the heart pumps 12 mg of aspirin , through vessels", "a mind is a muscle ; the blood"]


@cache
def params_of(config: ModelConfig) -> dict:
    return init_params(encoder(config), jax.random.key(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of each family with a language-model head, one without, a text, a task of two labels."""
    folder = tmp_path_factory.mktemp("probe")
    for name, (config, tokenizer) in CONFIGS.items():
        tokenizer(folder / f"{name}_tokenizer")
        to_hf.save(config, params_of(config), folder / name, tokenizer=folder / f"{name}_tokenizer")
    plain = replace(BERT, head="none")
    to_hf.save(
        plain,
        {k: v for k, v in params_of(BERT).items() if k not in ("head", "decoder")},
        folder / "plain",
        tokenizer=folder / "bert_tokenizer",
    )
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (folder / "task").mkdir()
    for split, size in {"train": 12, "dev": 4, "test": 2}.items():
        rows = [{"text": f"the {('mind', 'heart')[i % 2]}", "label": ("even", "odd")[i % 2]} for i in range(size)]
        (folder / "task" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


# ---- masks


def peer_told(folder: Path, text: str) -> Iterator[tuple[int, float, bool]]:
    """Number of its word, loss and rightness of each token of a text, masked alone in transformers and PyTorch."""
    import torch
    import transformers

    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    encoded = Encoder(folder).tokenizer.encode(text)
    mask = Encoder(folder).special.mask
    for place, (word, (start, end)) in enumerate(zip(encoded.word_ids, encoded.offsets, strict=True)):
        if word is None or not text[start:end].strip():  # a space alone is of no word
            continue
        later = [at >= place and other == word for at, other in enumerate(encoded.word_ids)]
        ids = torch.tensor([[mask if hidden else i for i, hidden in zip(encoded.ids, later, strict=True)]])
        with torch.no_grad():
            logits = model(ids).logits[0, place]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(encoded.ids[place]))
        yield word, float(loss), int(logits.argmax()) == encoded.ids[place]


@pytest.mark.parametrize("name", CONFIGS)
def test_masks_are_filled_as_one_by_one_in_transformers(folder, name):
    # Broken by: the earlier pieces of a word masked too; its own alone; the loss of the token beside it.
    pytest.importorskip("torch")
    told = [(number, *each) for number, text in enumerate(TEXTS) for each in peer_told(folder / name, text)]
    filled = fill(CONFIGS[name][0], params_of(CONFIGS[name][0]), Encoder(folder / name), draw(TEXTS, 99, 64), 64)["all"]
    words = len({each[:2] for each in told})
    assert (filled["tokens"], filled["words"]) == (len(told), words) and len(told) > words
    assert filled["accuracy"] == pytest.approx(np.mean([right for *_, right in told]))
    assert filled["loss of a token"] == pytest.approx(np.mean([loss for _, _, loss, _ in told]), rel=1e-5)
    assert filled["loss of a word"] == pytest.approx(sum(loss for _, _, loss, _ in told) / words, rel=1e-5)
    assert filled["pseudo-perplexity"] == pytest.approx(np.exp(filled["loss of a token"]))


def test_a_window_lies_around_its_token_with_the_rest_of_the_word_masked(folder):
    # Broken by: windows that begin at the token; the mask of the whole word; no room for what stands around.
    tokenizer, text = Encoder(folder / "modernbert"), " ".join(["the heart is a zig muscle"] * 20)
    special, ids = tokenizer.special, tokenizer.with_offsets([text])[0][0].tolist()
    zig = [tokenizer.tokenizer.token_to_id(letter) for letter in "zig"]
    words = [word for word in draw([text], 120, 12) if word.text[word.start : word.end] == "zig"]
    pieces = windows(tokenizer, words, 12)
    assert len(pieces) == 3 * len(words) == 60
    for number, piece in enumerate(pieces[3:-3], start=3):  # those between have as much text on each side
        token_L, tag_L = piece.text.token_L.tolist(), piece.targets.of_tokens["tag"]
        assert len(token_L) == 12 and (token_L[0], token_L[-1]) == (special.cls, special.sep)
        assert np.flatnonzero(tag_L >= 0).tolist() == piece.text.word_U.tolist() == [6]
        assert tag_L[6] == zig[number % 3] and [i == special.mask for i in token_L[6:9]] == [
            place < 3 - number % 3 for place in range(3)
        ]
        there = [*token_L[1:6], *zig[number % 3 :], *token_L[9 - number % 3 : -1]]
        assert any(ids[at : at + 10] == there for at in range(len(ids)))


def test_words_are_of_the_kinds_that_counts_give():
    # Broken by: numbers among the frequent; general counts without the one more; kinds by the word as it is written.
    text = "The the THE the dose of Aspirin 5 mg, aspirin (2 x 5). x5"
    counts = count_words([text])
    assert counts == {"the": 4, "aspirin": 2, "5": 2, "dose": 1, "of": 1, "mg": 1, "2": 1, "x": 1, "x5": 1}
    assert frequent_words(counts) == {"the", "aspirin"}
    general = Counter({"the": 60, "dose": 40})
    kinds = {word.text[word.start : word.end]: word.kinds - {"all"} for word in draw([text], 99, 20, general)}
    assert kinds["THE"] == {"frequent"} and kinds["Aspirin"] == {"frequent", "domain"}
    assert kinds["dose"] == {"rare"} and kinds["x5"] == {"rare"}
    assert kinds["5"] == {"number"} and kinds[","] == kinds["("] == {"punctuation"}
    assert "domain" not in set().union(*(word.kinds for word in draw([text], 99, 20)))
    assert kinds_of("absent", counts, frozenset(), None) == {"all", "rare"}


def test_words_are_drawn_each_as_likely_and_the_same_every_time():
    # Broken by: a text drawn first and then a word of it; another seed each time.
    texts = ["a " * 10, "b " * 30]
    drawn = draw(texts, 20, 8)
    assert drawn == draw(texts, 20, 8) and len(drawn) == 20 < len(draw(texts, 99, 8)) == 40
    assert sum(word.text[word.start] == "b" for word in drawn) > 10


# ---- linear probes


@pytest.mark.parametrize("right", ["one", "any"])
def test_a_fit_is_that_of_scikit_learn(right):
    # Broken by: a penalty of the biases; the penalty of one label for several; states as they are; rounding scaled up.
    rng = np.random.default_rng(0)
    state_MD = (rng.normal(size=(60, 8)) * [1, 5, 0.1, 1, 1, 2, 1, 1] + 3).astype(np.float32)
    score_MK = (state_MD - state_MD.mean(0)) @ rng.normal(size=(8, 3)) + rng.normal(size=(60, 3)) * 3
    state_MD[:, 7] = np.float32(0.3) * (1 + 2e-7 * rng.integers(0, 2, 60))  # the same but for rounding
    label_M = score_MK.argmax(1)
    target_MK = np.eye(3)[label_M] if right == "one" else (score_MK > score_MK.mean(0)).astype(float)
    head = TextHead(("A", "B", "C"), right)
    fitted = linear_probe.fit(head, state_MD, target_MK.astype(np.float32), np.arange(1, 61))
    scaled = StandardScaler().fit_transform(state_MD[:, :7].astype(np.float64))
    ours = state_MD @ fitted.weight_DK + fitted.bias_K
    if right == "one":
        theirs = LogisticRegression(tol=1e-8).fit(scaled, label_M).decision_function(scaled)
        ours, theirs = (x - x.mean(1, keepdims=True) for x in (ours, theirs))  # a number added to all says nothing
    else:
        theirs = np.stack(
            [LogisticRegression(tol=1e-8).fit(scaled, y).decision_function(scaled) for y in target_MK.T], 1
        )
    np.testing.assert_allclose(ours, theirs, atol=0.02)


@pytest.mark.parametrize("name", CONFIGS)
def test_states_are_those_of_each_layer_of_texts_alone(folder, name):
    # Broken by: the last layer before its norm; the mean for the first token; layers in another order.
    config, tokenizer = CONFIGS[name][0], Encoder(folder / name)
    model, params = encoder(config, Precision("float32")), params_of(config)
    for kind in ("entities", "multi_label"):
        head, splits = splits_of(config, tokenizer, problem_of(kind))
        pieces = splits["dev"].pieces
        work, read = partial(linear_probe.states, model, head, params), partial(linear_probe._layers_of, head)
        token_TL = np.zeros((len(pieces), 64), np.int32)  # a text a row
        for text, piece in enumerate(pieces):
            token_TL[text, : len(piece.text.token_L)] = piece.text.token_L
        alone = jax.jit(partial(encode, model, keep_layers=True))(params, token_TL, (token_TL > 0).astype(np.int32))
        layer_NTLD = np.asarray(alone.layers_NBLD).copy()
        layer_NTLD[-1] = alone.hidden_BLD
        for text, layers in enumerate(by_text(pieces, config.longest_document, work, read)):
            expected_NLD = layer_NTLD[:, text, : len(pieces[text].text.token_L)]
            if kind == "entities":
                expected = expected_NLD[:, pieces[text].text.word_U]
            else:
                expected = expected_NLD[:, 0] if name == "bert" else expected_NLD.mean(1)
            np.testing.assert_allclose(layers, expected, atol=2e-5)


def divided(kind) -> dict[str, list[Example]]:
    """A task with enough of dev that a score is no accident."""
    whole = [*examples(kind, train=300)["train"]]
    return {"train": whole[:200], "dev": whole[200:]}


def probed(folder, kind, config=BERT, **changes) -> list[float]:
    problem = problem_of(kind, changes, divided(kind))
    if kind == "nested_entities":
        problem = replace(problem, metric="entity_f1")
    told = linear_probe.probe(config, params_of(config), Encoder(folder / config.model_type), problem)
    assert told.truncated == 0
    return told.score_N


@pytest.mark.parametrize("kind", ["entities", "nested_entities"])
def test_the_tag_of_a_word_is_read_from_its_embedding(folder, kind):
    # Broken by: states of the token after a word's first.
    scores = probed(folder, kind)
    assert len(scores) == 3 and scores[0] > 0.95


def test_the_label_of_a_text_is_read_from_its_first_token_after_the_first_layer(folder):
    """The embedding of a first token is the same in every text; only attention brings words to it."""
    # Broken by: the mean of tokens; answers of another layer.
    train, dev = ([example.gold.labels for example in each] for each in divided("relation").values())
    usual = Counter(train).most_common(1)[0][0]
    majority = dev.count(usual) / len(dev)
    scores = probed(folder, "relation")
    assert scores[0] == pytest.approx(majority) and max(scores[1:]) > majority + 0.1


def test_several_labels_and_choices_are_told(folder):
    # Broken by: choices told apart example by example.
    assert max(probed(folder, "multi_label")) > 0.8
    scores = probed(folder, "multiple_choice")
    assert scores[0] < 0.7 < max(scores)


# ---- the command


def run(folder: Path, *options: str, model: str = "bert") -> int:
    return main(["probe", "--model", ",".join(str(folder / name) for name in model.split(",")), *options])


def test_the_command_has_a_column_for_each_model_and_says_what_one_lacks(folder, tmp_path, capsys):
    # Broken by: a column of the model before; layers of one model alone; all notes of a prepared task.
    text, task = str(folder / "text.jsonl"), f"mine={folder / 'task'}"
    options = ("--text", text, "--general", text, "--task", task, "--examples", "train=8,dev=8", "--length", "32")
    assert run(folder, *options, model="bert,plain") == 0
    said = capsys.readouterr().out
    lines = {tuple(line.split("  ")[0:1]) + tuple(line.split()[-3:]) for line in said.splitlines()}
    assert "Masked tokens\nmeasure" in said and "plain has no language-model head: it fills no mask." in said
    assert "Linear probe on mine, dev" in said and "8 of 12 texts of train" in said
    assert "the metric of each task" not in " ".join(said.split())  # doubts about a fine-tuning
    assert ("macro_f1", "embeddings", "33.33", "33.33") in lines
    assert any(line[0] == "accuracy" and line[1] == "rare" and line[3] == "–" for line in lines)

    out = tmp_path / "probe.csv"
    assert run(folder, *options, "--format", "csv", "--out", str(out), model="bert,modernbert") == 0
    with open(out) as stream:
        values = {tuple(row[:4]): float(row[4]) for row in csv.reader(stream) if row[0] != "of"}
    assert {key[3] for key in values} == {"bert", "modernbert"}
    for name in CONFIGS:
        tokens = {
            part: value for (_, measure, part, model), value in values.items() if (measure, model) == ("tokens", name)
        }
        assert tokens["all"] == sum(tokens[kind] for kind in ("frequent", "rare", "number", "punctuation"))
        assert values["mine", "macro_f1", "layer 2", name] == 1.0


def test_texts_are_read_as_prepare_reads_them(tmp_path):
    """Several with commas between, and whatever the message about one that cannot be read says to give."""
    # Broken by: the first of asked.text alone; Reading() for asked.reading; no `rules` in either command.
    kept = []

    def words_of(*options):
        texts = ",".join(str(tmp_path / f"{name}.txt") for name in "ab")
        asked, _ = parse("eval", COMMANDS, ["probe", "--model", "m", "--text", texts, "--general", "g", *options])
        assert asked.general == ("g",)
        kept.append(asked.reading)
        return probe._read(asked, asked.text, [])

    (tmp_path / "a.txt").write_bytes("un café".encode("cp1252"))
    (tmp_path / "b.txt").write_text("deux")
    with pytest.raises(ValueError, match="give --encoding cp1252 if it should read café, .* or give --errors replace"):
        words_of()
    assert words_of("--encoding", "cp1252") == ["un café", "deux"]
    assert words_of("--errors", "replace", "--txt-documents", "paragraph") == ["un caf\ufffd", "deux"]
    cka = ["cka", "m", "n", "--texts", "a,b", "--errors", "replace", "--txt-documents", "paragraph"]
    asked, _ = parse("eval", COMMANDS, cka)
    assert asked.texts == ("a", "b") and asked.reading == kept[-1]
    with pytest.raises(ValueError, match="no option is called --id-field"):  # no name is wanted of a text
        parse("eval", COMMANDS, [*cka, "--id-field", "x"])


def test_what_cannot_be_probed_is_one_line(folder, tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text(json.dumps({"text": " "}) + "\n")
    for name in ("none", "maskless"):
        shutil.copytree(folder / "bert", tmp_path / name)
    (tmp_path / "none" / "tokenizer.json").unlink()
    tokenizer = tmp_path / "maskless" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("[MASK]", "[GAP]"))
    text = ("--text", str(folder / "text.jsonl"))
    for model, options, reason in (
        ("bert", (), "neither --text nor --task is given"),
        ("bert", ("--task", "anatomy"), "no task is called 'anatomy'"),
        ("bert", ("--task", "anatem"), "anatem needs --data"),
        ("bert", ("--text", str(tmp_path / "absent.txt")), "absent.txt does not exist"),
        ("bert", ("--text", str(tmp_path / "empty.jsonl")), "there is no word in the text"),
        ("bert", (*text, "--text-field", "body"), "'body'"),
        ("bert", ("--task", "anatem", "--general", "x"), "--general is for --text"),
        ("bert", ("--task", "anatem", "--examples", "train=9,test=9"), "--examples names test: a probe"),
        ("bert", (*text, "--words", "0"), "--words is 0: at least 1"),
        ("bert", (*text, "--length", "7"), "--length is 7: at least 8"),
        ("plain", text, "plain has no language-model head to fill masks with: give --task"),
        ("baseline", text, "baseline is no model"),
        (str(tmp_path / "none"), text, "has no tokenizer.json"),
        (str(tmp_path / "maskless"), text, "maskless has no mask token: name mask_token"),
    ):
        name = model if model == "baseline" else str(folder / model)
        assert main(["probe", "--model", name, *options]) == 2
        message = capsys.readouterr().err
        assert reason in message and message.count("\n") == 1, message


def test_of_a_long_text_the_beginning_is_read_and_the_notes_say_so(folder, monkeypatch, capsys):
    # Broken by: the note left out.
    monkeypatch.setattr(probe, "MOST_CHARACTERS", 10)
    assert run(folder, "--text", str(folder / "text.jsonl"), "--length", "32") == 0
    assert f"the first {len(TEXTS[0])} characters are read, and no more" in " ".join(capsys.readouterr().out.split())
