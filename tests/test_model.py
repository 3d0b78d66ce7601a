"""What the encoder reads and keeps apart, whatever its shape."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cptjax.attention.reference import attend_masked
from cptjax.families import encoder
from cptjax.masks import MaskMode, dense_mask
from cptjax.model import Layer, ModernBert, encode, init_params
from cptjax.ops import layer_norm, rope_table
from cptjax.planning import hlo
from cptjax.run.checkpoint import parameter_shapes
from cptjax.shape import FULL, SLIDING, BertConfig, ModernBertConfig, Precision
from tests.conftest import as_a_user_would, moved, packed, random_tokens

pytestmark = pytest.mark.usefixtures("strict_dtypes")

SHAPE = {"vocab_size": 128, "hidden_size": 32, "num_attention_heads": 4, "initializer_range": 0.2}
FAMILIES = {
    "modernbert": ModernBertConfig(**SHAPE, intermediate_size=48, num_hidden_layers=8, local_attention=16),
    "bert": BertConfig(**SHAPE, intermediate_size=64, num_hidden_layers=3, pooler=True),
    "roberta": BertConfig(**SHAPE, intermediate_size=64, num_hidden_layers=1, model_type="roberta", type_vocab_size=1),
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return encoder(FAMILIES[request.param], Precision(compute="float32"))


@pytest.fixture(scope="module")
def params(model):
    return moved(model)


@partial(jax.jit, static_argnames=("model", "mask_mode"))
def logits(model, params, token_BL, segment_BL, mask_mode):
    encoded = model.apply({"params": params}, token_BL, segment_BL, mask_mode=mask_mode)
    return model.apply({"params": params}, encoded.hidden_BLD, method="logits")


@pytest.mark.parametrize("mode", list(MaskMode))
@pytest.mark.parametrize("kind", [FULL, SLIDING])
def test_layer_reads_exactly_its_keys(config, mode, kind):
    config = dataclasses.replace(config, local_attention=128)
    layer = Layer(config, Precision(compute="float32"), "blockwise", lambda x: x, kind)
    segment_BL = packed(20, 300, 60, total=400)[None]
    hidden_BLD = jax.random.normal(jax.random.key(0), (1, 400, config.hidden_size))
    rope = {kind: rope_table(jnp.arange(400)[None], 10_000.0, config.head_dim)}
    variables = jax.jit(layer.init, static_argnums=4)(jax.random.key(1), hidden_BLD, segment_BL, rope, mode)

    def of_token_150(hidden_BLD):
        return layer.apply(variables, hidden_BLD, segment_BL, rope, mode)[0, 150].sum()

    read = np.flatnonzero(np.abs(jax.jit(jax.grad(of_token_150))(hidden_BLD)[0]).sum(-1))
    first = 150 - 64 if kind == SLIDING else 20
    last = 150 if mode == MaskMode.CAUSAL else 150 + 64 if kind == SLIDING else 319
    assert read.tolist() == list(range(first, last + 1))


@pytest.mark.parametrize("mode", list(MaskMode))
def test_packed_row_equals_documents_alone(model, params, mode):
    lengths = (23, 1, 40)
    token_BL = random_tokens(1, 70)
    whole = logits(model, params, token_BL, packed(*lengths, total=70)[None], mode)
    start = 0
    for length in lengths:
        alone_BL = token_BL[:, start : start + length]
        alone = logits(model, params, alone_BL, jnp.ones_like(alone_BL), mode)
        np.testing.assert_allclose(whole[:, start : start + length], alone, atol=2e-5 * abs(alone).max())
        start += length


@pytest.mark.parametrize("mode", list(MaskMode))
def test_another_document_or_padding_changes_no_bit(model, params, mode):
    segment_BL = packed(30, 25, total=64)[None]
    token_BL = random_tokens(1, 64)
    before = logits(model, params, token_BL, segment_BL, mode)
    outside = segment_BL != 2
    after = logits(model, params, jnp.where(outside, random_tokens(1, 64, seed=9), token_BL), segment_BL, mode)
    assert np.array_equal(before[~outside], after[~outside])
    assert not np.array_equal(before[outside], after[outside])


def test_causal_logits_do_not_know_the_future(model, params):
    token_BL = random_tokens(1, 50)
    segment_BL = jnp.ones_like(token_BL)
    changed_BL = token_BL.at[0, 30].set(7)
    before, after = (logits(model, params, x, segment_BL, "causal")[0] for x in (token_BL, changed_BL))
    assert np.array_equal(before[:30], after[:30])
    assert not np.array_equal(before[30:], after[30:])


@pytest.mark.parametrize("mode", list(MaskMode))
def test_blockwise_model_equals_reference_model(model, params, mode):
    token_BL, segment_BL = random_tokens(2, 60), jnp.stack([packed(20, 30, total=60), packed(60, total=60)])
    reference = model.clone(backend="reference")
    expected, out = (logits(m, params, token_BL, segment_BL, mode) for m in (reference, model))
    np.testing.assert_allclose(out, expected, atol=2e-5 * abs(expected).max())


def test_a_model_of_forward_mode_is_differentiated_forward(model, params):
    # Broken by: the context left out of Encoder.apply, or its words of the error.
    token_BL = random_tokens(1, 20)

    def loss(model, params):
        return (encode(model, params, token_BL, token_BL * 0 + 1).hidden_BLD ** 2)[0, 0].sum()

    tangent = jax.tree.map(jnp.cos, params)
    with pytest.raises(TypeError, match=r"not differentiated forward .*: model.clone\(forward_mode=True\) is"):
        jax.jvp(partial(loss, model), (params,), (tangent,))
    forward = model.clone(forward_mode=True)
    slope = jax.jit(lambda params: jax.jvp(partial(loss, forward), (params,), (tangent,))[1])(params)
    gradient = jax.jit(jax.grad(partial(loss, model)))(params)
    sums = [(a * b).sum() for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(tangent), strict=True)]
    np.testing.assert_allclose(slope, sum(sums), rtol=1e-4)


def test_attention_may_be_a_function_of_ones_own(model, params):
    # Broken by: BACKENDS asked for what is a function.
    token_BL = random_tokens(1, 20)

    def attend_but_last(q_BLHK, k_BLHK, v_BLHK, spec, segment_BL):
        mask_BLM = dense_mask(spec, segment_BL) & (jnp.arange(20) < 19)[None, None]
        return attend_masked(q_BLHK, k_BLHK, v_BLHK, mask_BLM)

    own = model.clone(backend=attend_but_last)
    changed = (token_BL, token_BL.at[0, 19].set(7), token_BL.at[0, 9].set(7))
    before, last, ninth = (logits(own, params, x, token_BL * 0 + 1, "bidirectional")[0, :9] for x in changed)
    assert np.array_equal(last, before) and not np.array_equal(ninth, before)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"backend": "flash"},
            "attention is 'flash' .did you mean splash.*: it is one of reference, blockwise, splash, cudnn",
        ),
        ({"remat": "all"}, "remat is 'all': it is one of none, block, dots"),
        ({"precision": "bfloat16"}, "precision is 'bfloat16': give a Precision, such as"),
        ({"backend": "splash", "forward_mode": True}, "splash is not differentiated forward: use reference or blockw"),
    ],
)
def test_options_that_there_are_not_are_refused_with_the_choices(options, says):
    with pytest.raises(ValueError, match=says):
        encoder(FAMILIES["bert"], **options)


@pytest.mark.parametrize(
    ("ids", "segments", "says"),
    [
        (
            [1, 2],
            [1, 1],
            r"tokens of shape \(2,\) and segments of \(2,\): both must be \[rows, tokens\], or tokens vec",
        ),
        ([[1, 2]], [[1, 1, 1]], r"tokens of shape \(1, 2\) and segments of \(1, 3\)"),
        ([[[1.0] * 7]], [[1]], r"or tokens vectors \[rows, tokens, 32\]"),
        ([[1, 128]], [[1, 1]], "tokens are int32 from 1 to 128: ids are whole numbers from 0 to 127"),
        ([[1, -1]], [[1, 1]], "tokens are int32 from -1 to 1"),
        ([[1.0, 2.5]], [[1, 1]], "tokens are float32 from 1 to 2"),
    ],
)
def test_rows_that_are_none_are_refused(ids, segments, says):
    # Broken by: any condition left out of _rows.
    with pytest.raises(ValueError, match=says):
        encode(encoder(FAMILIES["roberta"]), {}, ids, segments)


def test_rows_may_be_lists(model, params):
    # Broken by: no _rows.
    ids, segments = [[5, 6, 7, 8]], [[1, 1, 2, 0]]
    arrays = (jnp.array(x) for x in (ids, segments))
    given, expected = (encode(model, params, *rows).hidden_BLD for rows in ((ids, segments), arrays))
    assert np.array_equal(given, expected)


def test_rematerialisation_changes_no_gradient(model, params):
    token_BL = random_tokens(1, 40)
    segment_BL = jnp.ones_like(token_BL)

    def gradient(model):
        return jax.jit(jax.grad(lambda p: model.apply({"params": p}, token_BL, segment_BL).hidden_BLD.std()))(params)

    kept, *again = (jax.tree.leaves(gradient(model.clone(remat=remat))) for remat in ("none", "block", "dots"))
    for leaves in zip(kept, *again, strict=True):
        for other in leaves[1:]:
            np.testing.assert_allclose(other, leaves[0], atol=1e-6)


def test_rematerialisation_recomputes_what_it_says(config):
    # Broken by: the names left out of attention, the policy left out, remat ignored.
    config = dataclasses.replace(config, num_hidden_layers=13, layer_types=())
    token_BL = random_tokens(4, 512)

    def cost(remat):
        model = ModernBert(config, Precision(compute="float32"), remat=remat)
        params = jax.eval_shape(partial(init_params, model), jax.random.key(0))
        gradient = jax.jit(jax.grad(lambda p: encode(model, p, token_BL, token_BL * 0 + 1).hidden_BLD.std()))
        compiled = gradient.lower(params).compile()
        return hlo.product_flops(hlo.parse(compiled.as_text())), compiled.memory_analysis().temp_size_in_bytes

    with as_a_user_would():
        (flops, most), (again, least), (same, middle) = map(cost, ("none", "block", "dots"))
    assert flops == same < again
    assert least < middle < most


def test_kept_layers_end_in_the_hidden_state(model, params):
    token_BL, config = random_tokens(1, 20), model.config

    @partial(jax.jit, static_argnums=0)
    def apply(keep):
        return model.apply({"params": params}, token_BL, jnp.ones_like(token_BL), keep_layers=keep)

    kept = apply(True)
    assert kept.layers_NBLD.shape == (config.num_hidden_layers + 1, 1, 20, config.hidden_size)
    assert apply(False).layers_NBLD is None
    last = kept.layers_NBLD[-1, 0]
    if "final_norm" in params:
        last = layer_norm(last, params["final_norm"]["scale"], config.norm_eps)
    np.testing.assert_allclose(last, kept.hidden_BLD[0], atol=1e-6)


def test_initialisation_is_truncated_and_smaller_into_the_residual():
    config = ModernBertConfig(
        vocab_size=512, hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4
    )
    params = jax.jit(init_params, static_argnums=0)(ModernBert(config), jax.random.key(0))
    wide, narrow = params["layer_0"]["mlp"]["Wi"], params["layer_0"]["mlp"]["Wo"]
    assert abs(wide).max() <= 2 * config.initializer_range
    assert float(narrow.std() / wide.std()) == pytest.approx((2 * config.num_hidden_layers) ** -0.5, rel=0.1)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_rows_and_token_types_beyond_the_tables_are_refused(name):
    config = FAMILIES[name]
    model, longest = encoder(config), 512 - (name == "roberta")
    params = parameter_shapes(config)
    token_BL = jnp.zeros((1, longest + 1), jnp.int32)
    with pytest.raises(ValueError, match=f"a row has {longest + 1} tokens: this model has positions for {longest}"):
        encode(model, params, token_BL, token_BL + 1)
    short_BL = token_BL[:, :8]
    with pytest.raises(ValueError, match=rf"token types go up to 2: this model has {config.type_vocab_size},"):
        encode(model, params, short_BL, short_BL + 1, token_type_BL=short_BL + 2)


def test_token_types_are_added_and_modernbert_has_none():
    model = encoder(FAMILIES["bert"], Precision(compute="float32"))
    params = moved(model)
    token_BL = random_tokens(1, 12)
    out = partial(encode, model, params, token_BL, token_BL * 0 + 1)
    assert np.array_equal(out().hidden_BLD, out(token_type_BL=token_BL * 0).hidden_BLD)
    assert not np.array_equal(out().hidden_BLD, out(token_type_BL=token_BL * 0 + 1).hidden_BLD)
    modern = encoder(FAMILIES["modernbert"])
    with pytest.raises(ValueError, match="ModernBERT has no token types"):
        encode(modern, parameter_shapes(modern.config), token_BL, token_BL * 0 + 1, token_type_BL=token_BL * 0)
