"""What is read from a compiled program is what it does."""

import math
import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from cptjax.model import ModernBert, init_params
from cptjax.objectives import CLM, Vocabulary, mlm
from cptjax.planning import hlo
from cptjax.shape import FULL, SLIDING, ModelConfig, ModernBertConfig, Precision
from cptjax.step import chunk_positions, loss_and_counts
from tests.conftest import as_a_user_would

TEXT = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%fused (x: f32[2,4]) -> f32[8,4] {
  ROOT %all-gather.1 = f32[8,4]{1,0} all-gather(%x), channel_id=1, dimensions={0}
}

%condition (state: (s32[], f32[8,4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(24)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %x = f32[2,4] parameter(0)
  %one = f32[8,4] fusion(%x), kind=kCustom, calls=%fused
  %all-gather.2 = f32[8,4]{1,0} all-gather(%x), channel_id=1, dimensions={0}
  %start = (bf16[4]{0}, bf16[16]{0}, u32[], u32[]) all-gather-start(%y), channel_id=2
  %w = f32[4,5]{1,0} constant({...})
  %product = f32[2,5]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %next = (s32[], f32[8,4]) tuple(%fused_counter, %one)
}

%twos (state: (f32[8,4], u32[])) -> pred[] {
  %number = u32[] get-tuple-element(%state), index=1
  %eight = u32[]{:T(128)} constant(8)
  ROOT %less.2 = pred[] compare(%number, %eight), direction=LT
}

%pair (state: (f32[8,4], u32[])) -> (f32[8,4], u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %n = u32[] get-tuple-element(%state), index=1
  %after = u32[] add(%n, %two)
  %p = bf16[16,2]{1,0} collective-permute(%z), channel_id=4
  ROOT %both = (f32[8,4], u32[]) tuple(%same, %after)
}

ENTRY %main (x: f32[2,4]) -> f32[8,4] {
  %loop = (s32[], f32[8,4]) while(%tuple), condition=%condition, body=%body
  %loop.2 = (f32[8,4], u32[]) while(%tuple.2), condition=%twos, body=%pair
  ROOT %all-reduce = f32[8,4]{1,0} all-reduce(%z), channel_id=3, to_apply=%add
}
"""


def test_exchanges_are_counted_as_often_as_their_loops_run():
    # Broken by: trips always 1, steps always 1, channels not told apart, operands of a -start counted.
    found = hlo.collectives(hlo.parse(TEXT))
    assert [(one.kind, one.shape, one.times, one.bytes) for one in found] == [
        ("all-gather", "f32[8,4]", 24, 24 * 128),
        ("all-gather", "bf16[16]", 24, 24 * 32),
        ("collective-permute", "bf16[16,2]", 4, 4 * 64),
        ("all-reduce", "f32[8,4]", 1, 128),
    ]


def test_products_are_counted_as_often_as_their_loops_run():
    assert hlo.product_flops(hlo.parse(TEXT)) == 24 * 2 * 2 * 5 * 4


def convolution(out: str, left: str, right: str, rest: str) -> float | None:
    body = f"%l = bf16[{left}]{{1,0}} parameter(0)\n  %r = bf16[{right}]{{1,0}} parameter(1)\n"
    return hlo.product_flops(
        hlo.parse(
            f"ENTRY %main (l: bf16[1]) -> bf16[1] {{\n  {body}  ROOT %c = bf16[{out}] convolution(%l, %r), {rest}\n}}"
        )
    )


@pytest.mark.parametrize(
    ("out", "left", "right", "rest", "products"),
    [
        ("8192,2624", "8192,1024", "2624,1024", "dim_labels=bf_oi->bf", 8192 * 2624 * 1024),
        ("8192,1024,1", "8192,16,64", "1024,16,64", "window={size=16}, dim_labels=b0f_o0i->bf0", 8192 * 1024 * 16 * 64),
        # Windows that reach over the edge: each of 16 outputs meets one number of the array, not 16.
        (
            "64,16,32",
            "64,1024,1",
            "16,1024,32",
            "window={size=16 pad=15_15 rhs_reversal=1}, dim_labels=bf0_0io->b0f",
            64 * 16 * 32 * 1024,
        ),
    ],
)
def test_products_that_are_written_as_convolutions_are_counted(out, left, right, rest, products):
    assert convolution(out, left, right, rest) == 2 * products


@as_a_user_would()
def test_a_compiled_loop_of_products_is_read():
    def looped(x):
        return jax.lax.scan(lambda x, _: (jnp.dot(x, jnp.ones((4, 4))), None), x, None, length=5)[0]

    text = jax.jit(looped).lower(jnp.zeros((8, 4))).compile().as_text()
    assert hlo.product_flops(hlo.parse(text)) == 5 * 2 * 8 * 4 * 4


def test_what_is_not_readable_is_not_guessed():
    called = TEXT.replace("all-reduce(%z)", 'custom-call(%z), custom_call_target="__cublas$gemm"')
    assert hlo.product_flops(hlo.parse(called)) is None


# ---- what must not be in a step

TOKENS, WORDS = 1152, 2304  # no other size of the model, nor a multiple of one that could be split off
LOCAL = ModernBertConfig(
    vocab_size=WORDS,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=5,
    num_attention_heads=2,
    local_attention=128,
    layer_types=(SLIDING,) * 5,
)


@as_a_user_would()
def arrays_of_a_step(objective, backend: str, config: ModelConfig = LOCAL) -> set[tuple[int, ...]]:
    """The shapes of all arrays of the compiled loss and its gradients, on a row of TOKENS tokens."""
    model = ModernBert(config, Precision(compute="float32"), backend)
    params = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    loss = partial(
        loss_and_counts,
        model=model,
        objective=objective,
        vocabulary=Vocabulary(WORDS - 4, WORDS - 4, ()),
        chunk=chunk_positions(1, WORDS),
    )
    row = jax.ShapeDtypeStruct((1, TOKENS), jnp.int32)
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    text = (
        gradient.lower(params, row, row, jax.ShapeDtypeStruct((1,), jnp.int32), jax.random.key(0)).compile().as_text()
    )
    return {tuple(map(int, sizes.split(","))) for sizes in re.findall(r"\w+\[([\d,]+)\]", text)}


@pytest.mark.parametrize("objective", [CLM, mlm(0.3)], ids=["clm", "mlm"])
def test_local_layers_make_no_square_of_tokens_and_the_loss_no_logits_of_a_row(objective):
    # Broken by: backend="reference" below, or chunk=TOKENS above.
    shapes = arrays_of_a_step(objective, "blockwise")
    assert (TOKENS, LOCAL.hidden_size) in shapes  # the text is read
    assert max(map(math.prod, shapes)) < TOKENS**2 < TOKENS * WORDS  # however they would be cut


def test_global_layers_make_no_square_of_tokens(monkeypatch):
    # Broken by: no optimization_barrier in attention, without which jax makes all masks before the scan over layers.
    monkeypatch.setattr("cptjax.attention.blockwise.QUERY_BLOCK", 128)
    shapes = arrays_of_a_step(CLM, "blockwise", replace(LOCAL, layer_types=(FULL,) * 5))
    assert max(map(math.prod, shapes)) < TOKENS**2


def test_the_reference_makes_a_square_of_tokens():
    assert max(map(math.prod, arrays_of_a_step(CLM, "reference"))) >= TOKENS**2
