"""A Hugging Face ModernBERT folder, read strictly: every tensor is used, or the folder is refused.

ModernBERT: arXiv:2412.13663. Only config.json and safetensors are read; no pickle, no remote code.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from convert import table
from cptjax import checkpoint
from cptjax.files import TOKENIZER_FILES, copy_tokenizer, new_folder, read_json
from cptjax.model import FULL, SLIDING, ModelConfig, ModernBert, init_params

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NEEDED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
THETAS = {FULL: "global_rope_theta", SLIDING: "local_rope_theta"}
EXACT = ("F32", "F16", "BF16")  # safetensors dtypes whose every value is a float32


def load(source: str | Path, *, revision: str | None = None) -> tuple[ModelConfig, dict]:
    """Shape and float32 parameters (numpy) of a masked language model, from a folder or a Hub id.

    Raises FileNotFoundError where there is no such model, and ValueError, naming every offending
    field or tensor at once, where there is one that this project cannot represent exactly.
    """
    folder = find(source, revision=revision)
    config = read_config(read_json(folder / "config.json"), where=str(folder / "config.json"))
    return config, read_params(folder, config)


def convert_folder(
    source: str | Path, out: Path, *, revision: str | None = None, overwrite: bool = False
) -> ModelConfig:
    """Write the run folder whose step 0 is this model. Raises as `load` and `new_folder` do."""
    with new_folder(Path(out), marker=checkpoint.MODEL, overwrite=overwrite) as partial:
        folder = find(source, revision=revision)
        config, params = load(folder)
        copy_tokenizer(folder, partial / checkpoint.TOKENIZER)
        hf_config = read_json(folder / "config.json")
        checkpoint.save_start(partial, config, params, hf_config=hf_config)
    return config


def find(source: str | Path, *, revision: str | None = None) -> Path:
    """The folder itself when it exists, else the Hub repository of that id, downloaded."""
    if Path(source).is_dir():
        if revision is not None:
            raise ValueError(f"{source} is a local folder; a revision needs a Hub id")
        return Path(source)
    import huggingface_hub

    patterns = ["*.safetensors", INDEX, "config.json", *TOKENIZER_FILES]
    try:
        found = huggingface_hub.snapshot_download(str(source), revision=revision, allow_patterns=patterns)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(f"{source} is no folder here and no Hub model: {reason}") from error
    return Path(found)


def read_config(raw: dict, *, where: str = "config.json") -> ModelConfig:
    """The model's shape from a config.json of transformers 4 or 5.

    Raises ValueError, starting with `where`, for what is missing or has no counterpart here.
    Dropout is warned about on stderr.
    """
    from transformers import ModernBertConfig

    if raw.get("model_type") != "modernbert":
        raise ValueError(f"{where}: model_type is {raw.get('model_type')!r}, expected 'modernbert'")
    bad = [name for name in NEEDED if type(raw.get(name)) is not int or raw[name] < 1]
    if bad:
        raise ValueError(f"{where}: needed and not a positive whole number: {', '.join(bad)}")
    raw = dict(raw)
    if "local_rope_theta" in raw and raw["local_rope_theta"] is None:  # transformers 4: as global
        raw["local_rope_theta"] = raw.get("global_rope_theta", ModelConfig.global_rope_theta)
    try:
        normal = ModernBertConfig.from_dict(raw)
        parameters: Any = normal.rope_parameters
        rope = {kind: dict(parameters[kind]) for kind in THETAS}
        thetas = {THETAS[kind]: float(rope[kind].pop("rope_theta")) for kind in THETAS}
    except Exception as error:  # transformers raises many types for a bad config
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{where}: transformers refuses this config: {reason}") from error
    for kind, rest in rope.items():
        if rest.pop("rope_type") != "default" or rest:
            raise ValueError(f"{where}: rope of {kind} is {parameters[kind]}; only rope_type 'default' is known")
    if dropouts := [f"{k} {v}" for k, v in raw.items() if k.endswith("_dropout") and v]:
        print(f"warning: cptjax trains without dropout; {where} has {dropouts}", file=sys.stderr)
    same = [field.name for field in fields(ModelConfig) if field.name not in THETAS.values()]
    values: dict[str, Any] = {name: getattr(normal, name) for name in same} | thetas
    values["layer_types"] = tuple(values["layer_types"])
    try:
        return ModelConfig(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def read_params(folder: Path, config: ModelConfig) -> dict:
    """The parameter tree of `config`, float32 numpy, from the safetensors of a folder.

    Raises ValueError naming every tensor that is missing, unexpected, misshapen or not finite.
    """
    wanted = {entry.hf_name: entry for entry in table.entries(config)}
    params, problems, seen, tied = empty_params(config), [], set(), None
    for path in weight_files(folder):
        with opened(path) as tensors:
            for stored in tensors.keys():
                name = full_name(stored)
                if name in seen:
                    problems.append(f"twice: {name}")
                    continue
                seen.add(name)
                part = tensors.get_slice(stored)
                if name == table.DECODER and config.tie_word_embeddings:
                    wanted_shape = wanted[table.EMBEDDING].hf_shape
                elif name in wanted:
                    wanted_shape = wanted[name].hf_shape
                else:
                    problems.append(f"unexpected: {name}")
                    continue
                if tuple(part.get_shape()) != wanted_shape:
                    have = tuple(part.get_shape())
                    problems.append(f"wrong shape: {name} have {have} want {wanted_shape}")
                    continue
                if part.get_dtype() not in EXACT:
                    problems.append(f"not float: {name} is {part.get_dtype()}")
                    continue
                array = tensors.get_tensor(stored).astype(np.float32)
                if not np.isfinite(array).all():
                    problems.append(f"not finite: {name}")
                elif name in wanted:
                    place(params, wanted[name])[...] = wanted[name].to_ours(array)
                else:
                    tied = array
    problems += [f"missing: {name}" for name in wanted if name not in seen]
    if tied is not None and not np.array_equal(tied, place(params, wanted[table.EMBEDDING])):
        problems.append(f"{table.DECODER} differs from {table.EMBEDDING}, but the config ties them")
    if problems:
        raise ValueError(f"{folder} does not fit its config: {'; '.join(problems)}")
    return params


def empty_params(config: ModelConfig) -> dict:
    """Uninitialised float32 arrays in the exact tree of `cptjax.model.init_params`."""
    shapes = jax.eval_shape(lambda: init_params(ModernBert(config), jax.random.key(0)))
    params = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), shapes)
    size = sum(int(np.prod(entry.our_shape)) for entry in table.entries(config))
    assert size == sum(leaf.size for leaf in jax.tree.leaves(params)), "table and model disagree"
    return params


def place(params: dict, entry: table.Entry) -> np.ndarray:
    """The array, or the slice of a stacked one, that holds this tensor in our layout."""
    leaf: Any = params
    for key in entry.path:
        leaf = leaf[key]
    leaf = leaf if entry.index is None else leaf[entry.index]
    assert leaf.shape == entry.our_shape, (entry, leaf.shape)
    return leaf


def full_name(stored: str) -> str:
    """A base model saved alone leaves out the prefix `model.`."""
    bare = stored.split(".")[0] in ("embeddings", "layers", "final_norm")
    return f"model.{stored}" if bare else stored


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or the shards its index names."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{folder / INDEX} has no weight_map")
        files = [folder / Path(str(name)).name for name in sorted(set(weight_map.values()))]
        if absent := [path.name for path in files if not path.is_file()]:
            raise FileNotFoundError(f"{folder} lacks the shards {', '.join(absent)}")
        return files
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt") for path in folder.glob(pattern))
    if pickled:
        command = (
            'python -c "from transformers import AutoModelForMaskedLM as M; '
            f"M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\""
        )
        raise ValueError(
            f"{folder} has {', '.join(pickled)} but no {SINGLE}; pickle is not read here. "
            f"If you trust the file, convert it where torch is installed: {command}"
        )
    raise FileNotFoundError(f"{folder} has no {SINGLE} and no {INDEX}")


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """An open safetensors file. Raises ValueError with the path for a broken one."""
    try:
        with safe_open(path, framework="numpy") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
