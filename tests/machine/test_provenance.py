"""Versions and commit, as a run tells them."""

import subprocess

import flax
import jax

import cptjax
from cptjax.machine import provenance


def test_versions_are_those_of_the_packages_in_use():
    # Broken by: metadata.version("jax") for every name; no `except`; no `if`.
    versions = provenance.versions()
    assert versions["cptjax"] == cptjax.__version__  # installed or not
    assert (versions["jax"], versions["flax"]) == (jax.__version__, flax.__version__)
    assert provenance.versions(("flax", "no-package")) == {"flax": flax.__version__, "no-package": None}


def test_the_commit_is_that_of_the_code_and_says_what_differs(tmp_path, monkeypatch):
    # Broken by: no `git status`, cwd left out, no `git ls-files` of either kind; no --untracked-files=no; "*.py" for
    # SOURCES.
    code = tmp_path / "cptjax" / "machine" / "provenance.py"
    code.parent.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(code))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def git(*arguments):
        who = ("-c", "user.name=n", "-c", "user.email=e")
        return subprocess.run(
            ("git", *who, *arguments), cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    assert provenance.git_commit() is None
    git("init", "-q")
    code.write_text("a")
    (tmp_path / "other.py").write_text("")
    git("add", "other.py")
    git("commit", "-qm", "somebody else's")
    assert provenance.git_commit() is None
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert provenance.git_commit() == commit
    (tmp_path / "my_run").mkdir()
    for beside in ("my_run/config.json", "study.py", "cptjax/notes.txt"):
        (tmp_path / beside).write_text("")
    assert provenance.git_commit() == commit
    (new := tmp_path / "eval" / "tasks" / "mine.py").parent.mkdir(parents=True)
    new.write_text("")
    assert provenance.git_commit() == f"{commit}+changes"
    new.unlink()
    assert provenance.git_commit() == commit
    code.write_text("b")
    assert provenance.git_commit() == f"{commit}+changes"
