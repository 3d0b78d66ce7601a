"""New words get rows and ids of their own; every old token, row and score stays as it was.

V the old vocabulary, W the new one, B rows, L tokens, D width.
"""

import json
import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from convert import from_hf, table, tensors, to_hf, vocab
from convert.__main__ import main
from cptjax.model import ModernBert, encode
from cptjax.shape import ModelConfig, ModernBertConfig, Precision
from tests.conftest import packed
from tests.convert.forms import FORMS, TABLE, formed, random_params
from tests.convert.test_convert import MASKED

REAL = Path(__file__).parents[3] / "shared/tokenizers/modernbert/tokenizer.json"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LAST = 318  # the first id that no token of BYTES has
CONFIG = ModernBertConfig(
    vocab_size=320,  # two gaps; a multiple of 64, as the table that it grows to
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=4,
    num_attention_heads=2,
)
UNTIED = replace(CONFIG, tie_word_embeddings=False)
# Slots in the order of their ids, then the two gaps, then five to append.
WORDS = ["cardiomyopathie", "Épilepsie", "œdème", "anti-TNF", "γ-GT", "café noir", "zona", "C++", "kyste", "naïf"]
IDS = [*range(315, 318), *range(318, 320), *range(320, 325)]


def byte_level() -> Tokenizer:
    """As ModernBERT's: NFC, bytes, a few merges, slots at the end; [unused2] comes before [unused1]."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "r"), ("Ġ", "e"), ("Ġe", "s"), ("Ġes", "t"), ("p", "a"), ("t", "h"), ("pa", "th")]
    names = [*letters, *("".join(merge) for merge in merges)]
    fillers = [f"<|{i}|>" for i in range(LAST - 3 - len(SPECIAL) - len(names))]
    found = Tokenizer(models.BPE({name: i for i, name in enumerate([*names, *fillers])}, merges))
    found.normalizer = normalizers.NFC()
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens(SPECIAL)
    found.add_tokens([AddedToken(f"[unused{i}]", normalized=True) for i in (0, 2, 1)])
    return found


def word_piece() -> Tokenizer:
    """As BERT's: lower case, no accents, slots in the vocabulary."""
    letters = [mark + letter for letter in "abcdefghijklmnopqrstuvwxyz-" for mark in ("", "##")]
    names = ["[PAD]", "[unused0]", "[unused1]", *SPECIAL[1:], *letters]
    found = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    found.normalizer = normalizers.BertNormalizer(lowercase=True)
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece()
    found.add_special_tokens(SPECIAL)
    return found


BYTES = byte_level()
assert BYTES.get_vocab_size() == LAST


def written(folder: Path, config: ModelConfig = CONFIG, architecture: str = MASKED, **options) -> Path:
    """A Hugging Face folder of random weights with the byte-level tokenizer."""
    config = formed(config, architecture)
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 3)
    raw = {"model_type": table.ARCHITECTURES[architecture].model_type, "architectures": [architecture], **ids}
    to_hf.save(config, random_params(config), folder, architecture=architecture, hf_config=raw, **options)
    BYTES.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def source(tmp_path) -> Path:
    return written(tmp_path / "source")


def run(source: Path, words: list[str] | str) -> tuple[int, Path]:
    """The command's exit code and the folder it writes."""
    file, out = source.parent / "words.txt", source.parent / "wider"
    file.write_text(words if isinstance(words, str) else "\n".join(words), encoding="utf-8")
    return main(["resize-vocab", str(source), str(out), "--tokens", str(file)]), out


def widened(source: Path, words: list[str] | str = WORDS) -> Path:
    code, out = run(source, words)
    assert code == 0
    return out


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return {table.full_name(k, MASKED): v for file in from_hf.weight_files(folder) for k, v in load_file(file).items()}


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


# Weights


@pytest.mark.parametrize("form", FORMS)
def test_only_the_rows_of_new_tokens_and_padding_change(tmp_path, form):
    # Broken by: the copies, or the rows of entries, left out of `resized`; a mean in the stored dtype;
    # the mean of `new_WD` in place of `old_VD`; zero for the bias of padding.
    config, architecture = FORMS[form]
    config = replace(config, vocab_size=320)
    dtype = "float32" if config.tie_word_embeddings else "bfloat16"
    folder = written(tmp_path / "source", config, architecture, dtype=dtype, shard_size="5KB")
    out = widened(folder)
    before, after = tensors_of(folder), tensors_of(out)
    assert before.keys() == after.keys()
    wide = {name for name, tensor in before.items() if len(tensor) == 320}
    assert {name for name in before if before[name].shape != after[name].shape} == wide
    assert all(same_bits(before[name], after[name]) for name in before.keys() - wide)
    for name in wide:
        old, new = before[name], after[name]
        assert new.dtype == old.dtype and len(new) == 384
        expected = {i: ids_of(BYTES, word) for word, i in zip(WORDS, IDS, strict=True)}
        for i in range(384):
            if i in expected:
                mean = np.mean(np.stack([old[piece] for piece in expected[i]]).astype(np.float32), axis=0)
                assert same_bits(new[i], mean.astype(old.dtype)), (name, i)
            elif i < 320:
                assert same_bits(new[i], old[i]), (name, i)
            else:
                assert (new[i] == (0 if old.ndim == 2 else min(old))).all(), (name, i)


def test_a_mean_by_hand():
    old_VD = np.array([[1, 2], [3, 6], [5, 4]], ml_dtypes.bfloat16)
    new_WD = vocab.resize_rows(old_VD, {1: [0, 0, 1], 3: [1, 2]}, 5)
    third = float(np.float32(5 / 3).astype(ml_dtypes.bfloat16))
    assert new_WD.tolist() == [[1, 2], [third, float(ml_dtypes.bfloat16(10 / 3))], [5, 4], [4, 5], [0, 0]]
    half_WD = vocab.resize_rows(np.array([1, -2, 3], np.float16), {3: [0, 2]}, 5)
    assert half_WD.dtype == np.float16 and half_WD.tolist() == [1, -2, 3, 2, -2]


def test_a_table_that_need_not_grow_keeps_its_size(tmp_path, capsys):
    # Broken by: vocab_size rounded up always.
    source = written(tmp_path / "source", replace(CONFIG, vocab_size=321))
    out = widened(source, WORDS[:5])
    said = f"wrote {out}: 5 tokens in unused slots, 0 appended; vocab_size 321 before, 321 after\n"
    assert capsys.readouterr().out == said
    assert (out / "config.json").read_text() == (source / "config.json").read_text()
    assert tensors_of(out)[TABLE].shape == (321, 16)


def test_only_the_size_changes_in_the_config(source, capsys):
    raw = json.loads((source / "config.json").read_text()) | {"note": "of its author", "norm_eps": 1e-5}
    (source / "config.json").write_text(json.dumps(raw))
    out = widened(source)
    printed = capsys.readouterr()
    assert "5 tokens in unused slots, 5 appended; vocab_size 320 before, 384 after" in printed.out
    assert printed.err == "note: left out of the config: note\n"
    raw.pop("note")
    assert json.loads((out / "config.json").read_text()) == raw | {"vocab_size": 384}


def test_shards_without_a_table_are_copied_and_the_index_says_the_size(tmp_path):
    # Broken by: the index written as it was.
    folder = written(tmp_path / "source", UNTIED, dtype="bfloat16", shard_size="5KB")
    out = widened(folder)
    before, after = ({path.name: path for path in from_hf.weight_files(where)} for where in (folder, out))
    assert before.keys() == after.keys() and len(before) > 4
    for name, path in before.items():
        same = path.read_bytes() == after[name].read_bytes()
        keys = load_file(path).keys()
        assert same == keys.isdisjoint({TABLE, "decoder.weight", "decoder.bias"})
        with safe_open(after[name], framework="numpy") as tensors:
            assert tensors.metadata() == {"format": "pt"} and tensors.keys() == sorted(keys)
    old, new = (json.loads((where / from_hf.INDEX).read_text()) for where in (folder, out))
    assert new["weight_map"] == old["weight_map"]
    assert new["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors_of(out).values())
    assert from_hf.load(out)[0] == replace(UNTIED, vocab_size=384)


def test_a_tied_copy_and_bare_names_are_resized_alike(source):
    # Broken by: `key in resized` in place of its full name.
    tensors = load_file(source / from_hf.SINGLE)
    tensors["decoder.weight"] = tensors[TABLE].copy()
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, source / from_hf.SINGLE)
    out = widened(source)
    found = load_file(out / from_hf.SINGLE)
    assert found.keys() == bare.keys()
    assert same_bits(found["decoder.weight"], found["embeddings.tok_embeddings.weight"])
    from_hf.load(out)


# Scores

TEXT = "car path est il y a d'autres [MASK] textes, été"


@pytest.mark.parametrize("words", [WORDS[:3], WORDS], ids=["slots", "grown"])
@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
def test_old_scores_keep_their_bits_here(tmp_path, config, words):
    # Broken by: new_WD[: len(old_VD)] += 1e-7.
    folder = written(tmp_path / "source", config)
    out = widened(folder, words)
    token_BL = jnp.array([ids_of(BYTES, TEXT)])
    assert ids_of(Tokenizer.from_file(str(out / "tokenizer.json")), TEXT) == token_BL[0].tolist()

    def scores(path: Path) -> np.ndarray:
        shape, params = from_hf.load(path)
        model = ModernBert(shape, Precision(compute="float32"))
        segment_BL = packed(token_BL.shape[1], total=token_BL.shape[1])[None]
        encoded = encode(model, params, token_BL, segment_BL, mask_mode="bidirectional")
        return np.asarray(model.apply({"params": params}, encoded.hidden_BLD, method="logits"))

    kept = [i for i in range(LAST) if i not in IDS]
    assert same_bits(scores(folder)[..., kept], scores(out)[..., kept])


@pytest.mark.parametrize("words", [WORDS[:3], WORDS], ids=["slots", "grown"])
@pytest.mark.parametrize("architecture", [MASKED, "ModernBertDecoderForCausalLM"])
@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
def test_old_scores_keep_their_bits_in_transformers(tmp_path, config, architecture, words):
    torch = pytest.importorskip("torch")
    import transformers

    folder = written(tmp_path / "source", config, architecture)
    out = widened(folder, words)
    kept = [i for i in range(LAST) if i not in IDS]

    def scores(path: Path) -> np.ndarray:
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
        model = getattr(transformers, architecture).from_pretrained(path).eval()
        with torch.no_grad():
            return model(torch.tensor([tokenizer(TEXT)["input_ids"]])).logits[..., kept].numpy()

    assert same_bits(scores(folder), scores(out))


# The tokenizer


@pytest.fixture(scope="module")
def wider(tmp_path_factory) -> Tokenizer:
    out = widened(written(tmp_path_factory.mktemp("bytes") / "source"))
    return Tokenizer.from_file(str(out / "tokenizer.json"))


def test_slots_come_first_then_gaps_then_new_ids(wider):
    # Broken by: the gaps before the slots, or the slots by number ([unused2] has the lower id).
    assert [wider.token_to_id(word) for word in WORDS] == IDS
    assert BYTES.id_to_token(316) == "[unused2]" and wider.token_to_id("[unused2]") is None
    kept = {token: i for token, i in BYTES.get_vocab().items() if "unused" not in token}
    assert kept.items() <= wider.get_vocab().items()


@pytest.mark.parametrize(("word", "i"), list(zip(WORDS, IDS, strict=True)))
def test_a_word_is_one_id_however_its_accents_are_written_and_comes_back(wider, word, i):
    # Broken by: "normalized": False; no Replace before the ByteLevel decoder; "single_word": False.
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, word)
        assert ids_of(wider, text) == [i]
        assert ids_of(wider, f"est ({text}) est").count(i) == 1
        assert ids_of(wider, f"x{text}") == ids_of(BYTES, f"x{text}")
    assert wider.decode([i]) == word
    sentence = f"Le patient a : {word}, été {word}."
    assert wider.decode(ids_of(wider, sentence)) == sentence


def test_a_word_may_be_listed_with_loose_accents(source):
    # Broken by: the decoder told the bytes of the token as listed, not as normalised.
    new = Tokenizer.from_file(str(widened(source, [unicodedata.normalize("NFD", "Épilepsie")]) / "tokenizer.json"))
    assert ids_of(new, "une Épilepsie") == [*ids_of(BYTES, "une "), IDS[0]]
    assert new.decode([IDS[0]]) == "Épilepsie"


PARTS = st.sampled_from([*WORDS, *(unicodedata.normalize("NFD", word) for word in WORDS), "s", "x", " ", "-", "_", "É"])


@settings(max_examples=300)
@given(st.lists(PARTS | st.text(max_size=5), max_size=6).map("".join))
def test_text_without_the_new_words_is_split_as_before(wider, text):
    # Broken by: "single_word": False.
    plain = unicodedata.normalize("NFC", text)
    plain = "".join(c if c.isalpha() or c.isdecimal() or c == "_" or c in "-+ " else "." for c in plain)
    assume(not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", plain) for word in WORDS))
    assert ids_of(wider, text) == ids_of(BYTES, text)


def test_a_word_piece_slot_is_renamed_everywhere(tmp_path, capsys):
    # Broken by: the slot kept in model.vocab: its token would get another id.
    size = word_piece().get_vocab_size()
    folder = written(tmp_path / "source", replace(CONFIG, vocab_size=size))
    old = word_piece()
    old.save(str(folder / "tokenizer.json"))
    fields = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    listed = {"0": {"content": "[PAD]", **fields}, "2": {"content": "[unused1]", **fields}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": listed, "pad_token": "[PAD]"}))
    (folder / "special_tokens_map.json").write_text('{"pad_token": "[PAD]"}')
    (folder / "added_tokens.json").write_text('{"[unused1]": 2, "[PAD]": 0}')
    out = widened(folder, ["Étude", "anti-corps", "zona"])
    new = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert [new.token_to_id(word) for word in ("etude", "anti-corps", "zona")] == [1, 2, size]
    assert new.decode([1, 2, size]) == "etude anti-corps zona"
    assert ids_of(new, "étude ETUDE a anti-corps zona zonas")[:5] == [1, 1, old.token_to_id("a"), 2, size]
    assert ids_of(new, "zonas") == ids_of(old, "zonas")
    assert not (out / "added_tokens.json").exists() and not (out / "special_tokens_map.json").exists()
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["pad_token"] == "[PAD]" and "added_tokens_decoder" not in settings


def test_a_slot_that_has_a_role_is_not_unused(source):
    # Broken by: no look at the settings.
    (source / "special_tokens_map.json").write_text('{"additional_special_tokens": ["[unused0]"]}')
    new = Tokenizer.from_file(str(widened(source, ["zona"]) / "tokenizer.json"))
    assert (new.token_to_id("[unused0]"), new.token_to_id("zona")) == (315, 316)


def test_a_hole_in_the_vocabulary_is_filled(source):
    # Broken by: no entry for a hole: the library would give the token another id.
    raw = json.loads((source / "tokenizer.json").read_text())
    hole = raw["model"]["vocab"].pop("<|3|>")
    raw["added_tokens"] = [entry for entry in raw["added_tokens"] if "unused" not in entry["content"]]
    raw["model"]["vocab"] |= {entry["content"]: entry["id"] for entry in raw["added_tokens"]}
    (source / "tokenizer.json").write_text(json.dumps(raw))
    new = Tokenizer.from_file(str(widened(source, ["zona", "kyste"]) / "tokenizer.json"))
    assert (new.token_to_id("zona"), new.token_to_id("kyste")) == (hole, 315)


def test_a_unigram_vocabulary_is_not_given_pieces(tmp_path, capsys):
    # Broken by: slots of a Unigram vocabulary taken; the mark of a space counted as a known piece.
    pieces = [("<unk>", 0.0), ("<unused0>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in "anoz")]
    old = Tokenizer(models.Unigram(pieces, unk_id=0))
    old.pre_tokenizer, old.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    old.add_tokens(["<unused1>"])
    folder = written(tmp_path / "source", replace(CONFIG, vocab_size=9))
    old.save(str(folder / "tokenizer.json"))
    assert "knows no piece of 'qqq'" in refused(folder, capsys, ["zona", "qqq"])
    new = Tokenizer.from_file(str(widened(folder, ["zona", "nano"]) / "tokenizer.json"))
    assert (new.token_to_id("zona"), new.token_to_id("nano")) == (7, 8)
    assert ids_of(new, "zonaa") == ids_of(old, "zonaa")


def test_twice_in_a_row_and_by_transformers(source, tmp_path):
    transformers = pytest.importorskip("transformers")
    first = widened(source, WORDS[:4])
    first.rename(tmp_path / "first")
    (tmp_path / "first" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    out = widened(tmp_path / "first", WORDS[4:])
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    for word, i in zip(WORDS, IDS, strict=True):
        assert tokenizer(word)["input_ids"] == [i] and tokenizer.decode([i]) == word
    assert len(tokenizer) == IDS[-1] + 1


# What is refused


def refused(source: Path, capsys, words: list[str] | str) -> str:
    """What the command says of what it must refuse, in one line; it leaves nothing."""
    before = sorted(path.name for path in source.parent.iterdir())
    capsys.readouterr()
    code, out = run(source, words)
    message = capsys.readouterr().err
    assert code == 2 and message.count("\n") == 1 and message.startswith("error: "), message
    assert not out.exists()
    assert sorted({path.name for path in source.parent.iterdir()} - {"words.txt"}) == sorted(
        set(before) - {"words.txt"}
    )
    return message


def test_files_of_tokens_that_are_refused(source, capsys):
    # Broken by: no reading(tokens) in resize_vocab (the folder of the model is named, too).
    assert "'zona' on lines 1, 4; 'kyste' on lines 3, 5" in refused(source, capsys, "zona\n\nkyste\nzona\nkyste\n")
    assert "words.txt has no tokens\n" in refused(source, capsys, "\n  \n")
    assert "never a whole word: 'zona ', ' kyste'" in refused(source, capsys, "zona \n kyste\noui\n")
    (source.parent / "words.txt").write_bytes("zôna".encode("latin-1"))
    assert main(["resize-vocab", str(source), "x", "--tokens", str(source.parent / "words.txt")]) == 2
    assert "words.txt is not UTF-8" in capsys.readouterr().err
    assert main(["resize-vocab", str(source), "x", "--tokens", str(source.parent / "no.txt")]) == 2
    assert "no.txt" in capsys.readouterr().err


def test_lines_end_as_on_any_system(tmp_path):
    (tmp_path / "words.txt").write_bytes("\ufeffzona\r\n\r\nanti TNF\r\nfin\u2028ie".encode())
    assert vocab.read_tokens(tmp_path / "words.txt") == ["zona", "anti TNF", "fin\u2028ie"]


def test_tokens_that_are_one_id_already_are_all_named(source, capsys):
    # Broken by: the first one raised alone; the look after a space left out ("est" is "Ġest").
    message = refused(source, capsys, ["zona", "car", "est", "[MASK]", "Ġes", "[unused0]"])
    assert "already one id in the tokenizer, nothing to add for: 'car', 'est', '[MASK]', 'Ġes', '[unused0]'" in message


def test_tokens_without_known_pieces_are_refused(tmp_path, capsys):
    # Broken by: the row of the unknown token taken.
    folder = written(tmp_path / "source", replace(CONFIG, vocab_size=100))
    word_piece().save(str(folder / "tokenizer.json"))
    assert "knows no piece of 'βγ', '\\u200b'" in refused(folder, capsys, ["βγ", "zona", "\u200b"])


def test_tokens_that_cannot_be_read_back_are_refused(source, capsys):
    # Broken by: no _verify.
    nfd = unicodedata.normalize("NFD", "œdème")
    message = refused(source, capsys, ["zona", "œdème", nfd, "[MASK] x"])
    assert "as one token and write them back" in message
    assert "'[MASK] x'" in message and "zona" not in message and ("'œdème'" in message) != (f"'{nfd}'" in message)


def test_padding_in_the_tokenizer_is_no_piece(source):
    # Broken by: no_padding, or no_truncation, not called.
    padded = Tokenizer.from_str(BYTES.to_str())
    padded.enable_padding(length=30)
    padded.enable_truncation(4)
    expected = widened(source) / from_hf.SINGLE
    bits = expected.read_bytes()
    padded.save(str(source / "tokenizer.json"))
    expected.parent.rename(source.parent / "first")
    assert (widened(source) / from_hf.SINGLE).read_bytes() == bits


def test_sources_that_are_refused(source, capsys):
    # Broken by: parameters() not gone through.
    tensors = load_file(source / from_hf.SINGLE)
    save_file(tensors | {"model.final_norm.weight": np.full(16, np.nan, np.float32)}, source / from_hf.SINGLE)
    assert "not finite: model.final_norm.weight" in refused(source, capsys, WORDS)
    save_file({k: v for k, v in tensors.items() if k != "decoder.bias"}, source / from_hf.SINGLE)
    assert "missing: decoder.bias" in refused(source, capsys, WORDS)
    save_file(tensors, source / from_hf.SINGLE)
    large = json.loads((source / "tokenizer.json").read_text())
    large["model"]["vocab"]["<|large|>"] = 999
    (source / "tokenizer.json").write_text(json.dumps(large))
    assert "the tokenizer has ids up to 999" in refused(source, capsys, WORDS)
    (source / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refused(source, capsys, WORDS)
    (source / "config.json").unlink()
    assert "config.json is missing" in refused(source, capsys, WORDS)


def test_a_failed_write_leaves_the_old_folder(source, monkeypatch, capsys):
    out = widened(source)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    arguments = ["resize-vocab", str(source), str(out), "--tokens", str(source.parent / "words.txt")]
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"error: {out} exists; choose another name or pass --overwrite\n"

    def fail(_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(tensors.np, "ascontiguousarray", fail)
        assert main([*arguments, "--overwrite"]) == 2 and "disk full" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in source.parent.iterdir()) == ["source", "wider", "words.txt"]
    assert main([*arguments, "--overwrite"]) == 0


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL} is not here")
def test_modernberts_own_tokenizer(tmp_path):
    old = Tokenizer.from_file(str(REAL))
    folder = written(tmp_path / "source", replace(CONFIG, vocab_size=50368))
    (folder / "tokenizer.json").write_bytes(REAL.read_bytes())
    words = ["cardiomyopathie", "Épilepsie", "œdème", "β-bloquant", *(f"xqz{i}" for i in range(80))]
    out = widened(folder, words)
    new = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert [new.token_to_id(word) for word in words] == [*range(50285, 50368), 50368]
    assert from_hf.load(out)[0].vocab_size == 50432
    before, after = tensors_of(folder)[TABLE], tensors_of(out)[TABLE]
    assert same_bits(before[:50285], after[:50285]) and not after[50369:].any()
    pieces = ids_of(old, "cardiomyopathie")
    assert same_bits(after[50285], before[pieces].mean(axis=0)) and len(pieces) == 4
    sentence = "L'œdème et la cardiomyopathie (Épilepsie ; β-bloquant) : xqz79."
    assert [i for i in ids_of(new, sentence) if i >= 50285] == [50287, 50285, 50286, 50288, 50368]
    assert new.decode(ids_of(new, sentence)) == sentence
    text = "Les cardiomyopathies, l'œdèmes, and  twice the spaces."
    assert ids_of(new, text) == ids_of(old, text)
