"""What must not travel is found and taken out, and nothing else is touched."""

import json
from dataclasses import replace

import pytest

from convert import private, to_hf
from tests.convert.forms import random_params
from tests.convert.test_convert import TINY

HELD = {
    "/home/me/x.txt": "path",
    "~/data": "path",
    "C:\\Users\\me": "path",
    "\\\\server\\share": "path",
    "../up/x": "path",
    "gs://bucket/x": "path",
    "file:///etc/passwd": "path",
    "read from '/data/x y/z' twice": "path",
    "path=/home/a": "path",
    "a.b@hospital.org": "mail address",
    "hf_abcdefgh12345": "token",
    "sk-proj-abcdefghijkl": "token",
    "Authorization: Bearer abcdefghijk": "token",
    "https://me:word@host.org/x": "token",
    "HF_TOKEN=abc": "token",
    "$HOME/data/x": "path",
    "${SCRATCH}/me/x": "path",
    "in $HOME": "path",
    "%USERPROFILE%\\x": "path",
    "%APPDATA%\\x": "path",
    "$env:APPDATA\\x": "path",
    "~/x": "path",
    "~alice/x": "path",
    "me@localhost": "mail address",
    "me@node7:/data": "mail address",
    "root@node7": "mail address",
    "npm_abcdefgh12345": "token",
    "dop_v1_0123456789abcdef": "token",
    "ya29.a0AfH6SMBx": "token",
    "Authorization: Token xxxxxxxx": "token",
    '{"authorization": "abcdef0123456789"}': "token",
    "Basic dXNlcjpwYXNzd29yZA==": "token",
    "aws_secret_access_key = abc": "token",
    "passphrase: abc": "token",
    "-----BEGIN PRIVATE KEY-----\nMIIEvQ": "token",
    "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----": "token",
}


@pytest.mark.parametrize("text", HELD)
def test_paths_tokens_and_addresses_are_found_and_taken_out(text):
    # Broken by: any one pattern, or any one part of it, taken out.
    assert HELD[text] in private.kinds_in(text)
    assert private.REMOVED in private.without(text) and not private.kinds_in(private.without(text))


@pytest.mark.parametrize(
    "text",
    "someone/base hf:org/set@train layers/.*/attn/ layers/[0-7]/ ^layers/(0|1)/attn/Wqkv$ .*/norm n/a 3/4 apache-2.0 "
    "https://huggingface.co/x lang==fr NVIDIA-H100-80GB 0123abc+changes score>=0.5 tokens/s (a)/(b) C:D task_1 "
    "B-DISO T-cell a/b mg/kg P@10 NDCG@k x~y 5%/10% $A sk-SK npm_1 $5/day ~5/10 BEGIN and/or I-CHEM+GENE "
    "ASIAN-population-2020 dapi-staining SG.population".split()
    + [
        "unknown token: [UNK]",
        "Basic research, basic characterisation and a public key.",
        "The home of authorization: required of whoever may read it, and why.",
    ],
)
def test_names_patterns_and_numbers_stay(text):
    # Broken by: every `/` taken for the beginning of a path; each `basic`, each `$` and `%` before a word.
    assert private.without(text) == text and private.kinds_in(text) == []


def test_the_whole_of_a_value_is_searched_and_the_places_are_named():
    # Broken by: keys or lists passed over.
    value = {"data": [{"name": "/a/b", "n": 1.5}, None, "x"], "dropped": {"path==/home/x": 3, "empty": 0}}
    assert private.without(value) == {
        "data": [{"name": "[removed]", "n": 1.5}, None, "x"],
        "dropped": {"path==[removed]": 3, "empty": 0},
    }
    assert list(private.places(value)) == ["data.0.name: path", "dropped.path==[removed]: path"]
    assert list(private.places(private.without(value))) == []


def test_labels_of_an_exported_config_are_searched_too(tmp_path):
    # Broken by: `whole` written as it is.
    config = replace(TINY, head="classifier", num_labels=2)
    labels = {"0": "by me@here.org", "1": "B/I"}
    told = {"id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}, "pad_token_id": 0}
    name = "ModernBertForTokenClassification"
    notes = to_hf.save(config, random_params(config), tmp_path / "a", architecture=name, hf_config=told)
    raw = json.loads((tmp_path / "a" / "config.json").read_text())
    assert raw["id2label"] == {"0": "by [removed]", "1": "B/I"} and raw["label2id"] == {"by [removed]": 0, "B/I": 1}
    assert "id2label.0: mail address" in str(notes) and "label2id.by [removed]: mail address" in str(notes)
