"""The states of every layer of a model over texts, one vector for each text, kept in a file: run once, read often.

N layers, the embeddings the first; B rows, L tokens, T texts (E examples of eval.texts), D width.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from convert import from_hf, library
from convert.library import Loaded
from convert.tensors import write_tensors
from cptjax import heads
from cptjax.command.bar import bar
from cptjax.data.tokenizer import Encoder
from cptjax.files import hash_of
from cptjax.model import Encoder as Network
from cptjax.run import checkpoint
from cptjax.sharding import parameter_path
from eval.analysis.command import Pooling
from eval.heads import NO_ENTITIES, NO_TEXT_TARGET, Batch, Targets
from eval.packed import Piece, by_text
from eval.protocols import Protocol
from eval.tasks.splits import SEED
from eval.tasks.task import Answer, Example
from eval.texts import Text, tokenise
from eval.update import ON_THE_ENCODER, layer_states

STATES = "state_NTD"  # name of the array in a file


class Opened(NamedTuple):
    """A model, as it was named, and the sha256 of its encoder's weights: heads do not change a state."""

    name: str
    loaded: Loaded
    weights: str


class States(NamedTuple):
    """What a model makes of texts: a vector of each layer for each text, how many texts were cut to how many tokens,
    and the sha256 of the tokens that were read."""

    state_NTD: np.ndarray
    cut: int
    length: int
    tokens: str


def draw(texts: Iterable[str], number: int) -> list[str]:
    """So many texts of all, each as likely, by a seed; empty ones do not count. All of them where there are fewer."""
    random_, drawn = random.Random(SEED), []
    for before, text in enumerate(text for text in texts if text.strip()):
        if before < number:
            drawn.append(text)
        elif (place := random_.randrange(before + 1)) < number:
            drawn[place] = text
    return drawn


def open_model(name: str) -> Opened:
    """A model by its folder, Hub id or run folder; FOLDER@STEP is a step of a run, ID@REVISION a revision on the Hub.
    Raises as `library.load` does, and ValueError for a step that is no number."""
    source, at, which = name.rpartition("@")
    if not at or Path(name).exists():
        loaded = library.load(name)
    elif not (Path(source) / checkpoint.MODEL).is_file():
        loaded = library.load(source, revision=which)
    elif which.isdecimal():
        loaded = library.load(source, step=int(which))
    else:
        raise ValueError(f"{name}: {source} is a run folder, what follows @ is a step, such as {source}@300")
    from_hf.check_tokenizer(loaded.folder, loaded.config.vocab_size)
    return Opened(name, loaded, weights_hash(loaded.params))


def weights_hash(params: Any) -> str:
    """The sha256 of an encoder's parameters, heads left out: the same in a run folder and in its release."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if (name := parameter_path(path)).split("/")[0] not in (*ON_THE_ENCODER, "decoder"):
            digest.update(f"{name} {leaf.shape} {leaf.dtype}".encode())
            digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def collect(
    model: Opened,
    texts: Sequence[str],
    pooling: Pooling,
    length: int,
    kept: Path | None = None,
    *,
    second: Sequence[str | None] | None = None,
    first_layer: int = 0,
) -> States:
    """The states of texts, cut to `length` tokens or what the model reads: float32 [N, T, D].

    A text may have a `second` beside it, and is read as a pair. Layers before `first_layer` are left out: -1 is the
    last.

    "mean" is over all tokens, "cls" the first one, "token" one drawn by a seed, special ones left out. The last layer
    comes after the last norm. All devices of this process share the rows. In the folder `kept` states are read if they
    are there, else written. Raises ValueError for a broken file, and as `tokenise` does.
    """
    config, encoder = model.loaded.config, Encoder(model.loaded.folder)
    protocol = Protocol(name="states", max_length=length)
    pairs = zip(texts, second or [None] * len(texts), strict=True)
    examples = [Example("", text, Answer(), second=other) for text, other in pairs]
    split = tokenise(encoder, config, examples, "single_label", protocol)
    before, after = map(len, encoder.around_one())
    pieces = [_piece(text, pooling, before, after) for text in split.texts]
    cut, longest = int(split.truncated_E.sum()), min(length, config.longest_document)
    tokens = _hash(piece.text.token_L for piece in pieces)
    pooled = _hash(piece.targets.of_tokens["pooled"] for piece in pieces)
    of_model, of_texts = hash_of([model.weights, asdict(config)]), hash_of([tokens, pooled, first_layer])
    path = kept and kept / f"{of_model[:16]}-{of_texts[:16]}.safetensors"
    if path and path.is_file():
        with from_hf.opened(path) as tensors:
            return States(tensors.get_tensor(STATES), cut, longest, tokens)
    with bar(len(pieces), " texts") as shown:

        def read(made_NTD: np.ndarray, number: int, row: int, start: int, text: Text) -> np.ndarray:
            shown.update()
            return made_NTD[first_layer:, number]

        work, devices = _on_all_devices(model.loaded)
        state_NTD = np.stack(by_text(pieces, config.longest_document, work, read, devices), 1)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {STATES: state_NTD}, [state_NTD], {"model": model.name, "pooling": pooling})
    return States(state_NTD, cut, longest, tokens)


def _on_all_devices(loaded: Loaded) -> tuple[Callable[[Batch], jax.Array], int]:
    """`pool_layers` of a model with the rows of a batch spread over this process's devices, and how many those are."""
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("rows",), axis_types=(AxisType.Auto,), devices=devices)
    whole, spread = NamedSharding(mesh, P()), NamedSharding(mesh, P("rows"))
    params = jax.device_put(loaded.params, whole)

    def work(batch: Batch) -> jax.Array:
        return pool_layers(loaded.model, params, {**batch, "rows": jax.device_put(batch["rows"], spread)})

    return work, len(devices)


def _piece(text: Text, pooling: Pooling, before: int, after: int) -> Piece:
    """A text, and which of its tokens its vector is the mean of; `before` and `after` are special tokens around it."""
    pooled_L = np.zeros_like(text.token_L)
    if pooling == "mean":
        pooled_L[:] = 1
    elif pooling == "cls":
        pooled_L[0] = 1
    else:
        own = max(1, len(pooled_L) - before - after)
        pooled_L[before + np.random.default_rng([SEED, text.example]).integers(own)] = 1
    return Piece(text, Targets({"pooled": pooled_L}, NO_TEXT_TARGET, NO_ENTITIES))


def _hash(arrays: Iterable[np.ndarray]) -> str:
    return hash_of([array.tolist() for array in arrays])


@partial(jax.jit, static_argnums=0)
def pool_layers(model: Network, params: Any, batch: Batch) -> jax.Array:
    """The mean over each text's pooled tokens in every layer, [N, T, D]."""
    (rows,) = batch["rows"]
    with model.precision.products():
        layer_NBLD = layer_states(model, params, rows)
    text_BL = rows["text_BL"] * rows["pooled_BL"]
    return jax.vmap(lambda hidden_BLD: heads.pool(hidden_BLD, text_BL, len(batch["group_T"]), "mean"))(layer_NBLD)
