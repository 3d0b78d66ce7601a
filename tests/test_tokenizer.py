"""Special tokens are found, documents begin and end as the tokenizer says, and long texts cost no memory."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptjax import tokenizer
from cptjax.tokenizer import Encoder, load_tokenizer, special_tokens, tokenizer_folder
from tests.fixtures_text import WORDS, make_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "small")


def test_every_document_begins_and_ends_as_the_tokenizer_says(folder):
    encoder = Encoder(folder)
    assert (encoder.bos, encoder.eos, encoder.dtype) == (2, 3, np.uint16)
    assert encoder.special.all == (0, 1, 2, 3, 4) and encoder.special.mask == 4
    texts = ["the heart", "blood [MASK] vessels [SEP]", "é\u2028ü 心\n\nmind"]
    for text, token_L in zip(texts, encoder.encode(texts), strict=True):
        # Broken by: encode_special_tokens left off. A literal "[MASK]" or "[SEP]" of the text is text.
        assert (token_L[0], token_L[-1]) == (2, 3) and not set(token_L[1:-1].tolist()) & {0, 1, 2, 3, 4}
        assert token_L.dtype == np.uint16 and encoder.tokenizer.decode(token_L) == text


def test_a_tokenizer_that_adds_nothing_gets_its_end_token(tmp_path):
    encoder = Encoder(make_tokenizer(tmp_path / "bare", ends=False))
    (token_L,) = encoder.encode(["the heart"])
    assert encoder.bos is None
    assert token_L[-1] == encoder.eos == 3 and (token_L[:-1] > 4).all()


def test_names_in_the_configuration_go_before_usual_names(tmp_path):
    folder = make_tokenizer(tmp_path / "t", ends=False)
    named = {"eos_token": {"content": "[CLS]"}, "mask_token": "[UNK]", "pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "[PAD]"}))
    special = special_tokens(folder, load_tokenizer(folder))
    assert (special.eos, special.mask, special.pad) == (2, 1, 0)


def test_a_large_vocabulary_needs_four_bytes(tmp_path, folder):
    words = load_tokenizer(folder)
    words.add_tokens([f"word{i}" for i in range(2**16)])
    words.save(str(tmp_path / "tokenizer.json"))
    encoder = Encoder(tmp_path)
    assert encoder.dtype == np.uint32 and encoder.vocab_size == words.get_vocab_size()
    assert encoder.encode(["the word65535"])[0].max() == encoder.vocab_size - 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from([*WORDS, " ", "  ", "\n", "\n\n", "\t", "\u2028", "é", "心", "[SEP]", "..."]), max_size=80
    ),
    st.integers(5, 60),
)
def test_a_long_text_in_pieces_has_the_ids_of_the_whole(folder, words, size):
    # Broken by: `if both == one + other` replaced by `if True` and a cut after the white space instead of before it.
    encoder = Encoder(folder)
    text = "".join(words)
    (whole,) = encoder.encode([text])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "LONG_TEXT", size)
        pieces = encoder._pieces(text)
        (found,) = encoder.encode([text])
    assert "".join(pieces) == text
    assert found.tolist() == whole.tolist()


def test_long_texts_are_cut_where_they_can_be(folder, monkeypatch):
    monkeypatch.setattr(tokenizer, "LONG_TEXT", 100)
    encoder = Encoder(folder)
    assert max(map(len, encoder._pieces("the heart is a muscle " * 50))) <= 100
    assert encoder._pieces("x" * 1000) == ["x" * 1000]
    monkeypatch.setattr(tokenizer, "LONGEST_WHOLE", 500)  # broken by: `break` whatever the length
    assert [len(piece) for piece in encoder._pieces("x" * 1000)] == [100] * 5 + [500]
    assert encoder.encode(["x" * 1000])[0].size > 2


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "holds no tokenizer.json"),
        ({"tokenizer.json": "{}"}, "is not a tokenizer"),
    ],
)
def test_a_folder_without_a_tokenizer_is_refused(tmp_path, files, says):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=says) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_cannot_be_had_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="tokenizer folder /no/where does not exist"):
        tokenizer_folder("/no/where")

    def no_network(*_, **__):
        raise OSError("no route to the Hub\nsecond line")

    monkeypatch.setattr(tokenizer.huggingface_hub, "snapshot_download", no_network)
    with pytest.raises(ValueError, match=r"\(no route to the Hub\)$"):
        tokenizer_folder("someone/some-model")


def test_a_tokenizer_without_any_end_token_is_refused(tmp_path):
    bare = make_tokenizer(tmp_path / "bare", ends=False)
    path = bare / "tokenizer.json"
    path.write_text(path.read_text().replace("[SEP]", "[XYZ]"))
    with pytest.raises(ValueError, match="names no eos_token"):
        Encoder(bare)


def test_the_written_tokenizer_opens_in_transformers(tmp_path, folder):
    transformers = pytest.importorskip("transformers")
    encoder = Encoder(folder)
    encoder.write(folder, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    assert theirs("the heart of mind")["input_ids"] == encoder.encode(["the heart of mind"])[0].tolist()
    assert theirs.mask_token_id == encoder.special.mask
