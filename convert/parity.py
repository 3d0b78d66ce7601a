"""Do two model folders compute the same thing? Shown layer by layer, then whole.

A is judged by transformers when it is a Hugging Face folder and torch is here, else by our dense
reference; B always runs on our blockwise path. Both in float32. Inputs are longer than the local
window and padded with random tokens, so that a wrong mask shows.

B rows, L tokens, D width, V vocabulary; N outputs: the embeddings, every layer, final_norm.
"""

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from convert.from_hf import find, load
from cptjax import checkpoint
from cptjax.model import ModelConfig, ModernBert, Precision, encode

LENGTHS = (7, 64, 129, 400, 1024)  # tokens; the last two are longer than the window of 128
TOLERANCE = 2e-5  # of the largest value; float32 sums in another order differ by about 2e-6
RARE = 8  # ids at the end of the vocabulary that every input holds
LOGITS_AT_ONCE = 128  # tokens whose scores over the vocabulary are in memory together
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "safetensors", "transformers", "torch")


class Model(NamedTuple):
    """A model to run: outputs_NBLD of (token_BL, segment_BL), logits_BLV of final hidden_BLD."""

    name: str
    config: ModelConfig
    outputs: Callable[[np.ndarray, np.ndarray], np.ndarray]
    logits: Callable[[np.ndarray], np.ndarray]


def compare(a: str | Path, b: str | Path, *, lengths: tuple[int, ...] | None = None) -> dict:
    """Largest difference of B from A after each layer, relative to the largest |value| of A there.

    A and B are Hugging Face folders (or Hub ids) or run folders, whose last step is taken. `passed`
    says that every number is within the tolerance. Raises ValueError for models of unlike shapes.
    """
    first, second = judge(a), ours(*_load(b), backend="blockwise")
    for field in ("num_hidden_layers", "hidden_size", "vocab_size"):
        pair = [getattr(model.config, field) for model in (first, second)]
        if pair[0] != pair[1]:
            raise ValueError(f"nothing to compare: {field} is {pair[0]} in {a} and {pair[1]} in {b}")
    measured = {str(n): differences(first, second, n) for n in lengths or LENGTHS}
    worst = float(np.max([list(row.values()) for row in measured.values()]))  # nan wins
    return {
        "passed": worst <= TOLERANCE,
        "worst": worst,
        "tolerance": TOLERANCE,
        "a": str(a),
        "b": str(b),
        "judge": first.name,
        "candidate": second.name,
        "dtype": "float32",
        "device": jax.devices()[0].device_kind,
        "versions": {name: _version(name) for name in PACKAGES},
        "relative_difference": measured,
    }


def inputs(vocab_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """token_BL and segment_BL: two rows of random ids, the second padded, with random ids too."""
    rng = np.random.default_rng(length)
    token_BL = rng.integers(vocab_size, size=(2, length), dtype=np.int32)
    rare = vocab_size - 1 - np.arange(min(RARE, vocab_size, length))
    token_BL[:, rng.permutation(length)[: rare.size]] = rare
    segment_BL = np.ones((2, length), np.int32)
    segment_BL[1, length - length // 3 :] = 0
    return token_BL, segment_BL


def judge(source: str | Path) -> Model:
    """The model to trust: transformers where that is possible, else our dense reference."""
    if not _is_run(source) and importlib.util.find_spec("torch") is not None:
        config, _ = load(source)  # transformers would fill in what is missing
        return _transformers(find(source), config)
    return ours(*_load(source), backend="reference")


def ours(config: ModelConfig, params: dict, *, backend: str) -> Model:
    """This project's model, float32 and full-precision matrix products on every device."""
    model = ModernBert(config, Precision(compute="float32"), backend=backend)
    params = jax.device_put(params)

    def outputs(token_BL, segment_BL):
        with jax.default_matmul_precision("highest"):
            return np.asarray(_encode(model, params, token_BL, segment_BL))

    def logits(hidden_BLD):
        with jax.default_matmul_precision("highest"):
            return np.asarray(_score(model, params, hidden_BLD))

    return Model(f"cptjax {backend}", config, outputs, logits)


@partial(jax.jit, static_argnums=0)
def _encode(model: ModernBert, params, token_BL, segment_BL):
    encoded = encode(model, params, token_BL, segment_BL, keep_layers=True)
    assert encoded.layers_NBLD is not None, "keep_layers keeps them"
    return jnp.concatenate([encoded.layers_NBLD, encoded.hidden_BLD[None]])


@partial(jax.jit, static_argnums=0)
def _score(model: ModernBert, params, hidden_BLD):
    return model.apply({"params": params}, hidden_BLD, method="logits")


def _transformers(folder: Path, config: ModelConfig) -> Model:
    import torch
    from transformers import ModernBertForMaskedLM

    model = ModernBertForMaskedLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    # transformers' hidden_states hold final_norm's output in place of the last layer's: listen.
    heard = []
    body = model.model
    for module in (body.embeddings, *body.layers, body.final_norm):
        module.register_forward_hook(lambda _module, _args, output: heard.append(output.numpy()))

    @torch.inference_mode()
    def outputs(token_BL, segment_BL):
        heard.clear()
        token_BL = torch.from_numpy(token_BL).long()
        body(input_ids=token_BL, attention_mask=torch.from_numpy(segment_BL).long())
        return np.stack(heard)

    @torch.inference_mode()
    def logits(hidden_BLD):
        return model.decoder(model.head(torch.from_numpy(hidden_BLD))).numpy()

    return Model("transformers eager", config, outputs, logits)


def differences(first: Model, second: Model, length: int) -> dict[str, float]:
    """Relative difference by name of the output, real tokens only."""
    token_BL, segment_BL = inputs(first.config.vocab_size, length)
    real = segment_BL > 0
    a_NBLD, b_NBLD = (model.outputs(token_BL, segment_BL) for model in (first, second))
    layers = [f"layer_{i}" for i in range(first.config.num_hidden_layers)]
    found = {
        name: _relative([(a_BLD[real], b_BLD[real])])
        for name, a_BLD, b_BLD in zip(("embeddings", *layers, "final_norm"), a_NBLD, b_NBLD, strict=True)
    }

    def scores() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, length, LOGITS_AT_ONCE):
            here = slice(start, start + LOGITS_AT_ONCE)
            a_BLV, b_BLV = (m.logits(x[-1, :, here]) for m, x in ((first, a_NBLD), (second, b_NBLD)))
            yield a_BLV[real[:, here]], b_BLV[real[:, here]]

    return found | {"logits": _relative(scores())}


def _relative(pairs) -> float:
    """Largest |a - b| over largest |a|; nan where either holds one."""
    difference = scale = np.float32(0)
    for a, b in pairs:
        difference = np.maximum(difference, np.abs(a - b).max())
        scale = np.maximum(scale, np.abs(a).max())
    return float(difference / scale)


def table_lines(report: dict) -> list[str]:
    """The report for a terminal: one line per length, then the verdict."""
    lines = [f"{'tokens':>6}  {'worst layer':<12} {'difference':>10} {'logits':>10}"]
    for length, row in report["relative_difference"].items():
        layers = {name: value for name, value in row.items() if name != "logits"}
        worst = max(layers, key=lambda name: (np.isnan(layers[name]), layers[name]))
        lines.append(f"{length:>6}  {worst:<12} {layers[worst]:>10.1e} {row['logits']:>10.1e}")
    verdict = "same" if report["passed"] else "DIFFERENT"
    lines.append(
        f"{verdict}: worst {report['worst']:.1e} of the largest value, tolerance "
        f"{report['tolerance']:.0e}; {report['candidate']} judged by {report['judge']}"
    )
    return lines


def main(a: str, b: str, out: Path | None = None) -> int:
    """Print the table; write parity.json to `out`, or into B where B is a Hugging Face folder."""
    report = compare(a, b)
    print("\n".join(table_lines(report)))
    if out is None and Path(b).is_dir() and not _is_run(b):
        out = Path(b) / "parity.json"
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {out}")
    return 0 if report["passed"] else 1


def _is_run(source: str | Path) -> bool:
    return (Path(source) / checkpoint.MODEL).is_file()


def _load(source: str | Path) -> tuple[ModelConfig, dict]:
    if not _is_run(source):
        return load(source)
    _, config, params = checkpoint.load_params(Path(source))
    return config, params


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
