"""The Hugging Face Hub: what is fetched from it by id, and what is told when it refuses."""

import os
from collections.abc import Sequence
from pathlib import Path

IN_WORDS = {
    "LocalEntryNotFoundError": "not in the cache, and the Hub does not answer",
    "HFValidationError": "no id of the Hub",
    "RepositoryNotFoundError": "no such repository, or not for you",
}


def fetch(name: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The folder of a repository's files that match, downloaded, or as the Hub's cache on this disk has them.

    Raises FileNotFoundError where neither has them.
    """
    import huggingface_hub  # here, for few commands need it

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{name} is no folder here, and the Hub gives none: {refusal(error)}") from None


def licence_of(data_set: str) -> str | None:
    """The licence that the card of a data set names, from the Hub or its cache; None where none can be had."""
    import huggingface_hub

    try:
        said = huggingface_hub.DatasetCard.load(data_set).data
        named = said.get("license_name") if said.get("license") == "other" else said.get("license")
        return ", ".join(map(str, named)) if isinstance(named, list) else str(named or "") or None
    except Exception:  # of the network, or of a card, which may hold anything
        return None


def refusal(error: Exception) -> str:
    """What the Hub's library raised, without its words, which may hold a token or an address with one."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    errno = getattr(error, "errno", None)
    told = [IN_WORDS.get(type(error).__name__, type(error).__name__)]
    told += [f"status {status}"] if type(status) is int else []
    told += [os.strerror(errno)] if type(errno) is int else []
    return f"{', '.join(told)}; see that the id is right, the network is there and `hf auth whoami` knows you"
