"""Checkpoints: exact, verified, independent of the mesh, whole after a failure."""

import os
import re
import resource
import tempfile
import threading
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest

from cptjax.optim import AdamW, make_optimizer
from cptjax.run import checkpoint
from cptjax.sharding import Mesh, make_mesh, shard_tree
from cptjax.step import init_state


def equal(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture
def start(tmp_path, config, params):
    folder = tmp_path / "start"

    def read(path):
        array = params
        for key in path:
            array = array[key]
        return np.asarray(array)

    checkpoint.save_start(folder, config, read, hf_config={"model_type": "modernbert"}, origin=None)
    return folder


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_start_gives_back_config_and_parameters(start, config, params):
    step, found_config, found = checkpoint.load_params(start)
    assert step == 0 and found_config == config and equal(found, params)
    step, found_config, read = checkpoint.open_params(start)
    assert step == 0 and found_config == config
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        assert np.array_equal(read(checkpoint.path_keys(path)), array)


def test_saved_on_eight_devices_restored_on_one_and_on_another_mesh(tmp_path, params):
    tx = make_optimizer(AdamW())
    state = init_state(params, tx)

    def on(mesh):
        return jax.device_put(state, shard_tree(mesh, state))

    saver = checkpoint.Saver(tmp_path, 2, ())
    saver.save(3, on(make_mesh(Mesh(1, 8, 1))), {"stores": {"x": "y"}})
    saver.close()
    for mesh in (make_mesh(Mesh(1, 1, 1), jax.devices()[:1]), make_mesh(Mesh(2, 2, 2))):
        facts = checkpoint.survey(tmp_path).whole[3]
        found = checkpoint.resume(tmp_path, facts, 3, on(mesh))
        assert equal(found.params, params) and int(found.step) == 3 and facts["stores"] == {"x": "y"}


def test_one_flipped_bit_is_noticed_and_named(start, params):
    path = largest_file(start / checkpoint.CHECKPOINTS / "0" / "params")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"checkpoint .*/0 is damaged: params.* differs? from|cannot read checkpoint"
    ) as error:
        checkpoint.load_params(start)
    assert "\n" not in str(error.value)
    _, _, read = checkpoint.open_params(start)
    with pytest.raises(ValueError, match=r"is damaged: params.* differs? from|cannot read checkpoint"):
        for path, _ in jax.tree_util.tree_leaves_with_path(params):
            read(checkpoint.path_keys(path))


def test_a_copy_that_one_device_alone_has_otherwise_is_noticed(start, params, monkeypatch):
    # Broken by: only the first device's sums compared in _restore.
    mesh = make_mesh(Mesh(8, 1, 1))
    read = checkpoint._read

    def differs(*how):
        tree = read(*how)
        bias = tree["decoder"]["bias"]
        copies = [copy.data + (copy.device == mesh.devices.flat[-1]) for copy in bias.addressable_shards]
        tree["decoder"]["bias"] = jax.make_array_from_single_device_arrays(bias.shape, bias.sharding, copies)
        return tree

    shardings = shard_tree(mesh, params)
    assert equal(checkpoint.load_params(start, shardings=shardings)[2], params)
    monkeypatch.setattr(checkpoint, "_read", differs)
    with pytest.raises(checkpoint.DamagedError, match=r"params\['decoder'\]\['bias'\] differs from its checksum$"):
        checkpoint.load_params(start, shardings=shardings)


def test_truncated_checkpoint_is_one_line(start):
    path = largest_file(start / checkpoint.CHECKPOINTS / "0" / "params")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot read checkpoint") as error:
        checkpoint.load_params(start)
    assert "\n" not in str(error.value)


def test_keeps_the_last_steps_the_ends_of_phases_and_milestones(tmp_path, params):
    state = init_state({"decoder": {"bias": params["decoder"]["bias"]}}, make_optimizer(AdamW()))
    saver = checkpoint.Saver(tmp_path, 2, (2,), milestone_every=3)
    for step in range(1, 9):
        saver.save(step, state, {})
    saver.close()
    kept = sorted(int(path.name) for path in (tmp_path / checkpoint.CHECKPOINTS).iterdir() if path.name.isdigit())
    assert kept == [2, 3, 6, 7, 8] and checkpoint.latest_step(tmp_path) == 8


def test_folders_that_are_no_runs_are_refused(tmp_path, start):
    with pytest.raises(FileNotFoundError, match="from-hf"):
        checkpoint.load_params(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 7"):
        checkpoint.load_params(start, step=7)


def test_checksum_sees_any_word_and_no_sharding(params):
    x = params["blocks"]["l0"]["mlp"]["Wi"]
    before = checkpoint.checksums({"x": x})
    for place in ((0, 0, 0, 0), (1, 1, 47, 31)):
        assert checkpoint.checksums({"x": x.at[place].multiply(1.0000001)}) != before
    swapped = x.at[0, 0, 0, 0].set(x[0, 0, 0, 1]).at[0, 0, 0, 1].set(x[0, 0, 0, 0])
    assert checkpoint.checksums({"x": swapped}) != before
    mesh = make_mesh(Mesh(1, 2, 4))
    placed = jax.device_put(x, shard_tree(mesh, {"blocks": {"l0": {"mlp": {"Wi": x}}}})["blocks"]["l0"]["mlp"]["Wi"])
    assert checkpoint.checksums({"x": placed}) == before == checkpoint.checksums({"x": np.asarray(placed)})


def test_the_host_sums_long_arrays_as_the_device_does():
    x = np.random.default_rng(0).standard_normal((3, 2**19 + 7), np.float32)  # more than one block
    assert checkpoint.checksums({"x": x}) == checkpoint.checksums({"x": jax.numpy.asarray(x)})


def full_disk():
    """No file may grow beyond 2 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)


def lost_permission(folder):
    """Nothing may be written in the folder; root may write anywhere, so it becomes another user."""

    def give_back():
        os.seteuid(0 if root else os.geteuid())
        folder.chmod(0o755)

    root = os.geteuid() == 0
    folder.chmod(0o555)
    if root:
        os.seteuid(65534)
    return give_back


STORE = 'UNKNOWN: Error writing "x/0" in OCDBT database at local file "/a/d/": Failed to fsync file: '


@pytest.mark.parametrize(
    ("met", "told"),
    [
        (
            ValueError(f"{STORE}Input/output error [os_error_code='5'] [source locations='a.cc:1']"),
            "Failed to fsync file: Input",
        ),
        (
            ExceptionGroup("many", [OSError(30, "Read-only file system", "/a/x")]),
            "[Errno 30] Read-only file system: '/a/x'",
        ),
        (OSError(116, "Stale file handle"), "[Errno 116] Stale file handle"),
    ],
)
def test_a_save_that_storage_refuses_is_told_in_its_words(tmp_path, monkeypatch, met, told):
    # Broken by: no rsplit (the place alone fills the line), split(" ["), survey without
    # its try (what storage says to a second question hides what it said to the first).
    assert f"/checkpoints: {told}" in str(checkpoint._refused(tmp_path, met))
    (tmp_path / checkpoint.CHECKPOINTS / "1" / "meta" / "metadata").mkdir(parents=True)  # there, and not to be read
    assert "what is there cannot be read: checkpoint " in str(checkpoint._refused(tmp_path, met))
    monkeypatch.setattr(checkpoint, "survey", mock.Mock(side_effect=OSError(116, "Stale file handle")))
    gone = str(checkpoint._refused(tmp_path, met))
    assert f"/checkpoints: {told}" in gone and gone.endswith(
        "what is there cannot be read: [Errno 116] Stale file handle"
    )


@pytest.mark.parametrize("fault", [full_disk, lost_permission], ids=lambda fault: fault.__name__)
def test_a_save_that_fails_leaves_the_last_one_whole(params, fault):
    # Broken by: _reporting left out of `save` and `close`; the fault left out; create_directories_asynchronously.
    threads = set(threading.enumerate())
    with tempfile.TemporaryDirectory() as made:  # one that another user may look into
        folder = Path(made)
        folder.chmod(0o755)
        state = init_state(params, make_optimizer(AdamW()))
        saver = checkpoint.Saver(folder, 1, ())
        saver.save(1, state, {})
        saver.close()
        told: list[OSError] = []
        saver = checkpoint.Saver(folder, 1, (), fails=told.append)
        mend = fault() if fault is full_disk else fault(folder / checkpoint.CHECKPOINTS)
        try:
            with pytest.raises(
                OSError, match=r"cannot save a checkpoint in .*; step 1 is whole, mend that and run again"
            ) as error:
                saver.save(2, state, {})
                saver.close()
        finally:
            mend()
        assert "\n" not in str(error.value)
        assert all(re.match("cannot save a checkpoint in .*; step 1 is whole", str(each)) for each in told)
        assert bool(told) == (fault is full_disk)  # the other one is met before anything is in the background
        for thread in set(threading.enumerate()) - threads:
            if not thread.daemon and not re.search(r"_\d+$", thread.name):  # those of pools end when they are asked to
                threading.Thread.join(thread, 5)  # seconds; orbax's own join raises what was met in the thread
                assert not thread.is_alive(), f"{thread.name}: the process would wait for it"
        facts = checkpoint.survey(folder).whole
        assert list(facts) == [1] and equal(checkpoint.resume(folder, facts[1], 1, state), state._replace(step=1))
        again = checkpoint.Saver(folder, 1, ())  # and once there is room, what was half written is in nobody's way
        again.save(2, state, {})
        again.close()
        assert [path.name for path in (folder / checkpoint.CHECKPOINTS).iterdir()] == ["2"]
