"""States of every layer, one vector for a text; files of them; models by name; the command."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest

from convert import library, to_hf
from cptjax.families import encoder
from cptjax.model import encode, init_params
from cptjax.shape import BertConfig, ModernBertConfig
from eval.__main__ import main
from eval.analysis import alike, collect
from eval.analysis.command import Pooling
from tests.fixtures_text import WORDS, make_bert_tokenizer, make_tokenizer

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "initializer_range": 0.2}
BERT = BertConfig(vocab_size=160, max_position_embeddings=32, num_hidden_layers=2, **SIZES)
MODERNBERT = ModernBertConfig(vocab_size=320, num_hidden_layers=3, **SIZES)
MODELS = {  # shape, tokenizer
    "a": (BERT, make_bert_tokenizer),
    "b": (BERT, make_bert_tokenizer),
    "c": (BERT, make_bert_tokenizer),
    "deep": (MODERNBERT, make_tokenizer),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three models of one shape, the third with a massive dimension, a deeper one with another tokenizer, 30 texts, of
    which one is long."""
    folder = tmp_path_factory.mktemp("analysis")
    random = np.random.default_rng(0)
    drawn = {config: init_params(encoder(config), jax.random.key(0)) for config in (BERT, MODERNBERT)}
    for name, (config, tokenizer) in MODELS.items():
        tokenizer(folder / f"{name}_tokenizer")
        params = jax.tree.map(
            lambda x: x + np.float32(0.1) * random.normal(size=x.shape).astype(x.dtype), drawn[config]
        )
        if name == "c":
            params["embeddings"]["norm"]["scale"] = params["embeddings"]["norm"]["scale"].at[5].mul(100)
        to_hf.save(config, params, folder / name, tokenizer=folder / f"{name}_tokenizer")
    texts = [" ".join(random.choice(WORDS, size)) for size in (60, *random.integers(2, 20, 29))]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def texts_of(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / "texts.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["a", "deep"])
def test_states_are_those_of_each_text_alone(folder, name):
    # Broken by: the last layer before its norm; padding or special tokens in another mean; texts in another order.
    model, texts = collect.open_model(str(folder / name)), texts_of(folder)[1:9]
    token_BL, segment_BL = library.tokens(model.loaded, texts)
    alone = jax.jit(partial(encode, model.loaded.model, keep_layers=True))(model.loaded.params, token_BL, segment_BL)
    layer_NBLD = np.asarray(alone.layers_NBLD).copy()
    layer_NBLD[-1] = alone.hidden_BLD
    made = {pooling: collect.collect(model, texts, pooling, 32) for pooling in get_args(Pooling)}
    for text, length in enumerate(segment_BL.sum(1)):
        own_NLD = layer_NBLD[:, text, :length]
        np.testing.assert_allclose(made["mean"].state_NTD[:, text], own_NLD.mean(1), atol=2e-5)
        np.testing.assert_allclose(made["cls"].state_NTD[:, text], own_NLD[:, 0], atol=2e-5)
        away_L = np.abs(own_NLD - made["token"].state_NTD[:, text][:, None]).max((0, 2))
        assert (away_L < 2e-5).sum() == 1 and 0 < away_L.argmin() < length - 1  # special tokens are first and last
    assert made["mean"].state_NTD.dtype == np.float32 and not made["mean"].cut


def test_all_devices_share_the_rows_and_the_numbers_stay(folder, monkeypatch):
    # Broken by: rows that are not spread; at_once of one device for all: a row too few.
    model, texts = collect.open_model(str(folder / "a")), texts_of(folder)[1:12]
    on = []

    def seen(network, params, batch, own=collect.pool_layers):
        on.append(len(batch["rows"][0]["token_BL"].sharding.device_set))
        return own(network, params, batch)

    made = []
    for count in (1, 8):
        with monkeypatch.context() as patch:
            patch.setattr(jax, "local_devices", lambda count=count: jax.devices()[:count])
            patch.setattr(collect, "pool_layers", seen)
            made.append(collect.collect(model, texts, "mean", 32).state_NTD)
    assert {*on} == {1, 8} and len(jax.devices()) == 8
    np.testing.assert_allclose(*made, rtol=1e-5, atol=1e-6)


def test_states_are_kept_by_what_they_are_of(folder, tmp_path, monkeypatch):
    # Broken by: a name without the model's, the texts' or the pooling's part; a file that is not read.
    texts = texts_of(folder)[1:5]
    first, second = (collect.open_model(str(folder / name)) for name in "ab")
    made = collect.collect(first, texts, "mean", 32, tmp_path / "states")
    turned = [" ".join(text.split()[::-1]) for text in texts]  # as many tokens
    collect.collect(second, texts, "mean", 32, tmp_path / "states")
    collect.collect(first, turned, "mean", 32, tmp_path / "states")
    collect.collect(first, texts, "cls", 32, tmp_path / "states")
    files = sorted((tmp_path / "states").iterdir())
    assert len(files) == 4 and {path.suffix for path in files} == {".safetensors"}
    (plain := tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in files} == {plain.stat().st_mode}
    with monkeypatch.context() as patch:
        patch.setattr(collect, "by_text", None)  # it is not computed again
        again = collect.collect(first, texts, "mean", 32, tmp_path / "states")
    assert (again.state_NTD == made.state_NTD).all() and again.tokens == made.tokens
    for path in files:
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        collect.collect(first, texts, "mean", 32, tmp_path / "states")


def test_weights_have_one_hash_without_their_head(folder, tmp_path):
    # Broken by: `decoder` left in; the names left out of the hash.
    model = collect.open_model(str(folder / "a"))
    params = dict(model.loaded.params)
    assert collect.weights_hash({k: v for k, v in params.items() if k not in ("head", "decoder")}) == model.weights
    assert collect.open_model(str(folder / "b")).weights != model.weights
    renamed = {k.replace("embeddings", "others"): v for k, v in params.items()}
    assert collect.weights_hash(renamed) != model.weights


def test_a_run_is_read_at_any_step(finished, tmp_path):
    # Broken by: the step left out; a revision for a step.
    steps = sorted(int(path.name) for path in (finished / "checkpoints").iterdir() if path.name.isdecimal())
    first, last = (collect.open_model(f"{finished}@{step}") for step in (steps[0], steps[-1]))
    assert first.weights != last.weights == collect.open_model(str(finished)).weights
    library.save(last.loaded, tmp_path / "released")
    assert collect.open_model(str(tmp_path / "released")).weights == last.weights
    with pytest.raises(ValueError, match="what follows @ is a step"):
        collect.open_model(f"{finished}@last")
    shutil.copytree(finished, tmp_path / "run@home")
    assert collect.open_model(str(tmp_path / "run@home")).weights == last.weights


def test_texts_are_drawn_each_as_likely():
    # Broken by: the first ones taken; empty texts counted.
    texts = [*map(str, range(100)), " ", ""]
    drawn = collect.draw(texts, 20)
    assert drawn == collect.draw(texts, 20) and len({*drawn}) == 20 and drawn != texts[:20]
    assert sorted(collect.draw(texts, 999), key=int) == texts[:100]
    assert 5 <= sum(int(text) >= 50 for text in drawn) <= 15


# ---- the command


def asked(folder: Path, *words: str) -> int:
    names = [str(folder / word) if word in MODELS else word for word in words]
    return main(["cka", *names, "--texts", str(folder / "texts.jsonl"), "--length", "64"])


def test_two_models_and_a_control(folder, tmp_path, capsys):
    # Broken by: the control beside A; the embeddings in the mean; a ratio upside down; massive dimensions left in.
    out = {name: tmp_path / f"out.{name}" for name in ("json", "png", "md")}
    words = ["--json", str(out["json"]), "--plot", str(out["png"]), "--out", str(out["md"]), "--format", "markdown"]
    assert asked(folder, "a", "b", "--control", "c", *words) == 0
    told = json.loads(out["json"].read_text())
    value = {
        (each["layer"], each["measure"]): each
        for each in told["figures"]
        if (each["of"], each["estimator"]) == (alike.EVERY, "plain")
    }
    layers = ["0", "1", "2"]
    for layer in layers:
        pair = told["every_pair"]["plain"][int(layer)][int(layer)]
        assert value[layer, "cka"]["value"] == pytest.approx(pair)
        assert value[layer, "divergence"]["value"] == pytest.approx(1 - pair)
    for name in ("divergence", "control"):
        mean = np.mean([value[layer, name]["value"] for layer in layers[1:]])
        assert value["mean", name]["value"] == pytest.approx(mean)
    for layer in (*layers, "mean"):
        ratio = value[layer, "divergence"]["value"] / value[layer, "control"]["value"]
        assert value[layer, "ratio"]["value"] == pytest.approx(ratio)
        assert value[layer, "ratio"]["low"] < ratio < value[layer, "ratio"]["high"]
    assert asked(folder, "c", "b", "--format", "csv") == 0
    lines = [line.split(",") for line in capsys.readouterr().out.splitlines() if ",plain,1,divergence" in line]
    assert float(lines[0][4]) == pytest.approx(value["1", "control"]["value"])
    assert "1 are cut" in out["md"].read_text() and out["png"].stat().st_size > 10_000
    assert [*told["models"]["control"]["massive"][0]] == ["5"] and "c: 5 (in " in " ".join(told["notes"])
    (less,) = (
        each["value"]
        for each in told["figures"]
        if each["of"] == alike.FEW_LESS
        and (each["estimator"], each["layer"], each["measure"]) == ("plain", "0", "control")
    )
    assert less < value["0", "control"]["value"] - 0.01


def test_what_can_be_compared_is(folder, tmp_path, capsys):
    """A model with itself, and with another of other depth and tokenizer; few texts, and those of two files."""
    # Broken by: the notes on depth, tokens, weights or intervals left out; the first of asked.texts alone.
    assert asked(folder, "a", "a", "--samples", "12") == 0
    said = capsys.readouterr().out
    assert "The two have the same weights." in said and "takes at least 20 texts" in said
    assert all(line.split()[1:3] == ["1.0000", "0.0000"] for line in said.splitlines() if line[:2] in ("1 ", "me"))
    twice, out = ",".join(2 * [str(folder / "texts.jsonl")]), tmp_path / "out.json"
    assert main(["cka", *2 * [str(folder / "a")], "--texts", twice, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["texts"]["number"] == 2 * len(texts_of(folder))
    capsys.readouterr()
    assert asked(folder, "a", "deep") == 0
    said = capsys.readouterr().out
    assert "have 2, 3 layers" in said and "read other tokens" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("a", "b", "--control", "b"), "the control has the weights of"),
        (("a", "b", "--control", "a"), "the control has the weights of"),
        (("a", "deep", "--pooling", "token"), "none of one is one of the other"),
        (("a", "b", "--samples", "3"), "--samples is 3: at least 4"),
        (("a", "b", "--plot", "x.txt"), "ends in none of"),
        (("a", "b", "--states", __file__), "is a file"),
        (("a", "absent"), "absent"),
        (("a", "b", "--text-field", "body"), "body"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(folder, words, says, capsys):
    # Broken by: the check of each.
    assert asked(folder, *words) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
