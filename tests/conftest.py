"""Eight CPU devices for every test, and the small things tests share."""

import gc
import io
import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

# Most of the time goes into compiling small programs, here and in the processes that tests start.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# XLA's former way from a fused loop to machine code compiled in a third to a half of the time, where it was measured;
# and a program that is not cut in parts, for cores to share that other tests are using, in three quarters of that.
# Code that LLVM leaves as it is took a tenth of the time where XLA optimises: its program, of a sharded step and of a
# gradient, was the same to the letter.
FASTER = {
    "xla_cpu_use_fusion_emitters": "false",
    "xla_cpu_parallel_codegen_split_count": "1",
    "xla_llvm_disable_expensive_passes": "true",
    "xla_backend_optimization_level": "0",
}
if metadata.version("jaxlib").startswith("0.10."):  # a later one ends the process, for it has no such flag
    flags = [f"--{name}={value}" for name, value in FASTER.items()]
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["OMP_NUM_THREADS"] = "1"  # torch's other threads would spin on cores that other tests are using

gc.set_threshold(50_000, 50, 50)  # looking for garbage while programs are traced took a tenth of the CPU time

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)  # before anything touches a device
jax.config.update("jax_numpy_rank_promotion", "raise")

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402
from tqdm import tqdm  # noqa: E402

from cptjax.corpus.prepare import prepare  # noqa: E402
from cptjax.files import locked  # noqa: E402
from cptjax.machine import host  # noqa: E402
from cptjax.model import Encoder, ModernBert, init_params  # noqa: E402
from cptjax.objectives import Vocabulary  # noqa: E402
from cptjax.rows import Row  # noqa: E402
from cptjax.shape import ModelConfig, ModernBertConfig, Precision  # noqa: E402
from cptjax.train import train  # noqa: E402
from tests.fixtures_run import seeing, small_run, without_pictures  # noqa: E402
from tests.fixtures_text import make_tokenizer  # noqa: E402

settings.register_profile("tests", deadline=None)  # which would speak of the machine
settings.load_profile("tests")

# What takes longest begins first, so that all workers end together.
LONGEST = (
    "planning/test_plan.py",
    "convert/test_parity.py",
    "convert/test_release.py",
    "convert/test_convert.py",
    "test_notebooks.py",
    "test_train.py",
    "run/test_resume.py",
    "machine/test_processes.py",
)
VOCABULARY = Vocabulary(120, 4, (0, 1, 2, 3, 4))


def pytest_collection_modifyitems(items):
    rank = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture
def strict_dtypes():
    """No silent promotion between dtypes; optax promotes, so not for whole steps."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory, worker_id):
    """A program is compiled once for all workers and the processes that tests start: they share a folder."""
    folder = shared_by_workers(tmp_path_factory, worker_id) / "compiled"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()


@pytest.fixture(scope="session", autouse=True)
def freed_memory_is_given_back():
    """Or this process would keep it from the first command on that computes in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "keep_freed_memory", lambda: None)
        yield


@contextmanager
def as_a_user_would():
    """XLA optimises programs made in here, as outside of tests: for what they do and the memory they take. XLA_FLAGS
    stays: of a sharded step it moved no letter of the program, none of its FLOPs, bytes and exchanges."""
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # jax does not ask how a program it has was compiled
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def bars(monkeypatch) -> list[Any]:
    """The bars that are made, as if on a terminal."""
    made = []

    def shown(**told):
        made.append(tqdm(**{**told, "disable": False, "file": io.StringIO()}))
        return made[-1]

    monkeypatch.setattr("cptjax.command.bar.tqdm", shown)
    return made


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    """Layer 0, two scanned blocks and one unrolled layer; windows of 8 tokens on each side."""
    return ModernBertConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=8,
        num_attention_heads=4,
        local_attention=16,
        initializer_range=0.2,
    )


@pytest.fixture(scope="session")
def model(config) -> ModernBert:
    return ModernBert(config, Precision(compute="float32"))


@pytest.fixture(scope="session")
def params(model):
    return moved(model)


def moved(model: Encoder) -> Any:
    """Random parameters with norms and biases moved off their initial values."""
    drawn = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    leaves, tree = jax.tree.flatten(drawn)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, [leaf + x for leaf, x in zip(leaves, noise, strict=True)])


def packed(*lengths: int, total: int) -> np.ndarray:
    """Segment numbers of documents of these lengths, one after the other, then padding: [L]."""
    numbers = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return np.pad(numbers, (0, total - len(numbers))).astype(np.int32)


def random_tokens(rows: int, tokens: int, seed: int = 0) -> jax.Array:
    """Ordinary token ids, [B, L]."""
    return jax.random.randint(jax.random.key(seed), (rows, tokens), 5, VOCABULARY.size, jnp.int32)


def evaluation_row(**told: Any) -> Row:
    """A row of an evaluation; what is not told does not matter."""
    named = {"model": "small", "task": "ner", "kind": "token-classification", "metric": "f1", "value": 0.5, "seed": 0}
    hashes = dict.fromkeys(("weights", "tokenizer", "data", "protocol_hash"), "0")
    ran = {"split": "test", "protocol": "english", "examples": 100, "truncated": 0.0, "learning_rate": 5e-5}
    return Row(**(named | hashes | ran | told))


def shared_by_workers(tmp_path_factory, worker_id: str) -> Path:
    """A folder that all workers of these tests see, and that is empty before them."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


def made_once(folder: Path, make: Callable[[Path], Any]) -> Path:
    """A folder that is filled by the first worker that asks for it; others wait."""
    with locked(folder, wait=True):
        if not (folder / "made").exists():
            make(folder)
            (folder / "made").touch()
    return folder


def make_text(folder: Path) -> None:
    rng = np.random.default_rng(0)
    words = "the patient was seen with fever and cough for three days before she left hospital".split()
    texts = [" ".join(rng.choice(words, rng.integers(5, 60))) for _ in range(300)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    make_tokenizer(folder / "tokenizer", seed_text=" ".join(texts))
    prepare([folder / "text.jsonl"], folder / "tokenizer", folder / "store", held_out=0.2)


@pytest.fixture(scope="session")
def store(tmp_path_factory, worker_id) -> Path:
    """300 short texts, of which a fifth is held out. What changes it takes a copy."""
    return made_once(shared_by_workers(tmp_path_factory, worker_id) / "text", make_text) / "store"


@pytest.fixture
def two_devices():
    """A run sees two devices."""
    with seeing(2):
        yield


@pytest.fixture
def no_pictures():
    """Runs of a test draw nothing; `finished`, of all tests, is made before this and does."""
    with without_pictures():
        yield


@pytest.fixture(scope="session")
def finished(store, tmp_path_factory, worker_id) -> Path:
    """The folder of a small run that went to its end. What changes it takes a copy."""

    def make(folder: Path) -> None:
        with seeing(2):
            train(small_run(store), folder / "finished")

    return made_once(shared_by_workers(tmp_path_factory, worker_id) / "runs", make) / "finished"
