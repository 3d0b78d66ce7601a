"""What README.md and docs/ tell a user to type is accepted, and what they point at exists."""

import dataclasses
import re
import shlex
from pathlib import Path

import jax
import pytest

import convert.__main__
import cptjax.__main__
import eval.__main__
from convert import from_hf, to_hf
from cptjax import config
from cptjax.command.line import parse
from cptjax.families import NETWORKS
from cptjax.model import ModernBert, init_params
from cptjax.run.command import OfConfig
from cptjax.shape import ModelConfig, ModernBertConfig
from eval.study.command import StudyCommand
from eval.study.study import load_study
from tests.test_house import nested_dataclasses

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *sorted([*DOCS.glob("*.md"), *DOCS.glob("replication/*/page.md")]),
    *sorted(DOCS.rglob("*.ipynb")),
]
COMMAND = re.compile(r"\bpython3? -m (cptjax|convert|eval)\b(.*)")
PACKAGES = {"cptjax": cptjax.__main__, "convert": convert.__main__, "eval": eval.__main__}


def commands_of(page: Path) -> list[tuple[str, list[str]]]:
    """(package, arguments) of every command in the sh blocks of a page."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.S | re.M):
        for line in block.replace("\\\n", " ").replace("$SLURM_ARRAY_TASK_ID", "1").splitlines():
            for part in line.split("#")[0].split("&&"):
                if command := COMMAND.search(part):
                    found.append((command[1], shlex.split(command[2])))
    return found


COMMANDS = [(page, *command) for page in PAGES for command in commands_of(page)]


def check(package: str, words: list[str]) -> None:
    """Raises when the command would be refused; runs nothing."""
    options, rest = parse(package, PACKAGES[package].COMMANDS, words)
    if isinstance(options, OfConfig):
        run = config.override(config.load_config(ROOT / options.config), rest)
        assert not getattr(options, "mlm_twin", False) or config.mlm_twin(run)
    elif isinstance(options, StudyCommand):
        config.override(load_study(ROOT / options.study).run, rest)
    else:
        assert not rest, f"unknown: {rest}"


@pytest.mark.parametrize(
    ("page", "package", "words"),
    COMMANDS,
    ids=[" ".join([p, *words])[:60] for _, p, words in COMMANDS],
)
def test_commands_are_accepted(page, package, words):
    # Broken by: --held-out written --heldout in the README.
    try:
        check(package, words)
    except SystemExit as stop:
        pytest.fail(f"{page.name}: python -m {package} {' '.join(words)} is refused ({stop.code})")


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("cptjax", "prepare --source A --tokenizer B --out C --heldout 0.1"),
        ("cptjax", "train configs/tiny.py --workdir A --heldout B"),
        ("cptjax", "train configs/absent.py --workdir A"),
        ("cptjax", "fly"),
        ("convert", "to-hf A B --quick"),
        ("eval", "bench rocket"),
    ],
)
def test_the_check_refuses_what_the_commands_refuse(package, words):
    # Broken by: check() returning at once.
    with pytest.raises((SystemExit, AssertionError, ValueError, FileNotFoundError)):
        check(package, words.split())


def test_the_readme_shows_every_command():
    # Broken by: the `convert parity` line or a row of the table of benches removed from the README.
    shown = {(package, words[0]) for page, package, words in COMMANDS if page.name == "README.md"}
    assert {("cptjax", name) for name in cptjax.__main__.COMMANDS} <= shown
    assert {("convert", name) for name in convert.__main__.COMMANDS} <= shown
    table = (ROOT / "README.md").read_text()
    assert all(f"| `python -m eval {name}` |" in table for name in eval.__main__.COMMANDS)


# `configs/tiny.py`, `docs/`, [a link](docs/configs.md), `requirements.txt`
IN_REPOSITORY = re.compile(r"(?<![\w./-])((?:cptjax|configs|convert|eval|tests|docs)/[\w./-]*)")
AT_ROOT = re.compile(r"(?<![\w./-])(requirements[\w-]*\.txt|pyproject\.toml|README\.md|LICENSE)\b")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    # Broken by: `cptjax/maskz.py` in the README.
    text = page.read_text()
    named = {name.rstrip(".") for pattern in (IN_REPOSITORY, AT_ROOT) for name in pattern.findall(text)}
    missing = {name for name in named if not (ROOT / name).exists()}
    missing |= {link for link in LINK.findall(text) if not (page.parent / link).exists()}
    assert not missing


ANCHOR = re.compile(r"\]\(([^):#]*)#([^)]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_headings_that_are_linked_exist(page):
    # Broken by: docs/evaluation.md#task in the README.
    for link, anchor in ANCHOR.findall(page.read_text()):
        headings = re.findall(r"^#+ (.+)", (page.parent / link if link else page).read_text(), re.M)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_site_leads_to_every_page():
    # Broken by: the line of clusters.md removed from docs/site/mkdocs.yml.
    leads = re.findall(r"^ +- [^:]+: (\S+\.md)", (DOCS / "site" / "mkdocs.yml").read_text(), re.M)
    pages = [page.relative_to(DOCS).with_suffix(".md").as_posix() for page in PAGES[1:]]
    assert sorted(leads) == sorted(["index.md", *pages])


def test_the_reference_names_modules():
    # Broken by: `cptjax.maskz` in docs/reference.md.
    modules = re.findall(r"^::: (.+)", (DOCS / "reference.md").read_text(), re.M)
    assert modules and all((ROOT / module.replace(".", "/")).with_suffix(".py").exists() for module in modules)


KINDS = sorted({*nested_dataclasses(config.Run), *NETWORKS}, key=lambda kind: kind.__name__)
CONFIG_PAGE = (DOCS / "configs.md").read_text()


def section(title: str) -> str:
    """Text under a heading of docs/configs.md, up to the next heading."""
    found = re.search(rf"^#+ {title}\b.*?\n(.*?)(?=^#|\Z)", CONFIG_PAGE, re.S | re.M)
    assert found, f"docs/configs.md has no section {title}"
    return found[1]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_is_documented(kind):
    # Broken by: the line of `remat` removed from docs/configs.md.
    documented = re.findall(r"^- `([\w.*]+)`", section(kind.__name__), re.M)
    shared = {field.name for field in dataclasses.fields(ModelConfig)} if kind in NETWORKS else set()
    assert documented == [field.name for field in dataclasses.fields(kind) if field.name not in shared]


def test_fields_that_may_change_are_listed():
    # Broken by: `remat` removed from the list in docs/configs.md.
    assert set(re.findall(r"^- `([\w.*]+)`", section("Fields that may change"), re.M)) == config.ELASTIC


def test_the_library_snippet_runs(tmp_path, monkeypatch):
    """As it stands in the README, with a small folder in the place of the Hub's model."""
    # Broken by: `encode` renamed in the snippet only.
    shape = ModernBertConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2)
    to_hf.save(shape, init_params(ModernBert(shape), jax.random.key(0)), tmp_path / "hub")
    monkeypatch.setattr(from_hf, "find", lambda source, revision=None: tmp_path / "hub")
    code = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    found = {}
    exec(code, found)
    assert found["logits_BLV"].shape == (1, 4, 50368)
    assert found["encoded"].layers_NBLD.shape == (5, 1, 4, 16)
