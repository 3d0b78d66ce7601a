"""What a conversion costs: seconds and peak resident memory, beside transformers' own load and save.

A model of random weights is written once as one file and once as shards; then every command runs in a
process of its own, in turns, once the disk has what the one before it wrote. Memory is what the kernel
counts for the process (mapped files included), less what the same command needs for a model of almost no
weights: interpreter and libraries.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from convert import to_hf
from convert.from_hf import weight_files
from cptjax.files import write_json
from cptjax.run.checkpoint import parameter_shapes
from cptjax.shape import ModelConfig
from eval.bench.command import ConvertBench
from eval.bench.measure import SIZES, conditions

TINY = replace(SIZES["large"], vocab_size=64, hidden_size=16, intermediate_size=16, num_attention_heads=2)
SHARDS = "400MB"  # of the sharded form
PEER = (
    "import sys, torch\n"
    "from transformers import ModernBertForMaskedLM as M\n"
    "M.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2], max_shard_size=sys.argv[3])"
)


def commands(source: Path, work: Path, shards: str) -> dict[str, list[str]]:
    """The two ways from `source` to a copy of it, each step a command line."""
    run, ours, theirs = (str(work / name) for name in ("run", "ours", "theirs"))
    python = [sys.executable]
    return {
        "from-hf": [*python, "-m", "convert", "from-hf", str(source), run, "--overwrite"],
        "to-hf": [*python, "-m", "convert", "to-hf", run, ours, "--overwrite", "--max-shard-size", shards],
        "transformers": [*python, "-c", PEER, str(source), theirs, shards],
    }


# A process starts with the peak of the one that forked it: a small one must do it.
LAUNCH = (
    "import resource, subprocess, sys\n"
    "code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode\n"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    "sys.exit(code)"
)


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds and peak resident MiB of one process. Raises ChildProcessError when it fails."""
    os.sync()  # nobody waits for what another wrote
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", LAUNCH, *command], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        raise ChildProcessError(f"{' '.join(command)}: {last}")
    return time.perf_counter() - began, int(done.stdout) / 1024


def random_folder(config: ModelConfig, out: Path, shards: str) -> None:
    """A Hugging Face folder of this shape with random weights, made one parameter at a time."""
    shapes, rng = parameter_shapes(config), np.random.default_rng(0)

    def read(path: tuple[str, ...]) -> np.ndarray:
        leaf = shapes
        for key in path:
            leaf = leaf[key]
        return rng.standard_normal(leaf.shape, np.float32) * np.float32(0.02)

    to_hf.save(config, read, out, shard_size=shards)


def bench(config: ModelConfig, rounds: int, shards: str) -> dict:
    """Medians of seconds and memory of each command, for a model whose files hold at most `shards`."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        random_folder(config, work / "source", shards)
        random_folder(TINY, work / "tiny", shards)
        nothing = {name: measure(line)[1] for name, line in commands(work / "tiny", work, shards).items()}
        seconds, peak = ({name: [] for name in nothing} for _ in range(2))
        for _ in range(rounds):
            for name, line in commands(work / "source", work, shards).items():
                took, memory = measure(line)
                seconds[name].append(took)
                peak[name].append(memory)
        largest = max(path.stat().st_size for path in weight_files(work / "source")) / 2**20
    stacked = max(x.size * 4 for x in jax.tree.leaves(parameter_shapes(config))) / 2**20
    return {
        "shards": shards,
        "largest_shard_mib": largest,
        "largest_parameter_mib": stacked,
        "bound_mib": 1.3 * largest + stacked,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "peak_mib": {name: max(values) for name, values in peak.items()},
        "without_weights_mib": nothing,
    }


def run(asked: ConvertBench) -> None:
    """Print the table and, if asked, write the JSON."""
    results = list(map(partial(bench, SIZES["large"], asked.rounds), ("5GB", SHARDS)))
    print(f"{'files':>8} {'command':<14}{'seconds':>8}{'peak MiB':>10}{'for weights':>12}{'bound':>8}")
    for result in results:
        for name, seconds in result["seconds"].items():
            peak, nothing = result["peak_mib"][name], result["without_weights_mib"][name]
            print(
                f"{result['shards']:>8} {name:<14}{seconds:8.1f}{peak:10.0f}{peak - nothing:12.0f}"
                f"{result['bound_mib']:8.0f}"
            )
    if asked.out is not None:
        write_json(asked.out, {**conditions(asked.rounds), "conversions": results})
