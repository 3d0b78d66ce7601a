"""What transformers 4 and 5 read from our folders: the ids that a model was trained with, its scores, or nothing."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from packaging.specifiers import SpecifierSet
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from convert import from_hf, portable, table, to_hf
from convert.__main__ import main
from convert.families import family_of
from cptjax.data.tokenizer import Encoder, load_tokenizer
from cptjax.shape import FULL, SLIDING, ModernBertConfig
from tests.convert.forms import FIRST, formed, random_params
from tests.data.test_tokenizer import FAMILIES, named

ROOT = Path(__file__).parents[2]
OLD = ("4.48", "4.57")  # installed into ROOT/.transformers by tests/transformers-VERSION.txt
SHAPE = ModernBertConfig(
    vocab_size=288,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=4,
    num_attention_heads=2,
    local_attention=8,
    global_rope_theta=50.0,  # small bases, so that an exchange shows
    local_rope_theta=7.0,
    max_position_embeddings=128,
)
LONGER = {"max_position_embeddings": 48}  # of what the other transformers are asked
ONE_BASE = replace(SHAPE, local_rope_theta=50.0)
ODD = (FULL, FULL, SLIDING, FULL)  # no period
MASKED, DECODER = "ModernBertForMaskedLM", "ModernBertDecoderForCausalLM"
SHAPES = {
    "every third": (SHAPE, MASKED),
    "every second": (replace(SHAPE, layer_types=(FULL, SLIDING) * 2), MASKED),
    "all": (replace(SHAPE, layer_types=(FULL,) * 4), MASKED),
    "the first": (replace(SHAPE, layer_types=(FULL, *(SLIDING,) * 3)), MASKED),
    "odd": (replace(SHAPE, layer_types=ODD), MASKED),
    "none": (replace(SHAPE, layer_types=(SLIDING,) * 4), MASKED),
    "untied": (replace(SHAPE, tie_word_embeddings=False, norm_bias=True, attention_bias=True, mlp_bias=True), MASKED),
    "bare": (SHAPE, "ModernBertModel"),
    "texts": (SHAPE, "ModernBertForSequenceClassification"),
    "tokens": (SHAPE, "ModernBertForTokenClassification"),
    "answers": (SHAPE, "ModernBertForQuestionAnswering"),
    "decoder": (SHAPE, DECODER),
    "decoder of one base": (replace(ONE_BASE, layer_types=ODD), DECODER),
    **{
        f"{config.model_type} {form.stands} {form.mask_mode}": (replace(config, vocab_size=288, **LONGER), name)
        for name, config in FIRST.items()
        if (form := table.ARCHITECTURES[name]).shape_type != "modernbert"
    },
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [*portable.PROBE[:-1], "Un Épilepsie, ÉPILEPSIE et anti-TNF", "kyste-X y", "word " * 200]
SECRET = "hf_NOTFORYOU"


def byte_level(*, space: bool) -> Tokenizer:
    """As ModernBERT's; with `space`, as RoBERTa's, which puts a space in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    found = Tokenizer(models.BPE({letter: i for i, letter in enumerate([*SPECIAL, *alphabet])}, []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens([*SPECIAL[:4], AddedToken("[MASK]", lstrip=True, special=True, normalized=False)])
    return found


def word_piece(*, lower: bool) -> Tokenizer:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789é.,-"
    pieces = [*SPECIAL, *(mark + letter for letter in letters for mark in ("", "##"))]
    found = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    found.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=lower)
    found.pre_tokenizer, found.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    found.add_special_tokens(SPECIAL)
    return found


def unigram() -> Tokenizer:
    letters = "▁abcdefghijklmnopqrstuvwxyz,.[]<>/"
    found = Tokenizer(models.Unigram([*((x, 0.0) for x in SPECIAL), *((x, -2.0) for x in letters)], unk_id=1))
    found.normalizer = normalizers.NFKC()
    found.pre_tokenizer, found.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return found  # its special tokens are in the vocabulary only


NAMED = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
WORD = {"content": "Épilepsie", "single_word": True, "normalized": True}
TOKENIZERS = {  # and what the source's tokenizer_config.json says beside NAMED
    "space": (byte_level(space=True), {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "no space": (byte_level(space=False), {"add_prefix_space": True, "clean_up_tokenization_spaces": True}),
    "adds an end": (byte_level(space=False), {"tokenizer_class": "LlamaTokenizerFast", "add_eos_token": True}),
    "of 5": (byte_level(space=False), {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["[MASK]"]}),
    "cased": (word_piece(lower=False), {"tokenizer_class": "BertTokenizer"}),
    "uncased": (word_piece(lower=True), {"tokenizer_class": "BertTokenizer", "do_lower_case": False}),
    "in the vocabulary": (unigram(), {"tokenizer_class": "XLMRobertaTokenizer"}),
    "added beside": (word_piece(lower=False), {"added_tokens_decoder": {"137": WORD}}),
}


def write_source(folder: Path, tokenizer: Tokenizer, settings: dict) -> Path:
    """A tokenizer as its maker left it."""
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    maker = {"name_or_path": f"/home/{SECRET}", "auth_token": SECRET, "tokenizer_file": f"/home/{SECRET}/x"}
    settings = {"model_max_length": 512, **NAMED, **maker, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps({"note": SECRET}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """What to-hf and resize-vocab write, by name; the sources of its tokenizers are beside it, under `sources`."""
    top = tmp_path_factory.mktemp("portable")
    shapes = SHAPES | {name: (SHAPE, MASKED) for name in TOKENIZERS}
    for name, (shape, architecture) in shapes.items():
        config = formed(shape, architecture)
        given = TOKENIZERS.get(name)
        tokenizer = write_source(top / "sources" / name, *given) if given else None
        ids = {f"{role}_token_id": i for role, i in (("pad", 0), ("cls", 2), ("bos", 2), ("sep", 3), ("eos", 3))}
        raw = {
            "model_type": table.ARCHITECTURES[architecture].model_type,
            **ids,
            "hub_token": SECRET,
            "_name_or_path": SECRET,
        }
        to_hf.save(
            config, random_params(config), top / name, architecture=architecture, hf_config=raw, tokenizer=tokenizer
        )
    (top / "words.txt").write_text("Épilepsie\nanti-TNF\nkyste\n")
    assert main(["resize-vocab", str(top / "uncased"), str(top / "resized"), "--tokens", str(top / "words.txt")]) == 0
    return {name: top / name for name in (*shapes, "resized")}


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> dict[str, Path]:
    """What to-hf writes of other families' tokenizers, by name, each beside its source; no weights."""
    top = tmp_path_factory.mktemp("families")
    for name, (make, _, _) in FAMILIES.items():
        (source := top / "sources" / name).mkdir(parents=True)
        make().save(str(source / "tokenizer.json"))
        (source / "tokenizer_config.json").write_text(json.dumps(named(make())))
        (top / name).mkdir()
        model_type = "bert" if name.startswith("BERT") else "roberta"
        (top / name / "config.json").write_text(json.dumps({"model_type": model_type}))
        to_hf.write_tokenizer(source, top / name)
    return {name: top / name for name in FAMILIES}


def read_by(version: str | None, folders: dict[str, Path]) -> dict:
    """What a version of transformers makes of folders; None: the one that is installed, which is here already."""
    asked = {"folders": {name: str(folder) for name, folder in folders.items()}, "texts": TEXTS}
    if version is None:
        from tests.convert.read_by_transformers import told

        return told(**asked)
    command = [sys.executable, str(ROOT / "tests" / "convert" / "read_by_transformers.py")]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment = os.environ | offline | {"PYTHONPATH": str(ROOT / ".transformers" / version)}
    done = subprocess.run(command, input=json.dumps(asked), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["version"].startswith(version)
    return found


@pytest.fixture(scope="module")
def now(folders, families) -> dict:
    """What the installed transformers reads."""
    return read_by(None, folders | families)


@pytest.fixture(scope="module", params=[None, *OLD], ids=["installed", *OLD])
def told(request, folders, families, now) -> dict:
    """What each version reads."""
    if request.param is None:
        return now
    if not (ROOT / ".transformers" / request.param).is_dir():
        missing = f".transformers/{request.param} is not there: docs/contributing.md says how to install it"
        assert "OLD_TRANSFORMERS_NEEDED" not in os.environ, missing
        pytest.skip(missing)
    return read_by(request.param, folders | families)


def test_every_version_gives_the_ids_that_the_model_was_trained_with(folders, told):
    # Broken by: tokenizer_class, clean_up_tokenization_spaces or add_prefix_space of the source; copy_tokenizer.
    for name in (*TOKENIZERS, "resized"):
        read = told["read"][name]
        source = folders[name].parent / "sources" / name
        encoder = Encoder(source if source.is_dir() else folders[name])
        ids = [encoder.tokenizer.encode(text).ids for text in TEXTS]
        assert read["ids"] == ids, name
        plain = [i for i, text in enumerate(TEXTS) if not any(token in text for token in ("[MASK]", "<mask>"))]
        trained = encoder.encode([TEXTS[i] for i in plain])
        assert [read["ids"][i] for i in plain] == [token_L.tolist() for token_L in trained], name
        assert read["decoded"] == [encoder.tokenizer.decode(x, skip_special_tokens=False) for x in ids], name
        assert (read["names"], read["mask"], read["length"]) == (["attention_mask", "input_ids"], 4, 512), name


def test_every_version_reads_the_tokenizers_of_other_families(families, told):
    # Broken by: "bert" as another type in portable._inputs; token types for all; the tokenizer_class of the source.
    for name, folder in families.items():
        read, source = told["read"][name], load_tokenizer(folder.parent / "sources" / name)
        encoded = [source.encode(text) for text in TEXTS]
        assert read["ids"] == [text.ids for text in encoded], name
        assert read["decoded"] == [source.decode(text.ids, skip_special_tokens=False) for text in encoded], name
        pair = source.encode(TEXTS[0], TEXTS[0])
        assert read["types"] == (pair.type_ids if name.startswith("BERT") else None), name
        assert read["mask"] == FAMILIES[name][2][3], name


@pytest.mark.parametrize(
    ("names", "has"), [(["input_ids", "attention_mask"], False), (["input_ids", "token_type_ids"], True), (7, True)]
)
def test_a_bert_whose_source_gives_no_token_types_has_none(tmp_path, names, has):
    # Broken by: model_input_names of the source not looked at.
    source = write_source(tmp_path / "source", word_piece(lower=False), {"model_input_names": names})
    portable.write_tokenizer(source, tmp_path / "out", "bert")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_input_names"]
    assert ("token_type_ids" in written) == has


def test_every_version_gives_the_same_scores_or_none(folders, told, now):
    # Broken by: each field of fields_of_4 left out; a version number of `versions` lower.
    readable = 0
    for name, folder in folders.items():
        needed = SpecifierSet(json.loads((folder / "config.json").read_text())[portable.REQUIRES])
        found, expected = told["read"][name]["scores"], np.array(now["read"][name]["scores"])
        assert expected.dtype == np.float64, expected
        if told["version"] in needed:
            np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0, err_msg=name)
            readable += 1
        else:
            assert isinstance(found, str) and "Error" in found, name
    assert readable >= 15


def test_each_class_says_which_versions_read_it():
    said = {name: family_of(given[1]).versions(formed(*given), given[1]) for name, given in SHAPES.items()}
    assert said == {
        **dict.fromkeys(
            ("every third", "every second", "the first", "untied", "bare", "texts", "tokens"), ">=4.48,!=4.54.*"
        ),
        "all": ">=4.48",
        "answers": ">=4.51,!=4.54.*",
        **dict.fromkeys(("odd", "none"), ">=5.1"),
        "decoder": ">=5",
        "decoder of one base": ">=4.54",
        **{name: ">=4.48" for name, (shape, _) in SHAPES.items() if shape.model_type != "modernbert"},
    }


@pytest.mark.parametrize("name", SHAPES)
def test_what_we_write_we_read(folders, name):
    shape, architecture = SHAPES[name]
    assert from_hf.load(folders[name])[0] == formed(shape, architecture)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"global_rope_theta": 51.0}, "global_rope_theta and"),
        (
            {"local_rope_theta": 8.0, "global_attn_every_n_layers": 2},
            "local_rope_theta, global_attn_every_n_layers and",
        ),
        ({"layer_types": list(ODD)}, "global_attn_every_n_layers and"),
    ],
)
def test_a_config_of_two_models_is_refused(folders, changes, named):
    raw = json.loads((folders["every third"] / "config.json").read_text())
    assert from_hf.read_config(raw | {"global_rope_theta": 50}) == SHAPE
    with pytest.raises(ValueError, match=f"config.json: {named} layer_types or rope_parameters contradict each other"):
        from_hf.read_config(raw | changes)
    short = replace(SHAPE, num_hidden_layers=2, layer_types=())
    few = raw | {"num_hidden_layers": 2, "layer_types": [FULL, SLIDING]}
    assert from_hf.read_config(few) == short  # a period longer than the model


def test_nothing_of_the_maker_is_in_any_file(folders):
    # Broken by: all fields of `raw` kept in known_fields.
    for folder in folders.values():
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert not [name for name, content in files.items() if SECRET.encode() in content]
        assert files.keys() <= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_what_is_left_out_is_said_by_name(tmp_path, capsys):
    # Broken by: no _tell in convert.command; the values of fields printed; a field of another type kept.
    source = write_source(tmp_path / "hf", byte_level(space=False), {"do_lower_case": True, "model_max_length": SECRET})
    raw = {"model_type": "modernbert", "hub_token": SECRET, "initializer_range": SECRET, "sparse_prediction": True}
    notes = to_hf.save(SHAPE, random_params(SHAPE), tmp_path / "a", hf_config=raw, tokenizer=source)
    names = "auth_token, do_lower_case, model_max_length, name_or_path, tokenizer_file, special_tokens_map.json"
    assert notes == [
        "left out of the config: hub_token, initializer_range",
        f"left out of the tokenizer: {names}",
    ]
    assert json.loads((tmp_path / "a" / "config.json").read_text())["sparse_prediction"] is True
    made = json.loads((tmp_path / "a" / "config.json").read_text()) | {"trained\x1bby": SECRET}
    (tmp_path / "a" / "config.json").write_text(json.dumps(made))
    assert main(["from-hf", str(tmp_path / "a"), str(tmp_path / "run")]) == 0
    assert main(["to-hf", str(tmp_path / "run"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().err == "note: left out of the config: trained\\x1bby\n"


def test_a_tokenizer_that_transformers_reads_otherwise_is_refused(tmp_path, monkeypatch):
    # Broken by: no check_ids in to_hf.write_tokenizer.
    source = write_source(tmp_path / "source", word_piece(lower=False), {})
    right = portable._settings

    def wrong(*given):
        return right(*given) | {"split_special_tokens": True}

    monkeypatch.setattr(portable, "_settings", wrong)
    with pytest.raises(ValueError, match=r"transformers does not give '\[MASK\] .* the ids of tokenizer.json"):
        to_hf.save(SHAPE, random_params(SHAPE), tmp_path / "out", tokenizer=source)
    assert not (tmp_path / "out").exists()


def test_words_that_versions_decode_differently_are_said(tmp_path):
    # Broken by: old_spellings empty.
    made = word_piece(lower=True)
    made.add_tokens([AddedToken("Zona", normalized=True), AddedToken("kyste", normalized=True)])
    notes = to_hf.save(SHAPE, random_params(SHAPE), tmp_path / "out", tokenizer=write_source(tmp_path / "s", made, {}))
    assert notes[-1] == "transformers 4 decodes these as they are listed, 5 as the normaliser leaves them: ['Zona']"
    assert load_tokenizer(tmp_path / "out").decode([made.token_to_id("Zona")]) == "zona"
