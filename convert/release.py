"""A checkpoint as a folder for the Hub: weights, config, tokenizer, the card, and what the card was written from.

Nothing is written unless everything holds: parity, the usage that the card shows, every number it needs.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from convert import card, parity, portable, private, table, to_hf
from convert.from_hf import INDEX, SINGLE, check_tokenizer
from convert.recorded import read_recorded
from cptjax.command.escape import listed, printable, say
from cptjax.data.tokenizer import load_tokenizer, special_tokens
from cptjax.files import check_free, new_folder, read_json, write_json
from cptjax.machine import hub, licences
from cptjax.rows import Row, append_rows, check_comparable, read_rows
from cptjax.run import checkpoint

EXAMPLES = {"en": "The patient was given {} and went home.", "fr": "Le patient a reçu {} avant de rentrer."}
MARKERS = (SINGLE, INDEX)
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
    related: Sequence[str] = (),
    notes: Path | None = None,
    carbon: float | None = None,
    step: int | None = None,
    read_as: str | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
) -> Path:
    """Write the release of a run to `out`; returns it.

    Raises ValueError with every reason at once why it may not be released: first those that lie in what is told and
    recorded, and in what is at `out`, which are known at once, then those of the exported files.
    """
    run, out = Path(run), Path(out)
    reasons: list[str] = []

    def known(default: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` answers; where it raises, one more reason and `default`."""
        try:
            return function(*arguments)
        except (ValueError, OSError) as error:
            reasons.append(str(error))
            return default

    def refuse() -> None:
        if reasons:
            raise ValueError(f"{run} cannot be released: {'; '.join(reasons)}")

    step, config, _ = checkpoint.open_params(run, step)
    known(None, lambda: check_free(out, markers=MARKERS, overwrite=overwrite))
    name = name or out.name
    if licence:
        licence = known(licence, licences.licence, licence)
    else:
        reasons.append("no licence: give --license, such as apache-2.0")
    record = known({}, read_record, run)
    if record:
        known(None, check_step, run, record, step)
        known(None, check_carbon, record, carbon)
    base_model = known(None, name_base, record, base_model)
    told = {"--name": name, "--license": licence, "--language": language, "--example": example}
    known(None, check_names, told, {"--base-model": base_model, "--push": model_id})
    others = [known(("", ""), name_related, text) for text in related]
    found_rows = known([], evaluation_rows, rows, name) if rows is not None else []
    written = known("", author_notes, notes) if notes is not None else ""
    tokenizer, architecture = run / checkpoint.TOKENIZER, known("", to_hf.class_of, run, config, read_as)
    known(None, check_tokenizer, tokenizer, config.vocab_size)
    sentence = known("", choose_example, example, language, tokenizer, architecture) if architecture else ""
    refuse()
    say(f"{run}: all that is told and recorded holds; converting step {step:,}")
    with new_folder(out, markers=MARKERS, overwrite=overwrite) as partial:
        model = partial / "model"
        exported = to_hf.convert_checkpoint(run, model, step=step, read_as=read_as, dtype=dtype)
        for path in model.iterdir():
            path.rename(partial / path.name)
        model.rmdir()
        named = card.Release(
            name=name,
            model_id=model_id,
            architecture=architecture,
            dtype=dtype,
            transformers=read_json(partial / "config.json")[portable.REQUIRES],
            step=step,
            licence=licence,
            base_model=base_model,
            language=language,
            example=sentence,
            related=others,
            notes=written,
            carbon=carbon,
            draws_head=to_hf.draws_head(run),
            old_spellings=private.without(portable.old_spellings(partial)),  # words of its maker
        )
        say("comparing it with the run, layer by layer")
        report = certify(partial, run, named)
        if not report["passed"]:
            reasons.append("parity fails: " + parity.table_lines(report)[-1])
        if importlib.util.find_spec("torch") is not None:
            say("running the code that its card shows")
        ran = known("", try_usage, named, partial)
        refuse()
        write_json(partial / "parity.json", report)
        write_json(partial / "run.json", record)
        if found_rows:
            append_rows(partial / "rows.jsonl", found_rows)
        card.make_card(named, record, found_rows, report, ran).save(partial / "README.md")
    for note in exported.notes:
        say(f"note: {note}", stream=sys.stderr)
    return out


def check_names(texts: dict[str, str | None], ids: dict[str, str | None]) -> None:
    """Raise ValueError for all texts and ids, by option, that the Hub cannot hold, or that must not go there."""
    wrong = [
        f"{what} {text!r} must be plain text on one line, no path, token or address"
        for what, text in texts.items()
        if text is not None and (printable(text) != text or private.kinds_in(text))
    ]
    for what, text in ids.items():
        if text is not None:
            try:
                validate_repo_id(text)
            except HFValidationError as error:
                wrong.append(f"{what}: {error}")
    if wrong:
        raise ValueError("; ".join(wrong))


def name_related(text: str) -> tuple[str, str]:
    """The Hub id of another model, and what is said of it, from ID=TEXT. Raises ValueError as `check_names` does."""
    model_id, _, what = text.partition("=")
    if not what.strip():
        raise ValueError(f"--related {text!r}: write ID=TEXT, a model's Hub id and what it is")
    check_names({"--related": what}, {"--related": model_id})
    return model_id, what.strip()


def author_notes(path: Path) -> str:
    """The author's own paragraphs, Markdown as it is. Raises ValueError for what is no text, says nothing, would be
    read as metadata, or must not travel."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--notes {path} is not UTF-8: convert it") from error
    if not text.strip() or text.lstrip().startswith("---"):
        raise ValueError(f"--notes {path}: paragraphs of Markdown are needed, without metadata before them")
    if kinds := private.kinds_in(text):
        raise ValueError(f"--notes {path} holds {listed(kinds)}: leave it out of what is published")
    return text


def check_carbon(record: dict[str, Any], carbon: float | None) -> None:
    """Raise ValueError for an intensity that is none, or of a run whose energy nobody measured."""
    if carbon is None:
        return
    if not 0 < carbon < float("inf"):
        raise ValueError(f"--carbon is {carbon}: it is kg CO2e of a kWh, such as 0.05")
    if record.get("cost", {}).get("kilowatt_hours") is None:
        raise ValueError("--carbon: the energy of this run was not measured, so no emission follows; leave it out")


def certify(folder: Path, run: Path, named: card.Release) -> dict[str, Any]:
    """The parity of a release with the run, or with itself where the two must differ.

    They must where the files are rounded, and where transformers' decoder reads one key less than the run
    did: then texts within the window have to agree with the run, and all others with the same files.
    """
    config = checkpoint.read_model(run)
    if named.dtype == "float32" and (config.causal_window_counts_self or not named.is_decoder):
        report = parity.compare(folder, run, step=named.step)
        return report | {"a": named.name, "b": run.name, "compared_with": "the model as it was trained"}
    within = parity.compare(folder, run, only=WITHIN, step=named.step) if named.dtype == "float32" else None
    report = within if within is not None and not within["passed"] else parity.compare(folder, folder)
    return report | {"a": named.name, "b": named.name, "compared_with": "the same files"}


def read_record(run: Path) -> dict[str, Any]:
    """run.json, without what is nobody else's business, and without fields that no run writes. Raises ValueError where
    it is not there, or not whole."""
    path = run / "run.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: the run has not ended, so its numbers are not known")
    record, unknown = read_recorded(path)
    strange = [f"{'.'.join(private.without(list(names)))}: not known to this program" for names in unknown]
    if left_out := [*private.places(record), *strange]:
        say(f"warning: left out of the released run.json: {'; '.join(left_out)}", stream=sys.stderr)
    return private.without(record)


def check_step(run: Path, record: dict[str, Any], step: int) -> None:
    """Raise ValueError for a step that the record of a run does not tell of."""
    ends = [phase["last_step"] for phase in record["phases"]]
    if step not in ends:
        told = f"step {step} is no end of a phase (they end at {ends})"
        raise ValueError(f"{run / 'run.json'}: {told}: its numbers are not known")


def name_base(record: dict[str, Any], told: str | None) -> str | None:
    """The base model's name, as told or as the run's origin knows it; None for one that has none.

    Raises ValueError where it is not known.
    """
    origin = record.get("origin")
    if told or origin is None:
        return None if told == UNPUBLISHED else told
    if origin["revision"] is None:
        raise ValueError(
            f"no base model: the run started from {origin['source']}, give --base-model with its Hub id, or "
            f"{UNPUBLISHED} if it has none"
        )
    return origin["source"]


def evaluation_rows(path: Path, name: str) -> list[Row]:
    """The evaluation's rows. Raises ValueError for all that is wrong with them, where they are not to be compared, and
    where none is of this model's test texts."""
    read, wrong = read_rows(path, _private), []
    try:
        check_comparable(read)
    except ValueError as error:
        wrong.append(str(error))
    if not any(row.model == name and row.split == "test" for row in read):
        wrong.append(f"no row is of the test texts of a model called {name}: give --name")
    if wrong:
        raise ValueError(f"{path}: {', '.join(wrong)}")
    return read


def _private(row: Row) -> str | None:
    """Why a row must not be released, None for one that may."""
    place = next(private.places(asdict(row)), None)
    return place and f"has {place}, which must not be released"


def choose_example(told: str | None, language: str | None, folder: Path, architecture: str) -> str:
    """The sentence of the usage. Raises ValueError for one that the model cannot answer."""
    if not (folder / "tokenizer.json").is_file():
        raise ValueError("the run holds no tokenizer: a release needs one")
    spoken = language if language in EXAMPLES else "en"
    if table.ARCHITECTURES[architecture].mask_mode == "causal":
        return told or PROMPTS[spoken]
    tokenizer = load_tokenizer(folder)
    mask = special_tokens(folder, tokenizer).mask
    if mask is None:
        raise ValueError("the tokenizer names no mask token, which a masked language model needs")
    written = str(tokenizer.id_to_token(mask))
    if told is not None and told.count(written) != 1:
        raise ValueError(f"--example must hold {written} once: {told!r}")
    return told or EXAMPLES[spoken].format(written)


def try_usage(named: card.Release, folder: Path) -> str:
    """Run the card's code on `folder`: what the card says of that. Raises ValueError naming what failed."""
    if importlib.util.find_spec("torch") is None:
        return "This code was not tried when the card was written: PyTorch was not installed."
    code = json.dumps(card.usage(replace(named, model_id=str(folder))))
    done = subprocess.run([sys.executable, "-c", TRY_ALL], input=code, capture_output=True, text=True)
    failed = [line.removeprefix(FAILED) for line in done.stderr.splitlines() if line.startswith(FAILED)]
    if done.returncode and not failed:
        failed = [f"it ended with {done.returncode}: {done.stderr.strip()[-200:]}"]
    if failed:
        raise ValueError(f"the card's code fails: {', '.join(failed)}")
    return "This code ran on these files, with PyTorch and transformers, before the card was written."


def push(folder: Path, model_id: str, *, hidden: bool) -> None:
    """Upload a release with the user's own token, hidden from others or not. Raises OSError where that fails."""
    import huggingface_hub

    try:
        api = huggingface_hub.HfApi()
        api.create_repo(model_id, private=hidden, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=model_id, commit_message="Add the model")
    except Exception as error:  # the Hub's own errors, or those of whichever library carries them
        reason = hub.refusal(error)
    else:
        return
    raise OSError(f"{folder} is written, but not pushed to {model_id}: {reason}")  # here: nothing of the error is kept
