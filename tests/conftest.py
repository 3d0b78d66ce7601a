"""Eight CPU devices for every test, and the small things tests share."""

import jax

jax.config.update("jax_num_cpu_devices", 8)  # before anything touches a device
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # most of the time goes into compiling small programs

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

from cptjax.model import ModernBert, init_params  # noqa: E402
from cptjax.objectives import Vocabulary  # noqa: E402
from cptjax.shape import ModelConfig, Precision  # noqa: E402

VOCABULARY = Vocabulary(120, 4, (0, 1, 2, 3, 4))


@pytest.fixture
def strict_dtypes():
    """No silent promotion between dtypes; optax promotes, so not for whole steps."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Programs are compiled once for a file of tests and the processes it starts."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        environment.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    """Layer 0, two scanned blocks and one unrolled layer; windows of 8 tokens on each side."""
    return ModelConfig(
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
