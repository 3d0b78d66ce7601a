"""What it costs to decide which documents stay, of parts that hold facts alone: seconds, memory, disk.

One document of a hundred is an exact repetition, one a near-duplicate. The decision is a process of its own, and so is
its peak. D documents of a part, P numbers of a signature.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from cptjax.command.bar import bar
from cptjax.corpus import repetitions
from cptjax.corpus.cleaning import SIGNATURE, Cleaning
from cptjax.corpus.decide import decide
from cptjax.corpus.parts import FACTS, TRAIN, Job, Parts, Unit, part_path
from cptjax.corpus.pieces import File, Reading
from cptjax.files import write_json
from eval.bench.command import DecideBench
from eval.bench.measure import conditions

PART = 4000  # documents, as 4 MB of abstracts have
POOL = 10_000  # documents that others repeat
SHARE = 0.01  # of documents that repeat one of them exactly, and of those that nearly do
OTHER = 0.04  # of the numbers of a near-duplicate's signature
FILE = File("made up", "made up", ".jsonl", 0)

DECIDE = """
import json, sys
from pathlib import Path
from eval.bench.decide import decided
print(json.dumps(decided(Path(sys.argv[1]), int(sys.argv[2]))))
"""


def job_in(work: Path) -> Job:
    """Of a decision that looks for near-duplicates."""
    return Job(work, Reading(), Cleaning(duplicates="near"), 0.01, "stop", ())


def make_parts(work: Path, documents: int) -> None:
    """Write parts of so many documents without text, and the records of their units."""
    random, job = np.random.default_rng(0), job_in(work)
    pool_P = random.integers(0, 2**32, (POOL, SIGNATURE), np.uint32)
    pool_2 = random.integers(0, 2**63, (POOL, 2), np.uint64)
    units, keys = work / "units", []
    units.mkdir(parents=True)
    with bar(documents) as shown:
        for first in range(0, documents, PART):
            count = min(PART, documents - first)
            signature_DP = random.integers(0, 2**32, (count, SIGNATURE), np.uint32)
            near_D = np.flatnonzero(random.random(count) < SHARE)
            is_other = random.random((len(near_D), SIGNATURE)) < OTHER
            copied = pool_P[random.integers(0, POOL, len(near_D))]
            signature_DP[near_D] = np.where(is_other, signature_DP[near_D], copied)
            digest_D2 = random.integers(0, 2**63, (count, 2), np.uint64)
            exact_D = np.flatnonzero(random.random(count) < SHARE)
            digest_D2[exact_D] = pool_2[random.integers(0, POOL, len(exact_D))]
            alike = ("length", "text_bytes", "words", "unknown", "written_specials", "row", "crc32", "weight")
            facts: dict[str, Any] = dict.fromkeys(alike, np.ones(count))
            facts |= {"place": np.zeros(count), "side": np.full(count, TRAIN)}
            facts |= {"signature": signature_DP, "digest": digest_D2}
            arrays: dict[str, Any] = {name: fact.astype(FACTS.get(name, np.int64)) for name, fact in facts.items()}
            meta = np.frombuffer(json.dumps({"dropped": [], "values": {}, "asked": {}}).encode(), np.uint8)
            keys.append(f"{len(keys):08x}"[::-1])  # parts lie in folders by how their keys begin
            path = part_path(job, keys[-1])
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **arrays, ids=np.zeros(0, np.uint16), meta=meta)
            shown.update(count)
    record = {"digests": {f"{FILE.path}@{FILE.split}": "0"}, "parts": keys}
    write_json(units / "000000.json", record)


def decided(work: Path, documents: int) -> dict[str, float]:
    """Seconds of the pass over the parts and of the decision, the peak of this process beyond what it had before, bytes
    on the disk without the parts, both of a document, too; how many were found to repeat others."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    parts = Parts(job_in(work), [Unit(0, ((0, FILE),))])
    read = time.perf_counter()
    decision = decide(job_in(work), parts, repetitions.group)
    seconds = {"read": read - began, "decide": time.perf_counter() - read}
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    disk = sum(path.stat().st_size for path in (work / "facts").iterdir())
    repeat = {"exact": decision.duplicates.exact, "near": decision.duplicates.near or 0}
    return {
        **seconds,
        "peak_mib": peak / 2**20,
        "peak_bytes": peak / documents,
        "disk_bytes": disk / documents,
        **repeat,
    }


def run(asked: DecideBench) -> None:
    """Print the figures and, if asked, write the JSON."""
    made = {}
    for documents in asked.documents:
        with tempfile.TemporaryDirectory(dir=asked.scratch) as folder:
            make_parts(Path(folder), documents)
            command = [sys.executable, "-c", DECIDE, folder, str(documents)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        made[str(documents)] = figures = json.loads(done.stdout)
        print(f"{documents:,} documents: " + ", ".join(f"{name} {value:,.1f}" for name, value in figures.items()))
    if asked.out is not None:
        write_json(asked.out, {**conditions(1), "by_documents": made})
