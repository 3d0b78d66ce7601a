"""Do two model folders compute the same thing? Shown layer by layer, then whole.

A is judged by transformers when it is a Hugging Face folder and torch is here, else by our dense
reference; B always runs on our blockwise path. The inputs are those that expose a mistake: longer than
the local window, padded, packed, with rare ids, of special tokens only, of one token. In float32 the two
must agree; in bfloat16 B must be about as near to A's float32 as A is with bfloat16 products: PyTorch's mixed
precision, in which models are trained, with float32 weights and hidden states.

B rows, L tokens, D width, V vocabulary or labels; N outputs: the embeddings, every layer, and final_norm where the
family has one.
"""

import importlib.util
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from convert import table
from convert.families import family_of
from convert.from_hf import architecture_of, find, load, weight_files
from convert.to_hf import choose
from cptjax import heads
from cptjax.command.bar import bar
from cptjax.command.errors import reading
from cptjax.command.escape import say
from cptjax.families import encoder
from cptjax.files import check_out, read_json, sha256, write_json
from cptjax.machine import provenance
from cptjax.model import Encoder, encode
from cptjax.ops import ACTIVATIONS
from cptjax.run import checkpoint
from cptjax.shape import SLIDING, ModelConfig, Precision

LENGTHS = (1, 7, 129, 400, 2100)  # tokens; the last two are longer than the window of 128
PACKED, PADDING = (150, 3, 1, 90), 12  # documents of one row, and what it ends in
TOLERANCE = 2e-5  # of the largest value; float32 sums in another order differ by about 2e-6
BFLOAT16 = ("129 tokens", "400 tokens", "packed")  # cases that bfloat16 is tried on
BFLOAT16_TOLERANCE = 1.1  # times the judge's own error, root mean squares; see `typical`
NUMBERS_OF_A_TOKEN, MOST_ROWS = 512, 8  # a narrower model has more rows where rounding is judged: less is chance
LEAST_ERROR = 1e-5  # of the judge in bfloat16 that counts: what it has not rounded, such as embeddings, we must not
ULP = 2.0**-8  # relative, of bfloat16
RARE = 8  # ids at the end of the vocabulary that every input holds
SCORES_AT_ONCE = 128  # tokens whose scores over the vocabulary are in memory together
Pairs = Iterable[tuple[np.ndarray, np.ndarray]]
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "safetensors", "transformers", "torch")


class Side(NamedTuple):
    """A folder to compare, read."""

    folder: Path
    is_run: bool
    architecture: str
    hf_config: dict
    config: ModelConfig
    params: Any


class Model(NamedTuple):
    """A model to run: outputs_NBLD of (token_BL, segment_BL); and of these and the final hidden_BLD its
    scores, some [tokens, V] at a time, of real tokens only (of whole texts for a text classifier)."""

    name: str
    layers: int
    outputs: Callable[[np.ndarray, np.ndarray], np.ndarray]
    scores: Callable[[np.ndarray, np.ndarray, np.ndarray], Iterator[np.ndarray]]


class Case(NamedTuple):
    """Rows to run both models on; segment 0 is padding."""

    name: str
    token_BL: np.ndarray
    segment_BL: np.ndarray


def compare(a: str | Path, b: str | Path, *, only: Collection[str] | None = None, step: int | None = None) -> dict:
    """Run both models on the same inputs, all or those named; the report says whether each output agrees, and how well.

    Where B is a run folder, `step` says which of its checkpoints; the last one by default.

    Raises ValueError when they are not of the same shape, and as `load` does.
    """
    first, second = read_side(a), read_side(b, step)
    unlike = [
        f"{name} {getattr(first.config, name)} and {getattr(second.config, name)}"
        for name in ("hidden_size", "num_hidden_layers", "vocab_size", "head", "num_labels")
        if getattr(first.config, name) != getattr(second.config, name)
    ]
    if unlike:
        raise ValueError(f"{a} and {b} are different models: {', '.join(unlike)}")
    # The same run may be exported as an encoder or a decoder: the Hugging Face folder says which.
    architecture = second.architecture if first.is_run and not second.is_run else first.architecture
    rows_each = min(MOST_ROWS, max(1, NUMBERS_OF_A_TOKEN // first.config.hidden_size))
    every = cases(first.config.vocab_size, special_ids(first), first.config.longest_document, rows_each)
    tried = [case for case in every if only is None or case.name in only]
    dtypes = ("float32", "bfloat16") if any(case.name in BFLOAT16 for case in tried) else ("float32",)
    total = sum(case.token_BL.size * (4 if case.name in BFLOAT16 else 2) for case in tried)
    with bar(total, " tokens", "comparing") as shown:

        def counted(model: Model) -> Model:
            def outputs(token_BL, segment_BL):
                made_NBLD = model.outputs(token_BL, segment_BL)
                shown.update(token_BL.size)
                return made_NBLD

            return model._replace(outputs=outputs)

        judges = {dtype: counted(judge(first, architecture, dtype)) for dtype in dtypes}
        made = {dtype: ours(second.config, second.params, architecture, dtype=dtype) for dtype in dtypes}
        candidates = {dtype: counted(model) for dtype, model in made.items()}
        rows: dict[str, dict[str, dict[str, float]]] = {}
        for case in tried:
            exact_NBLD = judges["float32"].outputs(case.token_BL, case.segment_BL)
            far = partial(differences, judges["float32"], exact_NBLD, case)
            rows[case.name] = {"float32": far(candidates["float32"], largest)}
            if case.name in BFLOAT16:
                for name, models in (("bfloat16", candidates), ("judge's bfloat16", judges)):
                    rows[case.name][name] = far(models["bfloat16"], typical)
    worst = float(np.max([value for row in rows.values() for value in row["float32"].values()]))
    rounding = [
        row["bfloat16"][name] / max(own, LEAST_ERROR)
        for row in rows.values()
        for name, own in row.get("judge's bfloat16", {}).items()
        if name != "scores" or not _of_texts(architecture)  # a few numbers, mostly chance
    ]
    rounding.append(activation_error(second.config.hidden_activation) / ULP)
    worst_rounding = float(np.max(rounding))
    return {
        "passed": bool(worst < TOLERANCE and worst_rounding < BFLOAT16_TOLERANCE),
        "worst": {"float32": worst, "bfloat16": worst_rounding},
        "tolerance": {"float32": TOLERANCE, "bfloat16": BFLOAT16_TOLERANCE},
        "a": str(a),
        "b": str(b),
        "architecture": architecture,
        "local_keys": [_local_keys(side.config, architecture) for side in (first, second)],
        "judge": judges["float32"].name,
        "candidate": candidates["float32"].name,
        "device": jax.devices()[0].device_kind,
        "versions": provenance.versions(PACKAGES),
        "weights_sha256": _hashes(second if first.is_run else first if second.is_run else second),
        "relative_difference": rows,
    }


def _hashes(side: Side) -> dict[str, str]:
    """The sha256 of each weight file of a Hugging Face folder; a run folder has its own hashes."""
    return {} if side.is_run else {path.name: sha256(path) for path in weight_files(side.folder)}


def _of_texts(architecture: str) -> bool:
    """Whether the class scores whole texts; others score tokens."""
    return table.ARCHITECTURES[architecture].stands == "texts"


def _local_keys(config: ModelConfig, architecture: str) -> int | None:
    """Keys that a token far from its text's ends reads in a local layer; None: there is no such layer."""
    if SLIDING not in config.layer_types:
        return None
    mode = table.ARCHITECTURES[architecture].mask_mode
    window = config.mask_spec(SLIDING, mode).window or 0
    return window * (1 if mode == "causal" else 2) + 1


def read_side(source: str | Path, step: int | None = None) -> Side:
    """A run folder's step, the last one by default, or a Hugging Face folder or id."""
    with reading(source):
        return _read_side(source, step)


def _read_side(source: str | Path, step: int | None) -> Side:
    folder = Path(source)
    if (folder / checkpoint.MODEL).is_file():
        _, config, params = checkpoint.load_params(folder, step)
        known = folder / checkpoint.HF_CONFIG
        hf_config = read_json(known) if known.is_file() else {}
        return Side(folder, True, choose(config, hf_config), hf_config, config, params)
    folder = find(source)
    config, params = load(folder)
    hf_config = read_json(folder / "config.json")
    return Side(folder, False, architecture_of(hf_config), hf_config, config, params)


def special_ids(side: Side) -> list[int]:
    """The ids of special tokens that a config.json names; the first of the vocabulary where it names none."""
    named = {value for name, value in side.hf_config.items() if name.endswith("_token_id") and type(value) is int}
    return sorted(named & set(range(side.config.vocab_size))) or [0]


def cases(vocab_size: int, special: list[int], longest: int, rows_each: int = 1) -> Iterator[Case]:
    """The inputs: two rows of each length, the second padded with random ids, then the odd ones; none is longer than
    `longest`, and one is as long where that is not far. Where rounding is judged, `rows_each` times as many rows."""
    ends = [longest] if longest < max(LENGTHS) else []
    for length in sorted({*(length for length in LENGTHS if length <= longest), *ends}):
        name = f"{length} tokens"
        segment_BL = np.ones((2 * rows_each if name in BFLOAT16 else 2, length), np.int32)
        segment_BL[1::2, length - length // 3 :] = 0
        yield Case(name, _random_ids(vocab_size, *segment_BL.shape), segment_BL)
    room = min(1.0, longest / (sum(PACKED) + PADDING))
    documents = [max(1, int(length * room)) for length in PACKED]
    segments = np.repeat(np.arange(1, len(documents) + 1, dtype=np.int32), documents)
    packed_BL = np.tile(np.pad(segments, (0, PADDING))[:longest], (rows_each, 1))
    yield Case("packed", _random_ids(vocab_size, *packed_BL.shape), packed_BL)
    token_BL = np.resize(np.array(special, np.int32), (2, min(70, longest)))
    yield Case("special tokens", token_BL, np.ones_like(token_BL))


def _random_ids(vocab_size: int, rows: int, length: int) -> np.ndarray:
    rng = np.random.default_rng(length)
    token_BL = rng.integers(vocab_size, size=(rows, length), dtype=np.int32)
    rare = vocab_size - 1 - np.arange(min(RARE, vocab_size, length))
    token_BL[:, rng.permutation(length)[: rare.size]] = rare
    return token_BL


def differences(
    first: Model, a_NBLD: np.ndarray, case: Case, second: Model, measure: Callable[[Pairs], float]
) -> dict[str, float]:
    """Relative difference (`largest` or `typical`) by name of the output, real tokens only; `a_NBLD` is what `first`
    puts out."""
    real = case.segment_BL > 0
    b_NBLD = second.outputs(case.token_BL, case.segment_BL)
    names = ["embeddings", *(f"layer_{i}" for i in range(first.layers)), "final_norm"][: len(a_NBLD)]
    largest = {
        name: measure([(a_BLD[real], b_BLD[real])]) for name, a_BLD, b_BLD in zip(names, a_NBLD, b_NBLD, strict=True)
    }
    a, b = (x.scores(case.token_BL, case.segment_BL, y[-1]) for x, y in ((first, a_NBLD), (second, b_NBLD)))
    scores = measure(zip(a, b, strict=True))
    return largest if np.isneginf(scores) else largest | {"scores": scores}


def largest(pairs: Pairs) -> float:
    """Largest |a - b| over largest |a|; nan where either holds one, -inf where there is no pair."""
    difference, scale = np.float32(-np.inf), np.float32(0)
    for a, b in pairs:
        difference = np.maximum(difference, np.abs(a - b).max())
        scale = np.maximum(scale, np.abs(a).max())
    return float(difference / scale) if scale else float(difference)


def activation_error(name: str) -> float:
    """Largest error of one of our activations in bfloat16, relative to the number itself: where activations are small,
    layers hardly show it."""
    x = jnp.linspace(-3, 3, 1537).astype(jnp.bfloat16)
    rounded, exact = (np.asarray(ACTIVATIONS[name](x.astype(dtype)), np.float32) for dtype in ("bfloat16", "float32"))
    return float((np.abs(rounded - exact) / np.maximum(np.abs(exact), 1e-9)).max())


def typical(pairs: Pairs) -> float:
    """The same with root mean squares, which chance moves less: for rounding errors."""
    difference = scale = 0.0
    for a, b in pairs:
        difference += float(np.square(a - b, dtype=np.float64).sum())
        scale += float(np.square(a, dtype=np.float64).sum())
    return (difference / scale) ** 0.5 if scale else -np.inf


def judge(side: Side, architecture: str, dtype: str) -> Model:
    """The model to trust: transformers where that is possible, else our dense reference."""
    if not side.is_run and importlib.util.find_spec("torch") is not None:
        return _transformers(side, architecture, dtype)
    return ours(side.config, side.params, architecture, dtype=dtype, backend="reference")


def ours(config: ModelConfig, params: Any, architecture: str, *, dtype: Any, backend: str = "blockwise") -> Model:
    """This project's model; in float32 with full-precision matrix products on every device."""
    model = encoder(config, Precision(compute=dtype), backend=backend)
    params = jax.device_put(params)
    mask_mode = table.ARCHITECTURES[architecture].mask_mode

    def exactly(function, *arguments) -> np.ndarray:
        with jax.default_matmul_precision("highest"):
            return np.asarray(function(model, params, *arguments), np.float32)

    def outputs(token_BL, segment_BL):
        return exactly(partial(_encode, mask_mode=mask_mode), token_BL, segment_BL)

    def scores(_, segment_BL, hidden_BLD):
        hidden_BLD = hidden_BLD.astype(jnp.dtype(dtype))
        if _of_texts(architecture):
            if segment_BL.max() == 1:  # one text a row
                rows = len(segment_BL)
                text_scores = jax.jit(heads.text_scores, static_argnums=(0, 4))
                yield exactly(text_scores, hidden_BLD, segment_BL * np.arange(1, rows + 1)[:, None], rows)
        elif config.head != "none":
            score = _logits if config.head == "lm" else heads.token_scores
            yield from _by_chunk(partial(exactly, jax.jit(score, static_argnums=0)), segment_BL, hidden_BLD)

    return Model(f"cptjax {backend}", config.num_hidden_layers, outputs, scores)


@partial(jax.jit, static_argnums=0, static_argnames="mask_mode")
def _encode(model: Encoder, params, token_BL, segment_BL, *, mask_mode: str):
    encoded = encode(model, params, token_BL, segment_BL, mask_mode=mask_mode, keep_layers=True)
    assert encoded.layers_NBLD is not None, "keep_layers keeps them"
    if "final_norm" not in params:  # what the last layer gives is what the encoder gives
        return encoded.layers_NBLD
    return jnp.concatenate([encoded.layers_NBLD, encoded.hidden_BLD[None].astype(encoded.layers_NBLD.dtype)])


def _logits(model: Encoder, params, hidden_BLD):
    return model.apply({"params": params}, hidden_BLD, method="logits")


def _by_chunk(score: Callable[[Any], np.ndarray], segment_BL, hidden_BLD) -> Iterator[np.ndarray]:
    """Scores [tokens, V] of the real tokens, some positions of all rows at a time."""
    for start in range(0, segment_BL.shape[1], SCORES_AT_ONCE):
        here = slice(start, start + SCORES_AT_ONCE)
        real = segment_BL[:, here] > 0
        if real.any():
            yield score(hidden_BLD[:, here])[real]


def _transformers(side: Side, architecture: str, dtype: str) -> Model:
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    family, form = family_of(architecture), table.ARCHITECTURES[architecture]
    kind = getattr(transformers, architecture)
    model = kind.from_pretrained(side.folder, dtype=torch.float32, attn_implementation="eager").eval()

    def mixed():
        """Anew each time: one that is entered inside itself forgets what was before, and is never left."""
        return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")

    # transformers' hidden_states hold final_norm's output in place of the last layer's: listen.
    heard = []
    body = getattr(model, model.base_model_prefix, model)
    last = [body.final_norm] if hasattr(body, "final_norm") else []
    for module in (body.embeddings, *body.get_submodule(family.layers)):
        module.register_forward_hook(lambda _module, _args, output: heard.append(output.float().numpy()))
    read = torch.bfloat16 if dtype == "bfloat16" else torch.float32  # by what stands on the encoder
    for module in last:
        module.register_forward_hook(lambda _module, _args, output: heard.append(output.to(read).float().numpy()))

    def told(token_BL, segment_BL) -> dict[str, torch.Tensor]:
        rows = {"input_ids": token_BL, "attention_mask": segment_BL}
        padding = getattr(body.embeddings, "padding_idx", None)
        if padding is not None:  # RoBERTa's count the ids that are not padding's: a random text holds it too
            rows["position_ids"] = padding + 1 + np.arange(token_BL.shape[1])[None]
        return {name: torch.from_numpy(x).long() for name, x in rows.items()}

    @torch.inference_mode()
    def outputs(token_BL, segment_BL):
        if segment_BL.max() > 1:
            return _one_by_one(outputs, token_BL, segment_BL)
        heard.clear()
        with mixed():
            body(**told(token_BL, segment_BL))
        return np.stack(heard)

    @torch.inference_mode()
    def scores(token_BL, segment_BL, hidden_BLD):
        def score(hidden_BLD):
            out = torch.from_numpy(hidden_BLD).to(model.dtype)
            with mixed():
                for name in family.scores[form.model_type][form.stands]:
                    out = getattr(model, name)(out)
            return out.float().numpy()

        if _of_texts(architecture):
            if segment_BL.max() == 1:
                with mixed():
                    logits = model(**told(token_BL, segment_BL)).logits
                yield logits.float().numpy()
        elif form.head != "none":
            yield from _by_chunk(score, segment_BL, hidden_BLD)

    return Model("transformers eager", side.config.num_hidden_layers, outputs, scores)


def _one_by_one(outputs, token_BL, segment_BL) -> np.ndarray:
    """The outputs of packed rows, each document run alone; zero on padding."""
    whole = None
    for row, segment_L in enumerate(segment_BL):
        for number in range(1, segment_L.max() + 1):
            mine = segment_L == number
            alone_N1LD = outputs(token_BL[row : row + 1, mine], np.ones((1, mine.sum()), np.int32))
            if whole is None:
                whole = np.zeros((len(alone_N1LD), *segment_BL.shape, alone_N1LD.shape[-1]), np.float32)
            whole[:, row, mine] = alone_N1LD[:, 0]
    assert whole is not None, "packed rows hold documents"
    return whole


def table_lines(report: dict) -> list[str]:
    """The report for a terminal: one line per case and dtype, then the verdict."""
    lines = [f"{'case':<16}{'dtype':<18}{'worst output':<14}{'difference':>10}{'scores':>10}"]
    for case, row in report["relative_difference"].items():
        for dtype, outputs in row.items():
            layers = {name: value for name, value in outputs.items() if name != "scores"}
            worst = max(layers, key=lambda name: (np.isnan(layers[name]), layers[name]))
            scores = f"{outputs['scores']:>10.1e}" if "scores" in outputs else f"{'-':>10}"
            lines.append(f"{case:<16}{dtype:<18}{worst:<14}{layers[worst]:>10.1e}{scores}")
    a, b = report["local_keys"]
    if a != b:
        lines.append(f"a local layer of A reads {a} keys, of B {b}: they differ on longer texts")
    worst, tolerance = report["worst"], report["tolerance"]
    lines.append(
        f"{'same' if report['passed'] else 'DIFFERENT'}: {report['candidate']} judged by {report['judge']}: "
        f"float32 {worst['float32']:.1e} of the largest value (tolerance {tolerance['float32']:.0e}), bfloat16 "
        f"{worst['bfloat16']:.2f} times the judge's own error (tolerance {tolerance['bfloat16']})"
    )
    return lines


def main(a: str, b: str, out: Path | None = None) -> int:
    """Print the table, and write the report to `out` where that is given; 1 for models that differ."""
    check_out(out)
    report = compare(a, b)
    say("\n".join(table_lines(report)))
    if out is not None:
        write_json(out, report)
        say(f"wrote {out}")
    return 0 if report["passed"] else 1
