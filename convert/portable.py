"""Config and tokenizer files that transformers reads alike, from 4.48 to 5, and nothing that it does not read.

What a family says in its own words is in its file. Tokenizer classes change what tokenizer.json says (lower case, a
space in front, tokens at the ends), differently by version: so tokenizer_config.json names the one class that changes
nothing. Of a source's own files only known fields come along, so no path, token or address of its maker does.
"""

import re
import reprlib
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tokenizers
from typing_extensions import TypedDict

from cptjax.data.tokenizer import LISTS, ROLES, load_tokenizer, special_tokens
from cptjax.files import TOKENIZER_FILES, read_json, write_json

REQUIRES = "requires_transformers"  # config.json's field for a family's `versions`, for people: no version reads it
TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"

# ---- config.json

# What config.json says of any model, and what is said anew for each export, beside a family's own.
LABELS = ("id2label", "label2id", "problem_type")
ANEW = {"architectures", "model_type", "dtype", "torch_dtype", "transformers_version", REQUIRES}


Id = Annotated[int, pydantic.Field(ge=0)]
Dtype = Literal["float32", "float16", "bfloat16", "float64"]
Layer = Literal["full_attention", "sliding_attention"]


def _numbered(label_of: dict[str, str]) -> dict[str, str]:
    if label_of.keys() != {str(i) for i in range(len(label_of))}:
        raise ValueError(f"its keys must be the numbers from 0 to {len(label_of) - 1}")
    return label_of


class Said(TypedDict, total=False):
    """What config.json may say beside the numbers of `bounds`, where it says it; transformers tells less of it."""

    id2label: Annotated[dict[str, str], pydantic.AfterValidator(_numbered)] | None
    label2id: dict[str, Id] | None
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None
    per_layer_config: None
    dtype: Dtype | None
    torch_dtype: Dtype | None
    layer_types: Annotated[list[Layer], pydantic.Field(min_length=1)] | None
    rope_parameters: dict[Layer, dict[str, Any]] | None
    rope_scaling: dict[str, Any] | None
    pad_token_id: Id | None
    bos_token_id: Id | None
    eos_token_id: Id | list[Id] | None
    cls_token_id: Id | None
    sep_token_id: Id | None
    deterministic_flash_attn: bool


SAID = pydantic.TypeAdapter(Said)


def complaints(raw: dict[str, Any]) -> list[str]:
    """What is wrong with these fields of a config.json: each, its value and what would be right."""
    try:
        SAID.validate_python(raw, strict=True)
    except pydantic.ValidationError as error:
        wrong = {_field(problem["loc"]): problem for problem in reversed(error.errors(include_url=False))}
        return [
            f"{name} is {reprlib.repr(problem['input'])}: {_in_words(problem['msg'])}"
            for name, problem in reversed(wrong.items())
        ]
    return []


def _in_words(said: str) -> str:
    said = said.removeprefix("Value error, ").replace("Input should be a valid dictionary", "it must be an object")
    return said.replace("Input should be", "it must be").replace("be None", "be null")


def _field(place: tuple[int | str, ...]) -> str:
    """A field's dotted name; pydantic's names of the kinds that it might have been are left out."""
    return reprlib.repr(".".join(str(part) for part in place if not re.search(r"constrained-|\[", str(part))))[1:-1]


def known_fields(raw: dict[str, Any], kind: Any, anew: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """The fields of a source's config.json that the config class `kind` has, each of its type there; and the names
    of the others, but those that are said `anew`, as those of ANEW are."""
    usual = vars(kind())
    names = {*LABELS, "mask_token_id", *kind.__annotations__} - {*ANEW, *anew}
    kept = {name: value for name, value in raw.items() if name in names and _fits(name, value, usual.get(name))}
    return kept, sorted(raw.keys() - kept.keys() - {*ANEW, *anew})


def _fits(name: str, value: Any, usual: Any) -> bool:
    if name.endswith("_token_id"):
        return value is None or all(type(i) is int for i in (value if isinstance(value, list) else [value]))
    if name in LABELS:
        return isinstance(value, str if name == "problem_type" else dict)
    numbers = (int, float)
    return type(value) is type(usual) or (type(value) in numbers and type(usual) in numbers)


# ---- the tokenizer

SIDES = ("left", "right")
KEPT = {  # of a source's tokenizer_config.json, if it is this
    "model_max_length": lambda value: type(value) is int and value > 0,
    "padding_side": lambda value: value in SIDES,
    "truncation_side": lambda value: value in SIDES,
    "clean_up_tokenization_spaces": lambda value: type(value) is bool,
}
PARTS = {
    *("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"),
    "model",
}  # of tokenizer.json


def write_tokenizer(source: Path, out: Path, model_type: str) -> list[str]:
    """Write the tokenizer of a folder to `out`: tokenizer.json, with every token that other files add, and our
    tokenizer_config.json for a model of this type. Returns the names of what is left out."""
    out.mkdir(exist_ok=True)
    tokenizer, raw = load_tokenizer(source), read_json(source / TOKENIZER)
    if raw.keys() <= PARTS and _added(tokenizer) == _added(tokenizers.Tokenizer.from_file(str(source / TOKENIZER))):
        shutil.copyfile(source / TOKENIZER, out / TOKENIZER)
    else:
        tokenizer.save(str(out / TOKENIZER))
    given = read_json(source / SETTINGS) if (source / SETTINGS).is_file() else {}
    settings = _settings(source, tokenizer, given, model_type)
    write_json(out / SETTINGS, settings)
    said = {*settings, *LISTS, "added_tokens_decoder"}
    files = [name for name in TOKENIZER_FILES if (source / name).is_file() and name not in (TOKENIZER, SETTINGS)]
    return [*sorted(given.keys() - said), *files, *sorted(raw.keys() - PARTS)]


def _added(tokenizer: tokenizers.Tokenizer) -> list[str]:
    return [repr(entry) for entry in tokenizer.get_added_tokens_decoder().items()]


def _settings(source: Path, tokenizer: tokenizers.Tokenizer, given: dict[str, Any], model_type: str) -> dict[str, Any]:
    special = special_tokens(source, tokenizer)
    ids = {f"{role}_token": getattr(special, role) for role in ROLES}
    named = {name: tokenizer.id_to_token(i) for name, i in ids.items() if i is not None}
    more = [tokenizer.id_to_token(i) for i in special.all if i not in ids.values()]
    kept = {name: given[name] for name, good in KEPT.items() if good(given.get(name))}
    if isinstance(tokenizer.model, tokenizers.models.BPE):  # version 5 does not, version 4 would
        kept["clean_up_tokenization_spaces"] = False
    space = getattr(tokenizer.pre_tokenizer, "add_prefix_space", None)  # version 4 sets it to what is said here
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": _inputs(given, model_type),
        **({} if space is None else {"add_prefix_space": space}),
        **kept,
        **named,
        **({LISTS[0]: more} if more else {}),
    }


def _inputs(given: dict[str, Any], model_type: str) -> list[str]:
    """What a model takes of a text. A BERT takes token types too, which tell the texts of a pair apart, unless its
    source gives none; ModernBERT refuses them, and RoBERTa has one type alone."""
    names = given.get("model_input_names")
    typed = model_type == "bert" and not (isinstance(names, list) and "token_type_ids" not in names)
    return ["input_ids", *(["token_type_ids"] if typed else []), "attention_mask"]


PROBE = (
    "The patient was given aspirin 75 mg/day, and went home.",
    "L'hémoglobine était à 9,8 g/dL ; œdème aigu du poumon, SpO₂ 88 % (β-bloquant arrêté).",
    "  Two  spaces,\ta tab,\n a line.\n\n\nThree lines.\r\n ",
    "ÉCOLE École école ECOLE cafe\u0301 café ﬁn ＡＢＣ ½ ﬀ İstanbul ß ẞ",
    "don't they're I'M it ' s a . b , c ! d ? e n't",
    "0 007 1234567890 3.14159 1e-5 10,000 IL-6 COVID-19 C++ a_b",
    "😀👩🏽‍⚕️🇫🇷 ❤️ ⟨x⟩ → ≥ µ μ",
    "心臓 사람 Привет مرحبا हृदय ไทย",
    "<b>&amp;</b> https://example.org/a?b=c#d mail@example.org {x: [1]} ```code```",
    "\u200b\u00a0\u2028\ufeff\u00adsoft\u0007",
    "a",
    " a",
    "",
    " ",
    "[MASK] a[MASK] [SEP]b [CLS][PAD] [UNK]",
    "<mask> a<mask> </s>b <s><pad> <unk>",
    "word " * 600,
)


def check_ids(folder: Path) -> None:
    """Raise ValueError unless the installed transformers gives the texts of PROBE, and the tokenizer's own added words
    in several places, the ids of tokenizer.json, and writes them back alike."""
    from transformers import AutoTokenizer

    ours = load_tokenizer(folder)
    try:
        theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many types
        raise ValueError(f"transformers does not read the tokenizer: {' '.join(str(error).split())}") from error
    for text in _probes(ours):
        ids, their_ids = ours.encode(text).ids, theirs(text, verbose=False)["input_ids"]
        if ids != their_ids:
            raise ValueError(
                f"transformers does not give {text[:60]!r} the ids of tokenizer.json: {their_ids} for {ids}"
            )
        written = ours.decode(ids, skip_special_tokens=False)
        read = theirs.decode(ids, clean_up_tokenization_spaces=False)
        if written != read:
            raise ValueError(f"transformers does not write {text[:60]!r} as the tokenizer does: {read!r}, {written!r}")


def _probes(tokenizer: tokenizers.Tokenizer) -> Iterator[str]:
    yield from PROBE
    for token in tokenizer.get_added_tokens_decoder().values():
        yield from (token.content, f"a {token.content} b", f"x{token.content}y", token.content.upper())


def old_spellings(folder: Path) -> list[str]:
    """Added words of a folder's tokenizer that transformers 4 decodes as they are listed, and 5 as the normaliser
    leaves them."""
    if not (folder / TOKENIZER).is_file():
        return []
    tokenizer = load_tokenizer(folder)
    normalizer = tokenizer.normalizer
    added = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items() if token.normalized}
    changed = {i: word for i, word in added.items() if normalizer and normalizer.normalize_str(word) != word}
    return [word for i, word in changed.items() if tokenizer.decode([i]) != word]
