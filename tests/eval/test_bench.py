"""The benchmarks: what they report is complete, what is wrong is reported as wrong, what does not run as not run."""

import importlib.util
import json
import os
import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import to_hf
from cptjax.__main__ import COMMANDS as CPTJAX
from cptjax.attention import check
from cptjax.attention.backends import BACKENDS
from cptjax.attention.reference import attend_reference
from cptjax.command import errors
from cptjax.command.line import parse
from cptjax.families import encoder
from cptjax.masks import MaskMode, MaskSpec
from cptjax.model import init_params
from cptjax.shape import FULL, BertConfig, ModernBertConfig
from eval.__main__ import COMMANDS, main
from eval.bench import attention, command, compare, everything, finetune, loss, measure, peer, step
from eval.problem import Problem
from eval.protocols import protocol_of
from eval.tasks.task import Answer
from tests.eval import small
from tests.fixtures_run import ROOT
from tests.fixtures_text import make_bert_tokenizer

CONFIG = ModernBertConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,  # a local one, which the windows differ in
    layer_types=("sliding_attention",),
    num_attention_heads=2,
    local_attention=16,
)
CONDITIONS = {"device", "versions", "commit", "rounds", "cores"}
TIMES = {"median", "spread", "seconds"}


def rows_of(path, rounds: int) -> list[dict]:
    """The rows of a report that says under what conditions it was made."""
    report = json.loads(path.read_text())
    assert report.keys() == CONDITIONS | {"rows"} and report["rounds"] == rounds
    return report["rows"]


def refuse(*_):
    raise NotImplementedError("this chip is too old\nand more lines")


def nan_at_padding(q_BLHK, k_BLHK, v_BLHK, spec, segment_BL):
    out_BLHK = attend_reference(q_BLHK, k_BLHK, v_BLHK, spec, segment_BL)
    return jnp.where((segment_BL > 0)[:, :, None, None], out_BLHK, jnp.nan)


def ignores_segments(q_BLHK, k_BLHK, v_BLHK, spec, segment_BL):
    return attend_reference(q_BLHK, k_BLHK, v_BLHK, spec, jnp.ones_like(segment_BL))


def test_attention_reports_each_backend_under_each_mask(tmp_path, monkeypatch, capsys):
    # Broken by: `continue` without a reason; SPECS[:3]; rows without the window.
    monkeypatch.setitem(BACKENDS, "refusing", refuse)
    measured_ones = {name: row for name, row in BACKENDS.items() if name != "reference"}  # compiling takes time
    monkeypatch.setattr(attention, "BACKENDS", measured_ones)
    command.AttentionBench(lengths=(64,), rows=2, heads=1, width=8, rounds=2, out=tmp_path / "out.json").work()
    rows = rows_of(tmp_path / "out.json", 2)
    of = {name: [row for row in rows if row["backend"] == name] for name in measured_ones}
    for measured in of.values():
        assert len({(row["mask"], row["window"]) for row in measured}) == len(measured) == 4
    for row in of["blockwise"]:
        assert row.keys() >= {"tokens", "rows", "heads", "width", "dtype", "error", "temporary_mib"}
        assert row["checked_tokens"] == 64 and row["error"].keys() == {"out", "q", "k", "v"}
        assert row["forward"].keys() == row["forward_backward"].keys() == TIMES
        assert len(row["forward"]["seconds"]) == 2
        assert max(row["error"].values()) < 1e-5
    assert {row["reason"] for row in of["refusing"]} == {"this chip is too old"}
    assert all(row["reason"].startswith("needs a TPU") for row in of["splash"])
    table = capsys.readouterr().out
    assert table.count("this chip is too old") == table.count("needs a TPU") == 4


def test_a_wrong_backend_is_reported_as_wrong(monkeypatch):
    # Broken by: found and found compared in errors(); isfinite left out.
    monkeypatch.setitem(BACKENDS, "leaky", ignores_segments)
    monkeypatch.setitem(BACKENDS, "nan", nan_at_padding)
    leaky, nan = attention.bench(["leaky", "nan"], MaskSpec(MaskMode.CAUSAL, 8), (1, 64, 1, 8), "float32", 1)
    assert min(leaky["error"].values()) > 0.1 and "forward" in leaky
    assert nan["reason"] == "not finite: the output" and "forward" not in nan


def test_errors_are_measured_where_the_reference_is_affordable(monkeypatch):
    # Broken by: checked = tokens.
    monkeypatch.setattr("eval.bench.attention.CHECKED", 32)
    (row,) = attention.bench(["blockwise"], MaskSpec(MaskMode.CAUSAL), (1, 64, 1, 8), "bfloat16", 1)
    assert (row["tokens"], row["checked_tokens"]) == (64, 32)
    assert 1e-4 < row["error"]["out"] < 0.05


def test_a_kernel_for_tpus_is_interpreted_when_named():
    # Broken by: backend_of without `named`.
    (row,) = attention.bench(["splash"], MaskSpec(MaskMode.CAUSAL, 64), (1, 128, 1, 8), "float32", 1, named=True)
    assert max(row["error"].values()) < 1e-5


def test_packed_rows_hold_what_packing_makes():
    # Broken by: lengths without the 1; no padding.
    segment_BL = check.packed(3, 64)
    for segment_L in segment_BL:
        counts = np.bincount(segment_L)
        assert sorted(counts[1:]) == [1, 8, 16, 32] and counts[0] == 7 and segment_L[-1] == 0
    assert len({tuple(segment_L) for segment_L in segment_BL}) == 3


def test_loss_reports_both_ways(tmp_path):
    # Broken by: errors() of the plain loss only.
    command.LossBench(shapes=((40, 50, 8),), rounds=2, out=tmp_path / "out.json").work()
    rows = rows_of(tmp_path / "out.json", 2)
    assert [row["loss"] for row in rows] == ["chunked", "plain"]
    for row in rows:
        assert row.keys() == {"loss", "tokens", "vocab_size", "width", "dtype", "temporary_mib", "error"} | TIMES
        assert row["error"].keys() == {"value", "features", "table", "bias"}
        assert max(row["error"].values()) < 1e-5


def test_a_wrong_loss_is_reported_as_wrong(monkeypatch):
    # Broken by: `expected` made by LOSSES["chunked"].
    monkeypatch.setitem(loss.LOSSES, "chunked", lambda *x: 1.01 * loss.plain(*x))
    wrong, right = loss.bench((40, 50, 8), "float32", 1)
    assert all(error == pytest.approx(0.01, rel=1e-3) for error in wrong["error"].values())
    assert max(right["error"].values()) < 1e-6


def test_what_does_not_fit_is_listed_with_its_reason(monkeypatch, capsys):
    # Broken by: no comparison with free memory in fitted().
    monkeypatch.setattr(measure, "_free_mib", lambda: 0.0)
    command.LossBench(shapes=((40, 50, 8),), rounds=1).work()
    assert capsys.readouterr().out.count("of temporary memory, 0 MiB are free") == 2


COMPILED = {"compile_seconds": 1.0, "temporary_mib": 2.0}


class QuickStep:
    """Stands for `step.Step`, which compare's test compiles."""

    def __init__(self, case):
        if case.tokens == 99:
            raise RuntimeError("RESOURCE_EXHAUSTED: no room\nfor it")

    def compile(self) -> dict:
        return COMPILED

    def __call__(self) -> dict:
        return {}


def test_step_reports_ours_alone(tmp_path, monkeypatch, capsys):
    # Broken by: compiling left out of bench(); a shape that does not run left out.
    monkeypatch.setitem(measure.SIZES, "tiny", CONFIG)
    monkeypatch.setattr(step, "Step", QuickStep)
    shapes = ((2, 16), (1, 99))
    command.StepBench(sizes=("tiny",), objectives=("clm",), shapes=shapes, rounds=3, out=tmp_path / "out.json").work()
    row, large = rows_of(tmp_path / "out.json", 3)
    said = {"size", "objective", "forward", "rows", "tokens", "packed", "dtype"}
    assert row.keys() == said | COMPILED.keys() | TIMES | {"tokens_per_s", "model_tflops_per_s", "mfu"}
    assert row["tokens_per_s"] == pytest.approx(32 / row["median"]) and row["mfu"] is None
    assert large.keys() == said | {"reason"} and large["reason"] == "RESOURCE_EXHAUSTED: no room"
    assert "no room" in capsys.readouterr().out


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_flops_count_the_keys_that_are_read(objective, monkeypatch):
    # Broken by: keys() of the whole document for windows too.
    monkeypatch.setattr(step.devices, "peak_flops", lambda kind: 1e12)
    case = step.Case(CONFIG, objective, 3, 40)
    window = CONFIG.local_attention // 2
    whole, local = (40, 2 * window + 1) if objective == "mlm" else (20, window + 1)
    keys = [whole if kind == FULL else min(whole, local) for kind in CONFIG.layer_types]
    flops = step.devices.flops_per_token(
        hidden_size=16,
        intermediate_size=24,
        gated=True,
        vocab_size=64,
        keys=keys,
        predicted={"mlm": 0.15, "clm": 1}[objective],
    )
    found = step.speed(case, 2.0)
    assert found["tokens_per_s"] == 60
    assert found["mfu"] == pytest.approx(60 * sum(flops.values()) / 1e12)


class Here:
    """A side in this process: torch and jax are loaded already."""

    def __init__(self, make):
        self._step = None
        self._make, self.last = make, {}

    def __call__(self) -> float:
        try:
            self._step = self._step or self._make()
            self.last = self._step()
        except Exception as error:
            raise ChildProcessError(errors.reason(error)) from error
        return 0.5

    def end(self) -> None:
        self._step = None


def test_compare_reports_every_side(tmp_path, monkeypatch, capsys):
    """Rows longer than the window: the causal one of transformers is a key shorter, unless ours counts as it does."""
    # Broken by: the row of a failed side left out; no plot; SEED + 1 in write_batch; causal_window_counts_self=False.
    monkeypatch.setattr(compare, "Side", Here)
    monkeypatch.setitem(measure.SIZES, "tiny", replace(CONFIG, initializer_range=0.2))
    monkeypatch.setitem(compare.PEERS, "absent", compare.Peer("no_such_attention"))
    compiled, compile_ = [], step.Step.compile
    monkeypatch.setattr(step.Step, "compile", lambda made: compiled.append(compile_(made)))
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    asked = {"sizes": ("tiny",), "objectives": ("mlm", "clm"), "peers": ("absent", "sdpa")}
    command.CompareBench(**asked, lengths=(24,), rows=2, rounds=2, out=out, plot_file=picture).work()
    rows = rows_of(out, 2)
    sides = ["cptjax", "absent", "sdpa"]
    assert [(row["objective"], row["side"]) for row in rows] == [(o, side) for o in ("mlm", "clm") for side in sides]
    said = {"side", "size", "objective", "forward", "rows", "tokens", "packed", "dtype", "torch"}
    measured = said | TIMES | {"loss", "grad_norm", "tokens_per_s", "model_tflops_per_s", "mfu", "peak_mib", "ratio"}
    for ours, absent, sdpa in (rows[:3], rows[3:]):
        assert absent.keys() == said | {"reason", "beside", "ratio"}
        assert "no_such_attention" in absent["reason"] and absent["ratio"] is None
        assert ours.keys() == measured and sdpa.keys() == measured | {"loss_error", "grad_norm_error"}
        assert sdpa["loss_error"] < 1e-6 and sdpa["grad_norm_error"] < 1e-5
        assert sdpa["seconds"] == [0.5, 0.5] and sdpa["tokens_per_s"] == 96 and sdpa["ratio"] == 1.0
    assert "no_such_attention" in capsys.readouterr().out
    assert all(said.keys() == COMPILED.keys() and min(said.values()) > 0 for said in compiled) and len(compiled) == 2
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_compare_takes_the_forward_pass_alone(tmp_path, monkeypatch):
    # Broken by: only_forward left out of their_step, counts left out of _forward; no division by 3 in speed.
    monkeypatch.setattr(compare, "Side", Here)
    monkeypatch.setitem(measure.SIZES, "tiny", replace(CONFIG, initializer_range=0.2))
    asked = {"sizes": ("tiny",), "peers": ("sdpa",), "forward": True}
    command.CompareBench(**asked, lengths=(24,), rows=2, rounds=1, out=tmp_path / "out.json").work()
    ours, theirs = rows_of(tmp_path / "out.json", 1)
    assert theirs["loss_error"] < 1e-6 and not {"grad_norm", "grad_norm_error"} & (ours.keys() | theirs.keys())
    case = step.Case(CONFIG, "mlm", 2, 24)
    assert 3 * ours["model_tflops_per_s"] == pytest.approx(step.speed(case, 0.5)["model_tflops_per_s"])


def test_finetune_reports_both_sides(tmp_path, monkeypatch, capsys):
    # Broken by: tags one word late in peer.py.
    pytest.importorskip("torch")
    monkeypatch.setattr(finetune, "Side", Here)
    shape = BertConfig(
        vocab_size=192, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, head="none"
    )
    params = init_params(encoder(shape), jax.random.key(0))
    to_hf.save(shape, params, tmp_path / "model", tokenizer=make_bert_tokenizer(tmp_path / "tokenizer"))
    (tmp_path / "task").mkdir()
    for split, each in small.examples("entities", train=9).items():
        lines = []
        for number, example in enumerate(each):
            spans = [{"start": span.start, "end": span.end, "label": span.label} for span in example.gold.spans]
            lines.append(json.dumps({"id": f"{split}{number}", "text": example.text, "spans": spans}) + "\n")
        (tmp_path / "task" / f"{split}.jsonl").write_text("".join(lines))
    asked = {"model": str(tmp_path / "model"), "task": f"mine={tmp_path / 'task'}", "out": tmp_path / "out.json"}
    sizes = {"seeds": 1, "steps": 4, "texts": 2, "test_examples": 5, "rounds": 2}
    command.FinetuneBench(**asked, **sizes, learning_rate=0.1).work()
    (row,) = rows_of(asked["out"], 2)
    assert row.keys() >= {"model", "data", "learning_rate", "protocol_hash", "seeds", "torch", "transformers"}
    assert (row["task"], row["metric"]) == ("mine", "entity_f1")
    assert (row["train_examples"], row["test_examples"]) == (8, 5)
    for side in ("cptjax", "transformers"):
        for what in ("score", "loss"):
            assert row[what][side].keys() == {"values", "mean", "sd"} and len(row[what][side]["values"]) == 1
        assert row["speed"][side].keys() == TIMES and len(row["speed"][side]["seconds"]) == 2
    assert row["score"].keys() >= {"difference", "difference_in_errors"}
    assert row["speed"].keys() >= {"ratio", "compile_seconds"}
    assert row["exported"] == {"examples": 12, "same": 12, "different": []}
    assert "12 of 12" in capsys.readouterr().out


def test_an_answer_of_the_peer_is_as_far_from_another_as_its_scores():
    # Broken by: no fallback; the lead of the best score where a label passes the threshold.
    problem = Problem("multi_label", ("a", "b"), {}, protocol_of("cpu", "multi_label"), "micro_f1")
    item = peer.Item({}, np.zeros(2), [], np.zeros((0, 2), int))
    for score_N, labels, margin in (((0.5, 3.0), ("a", "b"), 0.5), ((-2.0, -0.25), ("b",), 0.25)):
        assert peer.answer_of(problem, item, np.array(score_N)) == (Answer(labels), margin)


def test_a_difference_is_told_in_its_standard_errors():
    # Broken by: ddof=0; the error of one side alone.
    found = finetune.compared([0.5, 0.7], [0.4, 0.4])
    assert found["cptjax"]["mean"] == pytest.approx(0.6) and found["cptjax"]["sd"] == pytest.approx(0.02**0.5)
    assert found["difference"] == pytest.approx(0.2) and found["difference_in_errors"] == pytest.approx(2.0)
    assert finetune.compared([0.5], [0.4])["difference_in_errors"] is None


def test_a_side_with_other_numbers_is_wrong():
    # Broken by: `any` for `all` in disagreement().
    ours = {"loss": 2.0, "grad_norm": 1.0}
    distances, wrong = compare.disagreement({"loss": 2.0001, "grad_norm": 1.0}, ours, 1e-3)
    assert wrong is None and distances["loss_error"] == pytest.approx(5e-5)
    assert compare.disagreement({"loss": 2.0, "grad_norm": 1.1}, ours, 1e-3)[1] == (
        "wrong: loss 2 where cptjax has 2, grad_norm 1.1 where cptjax has 1"
    )
    assert compare.disagreement({"loss": float("nan"), "grad_norm": 1.0}, ours, 1e-3)[1]


def make_step():
    """A step that works once."""
    answers = [{"loss": 1.0, "peak_mib": None}]
    return answers.pop


def test_a_side_answers_from_its_own_process():
    # Broken by: the exception of a step not caught in _serve.
    side = compare.Side(make_step)
    assert side() > 0 and side.last["loss"] == 1.0
    with pytest.raises(ChildProcessError, match="^pop from empty list$"):
        side()
    side.end()


def test_a_side_whose_process_dies_has_a_reason():
    # Broken by: EOFError not caught in Side.
    side = compare.Side(partial(os._exit, 3))
    with pytest.raises(ChildProcessError, match="ended with code 3"):
        side()
    side.end()


def test_calls_are_made_in_turns():
    # Broken by: the two loops of in_turns exchanged; warm-up counted.
    made = []

    def call(name, limit=100):
        made.append(name)
        if made.count(name) > limit:
            raise RuntimeError("no more room\nat all")
        return float(made.count(name))

    found = measure.in_turns({"a": partial(call, "a"), "b": partial(call, "b", 3)}, 3)
    assert made[:8] == ["a", "b"] * 4 and made[8:] == ["a"]
    assert found["a"] == {"median": 4.0, "spread": 0.25, "seconds": [3.0, 4.0, 5.0]}
    assert found["b"] == {"reason": "no more room"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("attention --backends fast", "no backend is called fast: there are reference, "),
        ("step --sizes huge", "no size is called huge: there are base, large"),
        ("rounding --objectives rtd", "no objective is called rtd: there are mlm, clm"),
        ("finetune --model . --task hoc --steps 9", "--rounds 30: of 9 steps, 7 can be timed"),
        (
            "finetune --model . --task frenchmedmcqa",
            "frenchmedmcqa is multiple_choice: compared are entities, multi_label",
        ),
        ("compare --peers keras", "no peer is called keras: there are eager, "),
        ("attention --lengths", "--lengths: no INT is given: name at least one, or leave the option out"),
        ("step --shapes", "--shapes: no ROWSxTOKENS is given"),
        ("step --shapes 2x512x1", "--shapes: '2x512x1' is not ROWSxTOKENS: so many whole numbers with an x between"),
        ("loss --shapes 0x5x5", "--shapes: '0' is no whole number from 1 to 2147483647"),
        ("attention --rows é", "--rows: 'é' is no whole number, such as 1000"),
        ("attention --lengths 512 " + "9" * 400, "is no whole number from 1 to 2147483647"),
    ],
)
def test_what_no_bench_can_measure_is_refused_in_one_line(words, message, capsys):
    # Broken by: no check_names; no `if not words`; int for whole_number (TypeError of numpy's); no `if len(numbers)`.
    assert main(["bench", *words.split()]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and told.err.count("\n") == 1 and message in told.err


def test_a_bench_of_a_package_that_is_not_here_says_how_to_get_it(monkeypatch, capsys):
    """Those that the README says need one."""
    # Broken by: `needs` left out of any of them; no find_spec.
    readme = (ROOT / "README.md").read_text()
    needed = re.findall(r"`python -m eval (bench \w+)` .*; needs (\w+) \|", readme)
    assert dict(needed).keys() >= {
        "bench compare",
        "bench finetune",
        "bench rounding",
        "bench convert",
        "bench prepare",
    }
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    words = {"bench finetune": ["--model", "m", "--task", "t"], "bench prepare": ["--source", "s", "--tokenizer", "t"]}
    for name, package in needed:
        assert main([*name.split(), *words.get(name, [])]) == 2
        said = f"error: {name} needs {package}, which is not here: pip install {package}\n"
        assert capsys.readouterr().err == said


def test_lists_and_shapes_are_read_as_they_are_written():
    # Broken by: words[:1] in several; split("X") in shapes.
    def filled(words: str) -> dict:
        return vars(parse("eval", COMMANDS, ["bench", *words.split()])[0])

    said = filled("attention --lengths 512 2048 --dtype bfloat16 --backends reference splash")
    assert (said["lengths"], said["dtype"], said["backends"]) == ((512, 2048), "bfloat16", ("reference", "splash"))
    assert filled("step --shapes 16x512 4x2048 --sizes base large")["shapes"] == ((16, 512), (4, 2048))
    assert (
        filled("compare --peers --plot a.png")["plot_file"].name == "a.png" and not filled("compare --peers")["peers"]
    )
    assert filled("loss")["shapes"] == ((8192, 50368, 768),) and filled("loss --rounds 2")["rounds"] == 2


FAKE = """
import json, pathlib, sys, time
name, out = sys.argv[1], pathlib.Path(sys.argv[-1])
print(name, "begins", flush=True)
out.write_text(json.dumps({"rows": [name]}))
time.sleep(600 * (name == "slow"))
sys.exit(3 * (name == "bad"))
"""


def test_what_fails_or_runs_out_of_time_takes_nothing_from_the_next(tmp_path, monkeypatch, capsys):
    # Broken by: no timer, the exit code not looked at, every bench begun.
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(everything, "platform", lambda: "cpu")
    named = {name: ["fake", name] for name in ("good", "bad", "slow", "late")}
    monkeypatch.setattr(everything, "benches", lambda on_cpu: named if on_cpu else {})
    monkeypatch.setattr(everything, "LEAST", 0.41)
    monkeypatch.setattr(everything, "SHARE", 0.6)  # so that less than LEAST is left after the slow one
    out = tmp_path / "out"
    assert main(["bench", "all", "--out", str(out), "--minutes", "0.08"]) == 1
    report = json.loads((out / everything.RESULT).read_text())["benches"]
    assert list(report) == [*named]
    cut, failed = "out of its time", "exit code 3: bad begins"
    assert [x["ended"] for x in report.values()] == ["whole", failed, cut, "not begun"]
    assert [x["result"]["rows"] for x in [*report.values()][:3]] == [["good"], ["bad"], ["slow"]]
    printed = capsys.readouterr().out
    assert "bad: exit code 3: bad begins" in printed
    assert (out / everything.TABLE).read_text() in printed and "good begins" in printed
    assert main(["bench", "all", "--out", str(out)]) == 2 and "name a new folder" in capsys.readouterr().err
    assert main(["bench", "all", "--out", str(tmp_path / "x"), "--minutes", "0"]) == 2 and not (tmp_path / "x").exists()


def test_every_bench_of_all_is_a_command_that_takes_its_words():
    # Broken by: a misspelt option or size.
    for on_cpu in (True, False):
        for package, *words in everything.benches(on_cpu).values():
            parse(package, {"cptjax": CPTJAX, "eval": COMMANDS}[package], words)


def test_a_packed_step_counts_its_real_tokens_and_their_own_documents():
    # Broken by: case.rows * case.tokens, or case.tokens for the keys.
    whole, packed = (step.Case(CONFIG, "mlm", 2, 64, packed=packed) for packed in (False, True))
    real, lengths = 32 + 1 + 8 + 16, np.array([32, 1, 8, 16])
    speeds = [step.speed(case, 1.0) for case in (whole, packed)]
    assert [speed["tokens_per_s"] for speed in speeds] == [2 * 64, 2 * real]
    keys = (lengths**2).sum() / real
    alone = step.speed(step.Case(CONFIG, "mlm", 1, round(keys)), 1.0)
    a_token = [speed["model_tflops_per_s"] / speed["tokens_per_s"] for speed in (speeds[1], alone)]
    assert a_token[0] == pytest.approx(a_token[1], rel=1e-2)
