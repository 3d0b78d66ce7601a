"""The whole story on one machine in minutes, through the same commands a user types.

Text of our own grammar (or the user's) -> tokenizer and a small base encoder -> Hugging Face folder (or the user's);
then the real pipeline on that folder: from-hf, prepare, CLM detour, masked decay, to-hf, parity; what
it changed: held-out loss and masked-token accuracy, and the blanks of a few sentences; and, on our own text, what it
is worth: entities found by the start, the adapted model and a twin that was adapted without the detour.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from cptjax.command.escape import say
from cptjax.corpus.sources import Reading, read_documents
from cptjax.data.store import Store
from cptjax.data.tokenizer import load_tokenizer, special_tokens
from cptjax.demo import grammar, task
from cptjax.families import encoder
from cptjax.files import read_json, write_json, written
from cptjax.model import encode
from cptjax.run import checkpoint
from cptjax.run.events import read_events
from cptjax.shape import Precision

MARK = "demo.json"  # in a demo's folder: what was asked for
DOCUMENTS: dict[grammar.Domain, int] = {"general": 8000, "clinical": 6000}
VOCABULARY = 4096
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
PEAK = 2e-4  # learning rate for the user's own encoder: the paper's
HELD_OUT = 0.04  # share of the documents
FEW = 300  # documents: below it, text is cut by lines rather than paragraphs, and more is held out
# With a twin, and all in five minutes: tokens of the CLM detour and the decay, fewer than in configs/tiny.py.
BRIEF = ("--phases.0.tokens", 250_000, "--phases.1.tokens", 200_000)
SEEDS = 3  # of each fine-tuning
CHANGES = ("steps=20", "evaluate_every=20", "texts_per_step=8")  # in the protocol of a fine-tuning
RATE = 1e-3  # learning rate of it for the demo's encoder, which is small
TOLD = 3.0  # seconds after Ctrl-C in which a command that the terminal told of it, too, has ended, or saves
PROBES = 5  # sentences of the user's own held-out text in which a word is guessed


def demo(folder: Path, text: Sequence[Path], init: str | None = None) -> None:
    """Run everything under `folder` and print what came of it. The same demo goes on where it was interrupted, any
    other one is made anew.

    Raises ValueError when `folder` exists and is not an earlier demo, CalledProcessError when a step fails.
    """
    began = time.perf_counter()
    asked = {"workdir": str(folder), "text": [str(path) for path in text], "init": init}
    _check(folder, text, init)
    mark = folder / MARK
    if mark.exists() and read_json(mark) == asked:
        say(f"goes on with the demo that was interrupted in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(mark, asked)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))  # the twin has programs of the adapted
    _make(folder / "text", partial(own_text, text) if text else write_text)
    sources = {domain: folder / "text" / ("own.jsonl" if text else f"{domain}.jsonl") for domain in DOCUMENTS}
    start, store, models = folder / "start", folder / "store_clinical", folder / "models"
    source = init or base_encoder(sources, folder, models / "start")
    _head("the pipeline: Hugging Face folder and text -> CLM detour -> masked decay -> Hugging Face folder")
    _run("convert", "from-hf", source, start, makes=start)
    _prepare(sources["clinical"], start / checkpoint.TOKENIZER, store)
    rates = ("--phases.0.schedule.peak", PEAK, "--phases.1.schedule.peak", PEAK) if init else ()
    adapting = (store, "--init", start, *rates, *(() if text else BRIEF))
    _train("configs/tiny.py", folder / "adapted", *adapting)
    _export(folder / "adapted", models / "adapted")
    _run("convert", "parity", models / "adapted", folder / "adapted")

    _head("what it changed")
    say(table(read_events(folder / "adapted" / "events.jsonl")))
    questions = own_questions(store, start / checkpoint.TOKENIZER) if text else grammar.PROBES
    say(probes(questions, start, folder / "adapted"))
    if not text:
        _head("the matched baseline: all the same, but masked language modelling instead of the CLM detour")
        _train("configs/tiny.py", folder / "twin", *adapting, "--mlm-twin")
        _export(folder / "twin", models / "twin")
        if init:
            _export(start, models / "start")
        score(folder, [models / name for name in ("start", "adapted", "twin")], PEAK if init else RATE)
    write_json(mark, {**asked, "finished": True})
    seconds = time.perf_counter() - began
    say(f"\n{seconds:.0f} s in all; plot: {folder / 'adapted' / 'plot.png'}; model: {models / 'adapted'}")


def _check(folder: Path, text: Sequence[Path], init: str | None) -> None:
    if folder.exists() and not (folder / MARK).exists():
        raise ValueError(f"{folder} exists and is not an earlier demo: choose another --workdir")
    for path in text:
        if not path.exists():
            raise FileNotFoundError(f"no text {path}")
    if "," in str(folder):
        raise ValueError(f"{folder} has a comma, which stands between models: choose another --workdir")
    for path in (*text, *map(Path, [init] if init else [])):
        if path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{path} lies in {folder}, which the demo makes anew: choose another --workdir")


def _make(path: Path, make: Callable[[Path], object]) -> None:
    """Have `make` write this folder, unless it did before."""
    if not path.exists():
        with written(path) as whole:
            make(whole)


def score(folder: Path, models: Sequence[Path], rate: float) -> None:
    """Fine-tune each model with three seeds to find diagnoses and drugs, and print how well each does."""
    _head("what it is worth: diagnoses and drugs found in new notes, half of them with names that no training note has")
    notes, rows = folder / "task", folder / "rows.jsonl"
    _make(notes, task.write_task)
    among = ("--model", ",".join(map(str, models)), "--task", f"demo={notes}", "--seeds", SEEDS, "--out", rows)
    _run("eval", "run", *among, "--protocol", "cpu", "--change", *CHANGES, f"learning_rate={rate}")
    _run("eval", "table", rows)


def base_encoder(sources: dict[str, Path], folder: Path, out: Path) -> Path:
    """Train a tokenizer, and on general text a small encoder; returns `out`, its Hugging Face folder."""
    own_tokenizer, store = folder / "tokenizer", folder / "store_general"
    _head("text -> token store, with a tokenizer trained on it")
    _make(own_tokenizer, partial(train_tokenizer, _texts(sources)))
    _prepare(sources["general"], own_tokenizer, store)
    _head("a small base encoder, by masked language modelling")
    vocab_size = -(-load_tokenizer(own_tokenizer).get_vocab_size() // 64) * 64
    _train("configs/tiny_base.py", folder / "base", store, "--model.vocab-size", vocab_size)
    _export(folder / "base", out)
    return out


def _head(what: str) -> None:
    say(f"\n== {what}")


def _run(module: str, *arguments: object, makes: Path | None = None, lines: int | None = None) -> None:
    """Run one of our commands as a user would, and show it, with the last `lines` of what it prints; unless what it
    `makes`, whole or not at all, is there.

    Ctrl-C and SIGTERM are passed on, and it ends in its own time: a training saves first.
    """
    words = ["-m", module, *map(str, arguments)]
    done = makes is not None and makes.exists()
    say(" ".join(["$ python", *words, *["  # done before"] * done]))
    if done:
        return
    child = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE if lines else None, text=True)
    try:
        printed, _ = child.communicate()
    except KeyboardInterrupt:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)  # a terminal tells the command of one more, too
        try:
            child.communicate(timeout=TOLD)
        except subprocess.TimeoutExpired:
            child.terminate()  # to a training that saves already it is nothing new
            child.communicate()
        raise
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, child.args)
    if lines:
        say("\n".join(printed.splitlines()[-lines:]))


def _export(run: Path, out: Path) -> None:
    _run("convert", "to-hf", run, out, makes=out)


def _prepare(path: Path, tokenizer: Path, store: Path) -> None:
    with open(path) as stream:
        share = max(HELD_OUT, min(0.2, FEW * HELD_OUT / sum(1 for _ in stream)))
    words = ("--source", path, "--tokenizer", tokenizer, "--out", store, "--held-out", f"{share:.3f}")
    _run("cptjax", "prepare", *words, makes=store, lines=1)  # not the whole report


def _train(config: str, folder: Path, store: Path, *overrides: object) -> None:
    data = ("--data.stores", store, 1, "--held-out", store / "held_out")
    _run("cptjax", "train", config, "--workdir", folder, *data, *overrides, makes=folder / "run.json")


def write_text(folder: Path) -> None:
    """Write the grammar's documents, one JSONL file per domain."""
    folder.mkdir()
    for seed, (domain, count) in enumerate(DOCUMENTS.items()):
        _write(folder / f"{domain}.jsonl", (each.text for each in grammar.documents(seed, count, domain)))


def own_text(paths: Sequence[Path], folder: Path) -> None:
    """Write the user's paragraphs, or lines where there are few, as one JSONL file.

    Raises ValueError when there is too little to hold some of it out.
    """
    pieces = [text for path in paths for text in read_documents(path, Reading(txt_documents="paragraph"))]
    if len(pieces) < FEW:
        pieces = [line for text in pieces for line in text.splitlines() if line.strip()]
    if len(pieces) < FEW // 3:
        raise ValueError(f"{len(pieces)} lines of text are too few for a demo: give at least {FEW // 3}")
    folder.mkdir()
    _write(folder / "own.jsonl", pieces)


def _write(path: Path, texts: Iterable[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def _texts(sources: dict[str, Path]) -> Iterable[str]:
    for path in dict.fromkeys(sources.values()):
        yield from read_documents(path, Reading())


def train_tokenizer(texts: Iterable[str], folder: Path) -> None:
    """Train a byte-level BPE and write it as transformers' AutoTokenizer expects it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # The mask takes the space before it, as a word does.
    special = [AddedToken(token, lstrip=token == SPECIAL["mask_token"], special=True) for token in SPECIAL.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, ends)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL})


def table(events: Sequence[dict]) -> str:
    """Per phase: steps, tokens, speed, loss at its ends; then the masked-token accuracy before and after."""
    lines = [
        f"{'phase':8}{'steps':>7}{'tokens':>10}{'tokens/s':>10}{'loss first':>12}{'last':>8}{'held out':>10}{'last':>8}"
    ]
    evaluations = [event for event in events if "held_out" in event]
    steps = [event for event in events if "loss" in event]
    for phase in dict.fromkeys(event["phase"] for event in steps):
        mine = [event for event in steps if event["phase"] == phase]
        ends = (mine[0]["step"], mine[-1]["step"] + 1)
        held = [event["held_out"][phase]["loss"] for event in evaluations if event["step"] in ends]
        tokens, seconds = (sum(event[name] for event in mine) for name in ("tokens", "seconds"))
        lines.append(
            f"{phase:8}{len(mine):7}{tokens:10,.0f}{tokens / seconds:10,.0f}{mine[0]['loss']:12.3f}"
            f"{mine[-1]['loss']:8.3f}{held[0]:10.3f}{held[-1]:8.3f}"
        )
    before, after = (event["held_out"]["decay"] for event in (evaluations[0], evaluations[-1]))
    lines.append(
        f"masked tokens of held-out text, right: {before['accuracy']:.1%} before, {after['accuracy']:.1%} after "
        f"(loss {before['loss']:.3f} -> {after['loss']:.3f})"
    )
    return "\n".join(lines)


def fill_mask(folder: Path, texts: Sequence[str]) -> list[list[str]]:
    """The three likeliest fillings of the `{mask}` of each text, likeliest first, by a run folder's model; none where
    it has no language-model head yet."""
    tokenizer = load_tokenizer(folder / checkpoint.TOKENIZER)
    mask = special_tokens(folder / checkpoint.TOKENIZER, tokenizer).mask
    _, config, params = checkpoint.load_params(folder)
    if config.head != "lm" or mask is None or not texts:
        return [[] for _ in texts]
    model = encoder(config, Precision(compute="float32"))

    ids = [tokenizer.encode(text.format(mask=tokenizer.id_to_token(mask))).ids for text in texts]
    longest = max(map(len, ids))
    token_BL = np.array([[*each, *[0] * (longest - len(each))] for each in ids], np.int32)
    segment_BL = np.array([[n < len(each) for n in range(longest)] for each in ids], np.int32)

    @jax.jit
    def logits(token_BL, segment_BL):
        hidden_BLD = encode(model, params, token_BL, segment_BL).hidden_BLD
        return model.apply({"params": params}, hidden_BLD, method="logits")

    masked_BV = np.asarray(logits(token_BL, segment_BL))[np.arange(len(ids)), (token_BL == mask).argmax(1)]
    return [[tokenizer.decode([int(i)]).strip() for i in np.argsort(-scores_V)[:3]] for scores_V in masked_BV]


def own_questions(store: Path, tokenizer_folder: Path) -> list[tuple[str, str]]:
    """Beginnings of held-out documents with `{mask}` for their longest word that is one token; and the word."""
    tokenizer, held_out = load_tokenizer(tokenizer_folder), Store(store / "held_out")
    questions = []
    for document in range(len(held_out.length_N)):
        words = tokenizer.decode(held_out.tokens([document])[0].tolist()).split()[:12]
        whole = [w for w in words[1:] if "{" not in w and len(tokenizer.encode(f" {w}", add_special_tokens=False)) == 1]
        if whole:
            word = max(whole, key=len)
            text = " ".join(words).replace("{", "(").replace("}", ")")
            questions.append((text.replace(f" {word}", " {mask}", 1), word))
    return questions[:PROBES]


def probes(questions: Sequence[tuple[str, str]], before: Path, after: Path) -> str:
    """Sentences with a `{mask}` and its word, filled by the model before and after."""
    texts = [text for text, _ in questions]
    lines = [f"\n{'expected':14}{'before':34}{'after':34}sentence"]
    for (text, word), old, new in zip(questions, fill_mask(before, texts), fill_mask(after, texts), strict=True):
        lines.append(f"{word:14}{', '.join(old):34}{', '.join(new):34}{text.format(mask='____')}")
    return "\n".join(lines)
