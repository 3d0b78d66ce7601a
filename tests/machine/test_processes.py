"""Two real processes of two devices each: the same numbers as one, whatever devices hold which rows."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cptjax.command.signals import Signals
from cptjax.data.batches import Batches, held_out_batches
from cptjax.data.store import Store, write_shard
from cptjax.files import read_json
from cptjax.machine import processes
from cptjax.machine.wire import Wire
from cptjax.run import agreement, checkpoint
from cptjax.run.events import read_events
from cptjax.train import train
from tests.fixtures_text import WORDS, make_store, make_tokenizer
from tests.machine.two_processes import (
    HELD_OUT_ROWS,
    LENGTH,
    MESHES,
    ORDERS,
    SAVED,
    STEPS,
    TRAINED,
    disagreements,
    mishaps,
    row_hashes,
    small_run,
)

ROOT = Path(__file__).parents[2]


def both(*arguments: str, of_second: tuple[str, ...] = ()) -> list[tuple[int, str]]:
    """Run a command as the two processes of a run, the second with more arguments; return code and stderr of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    with contextlib.ExitStack() as files:
        said = [files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)]  # a full pipe would hold one up
        started = [
            subprocess.Popen(
                [sys.executable, *arguments, *of_second * i],
                cwd=ROOT,
                env=shared | {"JAX_PROCESS_ID": str(i)},
                stderr=said[i],
            )
            for i in range(2)
        ]
        try:
            codes = [process.wait(timeout=300) for process in started]
        finally:
            for process in started:
                process.kill()  # one that waits for ever
        return [(code, words.seek(0) or words.read()) for code, words in zip(codes, said, strict=True)]


@pytest.fixture(scope="module")
def one_device():
    """This process, alone, as a run of one device."""
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: devices)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, one_device) -> Path:
    """Of one process: the run "alone". Of two: what each placed, and the runs of TRAINED; "tensor across" goes on
    with what "alone" was in its middle."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(5, 60))) for _ in range(200)]
    tokenizer = make_tokenizer(folder / "tokenizer")
    make_store(folder / "store", tokenizer, texts[20:])
    make_store(folder / "store_held_out", tokenizer, texts[:20])
    train(small_run(folder / "store"), folder / "alone")
    undo(folder / "alone", folder / "tensor across")
    reverse_documents(shutil.copytree(folder / "store", folder / "store_reversed"))
    ended = both("-m", "tests.machine.two_processes", str(folder))
    assert [code for code, _ in ended] == [0, 0], ended
    return folder


def reverse_documents(folder: Path) -> None:
    """In a store's one shard; its manifest and the lengths stay what they are."""
    store = Store(folder)
    documents = store.tokens(range(len(store.length_N)))
    write_shard(folder / store.manifest.shards[0].file, (token_L[::-1].astype("<u2") for token_L in documents))


def flip_a_bit(path: Path) -> None:
    """In the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def undo(run: Path, copy: Path) -> None:
    """A copy of a finished run as it was in its middle."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    (copy / "run.json").unlink()


def test_every_device_holds_the_rows_of_its_place_in_the_mesh(folder):
    """Devices that a mesh makes replicas of each other hold the same rows."""
    # Broken by: `self.own_rows[0] + place` in _Mixture.
    run = small_run(folder / "store")
    batch = Batches(run.data).batch_of_step(1)
    held_out = list(held_out_batches(run.held_out, LENGTH, HELD_OUT_ROWS, run.held_out_rows))
    one, other = (read_json(folder / f"process{i}.json")["placed"] for i in range(2))
    layouts = [(order, mesh) for order in ORDERS for mesh in MESHES]
    for (order, mesh), first, second in zip(layouts, one, other, strict=True):
        for global_batch, *parts in (
            (batch, first["training"], second["training"]),
            *zip(held_out, first["held_out"], second["held_out"], strict=True),
        ):
            rows = np.array(row_hashes(global_batch)).reshape(mesh.data * mesh.fsdp, -1)
            expected = {str(device): rows[place // mesh.tensor].tolist() for place, device in enumerate(order)}
            assert parts[0] | parts[1] == expected and len(parts[0]) == len(parts[1]) == 2


def trained(run: Path) -> tuple[list[list[float]], list[dict], dict[str, np.ndarray]]:
    """Loss, targets and gradient norm of each step; held-out results, with how likely the best word of each sentence
    was; final parameters."""
    events = read_events(run / "events.jsonl")
    steps = [[event["loss"], event["targets"], event["grad_norm"]] for event in events if "loss" in event]
    _, _, params = checkpoint.load_params(run, STEPS)
    leaves = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}
    evaluations = [event for event in events if "held_out" in event]
    likely = [{text: words[0][1] for text, (words,) in event["filled"].items()} for event in evaluations]
    held_out = [event["held_out"]["mlm"] | best for event, best in zip(evaluations, likely, strict=True)]
    return steps, held_out, leaves


def assert_equal_to_rounding(run: Path, other: Path) -> None:
    """Two runs saw the same masks, and went the same way."""
    steps, held_out, params = trained(run)
    other_steps, other_held_out, other_params = trained(other)
    assert [targets for _, targets, _ in steps] == [targets for _, targets, _ in other_steps] and len(steps) == STEPS
    np.testing.assert_allclose(steps, other_steps, rtol=2e-5)
    for found, expected in zip(held_out, other_held_out, strict=True):
        assert found == pytest.approx(expected, rel=2e-5)
    for name, x in params.items():
        np.testing.assert_allclose(x, other_params[name], atol=2e-5 * abs(other_params[name]).max(), err_msg=name)


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_train_as_one_does(folder, name):
    """In whatever order a mesh has their devices; one of the runs was begun by one process."""
    # Broken by: `self.own_rows[0] + place` in _Mixture: other targets.
    assert_equal_to_rounding(folder / name, folder / "alone")


def test_one_process_goes_on_with_a_run_of_two(folder):
    undo(folder / "in turns", folder / "again")
    train(small_run(folder / "store"), folder / "again")
    assert_equal_to_rounding(folder / "again", folder / "alone")


def test_two_processes_branch_off_a_run_of_one(folder):
    """And make the steps that it made from there on."""
    # Broken by: first_batch left out of Batches._from.
    steps, _, params = trained(folder / "alone")
    events = read_events(folder / "branch" / "events.jsonl")
    again = [[event["loss"], event["targets"], event["grad_norm"]] for event in events if "loss" in event]
    np.testing.assert_allclose(again, steps[SAVED:], rtol=2e-5)
    _, _, branch = checkpoint.load_params(folder / "branch")
    for path, x in jax.tree_util.tree_leaves_with_path(branch):
        expected = params[jax.tree_util.keystr(path)]
        np.testing.assert_allclose(x, expected, atol=2e-5 * abs(expected).max())
    (parent,) = read_json(folder / "branch" / "run.json")["parents"]
    assert (parent["folder"], parent["step"]) == ("alone", SAVED)


def test_processes_that_disagree_all_stop_with_the_field(folder):
    """Or with the words of the one that failed alone; nothing is written, and nobody waits for another."""
    # Broken by: "code" left out of of_run: the run then trains.
    for process in range(2):
        said = read_json(folder / f"refused{process}.json")
        for words in (*disagreements(folder), *mishaps(folder), r"^process 0: process \d+ of .+ is at work"):
            assert re.search(words, said.get(words, "")), (process, words, said.get(words))


CANNOT = "^process 1: cannot read checkpoint .*/checkpoints/4: .+"
DIFFERS = "^process 1: checkpoint .*/checkpoints/4 is damaged: params.* differs? from .+ checksums?"
GOES_ON = "; without it the run goes on from step 2$"


@pytest.mark.parametrize(
    ("view", "strict", "goes_on"),
    [
        ("lost", CANNOT, CANNOT + GOES_ON),
        ("cut", CANNOT, CANNOT + GOES_ON),
        ("closed off", CANNOT, CANNOT + GOES_ON),
        ("other bytes", DIFFERS, DIFFERS + GOES_ON),
        ("nothing", "^nothing holds no whole checkpoint to go on from .*process 1: .*/4: .*process 1: .*/2: ", None),
        ("weights", CANNOT, None),
    ],
)
def test_what_one_process_cannot_read_no_process_goes_on_from(folder, view, strict, goes_on):
    """All name the process and the checkpoint; they go on from the last one that is whole for all, or all stop."""
    # Broken by: `together` left out around _read (neither process ends).
    one, other = (read_json(folder / f"seen{i}.json")[view] for i in range(2))
    assert one == other and re.search(strict, one["error"])
    if goes_on is None:
        assert re.search(strict, one["always"])
    else:
        step, sums, warning = one["always"]
        assert step == SAVED and sums == checkpoint.survey(folder / "alone").whole[SAVED]["checksums"]["params"]
        assert re.search(goes_on, warning)


def test_all_say_at_once_what_all_met(monkeypatch):
    # Broken by: the processes named in any case; ValueError for `kind`.
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    for words, said in ((["lost"] * 3, "lost"), (["lost", None, "lost"], "processes 0, 2: lost")):
        monkeypatch.setattr(processes, "gather", lambda _, words=words: words)
        with pytest.raises(checkpoint.DamagedError) as error, processes.together(checkpoint.DamagedError):
            pass
        assert str(error.value) == said


CONFIG = """
from pathlib import Path
from types import SimpleNamespace
from tests.machine.two_processes import small_run

def get_config():
    return small_run(Path({store!r}))
"""


def test_a_command_of_two_processes_that_disagree_ends_with_one_line_in_both(folder, capfd):
    # Broken by: no _keep_stdout_for_python ("[Gloo] Rank 0 is connected to 1 peer ranks...").
    config = folder / "small.py"
    config.write_text(CONFIG.format(store=str(folder / "store")))
    train_ = ("-m", "cptjax", "train", str(config), "--workdir", str(folder / "command"))
    for code, words in both(*train_, of_second=("--phases.0.schedule.peak", "0.02")):
        assert code == 2
        (line,) = words.splitlines()
        assert "phases.0.schedule.peak is 0.01 in process 0, 0.02 in process 1" in line
    assert not (folder / "command").exists()
    assert capfd.readouterr().out == ""


FULL = """
import jax, resource
if jax.process_index() == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))  # of a file; its words are shorter
"""


def test_a_disk_that_refuses_one_process_its_part_of_a_checkpoint_ends_all(folder):
    """In the background, while the other one waits for it in Orbax."""
    # Broken by: wire.fail left out of train (Orbax waits for ten minutes).
    config = folder / "full.py"
    config.write_text(CONFIG.format(store=str(folder / "store")) + FULL)
    for code, words in both("-m", "cptjax", "train", str(config), "--workdir", str(folder / "full")):
        assert code == 2 and re.search(r"^error: (process 1: )?cannot save a checkpoint in ", words, re.M), words


REFUSED = """
import errno, os, sys
from pathlib import Path
import jax, numpy as np
from cptjax.command.errors import run_command
from cptjax.command.signals import Signals
from cptjax.machine import processes
from cptjax.run.checkpoint import Saver
from cptjax.step import TrainState

def refuse(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("/checkpoints/1"):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

def save():
    signals = Signals()
    with processes.joined(signals), processes.watched(signals) as wire:
        if jax.process_index() == 0:
            sys.addaudithook(refuse)
        mesh = jax.make_mesh((jax.device_count(),), "x")
        x = jax.device_put(np.ones(mesh.size, np.float32), jax.NamedSharding(mesh, jax.P("x")))
        saver = Saver(Path(sys.argv[1]), 1, (), fails=wire.fail)
        saver.save(1, TrainState(x, {"w": x}, {"m": x}), {})
        saver.close()

sys.exit(run_command(save, []))
"""


def test_a_checkpoint_that_process_0_alone_cannot_end_ends_all(tmp_path):
    """It renames each step once all have written, while the others wait for it in Orbax."""
    # Broken by: barrier_sync_fn left out of Saver (Orbax waits for minutes).
    for code, words in both("-c", REFUSED, str(tmp_path)):
        assert code == 2
        assert re.search(r"^error: (process 0: )?cannot save a checkpoint in .+: .+ Read-only file system", words, re.M)


# ---- without other processes


def test_one_process_pays_nothing(monkeypatch):
    """Its errors are what they were, and nobody asks for its hashes."""
    # Broken by: `together` or `compare` without the return for one process.
    monkeypatch.setattr(processes, "gather", lambda _: pytest.fail("gathered"))
    with pytest.raises(KeyError, match="own"), processes.together():
        raise KeyError("own")
    with processes.together():
        processes.compare(lambda: pytest.fail("compared"))


def test_processes_are_named_in_few_words():
    # Broken by: every number written out.
    assert processes._by_value(dict.fromkeys(range(1024), 1) | {7: 2, 9: 2}) == {
        "1": "processes 0-6, 8, 10-1023",
        "2": "processes 7, 9",
    }


def test_whatever_decides_a_number_is_in_what_processes_compare(tmp_path, folder):
    """Each file of a start and of a large store, wherever in it the change is."""
    # Broken by: one block of each file.
    path = tmp_path / "shard"
    size = (agreement.BLOCKS + 100) * agreement.BLOCK // 64
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "BLOCK", agreement.BLOCK // 64)
        content = np.random.default_rng(0).integers(0, 256, size, np.uint8)
        hashes = set()
        for changed in (slice(0), slice(1), slice(size // 2, size // 2 + size // 64), slice(size - 10**6, size)):
            other = content.copy()
            other[changed] ^= 1
            path.write_bytes(other.tobytes())
            hashes.add(agreement._sampled_hash(path))
        path.write_bytes(content.tobytes() + b"0")
        assert len(hashes | {agreement._sampled_hash(path)}) == 5
    start = shutil.copytree(folder / "alone", tmp_path / "start")
    before = agreement.of_start(start)
    assert set(before["weights"]) == {"2", "4"} and "tokenizer.json" in before["tokenizer"]
    flip_a_bit(start / "checkpoints" / "2" / "meta" / "metadata")
    flip_a_bit(start / "tokenizer" / "tokenizer.json")
    after = agreement.of_start(start)
    assert after["weights"]["2"] != before["weights"]["2"] and after["weights"]["4"] == before["weights"]["4"]
    assert after["tokenizer"] != before["tokenizer"]


def test_processes_of_unequal_numbers_of_devices_are_refused(monkeypatch):
    # Broken by: the check left out of joined (jax then cannot gather from them).
    monkeypatch.setattr(Wire, "join", lambda *_: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(process_index=i) for i in (0, 0, 1, 2, 2)])
    monkeypatch.setattr(processes._JOINED, "wire", processes._JOINED.wire)
    with pytest.raises(ValueError, match="devices is 2 in processes 0, 2, 1 in process 1"):
        with processes.joined(Signals(), "host:1,3,1"):
            pass


@pytest.mark.parametrize("times", [(4.9, 300), (float("nan"), 300), (60, 0), (float("inf"), 300), (60, 1e10)])
def test_a_time_that_nobody_could_keep_is_refused(times):
    # Broken by: `stuck_after < SHORTEST`, which nan is not.
    with pytest.raises(
        ValueError, match="--stuck-after is at least 5 seconds, --join-within above 0, both at most a day"
    ):
        with processes.joined(Signals(), "off", *times):
            pass
