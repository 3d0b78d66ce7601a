"""Folders that appear whole or not at all, and the tokenizer files that travel with a model."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spm.model",
    "sentencepiece.bpe.model",
)


@contextmanager
def new_folder(out: Path, *, marker: str, overwrite: bool) -> Iterator[Path]:
    """A temporary sibling of `out` to write into; it becomes `out` if the block ends without error.

    Raises FileExistsError when `out` exists and `overwrite` is false, and always when `out` is
    neither empty nor a folder of the same kind, one that holds the file `marker`.
    """
    out = out.absolute()
    if out.exists() or out.is_symlink():
        if not overwrite:
            raise FileExistsError(f"{out} exists; choose another name or pass --overwrite")
        replaceable = out.is_dir() and not out.is_symlink()
        if not replaceable or (any(out.iterdir()) and not (out / marker).is_file()):
            raise FileExistsError(f"{out} exists and holds no {marker}; refusing to replace it")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        if out.exists():
            old = out.with_name(f".{out.name}.old-{os.getpid()}")
            out.rename(old)
            partial.rename(out)
            shutil.rmtree(old)
        else:
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_tokenizer(source: Path, out: Path) -> None:
    """Copy the tokenizer files that `source` has into `out`; without any, `out` is not made."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            out.mkdir(exist_ok=True)
            shutil.copyfile(source / name, out / name)
