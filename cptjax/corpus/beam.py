"""Work spread by Apache Beam: the engine of `corpus.prepare` for more than one machine.

Beam is no requirement of the rest: `pip install apache-beam`.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cptjax.corpus.prepare import Engine


def engine(arguments: Sequence[str]) -> Engine:
    """An engine that runs pipelines with Beam's own command-line options, such as `--runner=FlinkRunner`.

    The work folder must be a path that all workers see. ValueError when Beam is not installed or does
    not know an option; the engine's OSError when a runner fails.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise ValueError("--runner needs Apache Beam: pip install apache-beam") from None
    known = PipelineOptions(list(arguments)).get_all_options(drop_default=True, retain_unknown_options=False)
    named = {word[2:].split("=")[0].replace("-", "_") for word in arguments if word.startswith("--")}
    if unknown := sorted(name for name in named if name not in known and f"no_{name}" not in known):
        raise ValueError(f"neither prepare nor Apache Beam knows --{', --'.join(unknown)}")
    return functools.partial(_spread, list(arguments))


def _spread(
    arguments: list[str], split: Callable[[Any], Iterator[Any]], work: Callable[[Any], None], items: Sequence[Any]
) -> None:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)  # logs the errors that come back here
    try:
        with beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
            _ = (
                pipeline
                | "Items" >> beam.Create(items)
                | "Apart" >> beam.Reshuffle()  # large files are cut by different workers
                | "Split" >> beam.FlatMap(split)
                | "Spread" >> beam.Reshuffle()
                | "Work" >> beam.Map(work)
            )
    except RuntimeError as error:
        raise OSError(f"Apache Beam stopped: {error}") from error
