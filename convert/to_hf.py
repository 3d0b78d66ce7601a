"""A trained model as a folder that transformers loads as it is; config.json as version 5 has it."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from convert import table
from convert.from_hf import SINGLE, THETAS, place
from cptjax import checkpoint
from cptjax.files import copy_tokenizer, new_folder, read_json
from cptjax.model import ModelConfig

# Replaced by layer_types and rope_parameters in transformers 5, or without meaning for this export.
DROPPED = (
    "global_attn_every_n_layers",
    *THETAS.values(),
    "rope_scaling",
    "rope_theta",
    "reference_compile",
    "repad_logits_with_grad",
    "torch_dtype",
    "auto_map",
)
# config.json's name of each id, and the tokens it may come from, first found
SPECIAL_TOKENS = {
    "pad_token_id": ("pad_token",),
    "cls_token_id": ("cls_token",),
    "sep_token_id": ("sep_token",),
    "bos_token_id": ("bos_token", "cls_token"),
    "eos_token_id": ("eos_token", "sep_token"),
}


def save(
    config: ModelConfig,
    params: dict,
    out: Path,
    *,
    hf_config: dict | None = None,
    tokenizer: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write `params` in float32, their config and the tokenizer's files, all at once or nothing.

    `hf_config` is the source's config.json: what cptjax has no field for is carried over from it.
    Raises FileExistsError as `folder.new_folder` does.
    """
    with new_folder(Path(out), marker=SINGLE, overwrite=overwrite) as partial:
        tensors = {}
        for entry in table.entries(config):
            array = entry.to_hf(np.asarray(place(params, entry), np.float32))
            tensors[entry.hf_name] = np.ascontiguousarray(array)
        save_file(tensors, partial / SINGLE, metadata={"format": "pt"})
        write_config(config, partial, hf_config=hf_config, tokenizer=tokenizer)
        if tokenizer is not None:
            copy_tokenizer(tokenizer, partial)


def convert_checkpoint(run: Path, out: Path, *, step: int | None = None, overwrite: bool = False) -> int:
    """Export one step of a run folder, the last one by default; returns the step."""
    run = Path(run)
    found, config, params = checkpoint.load_params(run, step)
    source = run / checkpoint.HF_CONFIG  # absent: trained from scratch
    tokenizer = run / checkpoint.TOKENIZER
    save(
        config,
        params,
        out,
        hf_config=read_json(source) if source.is_file() else None,
        tokenizer=tokenizer if tokenizer.is_dir() else None,
        overwrite=overwrite,
    )
    return found


def write_config(config: ModelConfig, folder: Path, *, hf_config: dict | None, tokenizer: Path | None) -> None:
    """Write FOLDER/config.json through transformers."""
    from transformers import ModernBertConfig

    kept = dict(hf_config) if hf_config is not None else special_token_ids(tokenizer)
    kept = {name: value for name, value in kept.items() if name not in DROPPED}
    ours = asdict(config)
    ours["layer_types"] = list(config.layer_types)
    ours["rope_parameters"] = {
        kind: {"rope_type": "default", "rope_theta": ours.pop(name)} for kind, name in THETAS.items()
    }
    head = {"architectures": ["ModernBertForMaskedLM"], "dtype": "float32"}
    ModernBertConfig.from_dict(kept | ours | head).save_pretrained(folder)


def special_token_ids(tokenizer: Path | None) -> dict[str, int | None]:
    """Token ids for config.json from a tokenizer folder; None where it names no such token.

    A tokenizer without bos or eos lends its cls and sep, as in ModernBERT's own config.
    """
    ids: dict[str, int | None] = dict.fromkeys(SPECIAL_TOKENS)
    if tokenizer is None or not (tokenizer / "tokenizer_config.json").is_file():
        return ids
    names = read_json(tokenizer / "tokenizer_config.json")
    content = read_json(tokenizer / "tokenizer.json")
    vocabulary = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    for field, candidates in SPECIAL_TOKENS.items():
        tokens = [names[name] for name in candidates if names.get(name)]
        if tokens:
            token = tokens[0]["content"] if isinstance(tokens[0], dict) else tokens[0]
            if token not in vocabulary:
                raise ValueError(f"{tokenizer}: {token!r} is no special token of tokenizer.json")
            ids[field] = vocabulary[token]
    return ids
