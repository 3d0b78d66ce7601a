"""What preparing costs: the speed of `prepare` beside the tokenizer's alone, and its memory by the size of the text.

Both speeds are of the same text on the same cores, in turns: `prepare` is a process of its own, its start
included; the tokenizer's `encode_batch` has all texts in memory and does nothing with the ids.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from cptjax.corpus.sources import Reading, read_documents
from cptjax.files import write_json
from eval.bench.command import PrepareBench
from eval.bench.measure import conditions

MEBIBYTES = (100, 1000)  # of generated text, for the memory
BATCH = 1000  # documents given to encode_batch at once
POLL = 0.05  # seconds

ENCODE = """
import sys, time
from eval.bench.prepare import encode_alone
print(encode_alone(sys.argv[1], sys.argv[2]))
"""


def encode_alone(source: str, tokenizer: str) -> float:
    """Seconds that `encode_batch` takes for the texts of a source, on all cores."""
    encoder = Tokenizer.from_file(str(Path(tokenizer) / "tokenizer.json"))
    texts = list(read_documents(Path(source), Reading()))
    began = time.perf_counter()
    for start in range(0, len(texts), BATCH):
        encoder.encode_batch(texts[start : start + BATCH])
    return time.perf_counter() - began


def generate(path: Path, mebibytes: int) -> None:
    """Write JSON lines of made-up words, documents of some hundred each."""
    random = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(random.choice(letters, random.integers(2, 10))) for _ in range(20_000)])
    size = 0
    with open(path, "w", encoding="utf-8") as stream:
        while size < mebibytes * 2**20:
            text = " ".join(random.choice(words, int(random.lognormal(5.5, 1))))
            size += stream.write(json.dumps({"text": text}) + "\n")


def measure(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident MiB, all its processes together, of `python ARGUMENTS`."""
    import psutil

    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    watched, peak = psutil.Process(child.pid), 0
    while child.poll() is None:
        try:
            peak = max(peak, sum(p.memory_info().rss for p in [watched, *watched.children(recursive=True)]))
        except psutil.NoSuchProcess:  # one has just ended
            pass
        time.sleep(POLL)
    assert child.stderr is not None
    if child.returncode:
        raise ChildProcessError(f"{' '.join(command)}: {child.stderr.read().decode().strip().splitlines()[-1]}")
    return time.perf_counter() - began, peak / 2**20


def run(asked: PrepareBench) -> None:
    """Print the figures and, if asked, write the JSON."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        common = ["-m", "cptjax", "prepare", "--tokenizer", str(asked.tokenizer), "--out", store, "--overwrite"]
        seconds: dict[str, list[float]] = {"prepare": [], "encode_batch": []}
        for _ in range(asked.rounds):
            seconds["prepare"].append(measure([*common, "--source", str(asked.source)])[0])
            command = [sys.executable, "-c", ENCODE, str(asked.source), str(asked.tokenizer)]
            done = subprocess.run(command, capture_output=True, check=True)
            seconds["encode_batch"].append(float(done.stdout))
        ratio = statistics.median(seconds["encode_batch"]) / statistics.median(seconds["prepare"])
        megabytes = sum(len(text.encode()) for text in read_documents(asked.source, Reading())) / 1e6
        print(f"{megabytes:.1f} MB of text: prepare {statistics.median(seconds['prepare']):.1f} s, {ratio:.0%} of")
        print(f"encode_batch's speed ({statistics.median(seconds['encode_batch']):.1f} s)")
        memory = {}
        for size in MEBIBYTES:
            text = Path(folder) / "text.jsonl"
            generate(text, size)
            took, peak = measure([*common, "--source", str(text)])
            memory[str(size)] = {"seconds": took, "peak_mib": peak}
            print(f"{size} MiB of generated text: peak {peak:.0f} MiB, {took:.0f} s")
    if asked.out is not None:
        text = {"megabytes": megabytes, "seconds": seconds, "share_of_encode_batch": ratio}
        write_json(asked.out, {**conditions(asked.rounds), "text": text, "memory_by_mebibytes_of_text": memory})
