"""Nothing outside a folder is read in its name: neither by a link in it nor by a file's name in its manifest."""

import json
import os
from pathlib import Path

import pytest

from convert import from_hf, to_hf
from convert.__main__ import main
from cptjax.corpus.prepare import prepare
from cptjax.data import store
from cptjax.files import check_inside, copy_tokenizer
from cptjax.run import checkpoint
from tests.convert.forms import random_params
from tests.convert.test_convert import TINY
from tests.fixtures_text import make_tokenizer


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A good Hugging Face folder."""
    to_hf.save(TINY, random_params(TINY), tmp_path / "tiny")
    return tmp_path / "tiny"


def moved_out(path: Path, *, absolute: bool = True) -> None:
    """Put what is at `path` outside its folder and a link in its place."""
    other = path.parents[1 + (path.parent.name == "tokenizer")] / "elsewhere"
    other.mkdir(exist_ok=True)
    target = path.rename(other / path.name)
    path.symlink_to(target if absolute else os.path.relpath(target, path.parent))


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_out_of_a_model_folder_is_refused(tiny, tmp_path, capsys, name, absolute):
    # Broken by: no check_inside in find, or links followed one step only.
    moved_out(tiny / name, absolute=absolute)
    for command in (["from-hf", str(tiny), str(tmp_path / "run")], ["shape", str(tiny)], ["parity", str(tiny), "x"]):
        assert main(command) == 2
        assert capsys.readouterr().err == f"error: {tiny / name} leads out of {tiny}: put the file itself there\n"
    link = tmp_path / "elsewhere" / "second"
    link.symlink_to(tmp_path / "elsewhere" / name)
    (tiny / name).unlink()
    (tiny / name).symlink_to(link)
    with pytest.raises(ValueError, match="leads out of"):
        from_hf.load(tiny)


def test_links_inside_a_folder_and_to_a_folder_are_followed(tiny, tmp_path):
    # Broken by: home that is not resolved.
    (tiny / "model.safetensors").rename(tiny / "weights")
    (tiny / "model.safetensors").symlink_to("weights")
    (tmp_path / "link").symlink_to(tiny)
    from_hf.load(tmp_path / "link")
    (tiny / "loop").symlink_to("loop")
    check_inside(tiny)


def test_a_snapshot_in_the_hubs_cache_holds_links_to_its_blobs(tiny, tmp_path):
    # Broken by: roots of home alone; or of the whole repository, or of the whole cache.
    repository = tmp_path / "models--someone--model"
    snapshot = repository / "snapshots" / "0123abc"
    (repository / "blobs").mkdir(parents=True)
    snapshot.parent.mkdir()
    tiny.rename(snapshot)
    for path in list(snapshot.iterdir()):
        path.rename(repository / "blobs" / f"sha-{path.name}")
        path.symlink_to(f"../../blobs/sha-{path.name}")
    from_hf.load(snapshot)
    for other in (repository / "refs", tmp_path / "models--other" / "blobs"):
        other.mkdir(parents=True)
        (other / "main").write_text("{}")
        (snapshot / "vocab.json").symlink_to(other / "main")
        with pytest.raises(ValueError, match="vocab.json leads out of"):
            from_hf.load(snapshot)
        (snapshot / "vocab.json").unlink()


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.HF_CONFIG, checkpoint.CHECKPOINTS, "tokenizer/x"])
def test_a_link_out_of_a_run_folder_is_refused(tiny, tmp_path, name):
    # Broken by: no check_inside in read_model, or the folder's own entries only.
    run = tmp_path / "run"
    from_hf.convert_folder(tiny, run)
    (run / "tokenizer").mkdir(exist_ok=True)
    (run / "tokenizer" / "x").write_text("")
    moved_out(run / name)
    for read in (checkpoint.load_params, checkpoint.open_params, checkpoint.read_model):
        with pytest.raises(ValueError, match=f"{run / name} leads out of {run}"):
            read(run)


def test_a_link_out_of_a_tokenizer_is_not_copied(tmp_path):
    # Broken by: no check_inside in copy_tokenizer.
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"a/vocab\.txt leads out of"):
        copy_tokenizer(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.fixture
def letters(tmp_path) -> Path:
    """A store."""
    (tmp_path / "text.jsonl").write_text('{"text": "the patient was given aspirin"}\n')
    make_tokenizer(tmp_path / "tokenizer")
    prepare([tmp_path / "text.jsonl"], tmp_path / "tokenizer", tmp_path / "store" / "letters")
    return tmp_path / "store" / "letters"


def test_a_link_out_of_a_store_is_refused(letters):
    # Broken by: no check_inside in Manifest.read.
    moved_out(letters / "length_N.npy")
    with pytest.raises(ValueError, match=r"length_N\.npy leads out of"):
        store.Store(letters)


@pytest.mark.parametrize("form", ["absolute", "relative"])
@pytest.mark.parametrize("listed", ["shards", "sha256"])
def test_a_file_of_a_manifest_outside_the_store_is_refused(letters, form, listed):
    # Broken by: check_inside without `names`.
    path = letters / store.MANIFEST
    fields = json.loads(path.read_text())
    name = fields["shards"][0]["file"]
    outside = (letters / name).rename(letters.parent / name)
    told = str(outside) if form == "absolute" else f"../{name}"
    fields["shards"][0]["file"] = told if listed == "shards" else name
    fields["sha256"] |= {told: fields["shards"][0]["sha256"]} if listed == "sha256" else {}
    fields.pop(store.OWN_HASH)
    fields[store.OWN_HASH] = store.hash_of(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=f"{name} leads out of {letters}"):
        store.Store(letters)
