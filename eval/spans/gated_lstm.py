"""Bidirectional LSTMs on the words of packed rows, each behind a gate to the one before it, as nlstruct has them
(github.com/percevalw/nlstruct): g = sigmoid(w out + b), then the norm of (1 - g) before + g out.

B rows, L tokens, D width of what comes in, F of what goes out, H = F / 2 of one direction, G its gates' numbers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

NORM_EPS = 1e-5
GATES = 4  # of an LSTM, in PyTorch's order: what comes in, what is forgotten, what is new, what goes out


def init_layers(key: jax.Array, size: int, width: int, layers: int) -> list[dict[str, Any]]:
    """Random parameters, drawn as PyTorch draws those of its LSTM and Linear."""
    made = []
    for layer, layer_key in enumerate(jax.random.split(key, layers)):
        forward_key, backward_key, gate_key = jax.random.split(layer_key, 3)
        own = partial(_init_direction, size=width if layer else size, width=width // 2)
        directions = {"forward": own(forward_key), "backward": own(backward_key)}
        gate = {} if layer == 0 else {"gate": _init_gate(gate_key, width)}
        made.append(directions | gate)
    return made


def _init_direction(key, size: int, width: int):
    reads, recalls, bias, bias_too = jax.random.split(key, 4)
    uniform = partial(jax.random.uniform, minval=-(width**-0.5), maxval=width**-0.5)
    return {
        "reads": uniform(reads, (GATES * width, size)),
        "recalls": uniform(recalls, (GATES * width, width)),
        "bias": uniform(bias, (GATES * width,)) + uniform(bias_too, (GATES * width,)),
    }


def _init_gate(key, width: int):
    weight, bias = jax.random.split(key)
    uniform = partial(jax.random.uniform, minval=-(width**-0.5), maxval=width**-0.5)
    norm = {"scale": jnp.ones(width), "norm_bias": jnp.zeros(width)}
    return {"weight": uniform(weight, (width,)), "bias": uniform(bias, ())} | norm


def gated_lstm(
    layers: list[dict[str, Any]],
    hidden_BLD: jax.Array,
    word_BL: jax.Array,
    text_BL: jax.Array,
    drop: Callable[[jax.Array, int], jax.Array],
) -> jax.Array:
    """What the layers make of words, [B, L, F]: they read where `word_BL` is not 0, within a text. `drop` takes what a
    layer says, and its number."""
    out_BLF = hidden_BLD
    for number, layer in enumerate(layers):
        said = [
            _direction(layer[name], out_BLF, word_BL, text_BL, name == "backward") for name in ("forward", "backward")
        ]
        said_BLF = drop(jnp.concatenate(said, -1), number)
        out_BLF = _gated(layer["gate"], out_BLF, said_BLF) if "gate" in layer else said_BLF
    return out_BLF


def _direction(params, hidden_BLD, word_BL, text_BL, backward: bool):
    """One direction, [B, L, H]; it begins anew with each text, and passes by tokens that begin no word."""
    dtype = hidden_BLD.dtype
    reads, recalls, bias = (params[name].astype(dtype) for name in ("reads", "recalls", "bias"))
    read_BLG = jnp.einsum("bld,gd->blg", hidden_BLD, reads) + bias[None, None]
    before_BL = jnp.roll(text_BL, -1 if backward else 1, axis=1)
    edge = jnp.arange(text_BL.shape[1]) == (text_BL.shape[1] - 1 if backward else 0)
    begins_BL = (text_BL != before_BL) | edge[None]

    def step(state, at):
        read_BG, begins_B, is_word_B = at
        out_BH, cell_BH = (jnp.where(begins_B[:, None], jnp.zeros((), dtype), x) for x in state)
        sum_BG = read_BG + jnp.einsum("bh,gh->bg", out_BH, recalls)
        in_BH, forget_BH, new_BH, shown_BH = jnp.split(sum_BG, GATES, -1)
        next_cell_BH = jax.nn.sigmoid(forget_BH) * cell_BH + jax.nn.sigmoid(in_BH) * jnp.tanh(new_BH)
        next_out_BH = jax.nn.sigmoid(shown_BH) * jnp.tanh(next_cell_BH)
        state = tuple(
            jnp.where(is_word_B[:, None], new, old) for new, old in ((next_out_BH, out_BH), (next_cell_BH, cell_BH))
        )
        return state, state[0]

    start_BH = jnp.zeros((len(text_BL), recalls.shape[1]), dtype)
    by_token = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (read_BLG, begins_BL, word_BL > 0))
    _, out_LBH = jax.lax.scan(step, (start_BH, start_BH), by_token, reverse=backward)
    return jnp.moveaxis(out_LBH, 0, 1)


def _gated(gate, before_BLF, said_BLF):
    """How much of each is in what comes out is told by what the layer says."""
    weight, scale, norm_bias = (gate[name][None, None] for name in ("weight", "scale", "norm_bias"))
    before, said = before_BLF.astype(jnp.float32), said_BLF.astype(jnp.float32)
    share_BL1 = jax.nn.sigmoid((said * weight).sum(-1, keepdims=True) + gate["bias"])
    mixed_BLF = before * (1 - share_BL1) + said * share_BL1
    centred_BLF = mixed_BLF - mixed_BLF.mean(-1, keepdims=True)
    deviation_BL1 = jnp.sqrt((centred_BLF**2).mean(-1, keepdims=True) + NORM_EPS)
    return (centred_BLF / deviation_BL1 * scale + norm_bias).astype(before_BLF.dtype)
