"""Each example of docs/clusters.md: its shell is sound, its options are taken, and what one machine can do is done."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from cptjax.run import checkpoint
from cptjax.run.events import read_events
from tests.fixtures_run import CONFIG, ROOT
from tests.machine.test_wire import free_port
from tests.test_readme import check

PAGE = (ROOT / "docs" / "clusters.md").read_text()
SHELL = re.findall(r"^```sh\n(.*?)^```", PAGE, re.S | re.M)
TWO_SHELLS = re.findall(r"^python .*localhost.*$", PAGE, re.M)


@pytest.mark.parametrize("script", SHELL)
def test_the_shell_is_sound(script):
    """Its syntax, and that of the options which Slurm reads."""
    # Broken by: `fi` left out of the page.
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    for line in re.findall(r"^#SBATCH (.*)$", script, re.M):
        assert all(re.fullmatch(r"--[a-z-]+(=[\w:@-]+)?", word) for word in line.split())


def test_a_run_that_was_told_to_end_is_queued_again(tmp_path):
    """The end of the batch scripts, with an `srun` and an `scontrol` of ours."""
    # Broken by: -eq 76 on the page.
    scripts = [script for script in SHELL if "scontrol" in script]
    assert len(scripts) == 2
    (tmp_path / "srun").write_text("#!/bin/sh\nexit $SRUN_CODE\n")
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho $@\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    for script in scripts:
        for code, says in ((75, "requeue 7\n"), (0, ""), (2, "")):
            path = f"{tmp_path}:{os.environ['PATH']}"
            told = os.environ | {"PATH": path, "SRUN_CODE": str(code), "SLURM_JOB_ID": "7"}
            done = subprocess.run(["bash"], input=script, env=told, text=True, capture_output=True)
            assert (done.returncode, done.stdout) == (code, says)


def test_the_job_set_starts_what_the_command_takes():
    """And its first pod is where the address says."""
    # Broken by: --workdirs on the page; another metadata.name.
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.S | re.M)
    job_set = yaml.safe_load(text)
    (job,) = job_set["spec"]["replicatedJobs"]
    pods = job["template"]["spec"]
    (container,) = pods["template"]["spec"]["containers"]
    python, _, package, *words = container["command"]
    assert python == "python" and pods["parallelism"] == pods["completions"]
    check(package, words)
    told = {each["name"]: each["value"] for each in container["env"]}
    name = job_set["metadata"]["name"]
    assert told["JAX_COORDINATOR_ADDRESS"].startswith(f"{name}-{job['name']}-0-0.{name}:")
    assert told["JAX_NUM_PROCESSES"] == str(pods["parallelism"])


def trained(run: Path) -> list[list[float]]:
    """Loss, targets and gradient norm of each step."""
    return [
        [event["loss"], event["targets"], event["grad_norm"]]
        for event in read_events(run / "events.jsonl")
        if "loss" in event
    ]


def test_two_shells_are_told_to_end_and_go_on(store, finished, tmp_path):
    """As written, but for config, folder and port: a signal to the second has both save the same step and say so, and
    what they go on to are the numbers of one process that nothing disturbed."""
    # It takes seconds, for only real processes have an end. Broken by: `asks` not heard by process 0.
    config, folder = tmp_path / "small.py", tmp_path / "two"
    config.write_text(CONFIG.format(store=str(store)))
    port = free_port()

    def started() -> list[subprocess.Popen]:
        changed = {"python": sys.executable, "configs/tiny.py": str(config), "runs/two": str(folder)}
        shells = [
            [changed.get(word, word.replace("8476", str(port))) for word in shlex.split(line)] for line in TWO_SHELLS
        ]
        told = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
        return [subprocess.Popen(words, cwd=ROOT, env=told, stderr=subprocess.PIPE, text=True) for words in shells]

    def ended(shells: list[subprocess.Popen]) -> list[tuple[int, str]]:
        try:
            said = [shell.communicate(timeout=200)[1] for shell in shells]
        finally:
            for shell in shells:
                shell.kill()
        return [(shell.returncode, words) for shell, words in zip(shells, said, strict=True)]

    shells = started()
    while max((event["step"] for event in read_events(folder / "events.jsonl")), default=-1) < 5:
        assert shells[0].poll() is None, ended(shells)
        time.sleep(0.05)
    shells[1].send_signal(signal.SIGTERM)
    (code, said), (other_code, other_said) = ended(shells)
    step = checkpoint.latest_step(folder)
    assert (code, other_code) == (75, 75) and step is not None and 5 < step < 20
    for words in (said, other_said):
        assert words.splitlines()[-1] == f"stopped at step {step}, saved; the same command goes on"
    assert [code for code, _ in ended(started())] == [0, 0]
    np.testing.assert_allclose(trained(folder), trained(finished), rtol=2e-5)
