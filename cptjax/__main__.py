"""The commands: python -m cptjax demo | prepare | data-report | plan | doctor | train."""

import argparse
import dataclasses
import functools
import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from absl import logging as absl_logging

from cptjax.command import errors
from cptjax.command.escape import say
from cptjax.command.signals import Signals


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cptjax", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="the whole story on this machine in minutes")
    demo.add_argument("--workdir", type=Path, default=Path("runs/demo"))
    demo.add_argument("--text", nargs="+", type=Path, default=None, help="your own text instead of the demo's")

    prepare = commands.add_parser(
        "prepare",
        help="text -> token store",
        epilog="With --runner, options that are not listed go to Apache Beam.",
    )
    add = prepare.add_argument
    add("--source", required=True, help="files, folders, patterns, hf:ID@SPLIT, tfds:NAME@SPLIT; separated by commas")
    add("--tokenizer", required=True, help="folder with tokenizer.json, or Hub id")
    add("--out", required=True, type=Path)
    add("--text-field", default="text", help="column that holds the text")
    add("--id-field", help="column that names a document; a name met again is an error")
    add("--weight-field", help="column that says how often a pass shows a document")
    add("--weight-steps", help="SCORE:WEIGHT,...: the weight column is a score, and each step of it has a weight")
    add("--txt-documents", choices=("file", "paragraph"), default="file")
    add("--tsv-quotes", action="store_true", help="cells of .tsv files may be quoted, as those of .csv files")
    add("--errors", choices=("strict", "replace"), default="strict", help="characters that are none: refuse or replace")
    add("--on-error", choices=("stop", "skip"), default="stop", help="rows that cannot be read")
    add("--keep-if", action="append", default=[], help="COLUMN>=NUMBER, COLUMN==WORD, ...; may be repeated")
    add("--min-tokens", type=int, default=0)
    add("--max-tokens", type=int, help="longer documents are dropped; without it they are kept whole")
    add("--duplicates", choices=("keep", "exact", "near"), default="keep", help="which repetitions to drop")
    add("--near-threshold", type=float, default=0.8, help="Jaccard similarity of near-duplicates")
    add("--evaluation", help="files and folders that must not be trained on, separated by commas")
    add("--drop-contaminated", action="store_true", help="drop what shares 13 words in a row with them")
    add("--count-fields", help="columns to count by value, such as licence,source")
    add("--held-out", type=float, default=0.0, help="share of documents kept in OUT/held_out")
    add("--workers", type=int, help="processes; one per core unless given")
    add("--runner", help="work through Apache Beam: DirectRunner, FlinkRunner, SparkRunner, DataflowRunner, ...")
    add("--overwrite", action="store_true")

    report = commands.add_parser("data-report", help="what is in a token store, printed and as a page")
    report.add_argument("stores", nargs="+", type=Path)
    report.add_argument("--out", type=Path, help="folder for report.json and report.html; else in the store itself")

    plan = commands.add_parser(
        "plan",
        help="FLOPs, memory, time and cost of a config before there is any hardware",
        epilog="Any field of the config can be given too, as for train.",
    )
    add = plan.add_argument
    add("config", type=Path)
    add("--topology", help="TPUs to compile for, such as v5e:4x4; they need not be here, the package libtpu does")
    add("--devices", type=int, help="how many devices to plan for, by formula; needs --device")
    add("--device", help="their kind, such as 'NVIDIA H100 80GB HBM3'")
    add("--mfu", type=float, default=0.4, help="share of the peak that is reached")
    add("--price", type=float, default=2.0, help="of a device for an hour")
    add("--watts", type=float, help="of a device; without it its board power, where its maker states one")
    add("--pue", type=float, default=1.2, help="energy of the whole site per energy of the devices")
    add("--carbon", type=float, default=0.473, help="kg CO2e per kWh; 0.473 is the world's mean of 2024")
    add("--out", type=Path, help="JSON file")

    doctor = commands.add_parser("doctor", help="what this machine is, and which kernels are right and fast on it")
    doctor.add_argument("--out", type=Path, help="JSON file")

    train = commands.add_parser(
        "train",
        help="train a config, or go on with what is in the work folder",
        epilog="Any field of the config can be given too, such as --phases.0.tokens 1000; see docs/configs.md.",
    )
    train.add_argument("config", type=Path)
    train.add_argument("--workdir", required=True, type=Path)
    train.add_argument("--mlm-twin", action="store_true", help="the matched baseline: no causal phase")
    train.add_argument("--from-step", type=int, help="go back to this checkpoint, perhaps with another schedule")
    train.add_argument("--strict", action="store_true", help="stop at what is damaged, do not go on without it")
    for command in commands.choices.values():
        errors.add_option(command)
    return parser


def _prepare(arguments: argparse.Namespace, rest: list[str]) -> None:
    from cptjax.corpus import beam, cleaning, page, pool, prepare, report, sources

    if arguments.runner is not None and arguments.workers is not None:
        raise ValueError("--workers is not for --runner: each runner has options of its own")
    if arguments.workers is not None and arguments.workers < 1:
        raise ValueError(f"--workers is {arguments.workers}: at least 1 process does the work")
    if arguments.runner is None:
        engine = functools.partial(pool.spread, workers=arguments.workers)
    else:
        engine = beam.engine([f"--runner={arguments.runner}", *rest])
    manifest = prepare.prepare(
        _paths(arguments.source),
        arguments.tokenizer,
        arguments.out,
        reading=sources.Reading(
            text_field=arguments.text_field,
            id_field=arguments.id_field,
            weight_field=arguments.weight_field,
            errors=arguments.errors,
            txt_documents=arguments.txt_documents,
            tsv_quotes=arguments.tsv_quotes,
        ),
        cleaning=cleaning.Cleaning(
            keep_if=tuple(map(cleaning.parse_condition, arguments.keep_if)),
            min_tokens=arguments.min_tokens,
            max_tokens=arguments.max_tokens,
            duplicates=arguments.duplicates,
            near_threshold=arguments.near_threshold,
            evaluation=tuple(_paths(arguments.evaluation)),
            drop_contaminated=arguments.drop_contaminated,
            weight_steps=cleaning.parse_steps(arguments.weight_steps or ""),
        ),
        held_out=arguments.held_out,
        on_error=arguments.on_error,
        count_fields=tuple(arguments.count_fields.split(",")) if arguments.count_fields else (),
        overwrite=arguments.overwrite,
        engine=engine,
    )
    say(page.text(report.write(arguments.out)))
    say(
        f"{arguments.out}: {manifest.documents:,} documents, {manifest.tokens:,} tokens; "
        f"this report is {arguments.out / 'report.html'} too"
    )


def _paths(text: str | None) -> list[str]:
    """What stands between commas; a name with a comma is taken whole where it exists."""
    if not text:
        return []
    names = [text] if Path(text).exists() else text.split(",")
    if "" in names:
        raise ValueError(f"{text!r} names nothing between two commas or at an end: take the comma out")
    return names


def _data_report(arguments: argparse.Namespace) -> None:
    from cptjax.corpus import page, report
    from cptjax.data.store import Store

    if arguments.out is not None and len(arguments.stores) > 1:
        raise ValueError("--out is for the report of one store: without it each is written into its store")
    if arguments.out is not None and arguments.out.exists() and not arguments.out.is_dir():
        raise NotADirectoryError(f"--out is {arguments.out}, a file: name a folder")
    for path in arguments.stores:
        with errors.reading(path):
            Store(path).verify()
            made = report.write(path, arguments.out)
        say(page.text(made))


def _plan(arguments: argparse.Namespace, overrides: list[str]) -> None:
    import jax

    if (arguments.devices is None) != (arguments.device is None) or (arguments.topology and arguments.device):
        raise ValueError("give --devices and --device together, or --topology, or neither for this machine's devices")
    if arguments.topology:
        jax.config.update("jax_platforms", "cpu")  # the TPUs are elsewhere

    from cptjax import config, files
    from cptjax.planning import plan
    from cptjax.run import checkpoint

    files.check_out(arguments.out)
    run = config.override(config.load_config(arguments.config), overrides)
    if run.model is not None:
        shape = run.model
    elif (Path(run.init or "") / checkpoint.MODEL).exists():
        shape = checkpoint.read_model(Path(run.init or ""))
    else:
        command = errors.own_command("convert", "shape", str(run.init))
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        found = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
        shape = checkpoint.model_config(json.loads(found), where=str(run.init))
    given = {name: getattr(arguments, name) for name in ("mfu", "price", "watts", "pue", "carbon")}
    report = plan.plan(
        run,
        dataclasses.replace(shape, head="lm", num_labels=0),
        topology=arguments.topology,
        devices=arguments.devices,
        device=arguments.device,
        assumptions=plan.Assumptions(**given),
    )
    say(plan.text(report).rstrip("\n"))
    if arguments.out is not None:
        files.write_json(arguments.out, report)


def _doctor(arguments: argparse.Namespace) -> None:
    from cptjax import files
    from cptjax.planning import doctor

    files.check_out(arguments.out)
    report = doctor.examine()
    say(doctor.text(report).rstrip("\n"))
    if arguments.out is not None:
        files.write_json(arguments.out, report)
    if failures := doctor.failures(report):
        raise ValueError("; ".join(failures))


def _train(arguments: argparse.Namespace, overrides: list[str]) -> None:
    import jax

    from cptjax import config
    from cptjax.machine import host, processes

    processes.start()
    if jax.default_backend() == "cpu":
        host.keep_freed_memory()
    elif jax.config.values["jax_compilation_cache_dir"] is None:  # jax's own setting goes before ours
        jax.config.update("jax_compilation_cache_dir", str(host.cache_folder()))

    from cptjax.train import train

    if arguments.strict:
        warnings.simplefilter("error", errors.DamageWarning)
    with processes.together():
        run = config.override(config.load_config(arguments.config), overrides)
        if arguments.mlm_twin:
            run = config.mlm_twin(run)
    folder = train(run, arguments.workdir, arguments.from_step)
    say(f"{folder}: trained; plot in {folder / 'plot.png'}, export with python -m convert to-hf {folder} OUT")


def _stop(*_) -> None:
    raise KeyboardInterrupt  # what a scheduler sends ends the work as Ctrl-C does


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, as `errors.run_command` has them."""
    words = sys.argv[1:] if argv is None else argv
    return errors.run_command(lambda: _run(words), words)


def _run(words: Sequence[str]) -> None:
    signal.signal(signal.SIGTERM, _stop)
    absl_logging.set_verbosity(absl_logging.FATAL)  # orbax logs the errors it raises
    logging.getLogger("orbax").setLevel(logging.ERROR)
    parser = _parser()
    arguments, rest = parser.parse_known_args(words)
    if rest and arguments.command not in ("train", "plan") and getattr(arguments, "runner", None) is None:
        parser.error(f"unrecognized arguments: {errors.one_line(' '.join(rest))}")
    try:
        if arguments.command == "train":
            with Signals():
                _train(arguments, rest)
        elif arguments.command == "plan":
            _plan(arguments, rest)
        elif arguments.command == "prepare":
            _prepare(arguments, rest)
        elif arguments.command == "data-report":
            _data_report(arguments)
        elif arguments.command == "doctor":
            _doctor(arguments)
        else:
            from cptjax.demo.story import demo

            demo(arguments.workdir, arguments.text)
    except KeyboardInterrupt as stop:
        if arguments.command in ("train", "prepare"):
            stop.args = ("the same command goes on",)
        raise


if __name__ == "__main__":
    sys.exit(main())
