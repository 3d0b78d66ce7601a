"""What some transformers reads from folders; an older one in a process of its own, with it on the path.

Given as JSON on stdin: folders by name, and texts. Told on stdout by name: the ids of each text and how they decode,
and the model's scores, or why there are none.
"""

import json
import os
import sys

import torch
import transformers

TOKENS, SHOWN = 40, 32  # of two rows, and what the second is not padded to


def scores(folder: str) -> list | str:
    """Of real tokens or, from a text classifier, of texts."""
    with open(f"{folder}/config.json") as stream:
        architecture = json.load(stream)["architectures"][0]
    token_BL = torch.arange(2 * TOKENS).reshape(2, TOKENS) * 7 % 37 + 3
    mask_BL = torch.ones_like(token_BL)
    mask_BL[1, SHOWN:] = 0
    try:
        model = getattr(transformers, architecture).from_pretrained(folder).eval()
        with torch.no_grad():
            output = model(input_ids=token_BL, attention_mask=mask_BL)
    except (AttributeError, TypeError) as error:  # no such class, or a config that this version must not read
        return f"{type(error).__name__}: {error}"
    found = output[0]
    return (found[mask_BL.bool()] if found.shape[:2] == mask_BL.shape else found).double().tolist()


def read(folder: str, texts: list[str]) -> dict:
    """All that this version makes of a folder."""
    found: dict = {"scores": scores(folder)} if os.path.exists(f"{folder}/model.safetensors") else {}
    if os.path.exists(f"{folder}/tokenizer.json"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        found["class"] = type(tokenizer).__name__
        found["ids"] = [tokenizer(text)["input_ids"] for text in texts]
        found["decoded"] = [tokenizer.decode(ids) for ids in found["ids"]]
        found["names"] = tokenizer(texts[0]).keys() and sorted(tokenizer(texts[0]).keys())
        found["types"] = tokenizer(texts[0], texts[0]).get("token_type_ids")
        found["mask"] = tokenizer.mask_token_id
        found["length"] = tokenizer.model_max_length
    return found


def told(folders: dict[str, str], texts: list[str]) -> dict:
    """What this version makes of all folders."""
    found = {name: read(folder, texts) for name, folder in folders.items()}
    return {"version": transformers.__version__, "read": found}


if __name__ == "__main__":
    json.dump(told(**json.load(sys.stdin)), sys.stdout)
