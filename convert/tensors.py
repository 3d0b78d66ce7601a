"""A safetensors file, written one tensor after the other: the format's own library wants all of them in memory.

The format (huggingface/safetensors, README): the header's length in 8 bytes, a JSON header, then the
tensors as they lie in memory, in the header's order and without a gap.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from cptjax.files import naming, written

DTYPES = {  # by the format's names, as this machine has them
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": jnp.dtype("bfloat16"),
    "I64": np.dtype("int64"),
    "I32": np.dtype("int32"),
    "I16": np.dtype("int16"),
    "I8": np.dtype("int8"),
    "U64": np.dtype("uint64"),
    "U32": np.dtype("uint32"),
    "U16": np.dtype("uint16"),
    "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
    "C64": np.dtype("complex64"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LENGTH = ALIGNED = 8  # bytes: of the header's size, and where the tensors begin


def write_tensors(
    path: Path, shapes: Mapping[str, Any], arrays: Iterable[np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write one file, whole or not at all: each array once it comes, as `shapes` (arrays, or what has their shape and
    dtype) announce them in order. Raises OSError, with the file, when the disk refuses it, and KeyError for a dtype
    that the format has not."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in shapes.items():
        dtype, start = np.dtype(array.dtype), end
        end += int(np.prod(array.shape)) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNED)
    with naming(path), written(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH, "little") + text)
        for announced, array in zip(shapes.values(), arrays, strict=True):
            assert (array.shape, array.dtype) == (announced.shape, announced.dtype)
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
