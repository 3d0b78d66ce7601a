"""Damaged input of every kind: it is read, or refused in one line that names the file. `fuzz.py` tries many more."""

import random

import pytest

from tests.fuzz import damaged_array, damaged_bytes, damaged_json, damaged_tensors, fuzz, judge

INPUTS = 4000


def test_no_damaged_input_escapes():
    # Broken by: `except ValueError` in read_array or in tokenizer._library; typed() left out of read_recorded; the
    # numbers of Store._array not compared. Of 400 inputs of the reader, 31, 183, 127 and 2 escape.
    result = fuzz(INPUTS)
    assert sum(result.counts.values()) == INPUTS and len(result.counts) > 30
    assert result.escapes == []


def test_the_fuzz_sees_what_escapes():
    # Broken by: any of the conditions of `judge` left out.
    names = ("a.json",)
    assert judge(ValueError("a.json: no"), names) is None
    assert judge(FileNotFoundError("a.json is missing"), names) is None
    for error in (ValueError("no"), KeyError("a.json"), UnicodeDecodeError("utf-8", b"a.json", 0, 1, "a.json")):
        assert judge(error, names)
    assert judge(MemoryError("a.json"), names) and judge(SystemExit("a.json"), names)


@pytest.mark.parametrize("damage", [damaged_json, damaged_bytes, damaged_array, damaged_tensors])
def test_damage_is_of_many_kinds_and_always_the_same(damage):
    # Broken by: random without a seed.
    data = b'{"a": [1, 2, {"b": "c"}]}'
    data = len(data).to_bytes(8, "little") + data if damage is damaged_tensors else data
    made = [damage(random.Random(i), data) for i in range(100)]
    assert made == [damage(random.Random(i), data) for i in range(100)]
    assert len(set(made)) > 40
