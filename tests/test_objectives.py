"""What is predicted, how often, and that the losses are the textbook's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptjax import objectives
from cptjax.objectives import CLM, Objective, Vocabulary, draw, mask_budget, mlm, select
from cptjax.step import eval_step, loss_and_counts
from tests.conftest import VOCABULARY, packed, random_tokens

pytestmark = pytest.mark.usefixtures("strict_dtypes")

KEY = jax.random.key(3)


def drawn(objective, token_BL, segment_BL, rows=None, key=KEY):
    row_B = jnp.arange(token_BL.shape[0]) if rows is None else jnp.asarray(rows)
    return draw(objective, token_BL, segment_BL, row_B, key, VOCABULARY)


def test_clm_predicts_the_next_token_inside_the_document_only():
    token_BL = jnp.array([[10, 11, 12, 20, 21, 99, 99]])
    targets = drawn(CLM, token_BL, packed(3, 2, total=7)[None])
    assert np.array_equal(targets.input_BL, token_BL)
    assert targets.weight_BS[0].tolist() == [1, 1, 0, 1, 0, 0, 0]
    assert targets.target_BS[0, jnp.array([0, 1, 3])].tolist() == [11, 12, 21]  # 12 and 21: the EOS places


def test_clm_row_full_to_the_end_predicts_nothing_beyond_it():
    assert drawn(CLM, random_tokens(2, 8), jnp.ones((2, 8), jnp.int32)).weight_BS[:, -1].tolist() == [0, 0]


def test_clm_loss_of_a_packed_row_is_the_sum_over_its_documents(model, params):
    lengths, token_BL = (17, 1, 30), random_tokens(1, 60)

    @jax.jit
    def loss(token_BL, segment_BL):
        arguments = {"model": model, "objective": CLM, "vocabulary": VOCABULARY, "chunk": 16}
        return loss_and_counts(params, token_BL, segment_BL, jnp.arange(1), KEY, **arguments)

    whole, counts = loss(token_BL, packed(*lengths, total=60)[None])
    ends = np.cumsum(lengths)
    parts = [
        loss(token_BL[:, end - length : end], jnp.ones((1, length), jnp.int32))[0]
        for end, length in zip(ends, lengths, strict=True)
    ]
    assert float(whole) == pytest.approx(float(sum(parts)), rel=1e-5)
    assert counts["targets"] == sum(length - 1 for length in lengths)
    assert counts["tokens"] == sum(lengths)
    assert counts["keys"] == sum(length**2 for length in lengths)


@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_mlm_rates(rate):
    token_BL = random_tokens(64, 512)
    targets = drawn(mlm(rate), token_BL, jnp.ones_like(token_BL))
    count = float(targets.weight_BS.sum())
    assert count / token_BL.size == pytest.approx(rate, abs=6 * (rate / token_BL.size) ** 0.5)
    chosen = np.zeros(token_BL.shape, bool)
    np.put_along_axis(chosen, np.asarray(targets.position_BS), np.asarray(targets.weight_BS) > 0, axis=1)
    masked, kept = targets.input_BL == VOCABULARY.mask_token_id, targets.input_BL == token_BL
    assert not (~kept & ~chosen).any(), "a token that is no target was changed"
    assert masked[chosen].mean() == pytest.approx(0.8, abs=6 * (0.16 / count) ** 0.5)
    # A random token is the old one by chance once in 120.
    assert kept[chosen].mean() == pytest.approx(0.1 + 0.1 / 120, abs=6 * (0.09 / count) ** 0.5)
    random = targets.input_BL[chosen & ~masked & ~kept]
    assert set(np.unique(random)) <= set(range(VOCABULARY.size)) and len(np.unique(random)) > 100
    targets_at = np.take_along_axis(np.asarray(token_BL), np.asarray(targets.position_BS), axis=1)
    assert np.array_equal(targets.target_BS, targets_at)
    assert targets.overflow == 0


@settings(max_examples=10)
@given(st.integers(2, 12), st.data())
def test_random_tokens_are_all_but_padding_equally_often(size, data):
    # Broken by: pad drawn again from all, `other_L <= pad`, pad_token_id left out of set_up.
    pad = data.draw(st.none() | st.integers(0, size - 1))
    key = jax.random.key(data.draw(st.integers(0, 2**31 - 1)))
    drawn = np.asarray(objectives._random_tokens(key, 4096, Vocabulary(size, None, (), pad)))
    others = [token for token in range(size) if token != pad]
    count = np.bincount(drawn, minlength=size)
    expected = drawn.size / len(others)
    assert count.sum() == drawn.size and (pad is None or count[pad] == 0)
    assert np.abs(count[others] - expected).max() < 6 * expected**0.5
    before = np.asarray(objectives._random_tokens(key, 4096, Vocabulary(size, None, ())))
    assert np.array_equal(drawn[before != pad], before[before != pad]), "another seed's draws"


def test_special_tokens_are_maskable_unless_switched_off_and_padding_never():
    token_BL = jnp.full((8, 64), 2)  # all [CLS]
    segment_BL = jnp.ones_like(token_BL).at[:, 32:].set(0)
    with_special = drawn(mlm(0.5), token_BL, segment_BL)
    assert with_special.weight_BS.sum() > 0
    assert (with_special.position_BS[with_special.weight_BS > 0] < 32).all()
    without = Objective("mlm", "bidirectional", 0.5, mask_special_tokens=False)
    assert drawn(without, token_BL, segment_BL).weight_BS.sum() == 0


def test_a_row_draws_the_same_wherever_it_lands():
    token_BL = random_tokens(4, 64)
    segment_BL = jnp.ones_like(token_BL)
    together = drawn(mlm(0.3), token_BL, segment_BL)
    alone = drawn(mlm(0.3), token_BL[2:3], segment_BL[2:3], rows=[2])
    assert np.array_equal(together.input_BL[2], alone.input_BL[0])
    other_step = drawn(mlm(0.3), token_BL, segment_BL, key=jax.random.key(4))
    assert not np.array_equal(together.input_BL, other_step.input_BL)


def test_overflow_of_the_budget_is_counted(monkeypatch):
    # Broken by: what is changed counted for what is chosen.
    token_BL = random_tokens(2, 64)
    chosen = int(drawn(mlm(0.5), token_BL, jnp.ones_like(token_BL)).weight_BS.sum())
    monkeypatch.setattr("cptjax.objectives.mask_budget", lambda objective, tokens: 5)
    targets = drawn(mlm(0.5), token_BL, jnp.ones_like(token_BL))
    assert targets.weight_BS.shape == (2, 5) and targets.weight_BS.sum() == 10
    assert targets.overflow == chosen - 10 > 0


def test_budget_is_six_sigma_wide():
    assert mask_budget(mlm(0.15), 8192) == 1423
    assert mask_budget(mlm(0.3), 10) == 10


def test_gathered_head_equals_the_full_head(model, params):
    token_BL = random_tokens(2, 64)
    segment_BL = jnp.ones_like(token_BL)
    targets = drawn(mlm(0.3), token_BL, segment_BL)
    hidden_BLD = model.apply({"params": params}, targets.input_BL, segment_BL).hidden_BLD
    whole_BLV = model.apply({"params": params}, hidden_BLD, method="logits")
    gathered = model.apply({"params": params}, select(hidden_BLD, targets.position_BS), method="logits")
    at = jnp.take_along_axis(whole_BLV, targets.position_BS[..., None], axis=1)
    np.testing.assert_allclose(gathered, at, atol=1e-4)


def test_held_out_numbers_do_not_depend_on_the_batch(model, params):
    """device_batch_size may change on resume, so it must not change a number."""
    # Broken by: rows numbered from 0 in every batch of eval_step.
    token_BL = random_tokens(4, 32)
    evaluate = jax.jit(
        partial(eval_step, model=model, objective=mlm(0.3), vocabulary=VOCABULARY, seed=0, chunk=64),
    )

    def sums(rows: int):
        parts = token_BL.reshape(-1, rows, 32)
        found = [
            evaluate(params, {"token_BL": part, "segment_BL": jnp.ones_like(part)}, jnp.int32(i))
            for i, part in enumerate(parts)
        ]
        return [float(sum(x)) for x in zip(*found, strict=True)]

    np.testing.assert_allclose(sums(4), sums(2), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rtd", "causal"), "kind of objective is 'rtd': it is one of clm, mlm"),
        (("mlm", "casual", 0.3), "mask_mode is 'casual': it is one of causal, bidirectional"),
        (("clm", "bidirectional"), "shows it the answer"),
        (("clm", "causal", 0.1), "masks nothing"),
        (("mlm", "bidirectional"), "mask_rate between 0 and 1"),
        (("mlm", "bidirectional", 0.1, 0.9, 0.2), "between 0 and 1"),
    ],
)
def test_impossible_objectives_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Objective(*arguments)
