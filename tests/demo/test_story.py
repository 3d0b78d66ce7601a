"""The demo's text and tables; the whole demo is run by hand, it takes minutes."""

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from cptjax.__main__ import main
from cptjax.command.line import parse
from cptjax.data.store import Manifest
from cptjax.data.tokenizer import load_tokenizer
from cptjax.demo import grammar, story, task
from cptjax.run import checkpoint
from eval.__main__ import COMMANDS
from eval.protocols import protocol_of
from eval.tasks.registry import chosen, load
from tests.fixtures_run import CONFIG
from tests.test_readme import check

ROOT = Path(__file__).parents[2]


def texts_of(seed: int, count: int, domain: grammar.Domain = "clinical") -> list[str]:
    return [document.text for document in grammar.documents(seed, count, domain)]


def test_grammar_is_deterministic_bilingual_and_varied():
    texts = texts_of(3, 400)
    assert texts == texts_of(3, 400)
    assert texts != texts_of(4, 400)
    assert len(set(texts)) == 400
    words = Counter(word for text in texts for word in text.split())
    assert words["the"] > 100 and words["une"] > 100


def test_grammar_gives_a_patient_one_drug_and_one_dose():
    drugs = {c.drug: c.dose for conditions in grammar.CONDITIONS.values() for c in conditions}
    seen = Counter()
    for text in texts_of(0, 1000):
        named = {drug for drug in drugs if f" {drug} " in text}
        if len(named) == 1:
            seen[named.pop()] += 1
        else:
            assert len({drugs[drug] for drug in named}) <= 1, "two drugs that are not one in two languages"
    assert len(seen) > 30


def test_mentions_are_the_names_that_stand_in_the_text(monkeypatch):
    # Broken by: {of_drug} left unmarked; the article marked too; a mention one character later.
    conditions = [each for of_language in grammar.CONDITIONS.values() for each in of_language]
    label = {re.sub("^(a|an|un|une) ", "", each.disease): "DIAGNOSIS" for each in conditions}
    label |= {each.drug: "DRUG" for each in conditions}
    longest_first = sorted(label, key=len, reverse=True)
    name = re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b")
    documents = [each for seed in (1, 2) for each in grammar.documents(seed, 500, ("clinical", "general")[seed - 1])]
    for each in documents:
        named = [grammar.Mention(*found.span(), label[found[0]]) for found in name.finditer(each.text)]
        assert list(each.mentions) == named
    assert len({each.text[m.start : m.end] for each in documents for m in each.mentions}) == len(label)
    # Without any mark the text is the same.
    texts = [each.text for each in documents]
    monkeypatch.setattr(grammar, "_marked", lambda words, name, label: words)
    assert texts == texts_of(1, 500) + texts_of(2, 500, "general")


def test_the_task_is_one_that_eval_reads_with_names_that_train_has_not(tmp_path):
    # Broken by: all thirds in train; one seed for train and test; a seed of the text for pretraining.
    (read,) = chosen([f"demo={task.write_task(tmp_path / 'task')}"], "en")
    splits = load(read, None)
    assert read.kind == "entities" and {name: len(of) for name, of in splits.items()} == task.SIZES
    named = {
        split: {text[slice(*span.ranges[0])] for text, spans in ((x.text, x.gold.spans) for x in of) for span in spans}
        for split, of in splits.items()
    }
    new = {split: named[split] - named["train"] for split in ("dev", "test")}
    assert all(0.3 < len(new[split]) / len(named[split]) < 0.7 for split in new) and not new["dev"] & new["test"]
    texts = [example.text for of in splits.values() for example in of]
    assert len(set(texts)) == len(texts) and not {*texts} & {*texts_of(1, 1000)}


@pytest.mark.parametrize("init", [None, "some/encoder"])
def test_the_story_is_commands_that_are_accepted_on_what_others_made_before(tmp_path, monkeypatch, init):
    # Broken by: no models/start of an encoder of the user; the twin not exported; --mlm-twin or --protocol misspelt.
    folder, commands = tmp_path / "demo", []

    def run(package, *arguments, **_):
        words = [str(word) for word in arguments]
        check(package, words)
        out = words[2] if words[0] in ("from-hf", "to-hf") else None
        for name in {"--out", "--workdir"} & {*words}:
            out = words[words.index(name) + 1]
        paths = [Path(path.removeprefix("demo=")) for word in words for path in word.split(",")]
        missing = [path for path in paths if path.is_relative_to(folder) and str(path) != out and not path.exists()]
        assert not missing
        if out is not None:
            for part in (".", "tokenizer", "held_out"):
                (Path(out) / part).mkdir(parents=True, exist_ok=True)
        commands.append((package, words))

    monkeypatch.setattr(story, "_run", run)
    monkeypatch.setattr(story, "DOCUMENTS", {"general": 200, "clinical": 200})
    for name in ("read_events", "table", "probes"):
        monkeypatch.setattr(story, name, lambda *_: "")
    story.demo(folder, (), init)
    scored, table = [parse(package, COMMANDS, words)[0] for package, words in commands[-2:]]
    assert [Path(model).name for model in scored.model.split(",")] == ["start", "adapted", "twin"]
    assert scored.seeds == 3 and table.rows == (scored.out,)
    changes = {
        name: json.loads(value) for name, value in (word.split("=") for words in scored.change for word in words)
    }
    assert protocol_of(scored.protocol, "entities", changes).learning_rate == (2e-4 if init else 1e-3)


def test_a_demo_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    """The same one; any other is made anew, and so is one that had its end."""
    # Broken by: no comparison with demo.json; `finished` not written; the text written again; `makes` of an export left
    # out.
    folder, missing = tmp_path / "demo", []

    def run(package, *arguments, makes=None, **_):
        if makes is None or not makes.exists():
            missing.append(makes and makes.relative_to(folder))
            if len(missing) == stop:
                raise KeyboardInterrupt
            if makes is not None:
                makes.parent.mkdir(parents=True, exist_ok=True)
                makes.mkdir()

    monkeypatch.setattr(story, "_run", run)
    monkeypatch.setattr(story, "DOCUMENTS", {"general": 200, "clinical": 200})
    for name in ("read_events", "table", "probes", "load_tokenizer"):
        monkeypatch.setattr(story, name, lambda *_: MagicMock())
    stop = 5
    with pytest.raises(KeyboardInterrupt):
        story.demo(folder, ())
    first, text = list(map(str, missing)), folder / "text" / "clinical.jsonl"
    assert first == ["store_general", "base/run.json", "models/start", "start", "store_clinical"]
    before, stop = text.stat().st_mtime_ns, 0
    missing.clear()
    story.demo(folder, ())
    assert text.stat().st_mtime_ns == before
    assert list(map(str, filter(None, missing))) == [
        *("store_clinical", "adapted/run.json", "models/adapted", "twin/run.json", "models/twin"),
    ]
    for init in (None, "some/encoder"):  # the first had its end, the second is another
        stop, text = len(missing := []) + 2, folder / "text" / "clinical.jsonl"
        with pytest.raises(KeyboardInterrupt):
            story.demo(folder, (), init)
        assert text.stat().st_mtime_ns != before and not (folder / "models").exists()
        before = text.stat().st_mtime_ns


TELLS_ITS_PARENT = """
import os, signal
from cptjax.run.recorder import Recorder
step = Recorder.step
def told(self, at, *arguments):
    step(self, at, *arguments)
    if at == 5:
        os.kill(os.getppid(), signal.SIGINT)
        signal.pause()
Recorder.step = told
"""


def test_a_training_that_is_interrupted_saves_before_the_demo_ends(store, tmp_path, monkeypatch, capfd):
    # Broken by: subprocess.run in the place of Popen, which kills; no child.terminate; nothing that waits after it.
    (config := tmp_path / "small.py").write_text(CONFIG.format(store=str(store)) + TELLS_ITS_PARENT)
    monkeypatch.setattr(story, "TOLD", 0.1)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = tmp_path / "run"

    def run() -> None:
        words = ("train", config, "--workdir", folder, "--held-out", "None")
        story._run("cptjax", *words, makes=folder / "run.json")

    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in what it has in background
    with pytest.raises(KeyboardInterrupt):
        run()
    for number, handler in kept.items():
        signal.signal(number, handler)
    assert "stopped at step 6, saved; the same command goes on" in capfd.readouterr().err
    assert checkpoint.latest_step(folder) == 6 and not (folder / "run.json").exists()
    (folder / "run.json").touch()
    run()
    assert capfd.readouterr().out.endswith("--held-out None   # done before\n")


def test_a_folder_that_no_list_of_models_can_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has a comma, which stands between models: choose another --workdir"):
        story.demo(tmp_path / "one,two", ())


def test_probe_answers_are_words_of_the_text():
    words = Counter(word.strip(".,") for text in texts_of(0, 2000) for word in text.split())
    for text, answer in grammar.PROBES:
        assert text.count("{mask}") == 1 and words[answer] > 20


def test_tokenizer_fills_and_prepares(tmp_path, capfd):
    texts = texts_of(0, 300)
    story.train_tokenizer(texts, tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    ids = tokenizer.encode("treated with [MASK] daily").ids
    pieces = [tokenizer.id_to_token(i) for i in ids]
    assert pieces[0] == "[CLS]" and pieces[-1] == "[SEP]" and "[MASK]" in pieces
    assert pieces[pieces.index("[MASK]") + 1].startswith("\u0120")  # the mask took its space only
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ["--source", tmp_path / "text.jsonl", "--tokenizer", tmp_path / "tokenizer", "--out", tmp_path / "store"]
    done = subprocess.run(
        [sys.executable, "-m", "cptjax", "prepare", *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "") and "store: 300 documents, " in done.stdout
    assert Manifest.read(tmp_path / "store").documents == 300
    capfd.readouterr()
    assert main(["prepare", *map(str, words)]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "--overwrite" in said


def test_table_counts_phases_and_accuracy():
    held = lambda step, loss, accuracy: {  # noqa: E731
        "step": step,
        "phase": "x",
        "held_out": {"clm": {"loss": loss, "accuracy": 0}, "decay": {"loss": 2 * loss, "accuracy": accuracy}},
    }
    update = {"tokens": 100, "seconds": 2.0}
    events = [
        held(0, 3.0, 0.25),
        {"step": 0, "phase": "clm", "loss": 3.0, **update},
        {"step": 1, "phase": "clm", "loss": 2.5, **update},
        held(2, 2.0, 0.1),
        {"step": 2, "phase": "decay", "loss": 4.0, **update},
        held(3, 1.0, 0.5),
    ]
    _, clm, decay, last = story.table(events).splitlines()
    assert clm.split() == ["clm", "2", "200", "50", "3.000", "2.500", "3.000", "2.000"]
    assert decay.split() == ["decay", "1", "100", "50", "4.000", "4.000", "4.000", "2.000"]
    assert "25.0% before, 50.0% after (loss 6.000 -> 2.000)" in last


def test_a_folder_that_is_no_demo_is_not_touched(tmp_path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(ValueError, match="is not an earlier demo"):
        story.demo(tmp_path, ())
    assert (tmp_path / "precious").exists()


def test_an_encoder_in_the_folder_that_is_made_anew_is_not_touched(tmp_path):
    # Broken by: the check of `init` left out.
    (tmp_path / "demo.json").write_text("{}")
    (tmp_path / "adapted").mkdir()
    with pytest.raises(ValueError, match="adapted lies in .*, which the demo makes anew"):
        story.demo(tmp_path, (), str(tmp_path / "adapted"))
    assert (tmp_path / "adapted").exists()
