"""A model with parts of another: layers of a donor in a host, to see what of a gain moves with them.

A norm belongs to what it serves: attn_norm to attention, mlp_norm to the feed-forward, whether it stands before it, as
in ModernBERT, or after it, as in BERT. What is in no layer (embeddings, final norm, heads) stays the host's, but where
all of every layer is moved: that is the donor.
"""

import re
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from huggingface_hub import ModelCardData

from convert import library, private
from convert.from_hf import INDEX, SINGLE
from cptjax.command.escape import listed, say
from cptjax.files import check_free, new_folder, write_json, write_text
from cptjax.run.checkpoint import path_keys
from cptjax.shape import parameter_names
from eval.analysis.collect import Opened, open_model, weights_hash
from eval.analysis.command import Component, TransplantCommand
from eval.render import Table, as_markdown

RECORD = "transplant.json"
MARKERS = (SINGLE, INDEX)
# Fields of a shape that change no number of a trained encoder.
OF_TRAINING = re.compile(r"initializer_\w+|\w*dropout\w*|causal_window_counts_self")
MOST_FIELDS = 3  # that differ, named
MOVED = {"attn": "attention with its norm", "mlp": "the feed-forward with its norm", "all": "whole layers"}


def write(asked: TransplantCommand) -> None:
    """Read both models, write the new one. Raises FileExistsError as `new_folder` does, and as `transplant`."""
    check_free(asked.out, markers=MARKERS, overwrite=asked.overwrite)
    host, donor = map(open_model, asked.models)
    layers = layers_of(asked.layers, host.loaded.config.num_hidden_layers)
    params = transplant(host, donor, layers, asked.component)
    record = {
        **{role: {"name": _name(each), "weights": each.weights} for role, each in (("host", host), ("donor", donor))},
        "layers": layers,
        "component": asked.component,
        "whole": _is_whole(host, layers, asked.component),
        "weights": weights_hash(params),
    }
    with new_folder(asked.out, markers=MARKERS, overwrite=asked.overwrite) as partial:
        notes = library.save(host.loaded.changed(params), partial, overwrite=True)
        write_json(partial / RECORD, record)
        write_text(partial / "README.md", card(asked.out.name, host.loaded.config.model_type, record))
    for note in notes:
        say(f"note: {note}", stream=sys.stderr)
    say(f"wrote {asked.out}: {len(layers)} layers of {donor.name} in {host.name}, {MOVED[asked.component]}")


def layers_of(text: str, count: int) -> list[int]:
    """Numbers of layers, of `count`, from such as 0-7,12, or all or none. Raises ValueError for anything else."""
    if text in ("all", "none"):
        return [*range(count if text == "all" else 0)]
    layers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise ValueError(f"--layers {text!r}: {part!r} is no layer and no range; write such as 0-7,12, all or none")
        _check_layer(last, count)
        layers |= {*range(first, last + 1)}
    return sorted(layers)


def _check_layer(layer: int, count: int) -> None:
    if not 0 <= layer < count:
        raise ValueError(f"there is no layer {layer}: the models have {count}, counted from 0 to {count - 1}")


def transplant(host: Opened, donor: Opened, layers: Collection[int], component: Component) -> Any:
    """The host's parameters with those of the donor where they are of `layers`, counted from 0, and of `component`:
    "attn", "mlp", each with its norm, or "all". All of every layer makes the donor, what is in no layer included.

    Raises ValueError for models that are not of one shape and vocabulary, or the same; for a layer or a component that
    does not exist.
    """
    config = host.loaded.config
    if component not in get_args(Component):
        raise ValueError(f"component is {component!r}: it is one of {', '.join(get_args(Component))}")
    _check_alike(host, donor)
    for layer in layers:
        _check_layer(layer, config.num_hidden_layers)
    whole = _is_whole(host, layers, component)

    def moves(name: str) -> bool:
        place, *inside = name.split("/")
        if place != "layers":
            return whole
        return int(inside[0]) in layers and component in ("all", inside[1].removesuffix("_norm"))

    def chosen(path: tuple[Any, ...], own: Any, other: Any) -> np.ndarray:
        moved = np.array([moves(name) for name in parameter_names(config, path_keys(path))])  # layers, or one alone
        return np.where(moved.reshape(-1, *(1,) * (own.ndim - 1)), other, own)

    return jax.tree_util.tree_map_with_path(chosen, host.loaded.params, donor.loaded.params)


def _is_whole(host: Opened, layers: Collection[int], component: Component) -> bool:
    return component == "all" and len({*layers}) == host.loaded.config.num_hidden_layers


def _check_alike(host: Opened, donor: Opened) -> None:
    both = f"{host.name} and {donor.name}"
    mine, its = asdict(host.loaded.config), asdict(donor.loaded.config)
    fields = sorted((name for name in mine if name in its), key=lambda name: name != "model_type")
    unlike = [name for name in fields if mine[name] != its[name] and not OF_TRAINING.fullmatch(name)]
    if unlike:
        told = [f"{name} {mine[name]} and {its[name]}" for name in unlike]
        raise ValueError(f"{both} are different models: {listed(told, most=MOST_FIELDS, between='; ')}")
    token_of, its_token_of = (
        {i: token for token, i in each.loaded.tokenizer.get_vocab(with_added_tokens=True).items()}
        for each in (host, donor)
    )
    if token_of != its_token_of:
        i = min(i for i, _ in token_of.items() ^ its_token_of.items())
        raise ValueError(
            f"{both} have different vocabularies: id {i} is {token_of.get(i)!r} and {its_token_of.get(i)!r}"
        )
    if host.weights == donor.weights:
        raise ValueError(f"{both} have the same weights: there is nothing to move")


def _name(model: Opened) -> str:
    """As it was named, without the folders of a path that is nobody else's business."""
    return Path(model.name).name if private.kinds_in(model.name) else model.name


def card(name: str, model_type: str, record: dict[str, Any]) -> str:
    """README.md of a transplant, from what its record says."""
    metadata = ModelCardData(library_name="transformers", tags=[model_type, "cptjax", "transplant"]).to_yaml()
    moved = MOVED[record["component"]] + (", embeddings, final norm and head" if record["whole"] else "")
    facts = [
        ("host", record["host"]["name"], record["host"]["weights"]),
        ("donor", record["donor"]["name"], record["donor"]["weights"]),
        ("this model", name, record["weights"]),
    ]
    notes = [
        f"Of the donor: {moved}, in the layers {', '.join(map(str, record['layers'])) or 'none'}, counted from 0.",
        "All else, with config and tokenizer, is the host's. It is made to be measured beside the two: nobody trained "
        "it. The licences of both hold for it. Each sha256 is of an encoder's parameters, without its head.",
    ]
    table = Table(name, ("", "model", "sha256"), facts, notes, named=3)
    return f"---\n{metadata}\n---\n\n{as_markdown([table])}"
