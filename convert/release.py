"""A checkpoint as a folder for the Hub: weights, config, tokenizer, the card, and what the card was written from.

Nothing is written unless everything holds: parity, the usage that the card shows, every number it needs.
"""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from convert import card, parity, table, to_hf
from convert.from_hf import INDEX, SINGLE, check_tokenizer
from cptjax import checkpoint
from cptjax.corpus import load_tokenizer, special_tokens
from cptjax.files import new_folder, read_json, write_json

EXAMPLES = {"en": "The patient was given {} and went home.", "fr": "Le patient a reçu {} avant de rentrer."}
FAILED = "failed: "
TRY_ALL = f"""
import json, sys
failed = False
for title, code in json.load(sys.stdin).items():
    try:
        exec(code, {{}})
    except BaseException as error:
        failed = True
        print("{FAILED}" + title + ": " + " ".join(str(error).split()), file=sys.stderr)
sys.exit(failed)
"""  # one process for all: importing torch takes longer than the rest
UNPUBLISHED = "none"  # what --base-model says of a model that is not on the Hub
WITHIN = ("1 tokens", "7 tokens")  # parity's cases that no window cuts
PROMPTS = {"en": "The patient was", "fr": "Le patient"}  # of a decoder


def release(
    run: Path,
    out: Path,
    *,
    licence: str | None,
    base_model: str | None = None,
    language: str | None = None,
    name: str | None = None,
    model_id: str | None = None,
    example: str | None = None,
    rows: Path | None = None,
    step: int | None = None,
    read_as: str | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
) -> Path:
    """Write the release of a run to `out`; returns it.

    Raises ValueError with every reason at once why it may not be released, FileExistsError as
    `new_folder` does.
    """
    run, out = Path(run), Path(out)
    with new_folder(out, markers=(SINGLE, INDEX), overwrite=overwrite) as partial:
        step, architecture = to_hf.convert_checkpoint(run, partial / "model", step=step, read_as=read_as, dtype=dtype)
        for path in (partial / "model").iterdir():
            path.rename(partial / path.name)
        (partial / "model").rmdir()
        record, reasons = read_record(run, step)
        if not licence:
            reasons.append("no licence: give --license, such as apache-2.0")
        base, problem = name_base(record, base_model)
        found_rows, bad_rows = read_rows(rows) if rows is not None else ([], [])
        mask = mask_token(partial)
        check_tokenizer(partial, checkpoint.read_model(run).vocab_size)
        named = card.Release(
            name=name or out.name,
            model_id=model_id or name or out.name,
            architecture=architecture,
            dtype=dtype,
            step=step,
            licence=licence,
            base_model=base,
            language=language,
            example=choose_example(example, language, mask, architecture),
        )
        report = certify(partial, run, named)
        write_json(partial / "parity.json", report)
        if not report["passed"]:
            reasons.append("parity fails: " + parity.table_lines(report)[-1])
        ran, failures = try_usage(named, partial)
        reasons += [*problem, *bad_rows, *failures]
        if reasons:
            raise ValueError(f"{run} cannot be released: {'; '.join(reasons)}")
        write_json(partial / "run.json", record)
        if found_rows:
            (partial / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found_rows))
        card.make_card(named, record, found_rows, report, ran).save(partial / "README.md")
    return out


def certify(folder: Path, run: Path, named: card.Release) -> dict[str, Any]:
    """The parity of a release with the run, or with itself where the two must differ.

    They must where the files are rounded, and where transformers' decoder reads one key less than the run
    did: then texts within the window have to agree with the run, and all others with the same files.
    """
    local = checkpoint.read_model(run).causal_window_counts_self
    if named.dtype == "float32" and (local or not named.is_decoder):
        report = parity.compare(folder, run, step=named.step)
        return report | {"a": named.name, "b": run.name, "compared_with": "the model as it was trained"}
    within = parity.compare(folder, run, only=WITHIN, step=named.step) if named.dtype == "float32" else None
    report = within if within is not None and not within["passed"] else parity.compare(folder, folder)
    return report | {"a": named.name, "b": named.name, "compared_with": "the same files"}


def read_record(run: Path, step: int) -> tuple[dict[str, Any], list[str]]:
    """run.json, and why it does not tell all about this step."""
    if not (run / "run.json").is_file():
        return {}, [f"{run / 'run.json'} is missing: the run has not ended, so its numbers are not known"]
    record = read_json(run / "run.json")
    if "phases" not in record:
        return {}, [f"{run / 'run.json'} is of an older version: give the train command again to renew it"]
    ends = [phase["last_step"] for phase in record["phases"]]
    reasons = []
    if step not in ends:
        reasons.append(f"step {step} is no end of a phase (they end at {ends}): its numbers are not known")
    if not _finite(record):
        reasons.append("run.json holds numbers that are not finite")
    return record, reasons


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def name_base(record: dict[str, Any], told: str | None) -> tuple[str | None, list[str]]:
    """The base model's name, as told or as the run's origin knows it, and why it is not known."""
    origin = record.get("origin")
    if told or not record or origin is None:
        return None if told == UNPUBLISHED else told, []
    if origin["revision"] is not None:
        return origin["source"], []
    why = f"no base model: the run started from the folder {origin['source']}, give --base-model with its Hub id"
    return None, [f"{why}, or {UNPUBLISHED} if it has none"]


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The evaluation's rows, and what is wrong with them."""
    found, wrong = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            missing = [name for name in card.ROW_FIELDS if name not in row]
            good = not missing and isinstance(row["value"], int | float) and 0 <= row["value"] <= 1
        except (ValueError, TypeError):
            wrong.append(f"{path} line {number} is no row")
            continue
        if missing:
            wrong.append(f"{path} line {number} has no {', '.join(missing)}")
        elif not good:
            wrong.append(f"{path} line {number}: value {row['value']!r} is not a share from 0 to 1")
        found.append(row)
    return found, wrong


def mask_token(folder: Path) -> str | None:
    """How the tokenizer of a folder writes a mask. Raises ValueError for a folder without tokenizer."""
    if not (folder / "tokenizer.json").is_file():
        raise ValueError("the run holds no tokenizer: a release needs one")
    tokenizer = load_tokenizer(folder)
    mask = special_tokens(folder, tokenizer).mask
    return None if mask is None else tokenizer.id_to_token(mask)


def choose_example(told: str | None, language: str | None, mask: str | None, architecture: str) -> str:
    """The sentence of the usage. Raises ValueError for one that the model cannot answer."""
    spoken = language if language in EXAMPLES else "en"
    if table.ARCHITECTURES[architecture].model_type == table.DECODER:
        return told or PROMPTS[spoken]
    if mask is None:
        raise ValueError("the tokenizer names no mask token, which a masked language model needs")
    if told is not None and told.count(mask) != 1:
        raise ValueError(f"--example must hold {mask} once: {told!r}")
    return told or EXAMPLES[spoken].format(mask)


def try_usage(named: card.Release, folder: Path) -> tuple[str, list[str]]:
    """Run the card's code on `folder`: what the card says of it, and what failed."""
    if importlib.util.find_spec("torch") is None:
        return "This code was not tried when the card was written: PyTorch was not installed.", []
    code = {title: text.replace(repr(named.model_id), repr(str(folder))) for title, text in card.usage(named).items()}
    done = subprocess.run([sys.executable, "-c", TRY_ALL], input=json.dumps(code), capture_output=True, text=True)
    failed = [line.removeprefix(FAILED) for line in done.stderr.splitlines() if line.startswith(FAILED)]
    if done.returncode and not failed:
        failed = [f"it ended with {done.returncode}: {done.stderr.strip()[-200:]}"]
    failed = [f"the card's code fails: {what}" for what in failed]
    return "This code ran on these files, with PyTorch and transformers, before the card was written.", failed


def push(folder: Path, model_id: str, *, private: bool) -> str:
    """Upload a release with the user's own token; returns its address. Raises OSError where the Hub refuses."""
    import huggingface_hub

    hub = huggingface_hub.HfApi()
    hub.create_repo(model_id, private=private, exist_ok=True)
    return str(hub.upload_folder(folder_path=folder, repo_id=model_id, commit_message="Add the model"))
