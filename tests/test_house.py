"""The rules of the house: who imports whom, no knob without a reader, the recipe's numbers."""

import ast
import dataclasses
import functools
import itertools
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cptjax.config import Phase, Run, load_config, mlm_twin
from cptjax.families import NETWORKS
from cptjax.schedules import learning_rate
from tests.conftest import LONGEST

ROOT = Path(__file__).parent.parent
PACKAGES = ("cptjax", "configs", "convert", "eval")
FILES = {package: sorted((ROOT / package).rglob("*.py")) for package in PACKAGES}
ALL = [path for paths in FILES.values() for path in paths]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
CONFIGS = [
    path for path in FILES["configs"] if path.parent.name == "configs" and path.stem not in ("__init__", "recipe")
]


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def wrong_in(paths: Iterable[Path], wrong_of: Callable[[Path], Iterable[str]]) -> dict[str, list[str]]:
    """What is wrong in each file where anything is: a test for each file would take pytest longer than the files."""
    return {short(path): wrong for path in paths if (wrong := sorted(wrong_of(path)))}


@functools.cache  # a tree is known by what it is, not by what it holds
def imports_of(tree: ast.AST) -> set[str]:
    """Dotted names of everything imported anywhere in a tree, late imports included."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


# ---- imports only go down


def test_imports_are_absolute():
    # Broken by: `from . import masks` in model.py.
    def relative(path: Path) -> list[str]:
        imports = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ImportFrom)]
        return [ast.unparse(node) for node in imports if node.level]

    assert wrong_in(ALL + TESTS, relative) == {}


FLOORS = """
command.escape command.signals command.bar bounds
command.errors command.page
command.line
machine.cluster
machine.wire
files machine.processes machine.devices machine.host machine.hub machine.energy machine.provenance machine.licences
masks schedules sharding dropout
shape ops objectives optim
loss rows attention.reference
attention.blockwise attention.splash attention.cudnn
attention.backends
attention.check
data.tokenizer data.store data.packing
data.batches
corpus.encodings corpus.unpack corpus.folders corpus.pool corpus.page corpus.fit
corpus.pieces
corpus.columnar
corpus.formats
corpus.sources corpus.cleaning corpus.described
corpus.repetitions
corpus.parts corpus.sample
corpus.decide corpus.report
corpus.prepare
corpus.beam
corpus.command
model
bert
families
step heads
config
run.clock run.boards run.plots run.checkpoint run.sentences
run.events
run.record run.memory run.agreement run.resume run.branch run.verify run.compare
run.sizing
run.set_up
run.recorder run.update run.evaluate
run.start
train run.replay
run.command
planning.hlo planning.assumptions
planning.aot planning.doctor
planning.plan
planning.command
demo.grammar
demo.task
demo.story
demo.command
__main__
"""  # lowest first, a line a floor
FLOOR = {name: floor for floor, line in enumerate(FLOORS.splitlines()) for name in line.split()}
# What each top-level package may import of the others.
MAY_IMPORT = {
    "cptjax": {"cptjax"},
    "configs": {"cptjax", "configs", "eval"},  # a study names what eval measures
    "convert": {"cptjax", "convert"},
    "eval": {"cptjax", "convert", "eval"},
}


def test_cptjax_imports_only_lower_floors():
    # Broken by: `from cptjax.train import train` inside a function of masks.py.
    def too_high(path: Path) -> list[str]:
        ours = (name for name in imports_of(tree_of(path)) if name.startswith("cptjax."))
        imported = [name for name in ours if name != "cptjax.__version__"]  # which lies below all floors
        if path.stem == "__init__":  # imports nothing
            return imported
        own = ".".join(path.relative_to(ROOT / "cptjax").with_suffix("").parts)
        modules = [module_of(name.removeprefix("cptjax.")) for name in imported]
        return [module for module in modules if not FLOOR[module] < FLOOR[own]]

    assert wrong_in(FILES["cptjax"], too_high) == {}


def module_of(dotted: str) -> str:
    """The longest beginning of a dotted name that is a file."""
    parts = dotted.split(".")
    return next(name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in FLOOR)


def test_a_chapter_lies_between_two_floors():
    """What a reader skips is skipped whole: no chapter begins before another has ended."""
    # Broken by: run.clock below model.
    chapters = [name.split(".")[0] for floor in FLOORS.strip().splitlines() for name in floor.split() if "." in name]
    assert len(set(chapters)) == len(list(itertools.groupby(chapters)))


def test_every_file_has_a_floor():
    # Broken by: touch cptjax/run/other.py.
    files = {".".join(path.relative_to(ROOT / "cptjax").with_suffix("").parts) for path in FILES["cptjax"]}
    assert {name for name in files if not name.endswith("__init__")} == set(FLOOR)


def test_packages_import_only_what_lies_below_them():
    # Broken by: `from configs import tiny` in demo.py.
    def others(path: Path) -> set[str]:
        roots = {name.split(".")[0] for name in imports_of(tree_of(path))}
        return roots & {*PACKAGES, "tests"} - MAY_IMPORT[path.relative_to(ROOT).parts[0]]

    assert wrong_in(ALL, others) == {}


def test_the_design_names_every_file():
    # Broken by: the line of cptjax/run/clock.py removed from docs/design.md.
    design = (ROOT / "docs" / "design.md").read_text()
    files = [short(path) for path in FILES["cptjax"] + FILES["convert"] if not path.stem.startswith("__")]
    assert not [name for name in files if f"`{name}`" not in design]


def test_flax_stays_in_the_files_that_define_networks():
    # Broken by: `import flax` in step.py.
    users = {short(path) for path in ALL if any(n.split(".")[0] == "flax" for n in imports_of(tree_of(path)))}
    assert users <= {"cptjax/model.py", "cptjax/bert.py"}


@functools.cache
def called_in(path: Path) -> set[str]:
    """What a file calls, as it is written there."""
    return {ast.unparse(node.func) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)}


def test_what_is_printed_goes_through_one_place():
    """`escape.say`, which lets nothing through that steers a terminal; errors.py ends a command by itself."""
    # Broken by: print(run.name) in train.py.
    others = [path for path in FILES["cptjax"] + FILES["convert"] if path.stem not in ("escape", "errors")]
    assert wrong_in(others, lambda path: called_in(path) & {"print", "tqdm.write", "sys.stdout.write"}) == {}


def test_bars_are_made_in_one_place():
    # Broken by: `from tqdm import tqdm` in recorder.py.
    makers = {"cptjax/command/bar.py", "cptjax/command/escape.py"}  # the second writes above them
    others = [path for path in ALL if short(path) not in makers]
    assert wrong_in(others, lambda path: {name.split(".")[0] for name in imports_of(tree_of(path))} & {"tqdm"}) == {}


def test_no_time_of_day_decides_anything():
    """Hosts' clocks differ, and are set: what waits or measures asks time.monotonic or time.perf_counter."""
    # Broken by: time.monotonic() as time.time() in wire.py.
    told = {"cptjax/run/boards.py", "cptjax/run/resume.py"}  # when an event was written, and a departure
    asked = {"time.time", "time.time_ns", "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.now"}
    others = [path for path in ALL if short(path) not in told]
    assert wrong_in(others, lambda path: called_in(path) & asked) == {}


def test_no_file_is_a_drawer_for_everything():
    # Broken by: touch cptjax/utils.py.
    drawers = {"util", "utils", "helpers", "misc", "common"}
    assert not [short(path) for path in ALL + TESTS if drawers & set(path.with_suffix("").parts)]


# ---- sizes, docstrings

# A file is one idea, read in one sitting; the longest, prepare.py, is all that makes a store of parts.
# Over this a file holds two ideas: split it, or make it a folder.
MOST_LINES = 560


def test_a_file_is_read_in_one_sitting():
    # Broken by: MOST_LINES = 300.
    lines = {short(path): len(path.read_text().splitlines()) for path in FILES["cptjax"]}
    assert {name: number for name, number in lines.items() if number > MOST_LINES} == {}


HOOKS = {"setup"}  # names flax gives; what they do is the class's docstring


def without_docstring(body: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    if not ast.get_docstring(body):
        yield prefix or "the module"
    for node in body.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_") or node.name in HOOKS:
            continue
        if isinstance(node, ast.ClassDef):
            yield from without_docstring(node, f"{prefix}{node.name}.")
        elif not ast.get_docstring(node):
            yield f"{prefix}{node.name}"


def test_everything_public_has_a_docstring():
    # Broken by: a docstring of masks.py removed.
    assert wrong_in(ALL, lambda path: without_docstring(tree_of(path), "")) == {}


SUFFIX = re.compile(r"[a-z][a-z0-9_]*_([A-Z][A-Z0-9]*)")  # of the name of an array: its shape
LETTER = re.compile(r"\b([B-Z]) (?=[a-z])")  # with what it counts; not A, the article
VAGUE = {"found", "one"}
STORED = {("cptjax/data/store.py", "found")}  # a name in manifest.json


@functools.cache
def names_in(path: Path) -> set[str]:
    """What a file names: variables, parameters, fields, functions."""
    kinds = {ast.Name: "id", ast.arg: "arg", ast.Attribute: "attr", ast.FunctionDef: "name", ast.ClassDef: "name"}
    return {getattr(node, kinds[type(node)]) for node in ast.walk(tree_of(path)) if type(node) in kinds}


def test_a_thing_is_called_by_its_name():
    # Broken by: `found = []` in hlo.collectives; `def one(x)` in sharding.shard_tree.
    assert {(short(path), name) for path in ALL for name in names_in(path) & VAGUE} <= STORED


def test_the_letters_of_a_shape_are_explained():
    """By the glossary, or at the top of the file where they count something else."""
    # Broken by: "E pairs" left out of cleaning.py, "V vocabulary" of the glossary.
    glossary = (ROOT / "docs" / "contributing.md").read_text().split("## Letters\n")[1].split("\n## ")[0]
    everywhere = {*LETTER.findall(glossary)}
    assert everywhere > {*"BLDV"}

    def unknown(path: Path) -> list[str]:
        known = everywhere | {*LETTER.findall(ast.get_docstring(tree_of(path)) or ""), *"0123456789"}
        shapes = {name: SUFFIX.fullmatch(name) for name in names_in(path)}
        return [name for name, shape in shapes.items() if shape and not {*shape[1]} <= known]

    assert wrong_in(ALL, unknown) == {}


# ---- no knob without a reader


def nested_dataclasses(kind: typing.Any) -> Iterator[type]:
    """A dataclass and those its fields are made of."""
    if dataclasses.is_dataclass(kind):
        yield kind
        for hint in typing.get_type_hints(kind).values():
            yield from nested_dataclasses(hint)
    elif isinstance(kind, types.UnionType) or typing.get_origin(kind) is not None:
        for part in typing.get_args(kind):
            yield from nested_dataclasses(part)


class Reads(ast.NodeVisitor):
    """Names read as attributes; a check in __post_init__ is no use of a value."""

    def __init__(self):
        self.names: set[str] = set()

    def visit_FunctionDef(self, node):
        if node.name != "__post_init__":
            self.generic_visit(node)

    def visit_Attribute(self, node):
        if isinstance(node.ctx, ast.Load):
            self.names.add(node.attr)
        self.generic_visit(node)


def test_every_config_field_is_read():
    # Broken by: a field `verbose: bool = False` in Run.
    reads = Reads()
    for path in FILES["cptjax"] + FILES["convert"]:
        reads.visit(tree_of(path))
    kinds = set(nested_dataclasses(Run))
    assert {
        "Run",
        "Branch",
        "Phase",
        "Data",
        "Objective",
        "Schedule",
        "AdamW",
        "Mesh",
        "Dropout",
        "ModelConfig",
        "Precision",
    } == {kind.__name__ for kind in kinds}
    kinds |= {*NETWORKS}
    fields = {f"{kind.__name__}.{field.name}": field.name for kind in kinds for field in dataclasses.fields(kind)}
    unread = {dotted for dotted, name in fields.items() if name not in reads.names}
    assert not unread


# ---- configs


@pytest.mark.parametrize("path", CONFIGS, ids=short)
def test_a_config_loads_and_says_what_to_expect(path):
    # Broken by: "Cost:" removed from tiny.py.
    docstring = ast.get_docstring(tree_of(path)) or ""
    for word in ("Run:", "Cost:", "Expect:"):
        assert word in docstring
    assert f"python -m cptjax train {short(path)} --workdir" in docstring
    assert load_config(path).name == path.stem


# CLM tokens, then steps of both phases: arXiv:2605.12438.
PUBLISHED = {
    "fr_base": (10_000_000_000, 3179, 318),
    "fr_large": (25_000_000_000, 7947, 795),
    "en_base": (50_000_000_000, 15895, 1589),
    "en_large": (50_000_000_000, 15895, 1589),
}


def published(name: str) -> Run:
    return load_config(ROOT / "configs" / f"{name}.py")


def rates(run: Run, phase: Phase) -> tuple[list[float], float]:
    """Learning rate at each step of a phase, and right after its last."""
    _, first, last = run.stretches[run.phases.index(phase)]
    total = last - first

    def at(step: int) -> float:
        return float(learning_rate(phase.schedule, step, total, run.tokens_per_step))

    return [at(step) for step in (0, 31, 32, total // 2, total - 1)], at(total)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipe_is_the_published_one(name):
    # Broken by: DECAY_SHARE = 0.2, DECAY_MASK_RATE = 0.3 or WARMUP_TOKENS = 10**9 in recipe.py.
    run = published(name)
    clm_tokens, clm_steps, decay_steps = PUBLISHED[name]
    clm, decay = run.phases
    assert (run.data.global_batch_size, run.data.sequence_length) == (384, 8192)
    assert [stretch[1:] for stretch in run.stretches] == [(0, clm_steps), (clm_steps, clm_steps + decay_steps)]
    assert (clm.tokens, decay.tokens) == (clm_tokens, clm_tokens // 10)
    optimizer = run.optimizer
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.98, 1e-6)
    assert optimizer.weight_decay == 1e-5
    assert (clm.objective.kind, clm.objective.mask_mode) == ("clm", "causal")
    assert (decay.objective.kind, decay.objective.mask_mode) == ("mlm", "bidirectional")
    assert decay.objective.mask_rate == 0.15
    assert not clm.frozen and not decay.frozen
    assert decay.optimizer_state == "keep"

    assert clm.schedule.shape == "constant" and clm.schedule.warmup_tokens == 100_000_000
    (start, before, after, middle, end), _ = rates(run, clm)
    assert start == 0.0
    assert before < 2e-4  # warm-up takes 31.8 steps
    assert after == middle == end == pytest.approx(2e-4)

    assert decay.schedule.shape == "one_minus_sqrt" and decay.schedule.warmup_tokens == 0
    (start, *_, middle, _), final = rates(run, decay)
    assert start == pytest.approx(2e-4)
    half = (decay_steps // 2) / decay_steps
    assert middle == pytest.approx(2e-4 * (0.1 + 0.9 * (1 - half**0.5)), rel=1e-5)
    assert final == pytest.approx(2e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_twin_differs_in_the_first_objective_only(name):
    # Broken by: TWIN_MASK_RATE = 0.15, or schedule=decay.schedule in mlm_twin.
    run = published(name)
    twin = mlm_twin(run)
    assert [phase.objective.mask_rate for phase in twin.phases] == [0.30, 0.15]
    assert {phase.objective.mask_mode for phase in twin.phases} == {"bidirectional"}
    first = dataclasses.replace(twin.phases[0], name="clm", objective=run.phases[0].objective)
    assert dataclasses.replace(twin, name=run.name, phases=(first, *twin.phases[1:])) == run


# ---- declared packages

DISTRIBUTION = {
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "markdown_it": "markdown-it-py",
    "absl": "absl-py",
    "orbax": "orbax-checkpoint",
}  # where the two names differ
# Used when there, never needed: imported inside a function, and declared nowhere or for the tests.
OPTIONAL = {"torch", "pynvml", "apache_beam", "psutil", "wandb"}


def declared(path: Path) -> dict[str, Requirement]:
    """Requirements of a file and of those it includes, by name in its normal spelling."""
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    included = [declared(path.parent / line[2:].strip()) for line in lines if line.startswith("-r")]
    own = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return {name: each for file in included for name, each in file.items()} | {normal(each.name): each for each in own}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions(names: set[str]) -> dict[str, str]:
    """Distribution of each third-party import, by module name."""
    roots = {name.split(".")[0] for name in names}
    ours = {*PACKAGES, "tests", *(path.stem for path in TESTS)}
    foreign = roots - set(sys.stdlib_module_names) - ours
    return {name: normal(DISTRIBUTION.get(name, name)) for name in foreign}


def test_what_is_imported_is_declared():
    # Broken by: a line of requirements.txt removed.
    names = set().union(*(imports_of(tree_of(path)) for path in ALL))
    needed = {name: dist for name, dist in distributions(names).items() if name not in OPTIONAL}
    assert set(needed.values()) - declared(ROOT / "requirements.txt").keys() == set()


def test_the_tests_that_begin_first_are_there():
    # Broken by: a file of LONGEST under another name.
    assert all((ROOT / "tests" / name).exists() for name in LONGEST)


def test_what_the_tests_import_is_declared():
    # Broken by: hypothesis removed from tests/requirements.txt.
    names = set().union(*(imports_of(tree_of(path)) for path in TESTS)) | {"torch"}
    missing = set(distributions(names).values()) - declared(ROOT / "tests" / "requirements.txt").keys()
    assert missing == set()


def test_the_lock_is_within_the_ranges():
    # Broken by: jax==0.10.1 in requirements.lock; the line of jax removed; torch==2.13.0+cpu.
    lock = ROOT / "requirements.lock"
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lock.read_text().splitlines()), "more than versions"
    versions = {name: str(each.specifier).removeprefix("==") for name, each in declared(lock).items()}
    ranges = declared(ROOT / "tests" / "requirements.txt")
    assert [name for name, each in ranges.items() if versions.get(name, "0") not in each.specifier] == []


def test_optional_packages_are_imported_late():
    # Broken by: `import torch` at the top of parity.py.
    def early(path: Path) -> set[str]:
        tops = [node for node in tree_of(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
        return OPTIONAL & set(distributions(imports_of(ast.Module(tops, []))))

    assert wrong_in(ALL, early) == {}
