"""What reading costs: rows and tokens per second of one process, the time to a first batch, and the making of a
packing plan.

The store is one that is given, or a generated one of random ids with lengths as text has them. Everything
runs on the cores this process may use; the packing plan is made by a process of its own on one of them.
"""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cptjax.data.batches import Batches, Data
from cptjax.data.store import STORE_VERSION, Duplicates, Manifest, file_hashes, write_shard
from cptjax.files import write_json
from eval.bench.command import DataBench
from eval.bench.measure import conditions

SEQUENCE_LENGTH, ROWS = 8192, 16  # tokens of a row, rows of a batch
WARM_UP, BATCHES = 8, 64
STARTS = (0, 1_000_000)
PLAN_DOCUMENTS = 10_000_000
PLAN_LENGTHS = (1024, 8192)

PLAN = """
import json, os, resource, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from cptjax.data.packing import packing_plan
from eval.bench.data import lengths
documents, sequence_length = map(int, sys.argv[1:])
length_N = lengths(documents)
began = time.perf_counter()
plan = packing_plan(length_N, sequence_length, 0)
seconds = time.perf_counter() - began
print(json.dumps({
    "documents": documents,
    "sequence_length": sequence_length,
    "seconds": seconds,
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "rows": len(plan),
    "fill": int(plan.tokens) / (len(plan) * sequence_length),
}))
"""


def lengths(documents: int) -> np.ndarray:
    """Tokens per document [N], drawn: half have less than 400, the longest some 200,000."""
    drawn = np.random.default_rng(0).lognormal(np.log(400), 1.2, documents)
    return np.clip(drawn, 3, 200_000).astype(np.int64)


def random_store(folder: Path, documents: int) -> Path:
    """Write a token store of random ids into `folder`."""
    random, length_N = np.random.default_rng(0), lengths(documents)
    folder.mkdir()
    np.save(folder / "length_N.npy", length_N)
    sums: list[int] = []

    def drawn() -> Iterator[np.ndarray]:
        for length in length_N:
            token_L = random.integers(5, 50000, length).astype("<u2")
            sums.append(zlib.crc32(token_L.data))
            yield token_L

    shard = write_shard(folder / "tokens-00000.array_record", drawn())
    np.save(folder / "crc32_N.npy", np.array(sums, np.uint32))
    counts = {"documents": documents, "tokens": shard.tokens, "text_bytes": 0, "words": 0, "unknown_tokens": 0}
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "mask_token_id": None}
    manifest = Manifest(
        version=STORE_VERSION,
        **counts,
        dtype="uint16",
        vocab_size=50000,
        tokenizer_sha256="",
        **ids,
        special_token_ids=(0, 1),
        sources=(),
        dropped={},
        duplicates=Duplicates(0, None),
        contamination=None,
        sha256=file_hashes(folder),
        fields={},
        settings={},
        shards=(shard,),
        written_specials=0,
    )
    manifest.write(folder)
    return folder


def throughput(data: Data, rounds: int) -> dict:
    """Rows and tokens per second of one process, median of `rounds`, after a warm-up."""
    seconds = []
    for round_ in range(rounds):
        stream = Batches(data).stream(round_ * (WARM_UP + BATCHES))
        for _ in itertools.islice(stream, WARM_UP):
            pass
        began = time.perf_counter()
        for _ in itertools.islice(stream, BATCHES):
            pass
        seconds.append(time.perf_counter() - began)
        stream.close()
    rows = BATCHES * data.global_batch_size / statistics.median(seconds)
    return {"rows_per_second": rows, "tokens_per_second": rows * data.sequence_length, "seconds": seconds}


def first_batch(data: Data, rounds: int) -> dict[str, dict]:
    """Seconds from opening the stores to the first batch, by the step to start at; in turns, the plan being kept.

    Every round starts at batches of its own, for one batch may hold far more documents than another.
    """
    seconds = {str(step): [] for step in STARTS}
    for round_ in range(-1, rounds):
        for step in STARTS:
            began = time.perf_counter()
            stream = Batches(data).stream(step + round_ + 1)
            next(stream)
            took = time.perf_counter() - began
            stream.close()
            if round_ >= 0:
                seconds[str(step)].append(took)
    return {step: {"median": statistics.median(values), "seconds": values} for step, values in seconds.items()}


def plan(documents: int, sequence_length: int) -> dict:
    """Seconds and peak resident MiB of a process that makes the plan of so many documents, on one core."""
    command = [sys.executable, "-c", PLAN, str(documents), str(sequence_length)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ChildProcessError(f"the plan of {documents} documents failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def bench(store: Path, rounds: int) -> dict:
    """What reading a store costs."""
    data = Data(((str(store), 1.0),), SEQUENCE_LENGTH, ROWS, 0)
    batches = Batches(data)  # makes the plan, if it is not kept yet
    manifest = Manifest.read(store)
    return {
        "documents": manifest.documents,
        "tokens": manifest.tokens,
        "sequence_length": SEQUENCE_LENGTH,
        "batch_rows": ROWS,
        "fill": batches.fill[str(store)],
        **throughput(data, rounds),
        "first_batch": first_batch(data, 12 * rounds),
    }


def run(asked: DataBench) -> None:
    """Print the figures and, if asked, write the JSON."""
    with tempfile.TemporaryDirectory() as folder:
        reading = bench(asked.store or random_store(Path(folder) / "store", 50_000), asked.rounds)
    print(f"{reading['rows_per_second']:.0f} rows/s, {reading['tokens_per_second'] / 1e6:.1f} M tokens/s at 8192")
    for step, took in reading["first_batch"].items():
        print(f"first batch at step {step}: {1000 * took['median']:.1f} ms")
    plans = [plan(PLAN_DOCUMENTS, length) for length in PLAN_LENGTHS]
    for made in plans:
        print(
            f"plan of {made['documents']} documents at {made['sequence_length']}: {made['seconds']:.1f} s, "
            f"{made['peak_mib']:.0f} MiB, {made['fill']:.2%} full"
        )
    if asked.out is not None:
        store = "given" if asked.store else "generated"
        write_json(asked.out, {**conditions(asked.rounds), "store": store, "reading": reading, "plans": plans})
