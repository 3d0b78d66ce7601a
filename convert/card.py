"""The model card of a release: every number in it is one of run.json, of the evaluation's rows or of parity.json.

Its order follows the cards of arXiv:2605.12438's models. What a run cannot know (what the corpora are, which models
are related, who paid) is its author's to say, to `prepare` and `release`; nothing is made up in its place.
"""

import itertools
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from convert import table
from cptjax.command.escape import code, listed, markdown, printable
from cptjax.dropout import Dropout
from cptjax.machine.licences import LICENCES
from cptjax.rows import Row, by_task
from cptjax.run.checkpoint import model_config

PAPER = "[arXiv:2605.12438](https://arxiv.org/abs/2605.12438)"
CITATION = """@misc{touchent2026causallanguagemodelingdetour,
  title={A Causal Language Modeling Detour Improves Encoder Continued Pretraining},
  author={Rian Touchent and Eric de la Clergerie},
  year={2026},
  eprint={2605.12438},
  archivePrefix={arXiv},
  primaryClass={cs.CL},
  url={https://arxiv.org/abs/2605.12438},
}"""
OBJECTIVES = {"clm": "Causal language modelling", "mlm": "Masked language modelling"}


@dataclass(frozen=True)
class Release:
    """What a release is called and what its author says of it."""

    name: str  # heading, and the model's name in rows
    model_id: str | None  # its Hub id, None where it has none yet
    architecture: str
    dtype: str
    transformers: str  # the versions that read it, as pip has them
    step: int
    licence: str | None
    base_model: str | None  # its Hub id; None: it has none
    language: str | None  # such as en
    example: str  # a sentence for the usage; with the tokenizer's mask where the model fills masks
    old_spellings: Sequence[str] = ()  # the tokenizer's added words that transformers 4 decodes otherwise than 5
    notes: str = ""  # Markdown of its author's
    carbon: float | None = None  # kg CO2e of a kWh, as its author states it
    related: Sequence[tuple[str, str]] = ()  # Hub ids of other models, and what its author says of each
    draws_head: bool = False  # whether its first language-model head was a random one

    @property
    def is_decoder(self) -> bool:
        """Whether it reads causally."""
        return table.ARCHITECTURES[self.architecture].mask_mode == "causal"


def usage(release: Release) -> dict[str, str]:
    """The code that the card shows, by heading."""
    auto = "AutoModelForCausalLM" if release.is_decoder else "AutoModelForMaskedLM"
    place = "or the folder with these files" if release.model_id else "the folder with these files; or their Hub id"
    where = f"model_id = {release.model_id or '.'!r}  # {place}\n"
    load = (
        f"from transformers import {auto}, AutoTokenizer\n\n"
        f"{where}"
        "tokenizer = AutoTokenizer.from_pretrained(model_id)\n"
        f"model = {auto}.from_pretrained(model_id)\n\n"
        f"inputs = tokenizer({release.example!r}, return_tensors='pt')\n"
    )
    if release.is_decoder:
        tokens = "tokens = model.generate(**inputs, max_new_tokens=16)\nprint(tokenizer.decode(tokens[0]))"
        return {"Text generation": load + tokens}
    return {
        "Masked language modelling": load
        + "logits = model(**inputs).logits\n"
        + "masked = inputs['input_ids'][0].tolist().index(tokenizer.mask_token_id)\n"
        + "print(tokenizer.decode(logits[0, masked].argmax()))",
        "As a pipeline": (
            "from transformers import pipeline\n\n"
            f"{where}"
            "fill = pipeline('fill-mask', model=model_id)\n"
            f"print(fill({release.example!r}))"
        ),
        "Text representations, and fine-tuning": (
            "from transformers import AutoModel, AutoTokenizer\n\n"
            f"{where}"
            "tokenizer = AutoTokenizer.from_pretrained(model_id)\n"
            "model = AutoModel.from_pretrained(model_id)\n\n"
            f"inputs = tokenizer({release.example!r}, return_tensors='pt')\n"
            "hidden = model(**inputs).last_hidden_state  # [texts, tokens, width]\n"
            "print(hidden.shape)"
        ),
    }


def make_card(
    release: Release, run: Mapping[str, Any], rows: Sequence[Row], parity: Mapping[str, Any], ran: str
) -> ModelCard:
    """The card of a release. `ran` says how the code of `usage` was tried."""
    phases = [phase for phase in run["phases"] if phase["last_step"] <= release.step]
    line = [*(phase for parent in run["parents"] for phase in parent["phases"]), *phases]
    rows = _shown(rows)
    chapters = [
        _summary(release, run, line),
        ["## From its author", release.notes.strip()] if release.notes else [],
        _intended(release),
        _usage(release, ran),
        _training(run, phases, line),
        _evaluation(release, run, phases, rows),
        _conversion(parity),
        _cost(release, run, phases),
        _limitations(release, run, rows),
        *_closing(release),
    ]
    headings = [chapter[0].removeprefix("## ") for chapter in chapters if chapter]
    contents = "\n".join(f"* [{name}](#{name.lower().replace(' ', '-')})" for name in headings)
    sections = [f"# {markdown(release.name)}", contents, *itertools.chain.from_iterable(chapters)]
    return ModelCard(f"---\n{_metadata(release, run, rows).to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _shown(rows: Sequence[Row]) -> list[Row]:
    """Those of test texts in each task's own metric, which comes first; all of them are released beside the card."""
    own: dict[str, str] = {}
    return [row for row in rows if row.split == "test" and row.metric == own.setdefault(row.task, row.metric)]


def _metadata(release: Release, run: Mapping[str, Any], rows: Sequence[Row]) -> ModelCardData:
    results = [
        EvalResult(
            task_type=printable(kind),
            dataset_type=printable(task),
            dataset_name=printable(task),
            metric_type=printable(metric),
            metric_value=round(percent(statistics.mean(values)), 1),
        )
        for (model, task, kind, metric), values in by_task(rows).items()
        if model == release.name
    ]
    licence, named = release.licence, None
    if licence not in LICENCES:
        licence, named = "other", re.sub(r"[^a-z0-9.]+", "-", str(licence).lower())
    data_sets = [source["hub_id"] for _, source in _sources(run) if source["hub_id"]]
    return ModelCardData(
        model_name=release.name if results else None,
        eval_results=results or None,
        language=release.language,
        license=licence,
        license_name=named,
        datasets=list(dict.fromkeys(data_sets)) or None,
        base_model=release.base_model,
        library_name="transformers",
        pipeline_tag="text-generation" if release.is_decoder else "fill-mask",
        tags=[
            table.ARCHITECTURES[release.architecture].shape_type,
            "decoder" if release.is_decoder else "encoder",
            "continued-pretraining",
            "cptjax",
        ],
        widget=[{"text": release.example}],
    )


def _summary(release: Release, run: Mapping[str, Any], phases: Sequence[Mapping[str, Any]]) -> list[str]:
    model, base = run["model"], release.base_model
    shape = model_config({name: x for name, x in model.items() if name != "parameters"}, where="run.json: model")
    names = " then ".join(OBJECTIVES[phase["objective"]["kind"]].lower() for phase in phases)
    origin = _link(base) if base else None
    start = f"made by continued pretraining of {origin or 'a model that is not published'}"
    if base is None and run["origin"] is None:
        start = "trained from random weights"
    elif base and run["origin"] and base == run["origin"]["source"] and run["origin"]["revision"]:
        origin = f"{origin}, commit {markdown(run['origin']['revision'])}"
    facts = {
        "Architecture": release.architecture,
        "Parameters": count(model["parameters"]),
        "Layers": model["num_hidden_layers"],
        "Hidden size": model["hidden_size"],
        "Attention heads": model["num_attention_heads"],
        "Vocabulary": f"{model['vocab_size']:,}",
        "Context length": f"{shape.longest_document:,} tokens",
        "Rows in training": f"{run['sequence_length']:,} tokens",
        "Weights": release.dtype,
        "Read alike by": f"transformers `{release.transformers}`",
        "Language": markdown(release.language or "") or None,
        "Base model": origin,
    }
    what = f"{shape.families[shape.model_type]} {'decoder' if release.is_decoder else 'encoder'}"
    return [
        "## Model summary",
        f"{markdown(release.name)} is a {what} {start}: {names}.",
        _table(("", ""), [(f"**{name}**", value) for name, value in facts.items() if value is not None]),
    ]


def _intended(release: Release) -> list[str]:
    uses = (
        ["Continuing text like that of the corpora below, for study."]
        if release.is_decoder
        else [
            "Fine-tuning on tasks with text like that of the corpora below: classes, entities, relations, search.",
            "Vectors of such text, and words for its masks.",
        ]
    )
    bounds = (
        "It is not meant to decide on anybody's health, care or rights: what is built on it needs a test of its own."
    )
    return ["## Intended use", "\n".join(f"* {use}" for use in (*uses, bounds))]


def _usage(release: Release, ran: str) -> list[str]:
    code = [f"### {title}\n\n```python\n{lines}\n```" for title, lines in usage(release).items()]
    install = f'pip install "transformers{release.transformers}" torch'
    if table.ARCHITECTURES[release.architecture].shape_type == "modernbert":
        install += (
            "\npip install flash-attn --no-build-isolation  # on GPUs, for attn_implementation='flash_attention_2'"
        )
    return ["## Usage", f"```sh\n{install}\n```", ran, *code]


def _training(
    run: Mapping[str, Any], phases: Sequence[Mapping[str, Any]], line: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Of the run's own `phases`, and of those that led to it, which `line` has before them."""
    asked = sum(x["share"] for x in run["data"])  # of any scale
    data = [
        (
            markdown(x["name"]),
            f"{x['documents']:,}",
            count(x["tokens"]),
            f"{percent(x['share'] / asked):.1f} %",
            f"{percent(x['share_shown']):.1f} %",
            f"{x['epochs']:.2f}",
        )
        for x in run["data"]
    ]
    head = ("Corpus", "Documents", "Tokens", "Share asked for", "Share of the tokens shown", "Passes")
    whole = len(phases) == len(run["phases"])
    known = len(head) if whole else len(head) - 2  # what was shown, in the whole run
    adam, precision = run["optimizer"], run["precision"]
    clip = "no clipping" if adam["clip_norm"] is None else f"gradients clipped at norm {adam['clip_norm']:g}"
    versions = {name: markdown(f"{name} {version}") for name, version in run["versions"].items() if version}
    ours = versions.pop("cptjax", "cptjax") + (f" at commit {code(run['commit'])}" if run["commit"] else "")
    detour = [phase["objective"]["kind"] for phase in line] == ["clm", "mlm"]
    skipped = f", whose first {run['first_batch']:,} batches were passed over" if run["first_batch"] else ""
    return [
        "## Training",
        "### Data",
        _table(head[:known], [line[:known] for line in data]),
        *_made_of(run, whole),
        "### Methodology",
        *(
            [
                f"The recipe is the CLM detour of {PAPER}: causal training supervises every token, and a masked "
                "phase brings reading on both sides back."
            ]
            if detour
            else []
        ),
        "\n".join(_phase(phase) for phase in line),
        *branches(run),
        *_skipped(run["spent"]["skipped"]),
        *departures(run, max((phase["last_step"] for phase in phases), default=0)),
        f"A batch holds {run['global_batch_size']:,} rows of {run['sequence_length']:,} tokens "
        f"({count(run['tokens_per_step'])} tokens). Decoupled AdamW (beta1 {adam['b1']:g}, beta2 {adam['b2']:g}, "
        f"epsilon {adam['eps']:g}, weight decay {adam['weight_decay']:g}, {clip}); {precision['compute']} computation, "
        f"float32 weights; dropout: {Dropout(**run['dropout'])}. Seeds: {run['seeds']['masks_and_weights']} for masks, "
        f"{run['seeds']['data']} for the order of the data{skipped}.",
        f"Trained with {ours} ({', '.join(versions.values())}; Python {markdown(run['python'])}).",
    ]


def _skipped(steps: Sequence[int]) -> list[str]:
    if not steps:
        return []
    named = listed(list(map(str, steps)))
    return [f"Steps that changed nothing, their batches left out or their gradients not finite: {named}."]


def _sources(run: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The described sources of all corpora, each with the name of its corpus."""
    return [(x["name"], source) for x in run["data"] for source in x["sources"] if not isinstance(source, str)]


def _made_of(run: Mapping[str, Any], whole: bool) -> list[str]:
    head = ("Corpus", "Source", "Description", "Licence", "Documents", "Tokens", "Share shown")
    lines = [
        (
            markdown(corpus),
            _link(source["hub_id"], "datasets/", source["name"]) if source["hub_id"] else markdown(source["name"]),
            *(markdown(source[said] or "not stated") for said in ("description", "licence")),
            f"{source['documents']:,}",
            count(source["tokens"]),
            f"{percent(source['share_shown']):.1f} %",
        )
        for corpus, source in _sources(run)
    ]
    known = len(head) if whole else len(head) - 1
    return (
        [
            "Their sources, as they were described when they were prepared:",
            _table(head[:known], [line[:known] for line in lines]),
        ]
        if lines
        else []
    )


def branches(run: Mapping[str, Any]) -> list[str]:
    """A sentence for each run that led to this one: its step, what it read, what it took, and where it went back."""
    said = []
    for parent in run["parents"]:
        asked = sum(store["share"] for store in parent["data"])
        read = ", ".join(f"{markdown(x['name'])} {percent(x['share'] / asked):.1f} %" for x in parent["data"])
        said += [
            f"What came before was branched off at step {parent['step']:,} of the run {markdown(parent['name'])}, of "
            f"which {', '.join(markdown(phase['name']) for phase in parent['phases'])} is told above. It read {read}; "
            f"its {parent['spent']['device_seconds'] / 3600:.2f} device hours are not in the cost below. "
            f"The facts of that checkpoint have the sha256 `{markdown(parent['facts_sha256'])}`.",
            *departures(parent, parent["step"]),
        ]
    return said


def departures(run: Mapping[str, Any], last_step: int) -> list[str]:
    """A sentence for each time that the run went back to an earlier step and took another course."""
    return [
        f"At step {departure['step']:,} the run went back to its checkpoint, and on with "
        f"{', '.join(map(code, departure['changed'])) or 'the same settings'}; what it had trained beyond was left."
        for departure in run["departures"]
        if departure["step"] < last_step
    ]


def _phase(phase: Mapping[str, Any]) -> str:
    objective, schedule = phase["objective"], phase["schedule"]
    steps = f"{phase['steps']:,} step{'s' * (phase['steps'] != 1)}"
    what = OBJECTIVES[objective["kind"]]
    if objective["kind"] == "mlm":
        what += f" of {percent(objective['mask_rate']):g} % of the tokens"
    warmup = f" after a warm-up over {count(schedule['warmup_tokens'])} tokens" if schedule["warmup_tokens"] else ""
    rate = f"learning rate {schedule['peak']:g}{warmup}"
    rate += {
        "constant": ", constant",
        "one_minus_sqrt": f", falling to {schedule['final_ratio']:g} of it as one minus a square root",
    }[schedule["shape"]]
    frozen = f"; frozen: {', '.join(map(code, phase['frozen']))}" if phase["frozen"] else ""
    return (
        f"* **{markdown(phase['name'])}**: {what}, {objective['mask_mode']} attention, "
        f"{count(phase['tokens'])} tokens ({count(phase['targets'])} predicted) in {steps}; "
        f"{rate}{frozen}."
    )


def _evaluation(
    release: Release, run: Mapping[str, Any], phases: Sequence[Mapping[str, Any]], rows: Sequence[Row]
) -> list[str]:
    sections = ["## Evaluation"]
    began = "at the branch" if run["parents"] else "before"
    moments = [(began, phases[0]["held_out_before"])] if phases else []
    moments += [(f"after {markdown(phase['name'])}", phase["held_out"]) for phase in phases]
    if moments and all(values and phase["name"] in values for _, values in moments for phase in phases):
        held_out = [
            (
                f"{OBJECTIVES[phase['objective']['kind']]} ({markdown(phase['name'])})",
                *(f"{values[phase['name']]['loss']:.3f}" for _, values in moments),
                *(f"{percent(values[phase['name']]['accuracy']):.1f} %" for _, values in moments),
            )
            for phase in phases
        ]
        head = [f"{what}, {when}" for what in ("loss", "accuracy") for when, _ in moments]
        sections += [
            "On held-out text of the training corpora (loss in nats per predicted token):",
            _table(("Objective", *head), held_out),
        ]
    return [*sections, *(_tasks(release, rows) if rows else ["No downstream task was evaluated."])]


def _tasks(release: Release, rows: Sequence[Row]) -> list[str]:
    cells = by_task(rows)
    tasks = list(dict.fromkeys((task, metric) for _, task, _, metric in cells))
    models = sorted({model for model, *_ in cells}, key=lambda model: model != release.name)
    lines = []
    for model in models:
        scores = {(task, metric): values for (name, task, _, metric), values in cells.items() if name == model}
        shown = [cell(scores[task]) if task in scores else "-" for task in tasks]
        means = [statistics.mean(values) for values in scores.values()]
        average = f"{percent(statistics.mean(means)):.1f}" if len(means) == len(tasks) else "-"
        named = markdown(model)
        lines.append((f"**{named}**" if model == release.name else named, *shown, average))
    head = ("Model", *(markdown(f"{task} ({metric})") for task, metric in tasks), "Average")
    return [
        "On downstream tasks, in percent: mean and standard deviation over seeds, their number in brackets.",
        _table(head, lines),
    ]


def _conversion(parity: Mapping[str, Any]) -> list[str]:
    worst, tolerance = parity["worst"], parity["tolerance"]
    return [
        "## Conversion",
        f"These files, read by {parity['judge']}, were compared layer by layer with {parity['compared_with']}, read by "
        f"{parity['candidate']}. The largest difference in float32 is {worst['float32']:.1e} of the largest value "
        f"(allowed: {tolerance['float32']:.0e}). The rounding error in bfloat16 is {worst['bfloat16']:.2f} times that "
        f"of the former (allowed: {tolerance['bfloat16']:g}). Every number is in `parity.json`.",
    ]


BESIDE_STEPS = {  # of run.json's cost
    "waiting_hours": "waiting for data",
    "evaluation_hours": "in evaluations",
    "saving_hours": "saving checkpoints",
    "compiling_hours": "compiling",
}


def _cost(release: Release, run: Mapping[str, Any], phases: Sequence[Mapping[str, Any]]) -> list[str]:
    whole = len(phases) == len(run["phases"])
    spent = run["cost"]
    if not whole:
        return ["## Cost", "Known only for the whole run, of which this model is a part."]
    beside = ", ".join(f"{spent[name]:.2f} {what}" for name, what in BESIDE_STEPS.items() if name in spent)
    energy = f"Energy: {markdown(spent['energy_by'])}."
    if spent["kilowatt_hours"] is not None:
        steps = (
            f", {spent['step_kilowatt_hours']:.2f} of it in steps" if spent["step_kilowatt_hours"] is not None else ""
        )
        energy = f"Energy: {spent['kilowatt_hours']:.2f} kWh{steps}, by {markdown(spent['energy_by'])}."
        if release.carbon is not None:
            emitted = spent["kilowatt_hours"] * release.carbon
            energy += f" That is {emitted:.2f} kg CO2e at the {release.carbon:g} kg of a kWh that its author states."
    return [
        "## Cost",
        f"{spent['hours']:.2f} hours in optimiser steps on {run['devices']:,} x {markdown(run['device'])} "
        f"({spent['device_hours']:.2f} device hours), by the clock of the training process; hours beside them: "
        f"{beside or 'not known'}. Preparing the data comes on top. {energy}",
    ]


def _limitations(release: Release, run: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    notes = [
        "It knows the corpora above and what its base model knew; other domains and languages need a test of their own."
        if run["origin"] is not None
        else "It knows the corpora above only.",
        "The training text was not searched for personal or sensitive content by the program that wrote this card; "
        "who uses the model on clinical text is responsible for the rules that apply.",
    ]
    if release.is_decoder:
        notes.append("It continues text, and may state what is false.")
        if not run["model"].get("causal_window_counts_self", True):
            notes.append("It was trained with one key more in each local layer than this model class reads.")
    else:
        notes.append("It is an encoder: it represents text and fills masks, it does not generate.")
    if release.draws_head:
        notes.append(
            "Its language-model head was drawn at random, for the encoder that it began with had none: what it "
            "predicts was learnt from the corpora above alone."
        )
    if words := release.old_spellings:
        notes.append(
            f"transformers 4 decodes {len(words):,} added words of the tokenizer as they are listed, 5 as the "
            f"normaliser leaves them: {listed(list(map(code, words)))}."
        )
    if not any(row.model == release.name for row in rows):
        notes.append("Nothing is known of its quality on downstream tasks, nor of how it compares with other models.")
    return ["## Limitations", "\n".join(f"* {note}" for note in notes)]


def _closing(release: Release) -> list[list[str]]:
    base = release.base_model
    related = [(base, "the base model, whose weights it began with")] if base else []
    related += [(model_id, markdown(what)) for model_id, what in release.related]
    thanks = f"This model stands on the method of {PAPER}{f' and on the weights of {_link(base)}' if base else ''}."
    lines = [f"* {_link(model_id)}: {what}" for model_id, what in related]
    return [
        ["## Related models", "\n".join(lines)] if lines else [],
        ["## Licence", markdown(str(release.licence))],
        ["## Citation", "The method:", f"```bibtex\n{CITATION}\n```"],
        ["## Acknowledgments", thanks],
    ]


def _link(hub_id: str, kind: Literal["", "datasets/"] = "", text: str | None = None) -> str:
    """A model or data set of the Hub."""
    return f"[{markdown(text or hub_id)}](https://huggingface.co/{kind}{hub_id})"


def cell(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds in percent, and how many seeds."""
    spread = f" ± {percent(statistics.stdev(values)):.1f}" if len(values) > 1 else ""
    return f"{percent(statistics.mean(values)):.1f}{spread} ({len(values)})"


def percent(share: float) -> float:
    """A share in percent."""
    return 100 * share


def count(number: float) -> str:
    """A count as people read it: 438,128, 12.3M, 25.0B."""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:,.0f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
