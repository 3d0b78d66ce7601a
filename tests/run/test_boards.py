"""What is shown elsewhere: TensorBoard's own files, and Weights & Biases, whose failures end no run."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from cptjax.config import Run
from cptjax.run.boards import TensorBoard, WeightsAndBiases
from cptjax.run.events import EventLog
from cptjax.train import train
from tests.fixtures_run import small_run
from tests.run.test_events import UPDATE
from tests.run.test_recorder import made


def test_tensorboard_reads_the_records(tmp_path):
    # Broken by: _record without its write; gradients left out of _numbers.
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    board = TensorBoard(tmp_path, 3)
    board.write({"step": 3, "phase": "clm", **UPDATE})
    board.write({"step": 3, "phase": "clm", "gradients": {"layers/0/attn": 0.5, "head": None}})
    board.flush()
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, found = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        found.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    board.close()
    assert found[0].file_version == "brain.Event:2" and found[1].session_log.status == 1 and found[1].step == 3
    assert {event.summary.value[0].tag: event.summary.value[0].simple_value for event in found[2:]} == {
        name: pytest.approx(value) for name, value in {**UPDATE, "gradients/layers/0/attn": 0.5}.items()
    }


class Wandb(ModuleType):
    """The little of wandb that is used, written down, where one part may fail."""

    def __init__(self, fails: str = ""):
        super().__init__("wandb")
        self.calls: list[tuple[str, dict]] = []
        self.Settings, self.init = dict, self.called("init", fails)
        parts = {name: self.called(name, fails) for name in ("define_metric", "log", "finish")}
        self.run = SimpleNamespace(offline=False, disabled=False, url="https://example.org/run", **parts)

    def called(self, name: str, fails: str):
        def call(*told, **known):
            self.calls.append((name, known or dict(*told)) if name != "define_metric" else (name, {}))
            if name == fails:
                raise ConnectionError(f"{name} has no network")
            return self.run

        return call

    def of(self, name: str) -> list[dict]:
        return [known for called, known in self.calls if called == name]


def told(folder, monkeypatch, fails: str = "", course: int = 0) -> Wandb:
    """What is called for a run of two events."""
    wandb = Wandb(fails)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    log = EventLog(folder, 0, True, -1, [WeightsAndBiases(folder, "project", "small", {"seed": 17}, course)])
    for step in (3, 4):
        log.write({"step": step, "phase": "clm", **UPDATE})
    log.flush()
    log.close()
    return wandb


def test_an_attempt_goes_on_with_the_run_of_its_folder(tmp_path, monkeypatch):
    """A run that took another course is another there, for it has other numbers at the same steps."""
    # Broken by: an id drawn each time; `course` left out of it; the step left out of what is logged.
    first, again, other = (told(tmp_path, monkeypatch, course=course) for course in (0, 0, 1))
    ids = [wandb.of("init")[0]["id"] for wandb in (first, again, other)]
    assert ids[0] == ids[1] != ids[2] and first.of("init")[0]["resume"] == "allow"
    assert first.of("init")[0]["config"] == {"seed": 17}
    assert first.of("log") == [{"step": step, **UPDATE} for step in (3, 4)]
    assert first.of("finish") == [{"exit_code": 0}]


@pytest.mark.parametrize("fails", ["init", "define_metric", "log", "finish"])
def test_what_fails_there_is_said_once_and_ends_nothing(tmp_path, monkeypatch, capsys, fails):
    # Broken by: _harmless left out around each; the run kept in it.
    told(tmp_path, monkeypatch, fails)
    said = f"warning: Weights & Biases: {fails} has no network; the run goes on without it\n"
    assert capsys.readouterr().err == said
    assert "clm" in (tmp_path / "events.jsonl").read_text()


@pytest.mark.parametrize("module", [None, ModuleType("wandb")], ids=["absent", "a folder of its runs"])
def test_a_run_without_it_installed_is_refused(store, tmp_path, two_devices, monkeypatch, module):
    # Broken by: check_wandb left out of set_up; `import wandb` in it.
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(ValueError, match="^--wandb needs Weights & Biases: pip install wandb, or leave --wandb out$"):
        train(small_run(store, wandb="project"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("process", [0, 1])
def test_the_first_process_alone_logs_what_was_asked_for(store, tmp_path, two_devices, monkeypatch, process):
    # Broken by: self._first left out before either board, run.tensorboard before TensorBoard.
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("jax.process_index", lambda: process)

    def shown(run: Run, name: str) -> tuple[int, bool]:
        made(run, tmp_path / name)
        return len(wandb.of("init")), (tmp_path / name / "tensorboard").exists()

    assert shown(small_run(store, tensorboard=False), "neither") == (0, False)
    assert shown(small_run(store, wandb="project"), "both") == ((1, True) if process == 0 else (0, False))


def test_the_real_one_keeps_attempts_under_one_id(tmp_path, monkeypatch):
    """Without a network."""
    # Broken by: a setting that Weights & Biases does not have; an id drawn each time.
    pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    monkeypatch.chdir(tmp_path)
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        board = WeightsAndBiases(tmp_path, "project", "small", {"seed": 17}, 0)
        assert board._run is not None
        board.write({"step": 3, "phase": "clm", **UPDATE})
        board.close()
    known = (tmp_path / "wandb.id").read_text()
    assert {path.name.split("-")[3] for path in (tmp_path / "wandb").glob("offline-run-*")} == {known}
