"""A trained model as a folder that transformers loads as it is."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory

from convert import portable, private, table
from convert.families import family_of
from convert.from_hf import INDEX, SINGLE, config_class
from convert.tensors import write_tensors
from cptjax.command.bar import bar
from cptjax.command.errors import reading
from cptjax.command.escape import printable
from cptjax.data.tokenizer import load_tokenizer, special_tokens
from cptjax.files import ahead, new_folder, read_json, write_json
from cptjax.run import checkpoint
from cptjax.run.checkpoint import ReadParameter
from cptjax.shape import ModelConfig

SHARD_SIZE = "5GB"  # of a file, at most; more makes shards and an index
DTYPES = ("float32", "bfloat16", "float16")  # of a file
MASK_MODES = {"encoder": "bidirectional", "decoder": "causal"}
# config.json's name of the id of each role of a token
SPECIAL_TOKENS = {f"{role}_token_id": role for role in ("pad", "cls", "sep", "bos", "eos")}


class Exported(NamedTuple):
    """What an export wrote."""

    step: int
    architecture: str
    notes: list[str]  # what its reader should know


def save(
    config: ModelConfig,
    params: dict | ReadParameter,
    out: Path,
    *,
    architecture: str | None = None,
    hf_config: dict | None = None,
    tokenizer: Path | None = None,
    dtype: str = "float32",
    shard_size: str = SHARD_SIZE,
    overwrite: bool = False,
) -> list[str]:
    """Write a model's weights, its config and the tokenizer's files, all at once or nothing; returns notes on them.

    `params` is the tree, or a function that reads one of its parameters. `hf_config` is the source's
    config.json: what cptjax has no field for is carried over from it, and the model class where
    `architecture` does not say it. Raises FileExistsError as `new_folder` does, ValueError for values that
    `dtype` cannot hold, and for a `dtype` that is not one of DTYPES.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: it is one of {', '.join(DTYPES)}")
    architecture = architecture or choose(config, hf_config)
    read = params if callable(params) else partial(_at, params)
    with new_folder(Path(out), markers=(SINGLE, INDEX), overwrite=overwrite) as folder:
        write_weights(config, read, folder, architecture, dtype, shard_size)
        notes = write_config(config, folder, architecture, dtype, hf_config=hf_config, tokenizer=tokenizer)
        return notes + (write_tokenizer(tokenizer, folder) if tokenizer is not None else [])


def _at(params: dict, path: tuple[str, ...]) -> np.ndarray:
    branch: Any = params
    for key in path:
        branch = branch[key]
    return np.asarray(branch)


def convert_checkpoint(
    run: Path, out: Path, *, step: int | None = None, read_as: str | None = None, **options: Any
) -> Exported:
    """Export one step of a run folder, the last one by default.

    The class is that of the run's source, or `read_as` an "encoder" or a "decoder"; `options` are those of
    `save`. Three parameters are in memory at most: one that is written, one to come, and one that is read.
    """
    run = Path(run)
    step, config, read = checkpoint.open_params(run, step)
    architecture, tokenizer = class_of(run, config, read_as), run / checkpoint.TOKENIZER
    options |= {"hf_config": _source_config(run), "tokenizer": tokenizer if tokenizer.is_dir() else None}
    with reading(run):
        notes = save(config, read, out, architecture=architecture, **options)
    return Exported(step, architecture, notes)


def class_of(run: Path, config: ModelConfig, read_as: str | None = None) -> str:
    """The model class that a run folder is exported as. Raises ValueError as `choose` does."""
    return choose(config, _source_config(run), read_as)


def draws_head(run: Path) -> bool:
    """Whether the source of a run has no language-model head, so that training began with a random one."""
    form = table.ARCHITECTURES.get(_named(_source_config(run)))
    return form is not None and form.head == "none"


def _source_config(run: Path) -> dict | None:
    """The config.json of a run's source; None where it was trained from scratch."""
    path = run / checkpoint.HF_CONFIG
    return read_json(path) if path.is_file() else None


def _named(hf_config: dict | None) -> str:
    """The model class that a source's config.json names, or the one to read its model as; "" where it names none."""
    listed = (hf_config or {}).get("architectures")
    named = str(listed[0]) if isinstance(listed, list) and listed else ""
    return table.READ_AS.get(named, named)


def parse_size(text: str) -> str:
    """A file size such as 400MB, as it is. Raises ValueError for anything else."""
    if not re.fullmatch(r"[1-9]\d*[KMG]B", text):
        raise ValueError(f"{text!r} is no size such as 400MB or 5GB")
    return text


def choose(config: ModelConfig, hf_config: dict | None, read_as: str | None = None) -> str:
    """The model class to export as. Raises ValueError where the weights do not tell or do not fit."""
    named = _named(hf_config)
    form = table.ARCHITECTURES.get(named) if read_as is None else None
    if form and form.shape_type == config.model_type and form.head == config.head:
        return named
    mask_mode = MASK_MODES[read_as] if read_as else form.mask_mode if form else "bidirectional"
    known = (config.model_type, config.head, mask_mode)  # another head than the source's came with training
    same = [
        name for name, form in table.ARCHITECTURES.items() if (form.shape_type, form.stands, form.mask_mode) == known
    ]
    if not same and read_as:
        raise ValueError(f"a model with a {config.head} head is exported as what it was, not as a {read_as}")
    if not same:
        raise ValueError(f"a {config.head} needs the name of its model class, which hf_config.json does not give")
    return same[0]


def write_weights(
    config: ModelConfig,
    read: ReadParameter,
    folder: Path,
    architecture: str,
    dtype: str,
    shard_size: str,
) -> None:
    """Write FOLDER/model.safetensors, or shards and their index; parameters are read while others are written."""
    entries = {entry.hf_name: entry for entry in table.stored_entries(config, architecture)}
    kind = jnp.dtype(dtype)

    plan = split_state_dict_into_shards_factory(
        {name: int(np.prod(entry.hf_shape)) * kind.itemsize for name, entry in entries.items()},
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_size,
    )
    order = [entries[name] for names in plan.filename_to_tensors.values() for name in names]
    groups = [list(group) for _, group in groupby(order, lambda entry: entry.path)]

    def tensors(parameters: Iterator[np.ndarray], tell: Callable[[int], Any]) -> Iterator[np.ndarray]:
        for group, parameter in zip(groups, parameters, strict=True):
            for entry in group:
                with np.errstate(over="ignore"):  # said below, by name
                    array = entry.to_hf(parameter[entry.index]).astype(kind, copy=False)
                if not np.isfinite(array).all():
                    raise ValueError(f"{entry.hf_name} has values that {dtype} cannot hold: choose another --dtype")
                tell(array.nbytes)
                yield array

    with (
        bar(plan.metadata["total_size"], "B", "exporting") as shown,
        ahead(read, [group[0].path for group in groups]) as parameters,
    ):
        stream = tensors(parameters, shown.update)
        for file, names in plan.filename_to_tensors.items():
            shapes = {name: jax.ShapeDtypeStruct(entries[name].hf_shape, kind) for name in names}
            write_tensors(folder / file, shapes, islice(stream, len(names)), {"format": "pt"})
    if plan.is_sharded:
        write_json(folder / INDEX, {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename})


def write_config(
    config: ModelConfig,
    folder: Path,
    architecture: str,
    dtype: str | None,
    *,
    hf_config: dict | None,
    tokenizer: Path | None,
) -> list[str]:
    """Write FOLDER/config.json through transformers, for version 4 too; returns a note on what is left out."""
    kind, form, family = config_class(architecture), table.ARCHITECTURES[architecture], family_of(architecture)
    kept, unknown = portable.known_fields(hf_config or {}, kind, family.anew)
    ours = {name: getattr(config, name) for name in family.same() if hasattr(kind, name)}
    if form.head == "classifier":
        ours["num_labels"] = config.num_labels
    ours |= family.fields(config, architecture)
    ids = {name: i for name, i in special_token_ids(tokenizer).items() if hasattr(kind, name)}
    if hf_config is not None:  # what it leaves unsaid has transformers' default
        ids = {name: i for name, i in ids.items() if i is not None}
    try:
        written = kind.from_dict(ids | kept | ours | {"architectures": [architecture], "dtype": dtype})
    except Exception as error:  # transformers raises many types for a bad config, such as a decoder without bos
        raise ValueError(f"transformers refuses the config of a {architecture}: {error}") from error
    whole = written.to_diff_dict() | {portable.REQUIRES: family.versions(config, architecture)}
    whole |= family.fields_of_4(config, architecture)
    write_json(folder / "config.json", private.without(whole))  # labels are words of its maker
    return [*family.cautions(config, ids), *left_out("the config", [*unknown, *private.places(whole)])]


def left_out(where: str, names: list[str]) -> list[str]:
    """A note on what of a source was not written, if anything was not."""
    return [f"left out of {where}: {', '.join(map(printable, names))}"] if names else []


def write_tokenizer(source: Path, folder: Path) -> list[str]:
    """Write the tokenizer of `source` beside FOLDER/config.json; returns notes on it.

    Raises ValueError where transformers reads another one.
    """
    if not (source / portable.TOKENIZER).is_file():
        return []
    model_type = read_json(folder / "config.json")["model_type"]
    notes = left_out("the tokenizer", portable.write_tokenizer(source, folder, model_type))
    portable.check_ids(folder)
    if words := portable.old_spellings(folder):
        notes += [f"transformers 4 decodes these as they are listed, 5 as the normaliser leaves them: {words}"]
    return notes


def special_token_ids(tokenizer: Path | None) -> dict[str, int | None]:
    """Token ids for config.json from a tokenizer folder; None where it names no such token."""
    if tokenizer is None or not (tokenizer / portable.TOKENIZER).is_file():
        return dict.fromkeys(SPECIAL_TOKENS)
    special = special_tokens(tokenizer, load_tokenizer(tokenizer))
    return {name: getattr(special, role) for name, role in SPECIAL_TOKENS.items()}
