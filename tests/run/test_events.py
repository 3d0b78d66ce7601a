"""The log survives kills and hands that touch it, and what the disk refuses is raised where it is written."""

import json
import time
import warnings
from pathlib import Path

import pytest

from cptjax.run.boards import TensorBoard
from cptjax.run.events import EventLog, read_events
from cptjax.run.plots import _apart, plot

UPDATE = {"loss": 1.0, "learning_rate": 0.1, "grad_norm": 1.0, "tokens": 8.0, "targets": 8.0, "seconds": 0.5}
FILLED = {"a [MASK]": [[["b", 0.5], ["c", 0.1]]]}
HELD_OUT = {"clm": {"loss": 3.0, "accuracy": 0.1}}
GOOD = json.dumps({"step": 1, "phase": "clm", "held_out": {}, "filled": FILLED}).encode()
BAD = {
    "blank": b"",
    "cut": b'{"step": 1, "pha',
    "no JSON": b"loss is fine",
    "no object": b"[1, 2]",
    "no step": b'{"phase": "clm"}',
    "step of another type": b'{"step": "1", "phase": "clm"}',
    "step that is true": b'{"step": true, "phase": "clm", "loss": 1}',
    "step below 0": b'{"step": -1, "phase": "clm"}',
    "step without end": b'{"step": 1' + b"0" * 5000 + b', "phase": "clm"}',
    "no phase": b'{"step": 1, "loss": 1.0}',
    "loss alone": b'{"step": 1, "phase": "clm", "loss": 1.0}',
    "loss that is no number": json.dumps({"step": 1, "phase": "clm", **UPDATE}).replace("1.0", "NaN", 1).encode(),
    "loss beyond all bounds": json.dumps({"step": 1, "phase": "clm", **UPDATE}).replace("1.0", "1e999", 1).encode(),
    "evaluation without numbers": b'{"step": 1, "phase": "clm", "held_out": {"clm": {"loss": 1.0}}}',
    "evaluation of another type": b'{"step": 1, "phase": "clm", "held_out": [1]}',
    "filled with no list": b'{"step": 1, "phase": "clm", "held_out": {}, "filled": {"a": 1}}',
    "filled with no word": b'{"step": 1, "phase": "clm", "held_out": {}, "filled": {"a": [[]]}}',
    "filled with a share above 1": b'{"step": 1, "phase": "clm", "held_out": {}, "filled": {"a": [[["b", 2]]]}}',
    "gradients of another type": b'{"step": 1, "phase": "clm", "gradients": [1]}',
    "gradients that are no numbers": b'{"step": 1, "phase": "clm", "gradients": {"head": "1"}}',
    "gradients beyond all bounds": b'{"step": 1, "phase": "clm", "gradients": {"head": 1e999}}',
    "no text": b"\xff\xfe\x00{",
    "deep": b"[" * 100_000,
    "long": b"x" * 3_000_000,
}


@pytest.mark.parametrize("name", BAD)
def test_a_line_that_is_no_event_is_passed_over_and_kept_beside(tmp_path, capsys, name):
    # Broken by: `break` at the first bad line; a bad line dropped; _is_event always true.
    path = tmp_path / "events.jsonl"
    path.write_bytes(GOOD + b"\n" + BAD[name] + b"\n" + GOOD + b"\n")
    assert len(read_events(path)) == 2
    EventLog(tmp_path, 1, True, evaluated=1).close()
    assert path.read_bytes() == (GOOD + b"\n") * 2
    assert (tmp_path / "events.unreadable").read_bytes() == BAD[name] + b"\n"
    assert "no events; they are now in events.unreadable" in capsys.readouterr().err
    EventLog(tmp_path, 1, True, evaluated=1).close()
    assert not capsys.readouterr().err


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    # Broken by: `step` for `step - ("loss" in event)`; `step` for `evaluated`; "gradients" left out beside "loss".
    log = EventLog(tmp_path, 0, True, evaluated=-1)
    log.write({"step": 0, "phase": "clm", "held_out": HELD_OUT})
    for step in range(4):
        log.write({"step": step, "phase": "clm", **UPDATE})
    log.write({"step": 4, "phase": "clm", "held_out": HELD_OUT})
    log.write({"step": 4, "phase": "clm", "saving_seconds": 0.1})
    log.write({"step": 4, "phase": "clm", "gradients": {"head": 1.0}})
    log.write({"step": 4, "phase": "clm", **UPDATE})
    log.close()
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"step": 5, "pha')  # cut by a kill
    EventLog(tmp_path, 4, True, evaluated=4).close()
    kept = read_events(tmp_path / "events.jsonl")
    assert [event["step"] for event in kept] == [0, 0, 1, 2, 3, 4, 4] and "saving_seconds" in kept[-1]
    EventLog(tmp_path, 4, True, evaluated=0).close()  # saved by a signal, before the evaluation
    assert "held_out" not in read_events(tmp_path / "events.jsonl")[-2]
    EventLog(tmp_path, 2, True, evaluated=0).close()
    assert [event["step"] for event in read_events(tmp_path / "events.jsonl")] == [0, 0, 1]


def test_only_the_first_process_writes(tmp_path):
    log = EventLog(tmp_path, 0, False, evaluated=-1)
    log.write({"step": 0, "phase": "clm"})
    log.flush()
    log.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("which", "file"), [("_file", "events.jsonl"), ("_board", "tensorboard")])
def test_a_full_disk_ends_a_log_at_once_and_names_the_file(tmp_path, which, file):
    """Many more events than any queue holds, and nothing waits."""
    # Broken by: tensorboardX's SummaryWriter, whose thread dies and whose queue then blocks for ever.
    board = TensorBoard(tmp_path, 0)
    log = EventLog(tmp_path, 0, True, evaluated=-1, boards=[board])
    full = open("/dev/full", "w", buffering=1)
    if which == "_file":
        log._file = full
    else:
        board._writer._writer = open("/dev/full", "wb", buffering=0)
    began = time.monotonic()
    with pytest.raises(OSError, match=f"^cannot write .*{file}: No space left on device$"):
        for step in range(1000):
            log.write({"step": step, "phase": "clm", **UPDATE})
    log.abandon()
    assert time.monotonic() - began < 10


def test_plot_of_a_short_run(tmp_path):
    # Broken by: evaluations taken to have all objectives; the names given as they are ($ is a formula); catch_warnings
    # left out (no glyph).
    events = [
        {"step": 0, "phase": "clm", "held_out": HELD_OUT, "filled": FILLED},
        {"step": 0, "phase": "clm", **UPDATE},
        {"step": 1, "phase": "$\\foo$", **UPDATE},
        {"step": 2, "phase": "\ud800", "held_out": {"$\\foo$": HELD_OUT["clm"]}},
        {
            "step": 3,
            "phase": "clm",
            "held_out": {},
            "filled": {f"$\\foo {i}": [[["\u6f22$\\x", 1]]] * 9 for i in range(9)},
        },
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot(events, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_words_of_evaluations_have_room_beside_each_other():
    # Broken by: `steps[-1] - step >= room` left out; the first left out.
    assert _apart([3]) == [3] and _apart([0, 100]) == [0, 100]
    assert _apart([0, 1, 24, 25, 26, 50, 76, 99, 100]) == [0, 25, 50, 100]


def test_a_plot_that_cannot_be_written_is_named(tmp_path):
    # Broken by: naming left out of plot.
    with pytest.raises(OSError, match="cannot write .*plot.png"):
        plot([], Path(tmp_path / "gone" / "plot.png"))
