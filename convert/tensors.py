"""A safetensors file, written one tensor after the other: the format's own library wants all of them in memory.

The format (huggingface/safetensors, README): the header's length in 8 bytes, a JSON header, then the
tensors as they lie in memory, in the header's order and without a gap.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cptjax.files import naming, written

PLAIN = {"f": "F", "i": "I", "u": "U", "c": "C"}  # numpy's kinds of dtypes whose name there is a letter and bits
NAMED = {"bool": "BOOL", "bfloat16": "BF16"}
ALIGNED = 8  # bytes, where the tensors begin


def write_tensors(
    path: Path, shapes: Mapping[str, Any], arrays: Iterable[np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write one file, whole or not at all: each array once it comes, as `shapes` (arrays, or what has their shape and
    dtype) announce them in order. Raises OSError, with the file, when the disk refuses it."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in shapes.items():
        dtype, start = np.dtype(array.dtype), end
        end += int(np.prod(array.shape)) * dtype.itemsize
        known = NAMED.get(dtype.name) or f"{PLAIN[dtype.kind]}{8 * dtype.itemsize}"
        header[name] = {"dtype": known, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNED)
    with naming(path), written(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for announced, array in zip(shapes.values(), arrays, strict=True):
            assert (array.shape, array.dtype) == (announced.shape, announced.dtype)
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
