"""A model in a few lines: the numbers of transformers, and every recipe of docs/library.md."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import library, to_hf
from cptjax.model import encode
from cptjax.run import checkpoint
from cptjax.shape import BertConfig, ModelConfig, ModernBertConfig
from tests.convert.forms import random_params
from tests.fixtures_text import make_bert_tokenizer, make_tokenizer

ROOT = Path(__file__).parents[2]
TEXTS = ["the heart is a pump", "blood", "the mind is in the blood of the heart and the vessels are a pump " * 4]
MODERNBERT = ModernBertConfig(
    vocab_size=320,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=8,
    num_attention_heads=2,
    max_position_embeddings=128,
)
BERT = BertConfig(
    vocab_size=160,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=128,
)
TOKENIZERS = {"modernbert": make_tokenizer, "bert": make_bert_tokenizer}


def written(folder: Path, config: ModelConfig) -> Path:
    """A model of this shape with random weights, as a Hugging Face folder."""
    tokenizer = TOKENIZERS[config.model_type](folder.parent / f"{folder.name}_tokenizer")
    params = jax.tree.map(lambda x: x * np.float32(0.3), random_params(config))  # at 1 logits of float32 err by 1e-4
    to_hf.save(config, params, folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module", params=[MODERNBERT, BERT], ids=["modernbert", "bert"])
def source(request, tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("library") / "model", request.param)


def test_tokens_vectors_and_filled_masks_are_those_of_transformers(source):
    # Broken by: padding read by the mean; the mean of all rows; logits of the first mask for the second.
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    loaded = library.load(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model = transformers.AutoModelForMaskedLM.from_pretrained(source).eval()
    mask = tokenizer.mask_token
    sentences = [f"the {mask} is a {mask}", f"{mask} of the heart"]
    expected = tokenizer(TEXTS, padding=True, return_tensors="pt")
    token_BL, segment_BL = library.tokens(loaded, TEXTS)
    np.testing.assert_array_equal(token_BL, expected["input_ids"])
    np.testing.assert_array_equal(segment_BL, expected["attention_mask"])
    with torch.no_grad():
        states = model(**expected, output_hidden_states=True).hidden_states[-1]
        mean = (states * expected["attention_mask"][..., None]).sum(1) / expected["attention_mask"].sum(1)[:, None]
        told = [model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1) for text in sentences]
    np.testing.assert_allclose(library.embed(loaded, TEXTS), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(library.embed(loaded, TEXTS, "cls"), states[:, 0], rtol=1e-4, atol=1e-5)
    for text, filled, shares in zip(sentences, library.fill_mask(loaded, sentences, most=3), told, strict=True):
        places = [i for i, id_ in enumerate(tokenizer(text)["input_ids"]) if id_ == tokenizer.mask_token_id]
        assert len(filled) == len(places) == text.count(mask)
        for each, place in zip(filled, places, strict=True):
            np.testing.assert_allclose([p for _, p in each], shares[place].topk(3).values, rtol=1e-4)


def test_what_is_saved_comes_back_and_a_run_folder_is_a_model_too(source, finished, tmp_path):
    # Broken by: the parameters that were read in the place of those given.
    loaded = library.load(source)
    embeddings = loaded.params["embeddings"]
    other = {**embeddings, "tok_embeddings": jnp.roll(embeddings["tok_embeddings"], 1, axis=0)}
    changed = loaded.changed({**loaded.params, "embeddings": other})
    library.save(changed, tmp_path / "saved")
    again = library.load(tmp_path / "saved")
    np.testing.assert_array_equal(library.embed(again, TEXTS), library.embed(changed, TEXTS))
    assert np.abs(library.embed(again, TEXTS) - library.embed(loaded, TEXTS)).max() > 1e-3
    run = library.load(finished)
    assert run.config == checkpoint.read_model(finished) and library.embed(run, "fever").shape == (1, 16)


def test_vectors_in_the_place_of_ids_give_the_same(source):
    # Broken by: the norm of the embeddings left out.
    loaded = library.load(source)
    token_BL, segment_BL = library.tokens(loaded, TEXTS)
    vector_BLD = jnp.take(loaded.params["embeddings"]["tok_embeddings"], token_BL, axis=0)
    by_vectors = encode(loaded.model, loaded.params, vector_BLD, segment_BL).hidden_BLD
    np.testing.assert_allclose(
        by_vectors, encode(loaded.model, loaded.params, token_BL, segment_BL).hidden_BLD, atol=1e-6
    )


def test_names_of_special_tokens_are_text_but_the_mask_to_be_filled(source):
    # Broken by: the tokenizer itself in the place of _reader; masks read without being asked for.
    loaded = library.load(source)
    ids = {name: loaded.tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[MASK]", "[PAD]")}
    text = "the [MASK] is [SEP] a [PAD] pump [CLS]"

    def special(**options):
        return [i for i in library.tokens(loaded, text, **options)[0][0].tolist() if i in ids.values()]

    around = [ids["[CLS]"], ids["[SEP]"]]
    assert special() == around and special(masks=True) == [around[0], ids["[MASK]"], around[1]]
    assert len(library.fill_mask(loaded, text)[0]) == 1
    assert np.abs(library.embed(loaded, text) - library.embed(loaded, "the is a pump")).max() > 1e-4


def test_long_texts_are_refused_or_cut_as_transformers_cuts_them(source):
    transformers = pytest.importorskip("transformers")
    loaded, long = library.load(source), "heart " * 300
    with pytest.raises(ValueError, match="text 1 has .* tokens, this model has positions for 128"):
        library.tokens(loaded, ["heart", long])
    expected = transformers.AutoTokenizer.from_pretrained(source)(long, truncation=True, max_length=128)["input_ids"]
    np.testing.assert_array_equal(library.tokens(loaded, long, truncate=True)[0][0], expected)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (
            lambda s: library.load(s, attention="flash"),
            "attention is 'flash' .did you mean splash.*: it is one of reference, blockwise",
        ),
        (lambda s: library.load(s, compute="float8"), "compute is 'float8': it is one of float32, bfloat16"),
        (lambda s: library.load(s / "absent"), "absent"),
        (lambda s: library.embed(library.load(s), TEXTS, "max"), "pooling is 'max': it is one of mean, cls"),
        (lambda s: library.fill_mask(library.load(s), ["the heart"]), r"sentence 0 has no \[MASK\]: write it"),
        (lambda s: library.fill_mask(library.load(s), "[MASK]", most=0), "most is 0: it must be at least 1"),
        (lambda s: library.tokens(library.load(s), ["", None]), "None is no text"),
        (lambda s: library.load(s, step=3), "is no run folder: it has no step 3"),
        (lambda s: library.save(library.load(s), s / "new", dtype="f16"), "dtype is 'f16': it is one of float32, bfl"),
        (lambda s: library.save(library.load(s).changed({}), s / "new"), "parameter .* is None: this model.s is "),
    ],
)
def test_what_is_unknown_is_refused_with_the_choices(source, ask, says):
    with pytest.raises((ValueError, TypeError, FileNotFoundError, OSError), match=says):
        ask(source)


RECIPES = re.findall(r"^## (.*?)\n.*?^```python\n(.*?)^```", (ROOT / "docs" / "library.md").read_text(), re.S | re.M)


def test_every_recipe_runs(tmp_path, monkeypatch):
    """In their order, as one program, in a folder that holds the models they name."""
    # Broken by: a name that a recipe gives to something else than the one before it.
    monkeypatch.chdir(tmp_path)
    for name in ("start", "adapted"):
        written(tmp_path / "models" / name, MODERNBERT)
    names: dict = {}
    for title, code in RECIPES:
        exec(compile(code, f"docs/library.md, {title}", "exec"), names)
    assert len(RECIPES) >= 10
