"""A config is a program: whatever it does, the command says what was wrong with it in one line."""

from pathlib import Path

import pytest

from cptjax.command.errors import one_line
from cptjax.config import Run, load_config, override

ROOT = Path(__file__).parent.parent
HOSTILE = """
class Odd(Exception):
    def __str__(self):
        raise Odd
    __repr__ = __str__
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("exit()", "SystemExit"),
        ("1 +", "SyntaxError: invalid syntax"),
        ("def get_config(:", "SyntaxError"),
        ("x = '\0'", "null bytes"),
        ("x = '\udcff'", "SyntaxError"),
        ("def get_config():\n    return get_config()", "RecursionError"),
        ("def get_config():\n    raise KeyError('a\\nb')", "KeyError"),
        ("def get_config(name):\n    pass", "TypeError"),
        ("get_config = 3", "TypeError: 'int' object is not callable"),
        ("def get_config():\n    return {}", "must define get_config"),
        ("", "must define get_config"),
        ("def __getattr__(name):\n    raise ValueError('no')", "ValueError: no"),
        (HOSTILE + "raise Odd", "Odd: Odd"),
        (HOSTILE + "def get_config():\n    return Odd()", "must define get_config"),
        ("import cptjax.absent", "ModuleNotFoundError"),
        ("raise BaseException('x')", "BaseException: x"),
        ("raise ExceptionGroup('many', [ValueError('a')])", "ExceptionGroup: many"),
        ("open('/absent/file')", "FileNotFoundError"),
    ],
)
def test_a_config_that_fails_is_one_line_with_its_name(text, said, tmp_path):
    # Broken by: `except Exception` in load_config (exit code 0 of the first); str(error) for reason(error).
    path = tmp_path / "odd.py"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="odd.py") as caught:
        load_config(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", ".", "absent.py", "a\0b", "x" * 5000, "note.txt"])
def test_what_is_no_config_is_named(name, tmp_path):
    # Broken by: spec.loader not asked for (AttributeError of note.txt).
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises((ValueError, OSError)) as caught:
        load_config(tmp_path / name)
    assert "\n" not in one_line(str(caught.value))


VALUES = ["nan", "inf", "-1", "1e400", "9" * 5000, "", " ", "\0", "\udcff", "None", "[]", "é", "'", "-", "--", "1_0"]
FIELDS = ["--seed", "--held-out-rows", "--data.stores", "--optimizer.b1", "--phases.0.tokens", "--mesh.fsdp", "--remat"]


@pytest.mark.parametrize("field", FIELDS)
def test_an_override_works_or_is_refused_in_one_line(field):
    # Broken by: `raise` for any SystemExit in override.
    run = load_config(ROOT / "configs" / "tiny.py")
    for value in VALUES:
        try:
            assert isinstance(override(run, [field, value]), Run)
        except ValueError as error:
            assert str(error).strip() and "\n" not in str(error)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("--phases.0.tokens", "1e400", "--phases.0.tokens: '1e400' is no whole number, such as 1000"),
        ("--seed", "1.5", "--seed: '1.5' is no whole number, such as 1000"),
        ("--eval-every", "9" * 5000, "--eval-every: the number has too many digits"),
        ("--phases.0.tokens", "9" * 400, "phases.0.tokens is 9{18}...9{19}: it must be a number between"),
        ("--optimizer.weight-decay", "1e400", "optimizer.weight_decay is inf: it must be a number between"),
        ("--optimizer.b1", "nan", "optimizer.b1 is nan: it must be a number between"),
        ("--optimizer.b1", "x", "--optimizer.b1: 'x' is no number, such as 0.1"),
        ("--nope", "1", "no option is called --nope; --help lists all"),
    ],
)
def test_a_number_that_is_none_is_named_with_its_field(field, value, says):
    # Broken by: the title or the help of tyro's box left in; Python's words; no question after the size of a number.
    with pytest.raises(ValueError, match=f"^{says}"):
        override(load_config(ROOT / "configs" / "tiny.py"), [field, value])


def test_a_choice_that_is_none_is_named_with_the_choices():
    # Broken by: check_backend left out of Run.
    with pytest.raises(
        ValueError, match=r"attention is 'flash' \(did you mean splash\?\): it is one of auto, reference, blockwise"
    ):
        run = load_config(ROOT / "configs" / "tiny.py")
        type(run)(**vars(run) | {"attention": "flash"})
