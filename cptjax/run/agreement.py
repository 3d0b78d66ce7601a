"""What must be the same in all processes of a run: whatever decides its numbers, and what they do together.

Where things lie may differ; what is in them may not.
"""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

from cptjax.config import Run, to_dict
from cptjax.data.store import Manifest
from cptjax.files import folder_hashes, sha256
from cptjax.machine import provenance
from cptjax.run.checkpoint import CHECKPOINTS, TOKENIZER

PACKAGE = Path(__file__).parents[1]
SETTINGS = (  # of jax
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_disable_most_optimizations",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_random_seed_offset",
    "jax_threefry_partitionable",
    "jax_use_shardy_partitioner",
)
BLOCK, BLOCKS = 2**20, 256  # bytes at a time, and how many, that are read of a large file
SHOWN = 12  # characters of a hash


def of_run(run: Run) -> dict[str, Any]:
    """A run's config, with the content of its stores for their places; the code; what it runs on."""
    config = to_dict(run)
    config["data"]["stores"] = [[_of_store(Path(store)), share] for store, share in run.data.stores]
    config["held_out"] = None if run.held_out is None else _of_store(Path(run.held_out))
    code = {path.relative_to(PACKAGE).as_posix(): sha256(path) for path in sorted(PACKAGE.rglob("*.py"))}
    return {
        **config,
        "code": _short(code),
        "commit": provenance.git_commit(),
        "versions": provenance.versions((*provenance.PACKAGES, "jaxlib")) | {"python": platform.python_version()},
        "jax": {name: str(jax.config.values[name]) for name in SETTINGS} | {"XLA_FLAGS": os.environ.get("XLA_FLAGS")},
        "device": jax.local_devices()[0].device_kind,
    }


def of_start(folder: Path) -> dict[str, Any]:
    """What weights come from: a run folder's tokenizer, and by step a hash of the facts, which hold the checksums."""
    kept = {path.parent.parent.name: sha256(path) for path in (folder / CHECKPOINTS).glob("*/meta/metadata")}
    return {"tokenizer": _short(folder_hashes(folder / TOKENIZER)), "weights": _short(kept)}


def _of_store(store: Path) -> dict[str, str]:
    manifest = Manifest.of_whole(store)
    shards = {shard.file: _sampled_hash(store / shard.file) for shard in manifest.shards}
    return _short({"fingerprint": manifest.fingerprint, **shards})


def _sampled_hash(path: Path) -> str:
    """The sha256 of a file's size and of BLOCKS blocks of it, evenly spread; of a small file that is all of it.

    The manifest's hash of a shard is not compared when a store is opened, for stores may be larger than can be
    read before each start.
    """
    size = path.stat().st_size
    hashed = hashlib.sha256(str(size).encode())
    with open(path, "rb") as stream:
        for at in range(0, size, max(BLOCK, size // BLOCKS)):
            stream.seek(at)
            hashed.update(stream.read(BLOCK))
    return hashed.hexdigest()


def _short(hashes: dict[str, str]) -> dict[str, str]:
    return {name: value[:SHOWN] for name, value in hashes.items()}
