"""Hugging Face -> ours -> Hugging Face loses nothing; what cannot be read is refused by name."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from convert import from_hf, table, to_hf
from convert.__main__ import main
from cptjax import checkpoint
from cptjax.model import FULL, SLIDING, ModelConfig

TINY = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=6,  # layer 0, one block of three, two unrolled
    num_attention_heads=2,
)
BIASED = replace(
    TINY,
    norm_bias=True,
    attention_bias=True,
    mlp_bias=True,
    classifier_bias=True,
    decoder_bias=False,
    tie_word_embeddings=False,
    layer_types=(FULL, FULL, SLIDING, FULL, SLIDING, FULL),
    global_rope_theta=5e4,
    local_rope_theta=2e4,
    norm_eps=1e-6,
    local_attention=32,
)
V4 = {  # the form of answerdotai/ModernBERT-base, shrunk
    "architectures": ["ModernBertForMaskedLM"],
    "bos_token_id": 1,
    "classifier_pooling": "mean",
    "cls_token_id": 1,
    "eos_token_id": 2,
    "global_attn_every_n_layers": 2,
    "global_rope_theta": 80000.0,
    "hidden_size": 16,
    "intermediate_size": 24,
    "layer_norm_eps": 1e-05,
    "local_attention": 64,
    "local_rope_theta": 20000.0,
    "model_type": "modernbert",
    "norm_eps": 1e-05,
    "num_attention_heads": 2,
    "num_hidden_layers": 5,
    "pad_token_id": 3,
    "position_embedding_type": "absolute",
    "repad_logits_with_grad": False,
    "sep_token_id": 2,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.47.0",
    "vocab_size": 40,
}


def random_params(config: ModelConfig) -> dict:
    """Every number different, norms and biases included."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), from_hf.empty_params(config))


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A good Hugging Face folder, written without torch."""
    to_hf.save(TINY, random_params(TINY), tmp_path / "tiny")
    return tmp_path / "tiny"


def edit_config(folder: Path, **changes) -> None:
    """Set fields of config.json; None removes one."""
    raw = json.loads((folder / "config.json").read_text()) | changes
    raw = {name: value for name, value in raw.items() if changes.get(name, 0) is not None}
    (folder / "config.json").write_text(json.dumps(raw))


def edit_tensors(folder: Path, **changes) -> None:
    """Replace tensors (double underscore for a dot); None removes one."""
    tensors = load_file(folder / from_hf.SINGLE)
    tensors |= {name.replace("__", "."): value for name, value in changes.items()}
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, folder / from_hf.SINGLE)


# The table


@pytest.mark.parametrize("config", [TINY, BIASED, replace(TINY, num_hidden_layers=7, layer_types=())])
def test_the_table_fills_every_number_of_the_model_once(config):
    params = jax.tree.map(np.zeros_like, from_hf.empty_params(config))
    for entry in table.entries(config):
        from_hf.place(params, entry)[...] += 1
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(params))
    assert len({entry.hf_name for entry in table.entries(config)}) == len(table.entries(config))


def test_layouts_are_what_the_formulas_say():
    at = {entry.hf_name: entry for entry in table.entries(TINY)}
    qkv = np.arange(48 * 16).reshape(48, 16)
    ours_CHKD = at["model.layers.1.attn.Wqkv.weight"].to_ours(qkv)
    assert ours_CHKD[1, 1, 3, 5] == qkv[1 * 16 + 1 * 8 + 3, 5]  # key of head 1
    out = np.arange(256).reshape(16, 16)
    assert at["model.layers.1.attn.Wo.weight"].to_ours(out)[5, 1, 3] == out[5, 1 * 8 + 3]
    assert at["head.dense.weight"].to_ours(out)[9, 2] == out[9, 2]
    wide = np.arange(48 * 16).reshape(48, 16)
    assert at["model.layers.1.mlp.Wi.weight"].to_ours(wide)[1, 4, 5] == wide[24 + 4, 5]
    narrow = np.arange(16 * 24).reshape(16, 24)
    assert at["model.layers.1.mlp.Wo.weight"].to_ours(narrow)[5, 20] == narrow[5, 20]


# Round trips


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("config", [TINY, BIASED], ids=["tied", "untied-biased"])
def test_ours_to_hf_to_ours_is_exact(tmp_path, config, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), random_params(config))
    to_hf.save(config, params, tmp_path / "a")
    stored = load_file(tmp_path / "a" / from_hf.SINGLE)
    save_file({k: v.astype(dtype) for k, v in stored.items()}, tmp_path / "a" / from_hf.SINGLE)
    found_config, found = from_hf.load(tmp_path / "a")
    assert found_config == config
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        assert mine.dtype == np.float32 and np.array_equal(mine, theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [TINY, BIASED], ids=["tied", "untied-biased"])
def test_a_model_of_transformers_comes_back_exactly(tmp_path, config, dtype):
    torch = pytest.importorskip("torch")
    from transformers import (
        AutoModel,
        AutoModelForMaskedLM,
        ModernBertConfig,
        ModernBertForMaskedLM,
    )

    values = asdict(config)
    values["layer_types"] = list(config.layer_types)
    hf_config = ModernBertConfig(**values, pad_token_id=3, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    source = ModernBertForMaskedLM(hf_config).to(getattr(torch, dtype))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    source.save_pretrained(tmp_path / "a")
    found_config, params = from_hf.load(tmp_path / "a")
    assert found_config == config
    raw = json.loads((tmp_path / "a/config.json").read_text())
    to_hf.save(found_config, params, tmp_path / "b", hf_config=raw)
    a, b = (load_file(tmp_path / name / from_hf.SINGLE) for name in "ab")
    assert a.keys() == b.keys() and ("decoder.weight" in b) == (not config.tie_word_embeddings)
    assert all(np.array_equal(a[name].astype(np.float32), b[name]) for name in a)
    back = json.loads((tmp_path / "b/config.json").read_text())
    assert back == raw | {"dtype": "float32"}
    whole, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in source.state_dict().items():
        assert torch.equal(whole.state_dict()[name], tensor.float()), name
    _, info = AutoModel.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert all(name.startswith(("head.", "decoder.")) for name in info["unexpected_keys"])


def test_shards_and_a_tied_copy_and_bare_names_are_read(tiny):
    _, whole = from_hf.load(tiny)
    tensors = load_file(tiny / from_hf.SINGLE)
    tensors["decoder.weight"] = tensors[table.EMBEDDING].copy()  # allowed when equal to the bit
    tensors = {name.removeprefix("model."): value for name, value in tensors.items()}
    weight_map = {name: f"model-{i % 2 + 1}-of-2.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({n: v for n, v in tensors.items() if weight_map[n] == file}, tiny / file)
    (tiny / from_hf.SINGLE).unlink()
    (tiny / from_hf.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    _, sharded = from_hf.load(tiny)
    assert jax.tree.all(jax.tree.map(np.array_equal, whole, sharded))


# Run folders


def test_a_run_folder_holds_the_model_and_gives_it_back(tiny, tmp_path, capsys):
    with safe_open(tiny / from_hf.SINGLE, framework="numpy") as tensors:
        assert tensors.metadata() == {"format": "pt"}  # older transformers insist on it
    edit_config(tiny, classifier_pooling="mean", pad_token_id=3)
    (tiny / "tokenizer.json").write_text("{}")
    run, back = tmp_path / "run", tmp_path / "back"
    assert main(["from-hf", str(tiny), str(run)]) == 0
    step, config, params = checkpoint.load_params(run)
    assert (step, config) == (0, TINY)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, from_hf.load(tiny)[1]))
    raw = json.loads((tiny / "config.json").read_text())
    assert json.loads((run / "hf_config.json").read_text()) == raw
    assert [path.name for path in (run / "tokenizer").iterdir()] == ["tokenizer.json"]

    assert main(["to-hf", str(run), str(back)]) == 0
    names = ["config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(path.name for path in back.iterdir()) == names
    assert (back / from_hf.SINGLE).read_bytes() == (tiny / from_hf.SINGLE).read_bytes()
    assert json.loads((back / "config.json").read_text()) == raw

    for command in (["from-hf", str(tiny), str(run)], ["to-hf", str(run), str(back)]):
        capsys.readouterr()
        assert main(command) == 2 and "exists; choose another name" in capsys.readouterr().err
        assert main([*command, "--overwrite"]) == 0
    assert main(["to-hf", str(run), str(tmp_path / "other"), "--step", "7"]) == 2
    assert "no checkpoint of step 7" in capsys.readouterr().err
    assert main(["to-hf", str(tiny), str(tmp_path / "other")]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "run", "tiny"]


# Configs


def test_the_form_of_transformers_4_is_understood_and_exported_as_5(tmp_path):
    config = from_hf.read_config(V4)
    assert config.layer_types == (FULL, SLIDING, FULL, SLIDING, FULL)
    assert (config.global_rope_theta, config.local_rope_theta) == (80000.0, 20000.0)
    assert config.sliding_window == 32
    to_hf.save(config, random_params(config), tmp_path / "b", hf_config=V4)
    back = json.loads((tmp_path / "b/config.json").read_text())
    assert from_hf.read_config(back) == config
    assert back["rope_parameters"] == {
        FULL: {"rope_type": "default", "rope_theta": 80000.0},
        SLIDING: {"rope_type": "default", "rope_theta": 20000.0},
    }
    assert back["classifier_pooling"] == "mean" and back["dtype"] == "float32"
    assert [back[f"{x}_token_id"] for x in ("pad", "cls", "sep", "bos", "eos")] == [3, 1, 2, 1, 2]
    assert not set(back) & set(to_hf.DROPPED)
    assert back["architectures"] == ["ModernBertForMaskedLM"]


def test_a_null_local_theta_of_transformers_4_means_the_global_one():
    assert from_hf.read_config(V4 | {"local_rope_theta": None}).local_rope_theta == 80000.0


def test_our_fields_win_over_the_source_config(tmp_path):
    config = replace(from_hf.read_config(V4), local_attention=16, local_rope_theta=1e3)
    to_hf.save(config, random_params(config), tmp_path / "b", hf_config=V4)
    assert from_hf.load(tmp_path / "b")[0] == config


def test_dropout_is_warned_about(capsys):
    from_hf.read_config(V4 | {"attention_dropout": 0.1})
    assert capsys.readouterr().err.count("\n") == 1
    from_hf.read_config(V4 | {"attention_dropout": 0.0})
    assert not capsys.readouterr().err


def test_token_ids_of_a_model_trained_from_scratch_come_from_its_tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    names = {"pad_token": "<pad>", "cls_token": {"content": "<s>"}, "sep_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"bos_token": None}))
    tokens = [{"id": i, "content": x} for x, i in (("<pad>", 7), ("<s>", 5), ("</s>", 6))]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    to_hf.save(TINY, random_params(TINY), tmp_path / "b", tokenizer=folder)
    back = json.loads((tmp_path / "b/config.json").read_text())
    assert [back[f"{x}_token_id"] for x in ("pad", "cls", "sep", "bos", "eos")] == [7, 5, 6, 5, 6]
    to_hf.save(TINY, random_params(TINY), tmp_path / "c")  # no tokenizer: null, not another model's
    bare = json.loads((tmp_path / "c/config.json").read_text())
    assert all(bare[f"{x}_token_id"] is None for x in ("pad", "cls", "sep", "bos", "eos"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes()


# What is refused. Each names what is wrong in one line and writes nothing.

NOT_FINITE = np.full(16, np.inf, np.float32)
ZEROS = np.zeros((40, 16), np.float32)
BAD_TENSORS = [
    (
        {
            "head__dense__weight": None,
            "model__layers__2__mlp_norm__weight": None,
            "model__layers__0__attn_norm__weight": np.ones(16, np.float32),
            "decoder__bias": np.zeros(41, np.float32),
            "model__final_norm__weight": NOT_FINITE,
            "model__embeddings__norm__weight": np.zeros(16, np.int32),
        },
        (
            "missing: head.dense.weight",
            "missing: model.layers.2.mlp_norm.weight",
            "unexpected: model.layers.0.attn_norm.weight",
            "wrong shape: decoder.bias have (41,) want (40,)",
            "not finite: model.final_norm.weight",
            "not float: model.embeddings.norm.weight is I32",
        ),
    ),
    ({"decoder__weight": ZEROS}, ("decoder.weight differs from model.embeddings",)),
    ({"final_norm__weight": np.zeros(16, np.float32)}, ("twice: model.final_norm.weight",)),
    (
        {"head__dense__weight": None, "head__norm__weight": None, "decoder__bias": None},
        ("missing: head.dense.weight; missing: head.norm.weight; missing: decoder.bias",),
    ),
]


def refused(capsys, folder: Path, *, out: Path) -> str:
    """What from-hf says about a folder it must refuse."""
    capsys.readouterr()
    assert main(["from-hf", str(folder), str(out)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("error: "), message
    assert not out.exists() and not list(out.parent.glob(".*"))
    return message


@pytest.mark.parametrize(("changes", "expected"), BAD_TENSORS)
def test_bad_tensors_are_all_named_at_once(tiny, tmp_path, capsys, changes, expected):
    edit_tensors(tiny, **changes)
    message = refused(capsys, tiny, out=tmp_path / "run")
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "bert"}, "model_type is 'bert', expected 'modernbert'"),
        ({"model_type": None}, "model_type is None"),
        (
            {"hidden_size": None, "vocab_size": "x"},
            "positive whole number: vocab_size, hidden_size",
        ),
        ({"num_hidden_layers": 0}, "positive whole number: num_hidden_layers"),
        ({"num_attention_heads": 3}, "hidden_size 16 must be num_attention_heads 3"),
        ({"hidden_activation": "gelu_new"}, "hidden_activation 'gelu_new'"),
        ({"layer_types": [FULL]}, "must be equal to the number of `layer_types`"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "only rope_type 'default'"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, "rope_parameters"),
        ({"norm_bias": True}, "missing: model.embeddings.norm.bias"),
        ({"vocab_size": 41}, "wrong shape: decoder.bias have (40,) want (41,)"),
    ],
)
def test_bad_configs(tiny, tmp_path, capsys, changes, expected):
    edit_config(tiny, **changes)
    assert expected in refused(capsys, tiny, out=tmp_path / "run")


def test_broken_and_missing_files(tiny, tmp_path, capsys):
    out, weights = tmp_path / "run", tiny / from_hf.SINGLE
    assert "is no folder here and no Hub model" in refused(capsys, tmp_path / "no/t/here", out=out)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    assert "model.safetensors is not a whole safetensors file" in refused(capsys, tiny, out=out)
    weights.unlink()
    assert "has no model.safetensors" in refused(capsys, tiny, out=out)
    (tiny / "pytorch_model.bin").write_bytes(b"a pickle")
    message = refused(capsys, tiny, out=out)
    assert "pickle is not read here" in message and "save_pretrained" in message
    (tiny / from_hf.INDEX).write_text(json.dumps({"weight_map": {"a": "model-1-of-1.safetensors"}}))
    assert "lacks the shards model-1-of-1.safetensors" in refused(capsys, tiny, out=out)
    (tiny / from_hf.INDEX).write_text("{}")
    assert "has no weight_map" in refused(capsys, tiny, out=out)
    (tiny / "config.json").write_text("{")
    assert "config.json is not JSON" in refused(capsys, tiny, out=out)
    (tiny / "config.json").unlink()
    assert "config.json is missing" in refused(capsys, tiny, out=out)


def test_usage_errors_exit_with_2(capsys):
    for arguments in ([], ["from-hf", "a"], ["from-hf", "a", "b", "--fast"], ["to-onnx", "a", "b"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2 and "usage: python -m convert" in capsys.readouterr().err


def test_only_safe_files_are_asked_from_the_hub(tiny, monkeypatch):
    def snapshot_download(repo, *, revision, allow_patterns):
        assert (repo, revision) == ("someone/model", "abc")
        assert not [p for p in allow_patterns if p.endswith((".bin", ".pt", ".py", "*"))]
        assert {"*.safetensors", "config.json", "tokenizer.json"} < set(allow_patterns)
        return str(tiny)

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert from_hf.load("someone/model", revision="abc")[0] == TINY
    with pytest.raises(ValueError, match="local folder"):
        from_hf.load(tiny, revision="abc")


# Writing


def test_an_existing_output_is_kept_unless_overwritten(tiny, tmp_path):
    out, params = tmp_path / "out", random_params(TINY)
    to_hf.save(TINY, params, out)
    before = (out / from_hf.SINGLE).read_bytes()
    params["final_norm"]["scale"] = params["final_norm"]["scale"] + 1
    with pytest.raises(FileExistsError, match="--overwrite"):
        to_hf.save(TINY, params, out)
    assert (out / from_hf.SINGLE).read_bytes() == before
    to_hf.save(TINY, params, out, overwrite=True)
    assert (out / from_hf.SINGLE).read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny"]


def test_overwrite_replaces_no_folder_of_another_kind(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(FileExistsError, match="holds no model.safetensors"):
        to_hf.save(TINY, random_params(TINY), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_a_failed_write_leaves_the_old_folder(tiny, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    before = {path.name: path.read_bytes() for path in tiny.iterdir()}
    monkeypatch.setattr(to_hf, "write_config", fail)
    with pytest.raises(OSError, match="disk full"):
        to_hf.save(TINY, random_params(TINY), tiny, overwrite=True)
    assert {path.name: path.read_bytes() for path in tiny.iterdir()} == before
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny"]
