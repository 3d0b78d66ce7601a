"""The commands of evaluation: runs, tasks, tables, plots, errors, models as they are, and the benchmarks, bench
attention and so on."""

import sys
from collections.abc import Sequence

from cptjax.command import line
from cptjax.command.line import Command

COMMANDS = {
    "run": Command("fine-tune and score models on tasks, with many seeds", "eval.run:Evaluation"),
    "tasks": Command("what models can be scored on, and where to get it", "eval.tasks.command:Tasks"),
    "table": Command("means, differences and what chance may be in them, from rows", "eval.tables:TableCommand"),
    "plot": Command("differences by task with their intervals, and learning curves", "eval.plots:PlotCommand"),
    "errors": Command("a page to look at what was answered wrongly", "eval.errors:ErrorsCommand"),
    "probe": Command(
        "what models know as they are: masks filled, tasks read from layers", "eval.probe_command:ProbeCommand"
    ),
    "cka": Command(
        "how alike two models are, layer by layer, beside what seeds do", "eval.analysis.command:CkaCommand"
    ),
    "drift": Command("how far each layer moved in each phase of a run", "eval.analysis.command:DriftCommand"),
    "transplant": Command(
        "a model with layers of another, or with their attention alone", "eval.analysis.command:TransplantCommand"
    ),
    "needle": Command(
        "is a sentence in a long text: what a frozen model's state says, by length",
        "eval.analysis.command:NeedleCommand",
    ),
    "study": Command(
        "runs beside each other, over seeds, and a page that says what differs", "eval.study.command:StudyCommand"
    ),
    "bench all": Command(
        "what tells most of this device, in the minutes there are", "eval.bench.everything:EverythingBench"
    ),
    "bench attention": Command(
        "every backend of attention: errors, speed, memory", "eval.bench.command:AttentionBench"
    ),
    "bench loss": Command("the chunked loss, beside the plain one", "eval.bench.command:LossBench"),
    "bench step": Command("a training step of ours alone", "eval.bench.command:StepBench"),
    "bench compare": Command("a training step, beside PyTorch's", "eval.bench.command:CompareBench"),
    "bench finetune": Command(
        "a fine-tuning, beside transformers' and PyTorch's: scores, seconds", "eval.bench.command:FinetuneBench"
    ),
    "bench rounding": Command(
        "the error of a bfloat16 gradient, beside PyTorch's autocast", "eval.bench.command:RoundingBench"
    ),
    "bench convert": Command("a conversion, beside transformers'", "eval.bench.command:ConvertBench"),
    "bench data": Command("reading a token store, and planning its rows", "eval.bench.command:DataBench"),
    "bench prepare": Command("preparing text, beside the tokenizer alone", "eval.bench.command:PrepareBench"),
    "bench decide": Command("which documents of a corpus stay, by their number", "eval.bench.command:DecideBench"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    return line.main("eval", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
