"""The package as pip installs it, in a folder of its own, used from another one."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cptjax import __version__

ROOT = Path(__file__).parents[1]
PACKAGES = ("cptjax", "configs", "convert", "eval")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Where pip put it, without what it needs."""
    clone, site = (tmp_path_factory.mktemp(name) for name in ("clone", "site"))
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, clone)
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(site), str(clone))
    subprocess.run([sys.executable, *install], check=True)
    return site


def told(site: Path, cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """What a command of it says."""
    env = os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def test_every_file_is_there_and_no_test(site):
    # Broken by: no package-data; packages.find without a star.
    def files(folder: Path) -> set[Path]:
        here = (path.relative_to(folder) for name in PACKAGES for path in (folder / name).rglob("*"))
        return {path for path in here if path.suffix and path.suffix != ".pyc"}

    assert files(site) == files(ROOT)
    assert not (site / "tests").exists()


def test_the_extra_for_developers_is_what_the_tests_require():
    # Broken by: a line of tests/requirements.txt that pyproject.toml has not.
    lines = (ROOT / "tests" / "requirements.txt").read_text().splitlines()
    required = [line.split("#")[0].strip() for line in lines if not line.startswith("-r")]
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"] == required


@pytest.mark.parametrize("name", ["cptjax", "cptjax-convert", "cptjax-eval"])
def test_its_commands_run_anywhere(site, tmp_path, name):
    # Broken by: a script that names a module without a main.
    script = str(site / "bin" / name)
    assert told(site, tmp_path, script, "--version").stdout == f"cptjax {__version__}\n"
    done = told(site, tmp_path, script, "nonsense")
    assert done.returncode == 2 and "no command is called 'nonsense'" in done.stderr


def test_its_configs_are_found_where_there_are_none(site, tmp_path):
    # Broken by: no `find_spec`.
    done = told(site, tmp_path, str(site / "bin" / "cptjax"), "train", "configs/tiny.py", "--workdir", "run")
    assert done.returncode == 2 and "runs/demo" in done.stderr, done.stderr  # that text is not here
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.py").write_text("get_config = lambda: 3\n")
    done = told(site, tmp_path, str(site / "bin" / "cptjax"), "train", "configs/tiny.py", "--workdir", "run")
    assert "must define get_config() -> cptjax.config.Run" in done.stderr
    done = told(site, tmp_path, str(site / "bin" / "cptjax"), "train", "configs/other.py", "--workdir", "run")
    assert done.returncode == 2 and done.stderr.startswith("error: no config file") and done.stderr.count("\n") == 1
