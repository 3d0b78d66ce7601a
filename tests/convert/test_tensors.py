"""The writer of safetensors files: the format's own library reads what was given."""

import threading
import time

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes
from safetensors import safe_open
from safetensors.numpy import load_file

from convert.tensors import write_tensors
from cptjax.files import ahead

DTYPES = scalar_dtypes().filter(lambda x: x.isnative and x.kind in "biufc" and x.itemsize <= 8)


@given(
    st.dictionaries(st.text(max_size=9), arrays(DTYPES, array_shapes(min_dims=0, min_side=0)), max_size=5), st.data()
)
def test_the_library_reads_what_was_written(tmp_path_factory, given_arrays, data):
    # Broken by: no reshape(-1) (arrays of one number), "U8" for bool, a header without its blanks.
    path = tmp_path_factory.mktemp("written") / "model.safetensors"
    given_arrays.pop("__metadata__", None)
    whole = {name: array.T for name, array in given_arrays.items()}  # as views of stacked parameters are
    notes = data.draw(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
    write_tensors(path, whole, iter(whole.values()), notes)
    read = load_file(path)
    assert read.keys() == whole.keys()
    for name, array in whole.items():
        assert read[name].dtype == array.dtype and read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()
    with safe_open(path, framework="numpy") as file:
        assert (file.metadata() or {}) == notes


def test_bfloat16_is_named_as_the_library_names_it(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).astype(ml_dtypes.bfloat16)
    write_tensors(tmp_path / "a.safetensors", {"x": array}, [array], {})
    read = load_file(tmp_path / "a.safetensors")["x"]
    assert read.dtype == ml_dtypes.bfloat16 and (read == array).all()


@pytest.mark.parametrize(
    "arrays", [[], [np.zeros(3, np.float32)], [np.zeros(2, np.float16)], [np.zeros(2, np.float32)] * 2]
)
def test_what_was_not_announced_leaves_no_file(tmp_path, arrays):
    # Broken by: no assertion, strict=False.
    with pytest.raises((AssertionError, ValueError)):
        write_tensors(tmp_path / "a.safetensors", {"x": np.zeros(2, np.float32)}, arrays, {})
    assert not list(tmp_path.iterdir())


def test_reading_ahead_keeps_order_and_bounds_and_raises():
    # Broken by: map for ahead, `> 2` in it.
    begun, second = [], threading.Event()

    def read(number):
        begun.append(number)
        if number == 1:
            second.set()
        if number == 7:
            raise ValueError("seven")
        return number

    taken = []
    with pytest.raises(ValueError, match="seven"), ahead(read, range(9)) as numbers:
        for number in numbers:
            taken.append(number)
            assert second.wait(60)  # read while this one is looked at
            time.sleep(0.01)  # more would be, if it could
            assert len(begun) <= len(taken) + 1
    assert taken == list(range(7))
    for nothing in ([], ["x"]):
        with ahead(str, nothing) as read_of:
            assert list(read_of) == nothing
