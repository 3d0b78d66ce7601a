"""Protocols are data: by name, from a file, with fields changed; a hash of all that numbers depend on."""

from dataclasses import replace

import pytest

from eval.protocols import PROTOCOLS, protocol_of
from eval.tasks.registry import TASKS
from eval.tasks.task import KINDS


def test_a_task_names_a_protocol_that_there_is():
    for task in TASKS.values():
        assert protocol_of(task.protocol, task.kind).name == task.protocol


@pytest.mark.parametrize("family", ["french", "english", "cpu"])
def test_a_family_has_one_for_every_kind(family):
    names = {kind: protocol_of(family, kind).name for kind in KINDS}
    assert names["entities"] == f"{family}_entities" and names["nested_entities"] == f"{family}_spans"
    assert {names[kind] for kind in KINDS if "entities" not in kind} == {f"{family}_text"}


def test_the_published_numbers_are_the_protocols():
    french, spans, english = (PROTOCOLS[name] for name in ("french_text", "french_spans", "english_text"))
    assert (french.learning_rate, french.epochs, french.texts_per_step, french.max_length) == (2e-5, 15, 4, 4096)
    assert (french.warmup, french.weight_decay, french.threshold, french.fallback) == (0.1, 0.01, 0.5, True)
    assert (spans.learning_rate, spans.head_learning_rate, spans.steps, spans.evaluate_every) == (5e-5, 1e-3, 4000, 500)
    assert (spans.texts_per_step, spans.clip_norm, spans.max_length, spans.longest_span) == (16, 10.0, 1024, 40)
    assert (english.learning_rate, english.weight_decay, english.texts_per_step, english.epochs) == (5e-5, 0.01, 16, 10)
    assert PROTOCOLS["english_entities"].epochs == 20


def test_the_hash_is_of_what_numbers_depend_on():
    # Broken by: a hash of the name alone.
    first = PROTOCOLS["cpu_text"]
    assert replace(first, name="mine", doubts=("?",)).hash == first.hash
    assert len({first.hash, replace(first, epochs=4).hash, replace(first, threshold="dev").hash}) == 3


def test_fields_are_changed_by_name_and_a_file_may_give_them_all(tmp_path):
    assert protocol_of("cpu", "entities", {"epochs": 1, "learning_rate": 1e-4}).epochs == 1
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import replace\nfrom eval.protocols import PROTOCOLS\n"
        "def get_protocol(kind):\n    return replace(PROTOCOLS['cpu_text'], name='mine', epochs=9)\n"
    )
    assert protocol_of(str(path), "relation") == replace(PROTOCOLS["cpu_text"], name="mine", epochs=9)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("dutch", {}, "protocol is 'dutch': it is one of french_text"),
        ("cpu", {"epoch": 1}, r"protocols have no epoch \(did you mean epochs\?\): there are b1, b2, clip_norm"),
        ("cpu", {"epochs": 0}, "protocol cpu: epochs is 0: it must be above 0"),
        ("cpu", {"weight_decay": -0.1}, "weight_decay is -0.1: it must be at least 0"),
        ("cpu", {"eps": float("nan")}, "eps is nan: it must be a finite number"),
        ("cpu", {"epochs": "three"}, "epochs: Input should be a valid integer"),
        ("cpu", {"warmup": 1.0}, "warmup is 1.0: it must be at least 0 and below 1"),
        ("no.py", {}, "no protocol file no.py"),
    ],
)
def test_what_is_no_protocol_is_refused_in_one_line(name, changes, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said.replace(".", r"\.")) as error:
        protocol_of(name, "relation", changes)
    assert "\n" not in str(error.value)


def test_a_file_that_gives_none_is_named(tmp_path):
    path = tmp_path / "mine.py"
    for text, said in (("", "must define get_protocol"), ("def get_protocol(kind): return 1 / 0", "ZeroDivisionError")):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            protocol_of(str(path), "relation")
