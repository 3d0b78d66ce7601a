"""The chunked cross-entropy of training beside the plain one that makes all logits: value and gradients.

S tokens, D width, V vocabulary; one row, every token a target.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cptjax.attention.check import distance
from cptjax.command.errors import reason
from cptjax.loss import cross_entropy
from cptjax.step import chunk_positions
from eval.bench.command import LossBench
from eval.bench.measure import compute_dtype, fitted, in_turns, record, timed


def plain(feature_BSD, table_VD, bias_V, target_BS, weight_BS) -> jax.Array:
    """The definition of `loss.cross_entropy`: all logits at once."""
    logits_BSV = jnp.einsum("bsd,vd->bsv", feature_BSD, table_VD, preferred_element_type=jnp.float32)
    logs_BSV = jax.nn.log_softmax(logits_BSV + bias_V[None, None])
    return -(jnp.take_along_axis(logs_BSV, target_BS[..., None], axis=-1)[..., 0] * weight_BS).sum()


def chunked(feature_BSD, table_VD, bias_V, target_BS, weight_BS) -> jax.Array:
    """The loss as training makes it: some positions at a time."""
    chunk = chunk_positions(1, table_VD.shape[0])
    return cross_entropy(feature_BSD, table_VD, bias_V, target_BS, weight_BS, chunk)


LOSSES = {"chunked": chunked, "plain": plain}


def gradient(name: str) -> Any:
    """The jitted value and gradients (of features, table and bias) of one of LOSSES."""
    return jax.jit(jax.value_and_grad(LOSSES[name], argnums=(0, 1, 2)))


def shapes(tokens: int, vocab_size: int, width: int, dtype: str) -> tuple[jax.ShapeDtypeStruct, ...]:
    """What `gradient` takes: features, table, bias, targets, weights."""
    arrays = ((1, tokens, width), dtype), ((vocab_size, width), dtype), ((vocab_size,), "float32")
    return tuple(jax.ShapeDtypeStruct(*x) for x in (*arrays, ((1, tokens), "int32"), ((1, tokens), "float32")))


def inputs(tokens: int, vocab_size: int, width: int, dtype: str) -> tuple[jax.Array, ...]:
    """Arrays of these shapes, the logits spread as a new model's."""
    feature, table, bias, target, weight = shapes(tokens, vocab_size, width, dtype)
    keys = jax.random.split(jax.random.key(0), 4)
    feature_BSD = jax.random.normal(keys[0], feature.shape, dtype)
    table_VD = jax.random.normal(keys[1], table.shape, dtype) * jnp.asarray(0.02, dtype)
    bias_V = 0.02 * jax.random.normal(keys[2], bias.shape)
    target_BS = jax.random.randint(keys[3], target.shape, 0, vocab_size, jnp.int32)
    return feature_BSD, table_VD, bias_V, target_BS, jnp.ones(weight.shape)


def errors(answers: Any, expected: Any) -> dict[str, float]:
    """Largest distance over the largest entry: of the value and of each gradient."""
    pairs = zip(jax.tree.leaves(answers), jax.tree.leaves(expected), strict=True)
    distances = [distance(np.asarray(x, np.float32), y) for x, y in pairs]
    return dict(zip(("value", "features", "table", "bias"), distances, strict=True))


def bench(shape: tuple[int, int, int], dtype: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each of LOSSES; errors are against the plain loss in float32 and full precision, if it fits."""
    arrays = inputs(*shape, dtype)
    expected, unchecked = None, {}
    exact = (*(x.astype(jnp.float32) for x in arrays[:2]), *arrays[2:])
    try:
        with jax.default_matmul_precision("highest"):
            program, _ = fitted(gradient("plain"), *exact)
        expected = jax.tree.map(np.asarray, program(*exact))
    except Exception as error:  # of any kind: a device without room says so in its own way
        unchecked = {"unchecked": reason(error)}
    results, calls = {}, {}
    for name in LOSSES:
        results[name] = {
            "loss": name,
            **dict(zip(("tokens", "vocab_size", "width"), shape, strict=True)),
            "dtype": dtype,
        }
        try:
            program, results[name]["temporary_mib"] = fitted(gradient(name), *arrays)
            results[name] |= unchecked if expected is None else {"error": errors(program(*arrays), expected)}
        except Exception as error:
            results[name]["reason"] = reason(error)
            continue
        calls[name] = partial(timed, program, *arrays)
    for name, took in in_turns(calls, rounds).items():
        results[name] |= took
    return list(results.values())


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    shape = f"{row['tokens']} x {row['vocab_size']} x {row['width']}"
    start = f"{shape:24}{row['loss']:10}"
    if "reason" in row:
        return start + row["reason"]
    errors_ = "".join(f"{value:10.1e}" for value in row["error"].values()) if "error" in row else row["unchecked"]
    return f"{start}{row['median']:10.4f} ±{row['spread']:4.0%}{row['temporary_mib']:10.0f} {errors_}"


def run(asked: LossBench) -> None:
    """Print the table and, if asked, write the JSON."""
    print(f"{jax.devices()[0].device_kind}, {compute_dtype()}, with gradients")
    print(
        f"{'tokens x words x width':24}{'loss':10}{'seconds':>16}{'temp MiB':>10}"
        f"{'err value':>11}{'features':>10}{'table':>10}{'bias':>10}"
    )
    results = []
    for shape in asked.shapes:
        new = bench(shape, compute_dtype(), asked.rounds)
        print(*map(line, new), sep="\n", flush=True)
        results += new
        record(asked.out, asked.rounds, results)
