"""`python -m eval table`: what rows say together, as tables for a terminal, a browser, a paper or a program."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from cptjax.command.line import Options
from cptjax.files import check_out
from eval.render import NOTHING, RENDERED, Format, Table, csv_lines, percent, put
from eval.statistics import Share
from eval.summary import Beside, Moved, Part, Results, beside, by_length, by_seen, moved, published, read_results


@dataclass(frozen=True, kw_only=True)
class TableCommand(Options):
    """Means, differences and what chance may be in them, from rows."""

    rows: Annotated[Positional[tuple[Path, ...]], arg(metavar="ROWS.jsonl [ROWS.jsonl ...]")]
    format: Format = "text"
    out: Annotated[Path | None, arg(metavar="FILE")] = None  # without it on the terminal
    baseline: Annotated[str | None, arg(metavar="MODEL")] = None  # to compare the other models with
    donor: Annotated[str | None, arg(metavar="MODEL")] = None  # whose gain over the baseline others have a share of
    split: str = "test"

    def __call__(self, rest: Sequence[str]) -> None:
        """Read, count, write."""
        if not self.rows:
            raise ValueError("no file of rows is given: name at least one")
        if self.donor is not None and self.baseline is None:
            raise ValueError("--donor is given without --baseline: name the host there, over which it gains")
        check_out(self.out, *self.rows)
        results = read_results(self.rows, self.split)
        compared = [] if self.baseline is None else beside(results, self.baseline)
        shares = [] if self.baseline is None or self.donor is None else moved(results, self.baseline, self.donor)
        if self.format == "csv":
            written = as_csv(results, compared, shares)
        else:
            made = tables(results, compared, self.baseline or "", shares, self.donor or "")
            written = RENDERED[self.format](made)
        put(written, self.out)


# ---- what is said


def points(share: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * share:+.2f}"


def tables(
    results: Results,
    compared: Sequence[Beside] = (),
    baseline: str = "",
    shares: Sequence[Moved] = (),
    donor: str = "",
) -> list[Table]:
    """All that rows say, in the order in which one asks."""
    made = [_main(results), _shares(shares, baseline, donor)]
    made += [_compared(results, model, baseline, compared) for model in dict.fromkeys(x.model for x in compared)]
    made += [
        _others(results),
        _parts("By length of the document", results, by_length(results), "examples"),
        _parts("Share of the gold answers found, by whether training had them", results, by_seen(results), "answers"),
        _published(results),
    ]
    return [table for table in made if table.rows]


def _cell(values: Sequence[float | None]) -> str:
    kept = [100 * value for value in values if value is not None]
    if not kept:
        return "diverged" if values else NOTHING
    spread = f" ± {statistics.stdev(kept):.2f}" if len(kept) > 1 else ""
    return f"{statistics.mean(kept):.2f}{spread} ({len(kept)})"


def _scores(results: Results, task: str, metric: str) -> list[str]:
    return [_cell([*results.values(model, task, metric).values()]) for model in results.models]


def _main(results: Results) -> Table:
    main = {task: names[0] for task, names in results.tasks.items()}
    rows = [[task, metric, *_scores(results, task, metric)] for task, metric in main.items()]
    shared, notes = results.shared(results.models), []
    if len(shared) > 1:
        means = [statistics.mean(results.mean(m, task, main[task]) or 0 for task in shared) for m in results.models]
        rows.append([f"average of {len(shared)} tasks", "", *map(percent, means)])
    if left := [f"{task} ({', '.join(_without(results, task))})" for task in main if task not in shared]:
        notes.append(f"LEFT OUT of the average, for a model has no score there: {', '.join(left)}.")
    if len(results.models) > 1 and shared:
        rows.append(["wins", "", *map(str, _wins(results, shared))])
    notes = ["Percent: mean over seeds ± standard deviation (seeds).", *notes, *_footer(results)]
    return Table("Main metric of each task", ("task", "metric", *results.models), rows, notes, named=2)


def _without(results: Results, task: str) -> list[str]:
    return [f"no {model}" for model in results.models if results.mean(model, task, results.tasks[task][0]) is None]


def _wins(results: Results, tasks: Sequence[str]) -> list[int]:
    """In how many tasks each model's mean is the highest; of equals each has won."""
    wins = [0] * len(results.models)
    for task in tasks:
        means = [results.mean(model, task, results.tasks[task][0]) or 0 for model in results.models]
        wins = [n + (mean == max(means)) for n, mean in zip(wins, means, strict=True)]
    return wins


def _footer(results: Results) -> list[str]:
    """What a reader of the numbers should know, each thing once."""
    lost = [row for row in results.rows if row.value is None and row.metric == results.tasks[row.task][0]]
    diverged = [f"{row.model} on {row.task}, seed {row.seed}" for row in lost]
    cut: dict[str, dict[str, float]] = {}
    said: dict[str, dict[str, dict[str, None]]] = {}
    for row in results.rows:
        if row.truncated:
            cut.setdefault(row.task, {})[row.model] = row.truncated
        for note in row.notes:
            said.setdefault(note, {}).setdefault(row.task, {})[row.model] = None
    notes = [f"DIVERGED, and in no mean: {'; '.join(diverged)}."] if diverged else []
    notes += [f"Cut texts on {task}: {', '.join(f'{m} {s:.1%}' for m, s in of.items())}." for task, of in cut.items()]
    measured = {task: {row.model for row in results.rows if row.task == task} for task in results.tasks}
    together: dict[str, list[str]] = {}
    for note, tasks in said.items():
        whose = [task + ("" if {*of} == measured[task] else f" ({', '.join(of)})") for task, of in tasks.items()]
        together.setdefault(", ".join(whose), []).append(note.rstrip("."))
    notes += [f"{whose}: {'; '.join(each)}." for whose, each in together.items()]
    tuned = sorted({f"{row.model} on {row.task}: {name}" for row in results.rows for name in row.tuned})
    if tuned:
        notes.append(f"Chosen on dev: {'; '.join(tuned)}.")
    if results.missing:
        notes.append(f"NOT THERE, so nothing is said from them: {', '.join(results.missing)}.")
    return notes


def _compared(results: Results, model: str, baseline: str, compared: Sequence[Beside]) -> Table:
    mine = [each for each in compared if each.model == model]
    rows = [
        [
            each.task or f"average of {len(mine) - 1} tasks",
            points(each.measured),
            " to ".join(map(points, each.interval)) if each.interval else NOTHING,
            *(NOTHING if p is None else f"{p:.4f}" for p in (each.p, each.p_holm)),
            str(each.seeds),
        ]
        for each in mine
    ]
    notes = [
        "Points: the model less the baseline on the main metric, over the seeds that both have. The interval holds "
        "95 % of what other examples and seeds would give; p is how often two equal models would differ as much; "
        "Holm's p corrects for the number of tasks."
    ]
    if any(each.seeds == 1 for each in mine):
        notes.append("ONE SEED: what another would change is not known, and in no interval.")
    if left := [task for task in results.tasks if task not in {each.task for each in mine}]:
        notes.append(f"LEFT OUT, for one of the two has no score there: {', '.join(left)}.")
    if any(each.interval is None for each in mine):
        notes.append("Without an interval: predictions of both are not there for the same seeds.")
    header = ("task", "difference", "95 % interval", "p", "p, Holm", "seeds")
    return Table(f"{model} less {baseline}", header, rows, notes)


def _shares(shares: Sequence[Moved], host: str, donor: str) -> Table:
    tasks = Counter(each.model for each in shares)
    rows = []
    for each in shares:
        gain, measured, interval = each.share
        named = each.task or f"average of {tasks[each.model] - 1} tasks"
        low_to_high = " to ".join(map(percent, interval)) if interval else NOTHING
        rows.append([each.model, named, points(gain), percent(measured), low_to_high, str(each.seeds)])
    notes = [
        f"Percent: the model less {host}, as a share of the gain, {donor} less {host} in points, over the seeds that "
        "all three have. The interval holds the shares that chance leaves possible in 95 % of cases, with other "
        "examples and seeds. Shares of several parts need not add up to 100."
    ]
    if any(each.share.measured is None for each in shares):
        notes.append("NOT GIVEN where the gain is not told from 0: any share of it might be.")
    if any(each.share.measured is not None and each.share.interval is None for each in shares):
        notes.append("Without an interval: predictions of all three are not there, nor is it known if the gain is one.")
    if any(each.seeds == 1 for each in shares):
        notes.append("ONE SEED: what another would change is not known, and in no interval.")
    header = ("model", "task", "gain", "share", "95 % interval", "seeds")
    return Table(f"Share of the gain of {donor} over {host}", header, rows, notes, named=2)


def _others(results: Results) -> Table:
    rows = [[task, name, *_scores(results, task, name)] for task, names in results.tasks.items() for name in names[1:]]
    return Table("Other metrics", ("task", "metric", *results.models), rows, named=2)


def _parts(title: str, results: Results, parts: Sequence[Part], what: str) -> Table:
    rows = [
        [part.task, part.name, f"{part.size:,}", *(percent(part.scores.get(model)) for model in results.models)]
        for part in parts
    ]
    return Table(title, ("task", "part", what, *results.models), rows, named=2)


def _published(results: Results) -> Table:
    data = published()
    tasks = [task for task in results.tasks if any(task in each["scores"] for each in data["models"])]
    models = [each for each in data["models"] if {*tasks} & each["scores"].keys()]
    rows = [
        [each["model"], str(each["seeds"]), *(_figure(each["scores"].get(task)) for task in tasks)] for each in models
    ]
    sources = [data["sources"][name] for name in dict.fromkeys(each["source"] for each in models)]
    notes = ["Not measured here, perhaps by another metric, and in none of the averages above.", *sources]
    return Table("Published by others", ("model", "seeds", *tasks), rows, notes)


def _figure(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}"


# ---- for a program

COLUMNS: tuple[str, ...] = ("task", "metric", "part", "size", "model", "mean", "deviation", "seeds")
COLUMNS += ("paired_seeds", "difference", "low", "high", "p", "p_holm", "share", "share_low", "share_high")


def as_csv(results: Results, compared: Sequence[Beside] = (), shares: Sequence[Moved] = ()) -> str:
    """A line a score: shares from 0 to 1 as they are, of whole tests and of parts; what there is not is empty."""
    of_gain = {(each.model, each.task): each.share for each in shares}
    return csv_lines(COLUMNS, _lines(results, {(each.model, each.task): each for each in compared}, of_gain))


def _lines(
    results: Results,
    compared: Mapping[tuple[str, str | None], Beside],
    of_gain: Mapping[tuple[str, str | None], Share],
) -> Iterator[dict[str, object]]:
    for task, names in results.tasks.items():
        for metric, model in ((metric, model) for metric in names for model in results.models):
            kept = [value for value in results.values(model, task, metric).values() if value is not None]
            line: dict[str, object] = {"task": task, "metric": metric, "model": model, "seeds": len(kept)}
            if kept:
                line["mean"] = statistics.mean(kept)
            if len(kept) > 1:
                line["deviation"] = statistics.stdev(kept)
            key = (model, task)
            yield line | (_of(compared.get(key)) | _share_of(of_gain.get(key)) if metric == names[0] else {})
    for (model, task), each in compared.items():
        if task is None:
            yield {"task": "average", "model": model} | _of(each) | _share_of(of_gain.get((model, None)))
    for part in by_length(results) + by_seen(results):
        for model, share in part.scores.items():
            yield {"task": part.task, "part": part.name, "size": part.size, "model": model, "mean": share}


def _of(each: Beside | None) -> dict[str, object]:
    if each is None:
        return {}
    low, high = each.interval or (None, None)
    what: dict[str, object] = {
        "difference": each.measured,
        "low": low,
        "high": high,
        "p": each.p,
        "p_holm": each.p_holm,
    }
    return {**what, "paired_seeds": each.seeds}


def _share_of(share: Share | None) -> dict[str, object]:
    if share is None:
        return {}
    low, high = share.interval or (None, None)
    return {"share": share.measured, "share_low": low, "share_high": high}
