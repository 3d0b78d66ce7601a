"""A model in a few lines of Python: load it, make tokens of texts, embed them, fill masks, save what came of it.

T texts, B rows, L tokens, D width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from convert import from_hf, to_hf
from cptjax import heads
from cptjax.attention.backends import check_backend
from cptjax.data.tokenizer import load_tokenizer, special_tokens, text_tokenizer
from cptjax.families import encoder
from cptjax.files import read_json
from cptjax.model import Encoder, encode
from cptjax.run import checkpoint
from cptjax.shape import ModelConfig, Precision

SHORTEST = 32  # tokens of a row that texts are computed in; others are twice as long, and so on
TOKENS_AT_ONCE = 8192
POOLINGS = ("mean", "cls")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory. `encode(loaded.model, loaded.params, token_BL, segment_BL)` is a pure function of the
    parameters, a nested dict whose names docs/library.md explains: `embeddings`, `layer_N` for layers that are not
    repeated, `blocks` for those that are, stacked along their first axis (`cptjax.shape.layer_path` says where a layer
    lies), `final_norm`, and `head`, `decoder` or `classifier`. Hidden states are of the dtype `load` was given."""

    model: Encoder
    params: Any
    tokenizer: tokenizers.Tokenizer
    folder: Path  # that the tokenizer's files lie in
    hf_config: dict[str, Any] | None  # config.json of where it is from, where it has one

    @property
    def config(self) -> ModelConfig:
        """Its shape."""
        return self.model.config

    def changed(self, params: Any) -> "Loaded":
        """The same model with other parameters."""
        return replace(self, params=params)


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    step: int | None = None,
    attention: str = "blockwise",
    compute: Literal["float32", "bfloat16"] = "float32",
) -> Loaded:
    """A model by its Hugging Face folder, Hub id (perhaps at a `revision`) or run folder (perhaps at a `step`).

    `attention` is a row of `cptjax.attention.backends.BACKENDS`; products are computed in `compute`. Raises
    FileNotFoundError where there is no such model, ValueError for one that cannot be represented exactly, and for an
    unknown backend or dtype.
    """
    check_backend(attention)
    precision = Precision(compute)
    if (Path(source) / checkpoint.MODEL).is_file():
        if revision is not None:
            raise ValueError(f"{source} is a run folder: it has steps, and no revision")
        _, config, params = checkpoint.load_params(Path(source), step)
        folder, written = Path(source) / checkpoint.TOKENIZER, Path(source) / checkpoint.HF_CONFIG
    else:
        if step is not None:
            raise ValueError(f"{source} is no run folder: it has no step {step}")
        folder = from_hf.find(source, revision=revision)
        written = folder / "config.json"
        config, params = from_hf.load(folder)
    hf_config = read_json(written) if written.is_file() else None
    params = jax.tree.map(jnp.asarray, params)
    return Loaded(encoder(config, precision, attention), params, load_tokenizer(folder), folder, hf_config)


def tokens(
    loaded: Loaded, texts: Sequence[str] | str, *, truncate: bool = False, masks: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Texts as rows, token_BL and segment_BL, int32 [T, L]: special tokens are around each as transformers' tokenizer
    puts them; padding is segment 0. A special token's name in a text is text, as it was in training; with `masks` that
    of the mask token is the mask token.

    Raises TypeError for what is no text, ValueError for one longer than the model's positions, unless it is to be cut
    with `truncate`.
    """
    rows = _ids(loaded, texts, truncate, masks)
    length = max(map(len, rows), default=1)
    token_BL = np.full((len(rows), length), _padding(loaded), np.int32)
    segment_BL = np.zeros_like(token_BL)
    for row, ids in enumerate(rows):
        token_BL[row, : len(ids)], segment_BL[row, : len(ids)] = ids, 1
    return token_BL, segment_BL


def embed(
    loaded: Loaded, texts: Sequence[str] | str, pooling: Literal["mean", "cls"] = "mean", *, truncate: bool = False
) -> np.ndarray:
    """A vector for each text, float32 [T, D]: the mean of its tokens' last hidden states, or that of its first token.

    Raises ValueError as `tokens` does, and for another pooling.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is {pooling!r}: it is one of {', '.join(POOLINGS)}")
    rows = _ids(loaded, texts, truncate, masks=False)
    vectors = np.zeros((len(rows), loaded.config.hidden_size), np.float32)
    for chosen, vector_TD in _computed(loaded, rows, partial(_pooled, pooling)):
        vectors[chosen] = vector_TD
    return vectors


def fill_mask(loaded: Loaded, sentences: Sequence[str] | str, most: int = 5) -> list[list[list[tuple[str, float]]]]:
    """For each sentence and each mask token that is written in it, in order: the likeliest tokens with their
    probabilities, `most` of them. Names of other special tokens are text.

    Raises ValueError for a model without a language-model head or mask token, and for a sentence without a mask.
    """
    if most < 1:
        raise ValueError(f"most is {most}: it must be at least 1")
    mask = special_tokens(loaded.folder, loaded.tokenizer).mask
    if loaded.config.head != "lm" or mask is None:
        missing = "language-model head" if loaded.config.head != "lm" else "mask token"
        raise ValueError(f"this model has no {missing}: it fills no mask")
    rows = _ids(loaded, sentences, truncate=False, masks=True)
    if without := [number for number, ids in enumerate(rows) if mask not in ids]:
        raise ValueError(f"sentence {without[0]} has no {loaded.tokenizer.id_to_token(mask)}: write it where a word is")
    filled: list[list[list[tuple[str, float]]]] = [[] for _ in rows]
    for chosen, hidden_TLD in _computed(loaded, rows, _states):
        for number, hidden_LD in zip(chosen, hidden_TLD, strict=True):
            places = np.flatnonzero(np.array(rows[number]) == mask)
            for share_V in np.asarray(_shares(loaded.model, loaded.params, hidden_LD[places])):
                best = np.argsort(-share_V)[:most]
                filled[number].append(
                    [(loaded.tokenizer.decode([i]).strip(), float(share_V[i])) for i in best.tolist()]
                )
    return filled


def save(loaded: Loaded, folder: str | Path, *, dtype: str = "float32", overwrite: bool = False) -> list[str]:
    """Write a folder that transformers loads, all of it or nothing; returns notes on it. Raises as `to_hf.save`, and
    ValueError for parameters that are not those of the model's shape."""
    expected, given = (_shapes(tree) for tree in (checkpoint.parameter_shapes(loaded.config), loaded.params))
    if wrong := [name for name in {**expected, **given} if expected.get(name) != given.get(name)]:
        name = wrong[0]
        raise ValueError(f"parameter {name} is {given.get(name)}: this model's is {expected.get(name)}")
    params, options = jax.tree.map(np.asarray, loaded.params), {"dtype": dtype, "overwrite": overwrite}
    return to_hf.save(
        loaded.config, params, Path(folder), hf_config=loaded.hf_config, tokenizer=loaded.folder, **options
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {"/".join(key.key for key in path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(tree)}


# ---- texts in batches of few shapes

Work = Callable[[Encoder, Any, jax.Array, jax.Array], jax.Array]


def _ids(loaded: Loaded, texts: Sequence[str] | str, truncate: bool, masks: bool) -> list[list[int]]:
    texts = [texts] if isinstance(texts, str) or not isinstance(texts, Iterable) else list(texts)
    if strange := [text for text in texts if not isinstance(text, str)]:
        raise TypeError(f"{strange[0]!r} is no text: give a list of strings")
    rows = _reader(loaded.folder, loaded.tokenizer, masks).encode_batch(texts, add_special_tokens=False)
    most = loaded.config.longest_document
    room = most - loaded.tokenizer.num_special_tokens_to_add(is_pair=False)
    for number, row in enumerate(rows):
        if len(row.ids) > room and not truncate:
            raise ValueError(
                f"text {number} has {len(row.ids) + most - room} tokens, this model has positions for {most}: cut it, "
                "or give truncate=True"
            )
        row.truncate(room)
    return [loaded.tokenizer.post_process(row).ids for row in rows]


@lru_cache(maxsize=8)
def _reader(folder: Path, tokenizer: tokenizers.Tokenizer, masks: bool) -> tokenizers.Tokenizer:
    """A copy of the tokenizer for which names of special tokens are text, but that of the mask with `masks`."""
    special = special_tokens(folder, tokenizer)
    return text_tokenizer(
        tokenizer, replace(special, all=tuple(i for i in special.all if not masks or i != special.mask))
    )


def _padding(loaded: Loaded) -> int:
    return special_tokens(loaded.folder, loaded.tokenizer).pad or 0


def _computed(loaded: Loaded, rows: Sequence[list[int]], work: Work) -> Iterator[tuple[list[int], np.ndarray]]:
    """What `work` makes of texts, with their numbers: in rows of a few lengths, so many at once, a text a row."""
    by_length: dict[int, list[int]] = {}
    for number, ids in enumerate(rows):
        length = SHORTEST
        while length < len(ids):
            length *= 2
        by_length.setdefault(min(length, loaded.config.longest_document), []).append(number)
    padding = _padding(loaded)
    for length, numbers in by_length.items():
        at_once = max(1, TOKENS_AT_ONCE // length)
        for first in range(0, len(numbers), at_once):
            chosen = numbers[first : first + at_once]
            shape = (min(at_once, len(numbers)), length)
            token_BL, segment_BL = np.full(shape, padding, np.int32), np.zeros(shape, np.int32)
            for row, number in enumerate(chosen):
                token_BL[row, : len(rows[number])], segment_BL[row, : len(rows[number])] = rows[number], 1
            yield (
                chosen,
                np.asarray(work(loaded.model, loaded.params, jnp.asarray(token_BL), jnp.asarray(segment_BL)))[
                    : len(chosen)
                ],
            )


@partial(jax.jit, static_argnums=0)
def _states(model, params, token_BL, segment_BL):
    with model.precision.products():
        return encode(model, params, token_BL, segment_BL).hidden_BLD.astype(jnp.float32)


@partial(jax.jit, static_argnums=(0, 1))
def _pooled(pooling, model, params, token_BL, segment_BL):
    rows = len(token_BL)
    text_BL = segment_BL * jnp.arange(1, rows + 1, dtype=jnp.int32)[:, None]
    with model.precision.products():
        hidden_BLD = encode(model, params, token_BL, segment_BL).hidden_BLD
    return heads.pool(hidden_BLD, text_BL, rows, pooling)


@partial(jax.jit, static_argnums=0)
def _shares(model, params, hidden_TD):
    with model.precision.products():
        logits: Any = model.apply({"params": params}, hidden_TD[None].astype(model.precision.compute), method="logits")
    return jax.nn.softmax(logits[0])
