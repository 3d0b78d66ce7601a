"""Models by tasks by seeds: every row once, whatever stops the sweep or shares it out."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from convert import to_hf
from cptjax.families import encoder
from cptjax.model import init_params
from cptjax.rows import Row, read_rows
from cptjax.shape import BertConfig
from eval import metrics, sweep
from eval.__main__ import main
from eval.predictions import read_predictions
from tests.fixtures_text import make_bert_tokenizer

SHAPE = BertConfig(
    vocab_size=192, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, head="none"
)
FAST = ("--protocol", "cpu", "--change", "epochs=10", "texts_per_step=2", "learning_rate=0.01")
TEXTS = {"train": 12, "dev": 4, "test": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two models and a task of two labels."""
    folder = tmp_path_factory.mktemp("sweep")
    tokenizer = make_bert_tokenizer(folder / "tokenizer")
    for number, name in enumerate(("start", "adapted")):
        params = init_params(encoder(SHAPE), jax.random.key(number))
        to_hf.save(SHAPE, params, folder / name, tokenizer=tokenizer)
    (folder / "task").mkdir()
    for split, size in TEXTS.items():
        lines = [
            {
                "id": f"{split}{i}",
                "text": f"the {'heart' if i % 2 else 'mind'} {i}",
                "label": "odd" if i % 2 else "even",
            }
            for i in range(size)
        ]
        (folder / "task" / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run(folder: Path, out: Path, *options: str, model: str = "start,adapted", seeds: int = 2) -> int:
    models = ",".join(name if name == "baseline" else str(folder / name) for name in model.split(","))
    told = ["--model", models, "--task", f"mine={folder / 'task'}", "--out", str(out), "--seeds", str(seeds)]
    return main(["run", *told, *FAST, *options])


@pytest.fixture(scope="module")
def swept(folder, tmp_path_factory) -> Path:
    """The rows of the whole sweep."""
    out = tmp_path_factory.mktemp("out") / "rows.jsonl"
    assert run(folder, out, model="start,adapted,baseline") == 0
    return out


def told(path: Path, *models: str) -> list[Row]:
    """Its rows but for what clocks say, in an order of their own."""
    rows = [replace(row, seconds=0.0) for row in read_rows(path) if not models or row.model in models]
    return sorted(rows, key=lambda row: row.of)


def test_each_model_task_seed_split_and_metric_has_a_row_that_its_predictions_give(swept):
    rows = read_rows(swept)
    assert len(rows) == len({row.of for row in rows}) == 3 * 2 * 2 * 3
    for row in rows:
        head, predictions = read_predictions(swept.parent / row.predictions)
        assert (head.model, head.seed, head.split) == (row.model, row.seed, row.split)
        assert [each.id for each in predictions] == [f"{row.split}{i}" for i in range(TEXTS[row.split])]
        gold, predicted = ([getattr(each, name) for each in predictions] for name in ("gold", "predicted"))
        assert row.value == metrics.score(row.metric, gold, predicted, head.labels)
    learned = {row.model: row.value for row in rows if (row.split, row.metric) == ("test", "accuracy")}
    assert learned["adapted"] == 1.0 and learned["baseline"] == 0.6  # the words give the label away


def test_what_is_done_is_not_done_again(folder, swept, monkeypatch):
    # Broken by: `left` that forgets the metric; a hash of the protocol that is another in each process.
    before = swept.read_bytes()
    monkeypatch.setattr(sweep, "finetune", None)
    assert run(folder, swept) == 0
    assert swept.read_bytes() == before


@pytest.mark.parametrize("kept", [0, 5, 6, 6.5])
def test_a_sweep_that_was_cut_goes_on_to_the_same_rows(folder, swept, tmp_path, kept):
    """A kill leaves the rows of whole jobs (6 rows a job of one seed), and at most one line cut."""
    out = tmp_path / "rows.jsonl"
    lines = [line for line in swept.read_bytes().splitlines(keepends=True) if json.loads(line)["model"] == "start"]
    out.write_bytes(b"".join(lines[: int(kept)]) + lines[int(kept)][: 20 * (kept % 1 > 0)])
    assert run(folder, out, model="start") == 0
    assert told(out) == told(swept, "start")


def test_each_seed_is_written_as_soon_as_it_is_trained(folder, swept, tmp_path, monkeypatch, capsys):
    # Broken by: the rows of a job added once its last seed is there.
    finetune = sweep.finetune

    def ends_early(*args, **options):
        yield next(finetune(*args, **options))
        raise KeyboardInterrupt

    out = tmp_path / "rows.jsonl"
    monkeypatch.setattr(sweep, "finetune", ends_early)
    assert run(folder, out, model="start") != 0
    assert told(out) == [row for row in told(swept, "start") if row.seed == 42]
    assert "  seed 42: macro_f1 100.0 on test, " in capsys.readouterr().err


def test_parts_add_up_to_the_whole(folder, swept, tmp_path):
    joined = tmp_path / "joined.jsonl"
    with open(joined, "wb") as stream:
        for part in (1, 2, 3):
            out = tmp_path / f"rows{part}.jsonl"
            assert run(folder, out, "--part", f"{part}/3") == 0
            stream.write(out.read_bytes())
    assert [row.of for row in told(joined)] == [row.of for row in told(swept, "start", "adapted")]


def test_a_kept_model_says_the_same_in_transformers(folder, tmp_path):
    # Broken by: the labels' names in another order; no model where rows were there before it was to be kept.
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    out = tmp_path / "rows.jsonl"
    assert run(folder, out, model="start", seeds=1) == 0
    rows = out.read_bytes()
    assert run(folder, out, "--keep-model", str(tmp_path / "kept"), model="start", seeds=1) == 0
    assert out.read_bytes() == rows
    kept = tmp_path / "kept" / "start_mine_42"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(kept).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(kept)
    row = next(row for row in read_rows(out) if row.split == "test")
    for each in read_predictions(tmp_path / row.predictions)[1]:
        with torch.no_grad():
            label = int(model(**tokenizer(each.text, return_tensors="pt")).logits.argmax())
        assert (model.config.id2label[label],) == each.predicted.labels


def test_a_rate_is_chosen_on_dev_and_said(folder, tmp_path):
    # Broken by: choosing on test; the rates left out of the hash.
    out = tmp_path / "rows.jsonl"
    assert run(folder, out, "--tune", "learning_rate=1e-9,1e-2", model="start") == 0
    rows = read_rows(out)
    assert {row.learning_rate for row in rows} == {1e-2}
    assert {tuple(row.tuned["learning_rate"]) for row in rows} == {(1e-9, 1e-2)}


def test_examples_are_drawn_and_said(folder, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert run(folder, out, "--examples", "train=6,test=3,dev=99", model="baseline", seeds=1) == 0
    for row in read_rows(out):
        assert row.examples == {"dev": 4, "test": 3}[row.split]
        assert row.notes[-2:] == ["6 of 12 texts of train", "3 of 5 texts of test"]


def test_a_seed_that_diverges_is_a_row_that_says_so(folder, tmp_path, monkeypatch):
    # Broken by: a model without parameters that is to be kept; the seed trained again for a model that is not there.
    out = tmp_path / "rows.jsonl"
    diverging = ("--change", "learning_rate=1e30", "clip_norm=null", "--keep-model", str(tmp_path / "kept"))
    assert run(folder, out, *diverging, model="start", seeds=1) == 0
    rows = read_rows(out)
    monkeypatch.setattr(sweep, "finetune", None)
    assert run(folder, out, *diverging, model="start", seeds=1) == 0
    assert len(rows) == 6 and all(row.value is None and "diverged" in row.notes[-1] for row in rows)


def test_a_test_without_a_label_or_entity_is_no_fault_of_the_tokenizer(folder, tmp_path):
    # Broken by: the note where the metric is below 1, for a label that test has not.
    out = tmp_path / "rows.jsonl"
    assert run(folder, out, "--examples", "test=1", "--change", "epochs=1", model="start", seeds=1) == 0
    assert all(row.examples == 1 and "0 of 0 entities" not in " ".join(row.notes) for row in read_rows(out)[3:])


def test_a_part_without_seeds_says_so(folder, tmp_path, capsys):
    # Broken by: all that was asked for is there, in a file that is not.
    out = tmp_path / "rows.jsonl"
    assert run(folder, out, "--part", "1/9", model="baseline", seeds=2) == 0
    assert "--part 1/9 has none of so few seeds" in capsys.readouterr().err and not out.exists()


def test_what_cannot_be_done_is_one_line(folder, tmp_path, capsys):
    out, twice = tmp_path / "rows.jsonl", tmp_path / "start"
    twice.symlink_to(folder / "start")
    (nested := tmp_path / "nested").mkdir()
    spans = [{"start": 0, "end": 9, "label": "A"}, {"start": 4, "end": 9, "label": "B"}]
    for split in TEXTS:
        (nested / f"{split}.jsonl").write_text(json.dumps({"id": split, "text": "the heart", "spans": spans}) + "\n")
    ((taken := tmp_path / "taken") / "start_mine_42").mkdir(parents=True)
    (taken / "start_mine_42" / "notes").touch()
    family, other = (Path(shutil.copytree(folder / "start", tmp_path / name)) for name in ("family", "other"))
    (family / "config.json").write_text((family / "config.json").read_text().replace('"bert"', '"gpt9"'))
    (other / "tokenizer.json").write_text((folder / "start" / "tokenizer.json").read_text().replace(": 41", ": 4100"))
    for options, reason in (
        (("--part", "3/2"), "--part '3/2': it is I/N"),
        (("--seeds", "0"), "--seeds is 0: at least 1"),
        (("--seeds", "10001"), "--seeds is 10001: at least 1, at most 10,000"),
        (("--examples", "train=0"), "--examples 'train=0': it is train=1000,dev=200,test=500"),
        (("--examples", "train=5,"), "--examples 'train=5,'"),
        (("--examples", "text=5"), "--examples 'text=5'"),
        (("--examples", "dev=5,dev=6"), "--examples 'dev=5,dev=6'"),
        (("--examples", ""), "--examples ''"),
        (("--task", f"nested={nested}", "--keep-model", str(out)), "no class for the span scorer of nested"),
        (("--tune", "epochs=1,2"), "--tune 'epochs=1,2': it is learning_rate="),
        (("--tune", "learning_rate=x"), "--tune 'learning_rate=x'"),
        (("--tune", "learning_rate=1.2.3"), "--tune 'learning_rate=1.2.3': it is learning_rate="),
        (("--tune", "learning_rate=0,1"), "with the rates to choose among, above 0"),
        (("--tune", "learning_rate=1e999"), "with the rates to choose among, above 0"),
        (("--tune", "learning_rate=1e-5,0.00001"), "it names a rate twice"),
        (("--change", "=1"), "--change '=1': it is FIELD=VALUE"),
        (("--change", "epoch=1", "--change", "epochs=2"), "protocols have no epoch"),  # each of several counts
        (("--change", "learning_rate=Infinity"), "protocol cpu: learning_rate is inf: it must be a finite number"),
        (("--keep-model", str(taken)), "a folder of other things"),
        (("--keep-model", str(taken / "start_mine_42" / "notes")), "notes: File exists"),
        (("--change", "epoch=1"), "protocols have no epoch"),
        (("--protocol", "dutch"), "protocol is 'dutch': it is one of french_text, "),
        (("--task", "anatomy"), "no task is called 'anatomy'"),
        (("--model", f"{folder / 'start'},{twice}"), "two models are called start: rename one"),
        (("--model", str(folder / "tokenizer")), "has no model.safetensors"),
        (("--model", f"baseline,{folder / 'start'},"), "a model has no name"),
        (("--model", f"baseline,{family}"), "model_type is 'gpt9'"),
        (("--model", f"baseline,{other}"), "one of them belongs to another model"),
        (("--model", str(folder / "task")), "has no tokenizer.json: a model is measured with its own"),
    ):
        assert run(folder, out, *options, model="start") == 2
        message = capsys.readouterr().err
        assert reason in message and message.count("\n") == 1, message
        assert not out.exists()
