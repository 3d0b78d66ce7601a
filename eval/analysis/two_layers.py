"""A probe of two layers on states of a frozen model, for a question of yes and no: what a linear one cannot read, such
as whether two things in a state are the same.

It is trained by Adam at each of some rates; rate and epoch are those with the least loss on dev.

S seeds, R rates, M states (those of train, dev or test), D width, H hidden width, E epochs.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eval.linear_probe import moments

HIDDEN = 256
RATES = (1e-4, 3e-4, 1e-3)
EPOCHS, BATCH = 20, 32


class Asked(NamedTuple):
    """States, and whether the answer is yes."""

    state_MD: np.ndarray
    yes_M: np.ndarray


class Answered(NamedTuple):
    """What each seed's probe says of test, whether yes, and what was chosen on dev."""

    yes_SM: np.ndarray
    rate_S: list[float]
    epoch_S: list[int]  # from 1
    loss_S: list[float]  # on dev


def answer(train: Asked, dev: Asked, test: Asked, seeds: int) -> Answered:
    """Train on train, choose on dev, answer test, with seeds from 0 on. States are made of mean 0 and deviation 1 on
    train."""
    mean_D, deviation_D = moments(train.state_MD)
    splits = [((of.state_MD - mean_D) / deviation_D, of.yes_M.astype(np.float32)) for of in (train, dev, test)]
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    loss_SRE, yes_SREM = jax.device_get(_trained(keys, jnp.array(RATES), *splits))
    best_S = loss_SRE.reshape(seeds, -1).argmin(1)
    rate_S, epoch_S = np.unravel_index(best_S, loss_SRE.shape[1:])
    at = (np.arange(seeds), rate_S, epoch_S)
    return Answered(yes_SREM[at], [RATES[n] for n in rate_S], (epoch_S + 1).tolist(), loss_SRE[at].tolist())


@jax.jit
def _trained(key_S, rate_R, train, dev, test):
    """The loss on dev and the answers to test after each epoch, of every seed and rate."""
    of_rates = jax.vmap(_training, (None, 0, None, None, None))
    return jax.vmap(of_rates, (0, None, None, None, None))(key_S, rate_R, train, dev, test)


def _training(key, rate, train, dev, test):
    (state_MD, yes_M), tx = train, optax.adam(rate)
    at_once = min(BATCH, len(yes_M))
    steps = len(yes_M) // at_once

    def update(carry, chosen):
        params, opt_state = carry
        grads = jax.grad(_loss)(params, state_MD[chosen], yes_M[chosen])
        updates, opt_state = tx.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    def epoch(carry, key):
        order = jax.random.permutation(key, len(yes_M))[: steps * at_once].reshape(steps, at_once)
        carry, _ = jax.lax.scan(update, carry, order)
        return carry, (_loss(carry[0], *dev), _scores(carry[0], test[0]) > 0)

    start_key, epochs_key = jax.random.split(key)
    params = _start(start_key, state_MD.shape[1])
    return jax.lax.scan(epoch, (params, tx.init(params)), jax.random.split(epochs_key, EPOCHS))[1]


def _start(key: jax.Array, width: int) -> dict[str, jax.Array]:
    draw = jax.nn.initializers.lecun_normal()
    first, second = jax.random.split(key)
    return {
        "first_DH": draw(first, (width, HIDDEN)),
        "bias_H": jnp.zeros(HIDDEN),
        "second_H1": draw(second, (HIDDEN, 1)),
        "bias_1": jnp.zeros(1),
    }


def _scores(params: Any, state_MD: jax.Array) -> jax.Array:
    hidden_MH = jax.nn.gelu(state_MD @ params["first_DH"] + params["bias_H"][None])
    return (hidden_MH @ params["second_H1"] + params["bias_1"][None])[:, 0]


def _loss(params: Any, state_MD: jax.Array, yes_M: jax.Array) -> jax.Array:
    return optax.sigmoid_binary_cross_entropy(_scores(params, state_MD), yes_M).mean()
