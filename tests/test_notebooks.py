"""The notebooks of docs/notebooks: kept without outputs, and run as they stand, on a CPU and without a network."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
COMMAND = re.compile(r"^( *)!(.+)$", re.M)  # names in braces are replaced in it by their values, as Jupyter does


def cells(notebook: Path) -> list[dict]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def program(notebook: Path) -> str:
    """Its cells as one Python program, in which a command that fails ends it; in Jupyter it does not."""
    code = "\n".join("".join(cell["source"]) + "\n" for cell in cells(notebook))
    assert not re.search(r"^ *%", code, re.M), "only lines of ! are known here, none of %"
    run = r'\1__import__("subprocess").run(rf"""\2 """, shell=True, check=True)'
    return COMMAND.sub(run, code)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_what_it_printed(notebook):
    # Broken by: an output left in a cell.
    assert not [cell["source"] for cell in cells(notebook) if cell["outputs"] or cell["execution_count"]]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_it_stands(notebook, tmp_path):
    # Broken by: `index_L + 2` in masks.key_interval; --passes written --pass in a notebook.
    (tmp_path / "cells.py").write_text(program(notebook))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where its commands find python
    env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "cells.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
