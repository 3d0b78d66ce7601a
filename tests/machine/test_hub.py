"""What is asked of the Hub, without it."""

import os
import subprocess
import sys

import huggingface_hub
import pytest

from cptjax.machine import hub


@pytest.mark.parametrize(
    ("card", "named"),
    [
        ("license: cc-by-4.0", "cc-by-4.0"),
        ("license: [mit, gpl-3.0]", "mit, gpl-3.0"),
        ("license: other\nlicense_name: our-terms", "our-terms"),
        ("license: other", None),
        ("language: fr", None),
        ("license: [", None),
    ],
)
def test_a_data_set_has_the_licence_that_its_card_names(monkeypatch, card, named):
    # Broken by: license_name not asked for; a list kept as one; errors of a card let through.
    monkeypatch.setattr(
        huggingface_hub.DatasetCard, "load", lambda _: huggingface_hub.DatasetCard(f"---\n{card}\n---\n# A data set\n")
    )
    assert hub.licence_of("someone/letters") == named


def test_of_a_hub_that_does_not_answer_one_line_tells(tmp_path):
    # Broken by: HF_HUB_VERBOSITY not set in line._run (two lines for each of five retries).
    code = "import sys, time; time.sleep = lambda _: None; from cptjax.__main__ import main; sys.exit(main())"
    words = ["prepare", "--source", "hf:someone/letters", "--tokenizer", "t", "--out", str(tmp_path / "s")]
    nobody = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, "-c", code, *words], env=nobody, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: hf:someone/letters cannot be opened (")
