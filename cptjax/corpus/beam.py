"""Work spread by Apache Beam: the engine of `corpus.prepare` for more than one machine.

Beam is no requirement of the rest: `pip install apache-beam`.
"""

import functools
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from cptjax.corpus.prepare import Engine
from cptjax.corpus.repetitions import Block, Group, Keys


def engine(arguments: Sequence[str]) -> tuple[Engine, Group]:
    """What spreads work, and what finds equal keys, by pipelines with Beam's own command-line options, such as
    `--runner=FlinkRunner`.

    The work folder must be a path that all workers see. ValueError when Beam is not installed or does
    not know an option; the engine's OSError when a runner fails.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # Beam warns when it is imported that it has nothing for Google's services
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise ValueError("--runner needs Apache Beam: pip install apache-beam") from None
    finally:
        logging.disable(before)
    known = PipelineOptions(list(arguments)).get_all_options(drop_default=True, retain_unknown_options=False)
    named = {word[2:].split("=")[0].replace("-", "_") for word in arguments if word.startswith("--")}
    if unknown := sorted(name for name in named if name not in known and f"no_{name}" not in known):
        raise ValueError(f"neither prepare nor Apache Beam knows --{', --'.join(unknown)}")
    return functools.partial(_spread, list(arguments)), functools.partial(_group, list(arguments))


def _spread(
    arguments: list[str], split: Callable[[Any], Iterator[Any]], work: Callable[[Any], None], items: Sequence[Any]
) -> None:
    import apache_beam as beam

    _run(
        arguments,
        beam.Create(items),
        beam.Reshuffle(),  # large files are cut by different workers
        beam.FlatMap(split),
        beam.Reshuffle(),
        beam.Map(work),
    )


def _group(arguments: list[str], keys: Keys, blocks: Sequence[Block]) -> Iterator[np.ndarray]:
    """As `repetitions.group` does; the runs come back in text files, of which Beam writes each once."""
    import apache_beam as beam
    from apache_beam.io import WriteToText

    folder = keys.of.path.with_name("runs")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    _run(
        arguments,
        beam.Create(blocks),
        beam.Reshuffle(),
        beam.FlatMap(functools.partial(_keyed, keys)),
        beam.GroupByKey(),
        beam.FlatMapTuple(_runs),
        WriteToText(str(folder / "part")),
    )
    for path in sorted(folder.iterdir()):
        yield np.fromstring(path.read_text(), np.int64, sep=" ").reshape(-1, 3)


def _keyed(keys: Keys, block: Block) -> Iterator[tuple[bytes, int]]:
    key_DK, document_D = keys(block)
    return zip(map(np.ndarray.tobytes, key_DK), document_D.tolist(), strict=True)


def _runs(_: bytes, documents: Iterable[int]) -> Iterator[str]:
    first, *again = sorted(documents)
    before = first
    for document in again:
        yield f"{first} {before} {document}"
        before = document


def _run(arguments: list[str], *steps: Any) -> None:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)  # logs the errors that come back here
    try:
        with beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
            made: Any = pipeline
            for number, step in enumerate(steps):
                made = made | f"{number} {step.label}" >> step
    except RuntimeError as error:
        raise OSError(f"Apache Beam stopped: {error}") from error
