"""The table of readers that `fuzz.py` damages the files of: a small valid input each, and what reads it."""

import csv
import dataclasses
import gzip
import io
import json
import os
import random
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import zstandard

from convert import card, from_hf, release, to_hf, vocab
from cptjax import config
from cptjax.command.signals import Signals
from cptjax.corpus import cleaning, pieces, prepare, report, sources
from cptjax.data import packing
from cptjax.data.store import OWN_HASH, Store
from cptjax.data.tokenizer import Encoder
from cptjax.files import hash_of, read_json, sha256
from cptjax.machine import processes
from cptjax.rows import append_rows
from cptjax.run import checkpoint, events, record
from cptjax.run.checkpoint import parameter_shapes
from cptjax.run.clock import KINDS
from cptjax.shape import ModernBertConfig
from tests.conftest import evaluation_row
from tests.fixtures_text import make_store, make_tokenizer
from tests.fuzz import Reader, damaged_array, damaged_bytes, damaged_lines, damaged_tensors, either

TINY = ModernBertConfig(vocab_size=320, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
TEXTS = [
    "the heart is a muscle that moves the blood through the body as long as it beats",
    "blood vessels",
    "a b c",
    "the heart",
]
RUN = config.load_config(Path(__file__).parent.parent / "configs" / "tiny.py")
NAMED = card.Release(
    "small", "small", "ModernBertForMaskedLM", "float32", ">=4.48", 20, "mit", None, "en", "the [MASK]"
)

# ---- a store


def store(folder: Path) -> None:
    """Four documents, with weights, and what `prepare` writes beside them."""
    make_tokenizer(folder / "t")
    make_store(folder / "s", folder / "t", TEXTS, [1, 2, 1, 0.5], shards=2)
    here = folder / "s"
    np.save(here / "row_N.npy", np.arange(4))
    np.save(here / "file_N.npy", np.zeros(4, np.int32))
    (here / "files.json").write_text(json.dumps({"files": [{"source": 0, "name": "a.txt", "sha256": "0"}]}))
    (here / "dropped.jsonl").write_text('{"where": "a.txt:9", "why": "bad row", "message": "no"}\n' * 2)
    manifest = json.loads((here / "manifest.json").read_text())
    source = dict(name="a", sha256="0", files=1, documents=4, tokens=9, text_bytes=9, words=9, unknown_tokens=0)
    manifest |= {"sources": [source], "dropped": {"bad row": 2, "other_files": 1}}
    manifest |= {"contamination": dict(files=1, texts=1, short=0, documents=1, found={"a": 1})}
    manifest |= {"fields": {"licence": {"mit": {"documents": 4, "tokens": 9}}}}
    (here / "manifest.json").write_text(json.dumps(manifest))
    seal(folder)


def seal(folder: Path) -> None:
    """Hashes that agree with the files as they are, so that no hash finds the damage."""
    path = folder / "s" / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        manifest.pop(OWN_HASH, None)
        known = {file.name for file in (folder / "s").iterdir() if file.suffix in (".npy", ".json", ".jsonl")}
        hashes = {name: sha256(folder / "s" / name) for name in known - {"manifest.json"}}
        if isinstance(manifest.get("sha256"), dict):
            manifest["sha256"] |= hashes
        path.write_text(json.dumps({**manifest, OWN_HASH: hash_of(manifest)}))
    except (ValueError, AttributeError, RecursionError):
        pass  # it is no JSON object any more


def read_store(folder: Path) -> None:
    """All that a run and a report ask of a store."""
    opened = Store(folder / "s")
    everything = range(opened.manifest.documents)
    opened.tokens(everything)
    opened.origins(everything)
    assert len(opened.source_N) == len(everything)
    packing.packing_plan(opened.length_N, 16, 0, opened.weight_N)


def read_plan(folder: Path) -> None:
    """A kept plan, or one made again."""
    opened = Store(folder / "s")
    packing.stored_plan(folder / "s" / "plans", "f", opened.length_N, 16, 0, opened.weight_N)


def stored_plan(folder: Path) -> None:
    """A store and its plan."""
    store(folder)
    read_plan(folder)


def prepared(folder: Path) -> None:
    """The work folder of a `prepare` that was stopped before its shards, and its text."""
    make_tokenizer(folder / "t")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text, "id": text, "n": 1}) + "\n" for text in TEXTS))
    with open(folder / "b.txt", "w") as stream:
        stream.write("more text\n")

    def stop(split: Any, work: Any, items: Any) -> None:
        if not calls:
            calls.append(1)
            for item in items:
                for task in split(item):
                    work(task)
        else:
            raise KeyboardInterrupt

    calls: list[int] = []
    try:
        read_prepared(folder, stop)
    except KeyboardInterrupt:
        pass


def one_by_one(split: Any, work: Any, items: Any) -> None:
    """Work in this process."""
    for item in items:
        for task in split(item):
            work(task)


def read_prepared(folder: Path, engine: Any = one_by_one) -> None:
    """The same command again."""
    reading = pieces.Reading(id_field=None)
    names = [folder / "a.jsonl", folder / "b.txt"]
    prepare.prepare(names, folder / "t", folder / "out", reading=reading, overwrite=True, engine=engine)


# ---- text

ROWS = [{"text": text, "id": str(i), "n": i} for i, text in enumerate(TEXTS)]


def lines() -> bytes:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def table(delimiter: str) -> bytes:
    """Rows with a header."""
    out = io.StringIO()
    writer = csv.DictWriter(out, ["text", "id", "n"], delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue().encode()


def parquet(folder: Path) -> None:
    """The same rows as Parquet."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "a.parquet")


def written(name: str, data: bytes, folder: Path) -> None:
    """One file."""
    (folder / name).write_bytes(data)


def read_text(folder: Path) -> None:
    """Every document with all its fields, as text and as an evaluation file."""
    reading = pieces.Reading(id_field="id", weight_field="n", fields=("n",))
    for file in sources.find(str(folder))[0]:
        for piece in sources.pieces(file, reading):
            found = [piece] if isinstance(piece, pieces.Bad) else sources.documents(file, piece, reading)
            for row in found:
                if isinstance(row, pieces.Bad):
                    raise ValueError(row.message)


def read_plain(folder: Path) -> None:
    """Paragraphs of text."""
    list(sources.read_documents(folder, pieces.Reading(txt_documents="paragraph")))


def read_evaluation(folder: Path) -> None:
    """What must not be trained on."""
    cleaning.read_evaluation([str(folder)])


def read_vocabulary(folder: Path) -> None:
    """Words of a domain."""
    vocab.read_tokens(folder / "words.txt")


# ---- tokenizers


def tokenizer(kind: str, folder: Path) -> None:
    """A tokenizer of each kind, with its settings."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, "the", "heart", "a", "##b", *"bcdefgh"]
    numbered = {word: i for i, word in enumerate(words)}
    if kind == "bpe":
        make_tokenizer(folder / "x")
        (folder / "x" / "tokenizer.json").rename(folder / "tokenizer.json")
    else:
        made: dict[str, Any] = {
            "wordpiece": lambda: models.WordPiece(numbered, unk_token="[UNK]"),
            "wordlevel": lambda: models.WordLevel(numbered, unk_token="[UNK]"),
            "unigram": lambda: models.Unigram([(word, -float(i + 1)) for i, word in enumerate(words)], 1, False),
        }
        found = Tokenizer(made[kind]())
        found.add_special_tokens(special)
        found.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip()])
        found.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits()])
        found.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        found.save(str(folder / "tokenizer.json"))
    settings = {"cls_token": "[CLS]", "sep_token": {"content": "[SEP]"}, "pad_token": "[PAD]", "mask_token": "[MASK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(settings))


def read_tokenizer(folder: Path) -> None:
    """As `prepare` and an export use it."""
    encoder = Encoder(folder)
    encoder.encode(["the heart 12", "", "é[MASK] " * 3])
    to_hf.special_token_ids(folder)


# ---- models and runs


def random_params() -> Any:
    """A model's parameters."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), parameter_shapes(TINY))


def hf(folder: Path, shard_size: str = "5GB") -> None:
    """A Hugging Face folder."""
    tokenizer("bpe", folder)
    to_hf.save(TINY, random_params(), folder / "m", tokenizer=folder, shard_size=shard_size)
    for path in folder.glob("*.json"):
        path.unlink()


def read_hf(folder: Path) -> None:
    """As `from-hf` reads it."""
    weights = from_hf.open_weights(folder / "m")
    from_hf.check_tokenizer(folder / "m", weights.config.vocab_size)
    for _ in weights.parameters():
        pass


def read_resized(folder: Path) -> None:
    """As `resize-vocab` reads it."""
    (folder / "words.txt").write_text("cardiology\n")
    vocab.resize_vocab(folder / "m", folder / "out", folder / "words.txt", overwrite=True)


def started(folder: Path) -> None:
    """A run at step 0."""
    hf(folder)
    from_hf.convert_folder(folder / "m", folder / "run")


def read_started(folder: Path) -> None:
    """Its parameters, checked."""
    _, shape, read = checkpoint.open_params(folder / "run")
    for path, _ in jax.tree_util.tree_leaves_with_path(parameter_shapes(shape)):
        read(checkpoint.path_keys(path))


def read_run_files(folder: Path) -> None:
    """What a run says of itself."""
    checkpoint.read_model(folder / "run")
    record._origin(folder / "run" / checkpoint.ORIGIN)
    to_hf.choose(TINY, read_json(folder / "run" / checkpoint.HF_CONFIG))


def configured(folder: Path) -> None:
    """The config of a run."""
    (folder / "config.json").write_text(json.dumps(config.to_dict(RUN)))


def read_configured(folder: Path) -> None:
    """What a resume asks of it."""
    found = read_json(folder / "config.json")
    changed = config.incompatible_fields(found, config.to_dict(RUN))
    if changed:
        raise ValueError(f"{folder}: {'; '.join(changed)}")


def recorded(folder: Path) -> None:
    """run.json, rows of an evaluation, events."""
    store(folder)
    held = {phase.name: {"loss": 1.5, "accuracy": 0.5} for phase in RUN.phases}
    sums = {
        **dict.fromkeys(KINDS, 1.0),
        "tokens": 9.0,
        "targets": 9.0,
        "overflow": 0.0,
        "joules": 1.0,
        "step_joules": 1.0,
    }
    phases = {phase.name: {**sums, "held_out_before": held, "held_out": held} for phase in RUN.phases}
    spent = {**sums, "device_seconds": 1.0, "metered": True, "evaluated": -1, "skipped": [3], "phases": phases}
    path = str(folder / "s")
    run = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, stores=((path, 1.0),)))
    told: dict[str, Any] = {
        "departures": [{"step": 1, "time": "2026-01-01T00:00:00+00:00", "changed": ["seed"]}],
        "parents": [],
        "epochs": {path: 1.0},
        "tokens": {path: 9.0},
        "fill": {path: 1.0},
        "by_source": {path: [(4, 9, 1.0)]},
    }
    attention = {"backend": "reference", "reason": "asked for", "errors": {"full": {"values": 0.0}}}
    ran = record.describe_run(run, TINY, folder, spent=spent, energy_by="NVML", attention=attention, **told)
    origin = record.Origin("a/b", "c")
    (folder / "run.json").write_text(json.dumps(dataclasses.asdict(dataclasses.replace(ran, origin=origin))))
    append_rows(folder / "rows.jsonl", [evaluation_row(seed=i) for i in range(3)])
    update = {"step": 0, "phase": RUN.phases[0].name, **dict.fromkeys(events.UPDATE, 1.0), "loss": 1.0}
    log = [update, {"step": 1, "phase": RUN.phases[0].name, "held_out": held}]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in log))


PARITY = {
    "worst": {"float32": 1e-7, "bfloat16": 1.0},
    "tolerance": {"float32": 1e-5, "bfloat16": 1.5},
    "judge": "a",
    "candidate": "b",
    "compared_with": "c",
}


def read_card(folder: Path) -> None:
    """The card that a release would have."""
    step = RUN.stretches[-1].last
    found = release.read_record(folder)
    release.check_step(folder, found, step)
    rows = release.evaluation_rows(folder / "rows.jsonl", "small")
    base = release.name_base(found, None)
    card.make_card(dataclasses.replace(NAMED, step=step, base_model=base), found, rows, PARITY, "")


def read_events(folder: Path) -> None:
    """The plot is made of these."""
    events.read_events(folder / "events.jsonl")


# ---- what a user types

TYPED = [
    "nan",
    "inf",
    "-1",
    "0",
    "1e400",
    "9" * 400,
    "",
    "a",
    "\0",
    "\udcff",
    "\x1b[0m",
    "None",
    "a>=1",
    "1:2",
    "[",
    ",",
]


def typed(folder: Path) -> None:
    """A line of words."""
    (folder / "words.json").write_text(json.dumps({"words": ["a", "b"]}))


def damaged_words(rng: random.Random, data: bytes) -> bytes:
    """Other words."""
    words = ["".join(rng.choices(TYPED, k=rng.choice((1, 1, 2)))) for _ in range(4)]
    return json.dumps({"which": rng.randrange(8), "words": words, "field": rng.choice(FIELDS)}).encode()


def _fields(value: Any, name: str) -> list[str]:
    if dataclasses.is_dataclass(value):
        return [x for one in dataclasses.fields(value) for x in _fields(getattr(value, one.name), f"{name}.{one.name}")]
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return [x for i, item in enumerate(value) for x in _fields(item, f"{name}.{i}")]
    return [name.removeprefix(".")]


FIELDS = _fields(RUN, "")


def read_typed(folder: Path) -> None:
    """Each thing that parses words."""
    given = json.loads((folder / "words.json").read_text())
    first, second, *_ = words = [*given["words"], "", ""]
    match given.get("which"):
        case 0:
            cleaning.parse_condition(first)
        case 1:
            cleaning.parse_steps(",".join(words))
        case 2:
            to_hf.parse_size(first)
        case 3:
            sources.find(first)
        case 4:
            names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
            typable = [word.encode("utf-8", "replace").replace(b"\0", b"0") or b"1" for word in words]
            os.environ.update({name: os.fsdecode(word) for name, word in zip(names, typable, strict=False)})
            try:
                jax.distributed.initialize = lambda *_: None
                with processes.joined(Signals()):
                    pass
            finally:
                for name in names:
                    del os.environ[name]
        case 5:
            config.load_config(Path(first))
        case _:
            config.override(RUN, [f"--{given['field']}", first, second][: 3 if len(second) % 2 else 2]) if given.get(
                "field"
            ) else None


SUFFIXES = {
    "jsonl": ("a.jsonl", damaged_lines, lines()),
    "jsonl.gz": ("a.jsonl.gz", damaged_bytes, gzip.compress(lines())),
    "jsonl.zst": ("a.jsonl.zst", damaged_bytes, zstandard.compress(lines())),
    "csv": ("a.csv", damaged_bytes, table(",")),
    "tsv": ("a.tsv", damaged_bytes, table("\t")),
    "csv.gz": ("a.csv.gz", damaged_bytes, gzip.compress(table(","))),
    "json": ("a.json", either, json.dumps(ROWS).encode()),
}
ANYTHING = ("",)  # a word names no file

READERS = [
    Reader("manifest", "s/manifest.json", either, store, read_store),
    Reader("manifest, sealed", "s/manifest.json", either, store, read_store, seal, 12),
    Reader("arrays", "s/*.npy", damaged_array, store, read_store, None, 1),
    Reader("arrays, sealed", "s/*.npy", damaged_array, store, read_store, seal, 12, ("/s",)),
    Reader("shards", "s/*.array_record", damaged_bytes, store, read_store, None, 12),
    Reader("files, sealed", "s/files.json", either, store, read_store, seal),
    Reader("dropped, sealed", "s/dropped.jsonl", damaged_lines, store, lambda f: report.data_report(f / "s"), seal, 1),
    Reader("report, sealed", "s/manifest.json", either, store, lambda f: report.data_report(f / "s"), seal, 2),
    Reader("plan", "s/plans/*/*", damaged_array, stored_plan, read_plan, None, 4),
    Reader("work", ".out.work/**/*", damaged_bytes, prepared, read_prepared, None, 2),
    Reader("work json", ".out.work/**/*.json", either, prepared, read_prepared, None, 2),
    *(
        Reader(f"tokenizer {kind}", "tokenizer.json", either, partial(tokenizer, kind), read_tokenizer, None, 12)
        for kind in ("bpe", "wordpiece", "wordlevel", "unigram")
    ),
    Reader("tokenizer settings", "*o*_*.json", either, partial(tokenizer, "wordpiece"), read_tokenizer, None, 6),
    Reader("hf config", "m/config.json", either, hf, read_hf, None, 8),
    Reader("hf weights", "m/model.safetensors", damaged_tensors, hf, read_hf, None, 6),
    Reader("hf index", "m/model.safetensors.index.json", either, partial(hf, shard_size="5KB"), read_hf, None, 2),
    Reader("hf resized", "m/*.json", either, hf, read_resized, None, 2),
    Reader("run files", "run/*.json", either, started, read_run_files, None, 8),
    Reader("checkpoint", "run/checkpoints/**/*", damaged_bytes, started, read_started, None, 1),
    Reader("checkpoint facts", "run/checkpoints/0/meta/metadata", either, started, read_started, None, 1),
    Reader("run config", "config.json", either, configured, read_configured, None, 6),
    Reader("run.json", "run.json", either, recorded, read_card, None, 12, ("--base-model",)),
    Reader("rows", "rows.jsonl", damaged_lines, recorded, read_card, None, 4),
    Reader("events", "events.jsonl", damaged_lines, recorded, read_events, None, 4),
    *(
        Reader(f"text {name}", file, damage, partial(written, file, data), read_text, None, 6)
        for name, (file, damage, data) in SUFFIXES.items()
    ),
    Reader("text parquet", "a.parquet", damaged_bytes, parquet, read_text, None, 6),
    Reader("text txt", "a.txt", damaged_bytes, partial(written, "a.txt", b"a b\n\nc\n" * 9), read_plain),
    *(
        Reader(f"evaluation {name}", file, damage, partial(written, file, data), read_evaluation, None, 2)
        for name, (file, damage, data) in SUFFIXES.items()
    ),
    Reader(
        "evaluation deep",
        "a.json",
        either,
        partial(written, "a.json", json.dumps({"a": TEXTS}).encode()),
        read_evaluation,
        None,
        2,
    ),
    Reader("evaluation parquet", "a.parquet", damaged_bytes, parquet, read_evaluation, None, 2),
    Reader(
        "words", "words.txt", damaged_bytes, partial(written, "words.txt", b"heart\nblood\n"), read_vocabulary, None, 2
    ),
    Reader("typed", "words.json", damaged_words, typed, read_typed, None, 6, ANYTHING),
]
