"""Small valid inputs, damaged in many ways, for every reader: it works, or says in one line which file is wrong.

    python -m tests.fuzz --inputs 20000            as many inputs, over all readers
    python -m tests.fuzz --only shard --seed 3     of some readers, by the beginning of their names
    python -m tests.fuzz --only shard --show 17    what input 17 was, with the traceback

An input is a function of (seed, reader, number). They are read in a process of their own, so that one which ends the
process, fills the memory or never ends is seen, too. An escape is anything but success, or ValueError or OSError with
the file in a line; what `errors.describe` calls unforeseen is an escape.
"""

import argparse
import copy
import faulthandler
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
SECONDS = 60  # for one input
MEMORY = 6 * 2**30  # address space that inputs may add
DEEP = "@deep@"  # a value that is written as lists in lists

# ---- damage

VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    1.5,
    10**30,
    2**63,
    10**400,
    float("nan"),
    float("inf"),
    1e-320,
    "",
    "a",
    "\x1b[2J",
    "a\nb\0",
    "\ud800",
    "../x",
    "x" * 5000,
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    [1, 2, 3],
    DEEP,
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def damaged_json(rng: random.Random, data: bytes) -> bytes:
    """A key dropped, renamed, doubled, or given another value."""
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(places(value))
        if not found:
            break
        holder, key = rng.choice(found)
        match rng.randrange(8):
            case 0 if isinstance(holder, dict):
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(("", "x", key.upper(), "\x1b[0m", key * 300))] = holder.pop(key)
            case 2 if isinstance(holder, list):
                holder.extend(holder[: rng.choice((1, 1000))] * rng.choice((1, 50)))
            case 3:
                other, name = rng.choice(found)
                holder[key] = json.loads(json.dumps(other[name]))
            case _:
                holder[key] = copy.deepcopy(rng.choice(VALUES))
    text = json.dumps(value)
    if rng.random() < 0.03 and text.startswith("{") and isinstance(value, dict) and value:
        name = rng.choice(list(value))
        text = text[:-1] + f", {json.dumps(name)}: null}}"
    depth = rng.choice((50, 200, 5000, 10**5))
    text = text.replace(json.dumps(DEEP), "[" * depth + "]" * depth)
    if rng.random() < 0.03:
        return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")), "replace")
    return text.encode()


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bits flipped, bytes cut, put in, doubled, zeroed."""
    found, filled = bytearray(data), np.flatnonzero(np.frombuffer(data, np.uint8))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(found) + 1)
        if rng.randrange(2) and len(filled):  # most of a shard is zeros that nobody reads
            at = min(int(rng.choice(filled)), len(found))
        size = min(rng.choice((1, 2, 8, 64, 4096)), len(found) - at)
        match rng.randrange(9):
            case 0 | 1 if at < len(found):
                found[at] ^= 1 << rng.randrange(8)
            case 2 if at < len(found):
                found[at] = rng.choice((0, 9, 10, 34, 255, 128, 92, 44))
            case 3:
                del found[at:]
            case 4:
                del found[at : at + size]
            case 5:
                found[at:at] = rng.randbytes(rng.choice((1, 2, 8, 100)))
            case 6:
                found[at:at] = found[at : at + size] * rng.choice((1, 2, 100))
            case 7:
                found[at : at + size] = bytes(size)
            case _:
                found[at : at + size] = b"\xff" * size
    return bytes(found)


def damaged_array(rng: random.Random, data: bytes) -> bytes:
    """Another header over the same numbers, or damaged bytes."""
    if rng.random() < 0.4:
        return damaged_bytes(rng, data)
    kind = rng.choice(
        ("<i8", "<f4", "|O", "<U9999", "|b1", "<i2", ">i8", "<c16", "V", "<M8[ns]", "[('a','<i4')]", "<f8")
    )
    shape = rng.choice(
        ("(4,)", "()", "(0,)", "(2,2)", "(-1,)", "(10**9,)", "(9999999999999,)", "(2**70,)", "4", "(4", "None")
    )
    order = rng.choice(("True", "False", "1", "x"))
    header = f"{{'descr': {kind if kind[0] == '[' else repr(kind)}, 'fortran_order': {order}, 'shape': {shape}, }}"
    if rng.random() < 0.1:
        header = rng.choice(("(" * 5000, "{" + "'a':{" * 500, "1e999", "x" * 60000, "\0"))
    line = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(4, "little")[:2] + line + data[128:]


def damaged_tensors(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file with another header, of a right or wrong length, or with damaged bytes."""
    if rng.random() < 0.3:
        return damaged_bytes(rng, data)
    size = int.from_bytes(data[:8], "little")
    header = damaged_json(rng, data[8 : 8 + size])
    told = rng.choice((len(header), len(header), len(header), 2**63, 10**8, 0))
    return told.to_bytes(8, "little") + header + data[8 + size :]


def damaged_lines(rng: random.Random, data: bytes) -> bytes:
    """JSON lines, one of them damaged."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    if lines[at].startswith(b"{") and rng.random() < 0.7:
        lines[at] = damaged_json(rng, lines[at])
        return b"\n".join(lines)
    return damaged_bytes(rng, data)


def either(rng: random.Random, data: bytes) -> bytes:
    """JSON damaged in its structure or, more seldom, in its bytes."""
    return (damaged_bytes if rng.random() < 0.2 else damaged_json)(rng, data)


# ---- readers


@dataclass(frozen=True)
class Reader:
    """What is damaged and what reads it. `seal` makes other files agree with the damaged one, so that what a hash
    would have found is read; `share` is how often it is tried beside the others."""

    name: str
    file: str  # a pattern; the file is drawn from what fits
    damage: Callable[[random.Random, bytes], bytes]
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    seal: Callable[[Path], None] | None = None
    share: int = 4
    named: tuple[str, ...] = field(default=())  # what the line may name instead of the file or its folder


def readers() -> list[Reader]:
    """All of them; the libraries are loaded here."""
    from tests.fuzz_readers import READERS

    return READERS


# ---- the loop


def judge(error: BaseException, names: tuple[str, ...]) -> str | None:
    """Why this error is an escape, None when it is none."""
    from cptjax.command.errors import describe

    said = describe(error)
    if not isinstance(error, ValueError | OSError) or said.startswith("unforeseen"):
        return f"{type(error).__name__}: {said[:300]}"
    if not any(name in said for name in names):
        return f"names no file: {said[:300]}"
    return None if said.isprintable() and len(said) < 2200 else f"no line for a terminal: {said[:300]!r}"


def attempt(
    reader: Reader, folder: Path, seed: int, number: int, *, show: bool = False, whole: bool = False
) -> str | None:
    """Damage a file, read it, and put it back. What escaped, None for nothing; a `whole` file must be read."""
    rng = random.Random(f"{seed} {reader.name} {number}")
    path = rng.choice(sorted(path for path in folder.glob(reader.file) if path.is_file()))
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    try:
        data = kept[path] if whole else reader.damage(rng, kept[path])
        if show:
            print(path.relative_to(folder), len(data), repr(data[:2000]))
        path.write_bytes(data)
        if reader.seal:
            reader.seal(folder)
        reader.read(folder)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        if show:
            traceback.print_exc()
        return repr(error) if whole else judge(error, (path.name, str(folder), *reader.named))
    finally:
        put_back(folder, kept)
    return None


def put_back(folder: Path, kept: dict[Path, bytes]) -> None:
    """Make the files of a folder what they were."""
    if {path for path in folder.rglob("*") if path.is_file()} != kept.keys():
        shutil.rmtree(folder)
    for path, data in kept.items():
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def chosen(only: list[str]) -> list[Reader]:
    """The readers tried, each as often as its share, well mixed."""
    found = [r for r in readers() if not only or any(r.name.startswith(name) for name in only)]
    pattern = [r for r in found for _ in range(r.share)]
    random.Random(0).shuffle(pattern)
    return pattern


def child(only: list[str], seed: int, first: int, last: int) -> None:
    """Try inputs first to last (excluded); a line of JSON on stdout before each and after each that escapes."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    warnings.simplefilter("ignore")
    pattern = chosen(only)
    with tempfile.TemporaryDirectory() as place:
        folders: dict[str, Path] = {}
        for reader in pattern:
            if reader.name not in folders:
                folders[reader.name] = Path(place, reader.name)
                folders[reader.name].mkdir()
                reader.make(folders[reader.name])
                said = attempt(reader, folders[reader.name], seed, 0, whole=True)
                assert said is None, f"{reader.name}: {said}"
        os.dup2(null, 2)  # libraries print
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in range(first, last):
            reader = pattern[number % len(pattern)]
            print(json.dumps({"at": number, "reader": reader.name}), file=out)
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            began = time.process_time()
            said = attempt(reader, folders[reader.name], seed, number)
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps({"seconds": time.process_time() - began}), file=out)
            if said is not None:
                print(json.dumps({"escape": said}), file=out)
    print(json.dumps({"done": True}), file=out)
    out.close()
    os._exit(0)  # threads of libraries may be stuck


@dataclass
class Result:
    """What came of some inputs."""

    escapes: list[tuple[str, int, str]] = field(default_factory=list)  # reader, number, what was said
    seconds: Counter = field(default_factory=Counter)
    counts: Counter = field(default_factory=Counter)


def fuzz(inputs: int, *, only: tuple[str, ...] = (), seed: int = 0) -> Result:
    """Try so many inputs, in as many processes one after the other as it takes."""
    result, at = Result(), 0
    while at < inputs:
        command = [
            sys.executable,
            "-m",
            "tests.fuzz",
            "--child",
            "--seed",
            str(seed),
            "--inputs",
            str(inputs),
            "--first",
            str(at),
        ]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            [*command, "--only", *only] if only else command,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        reader, done, began = "the start", False, at
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line)
            if "at" in said:
                at, reader = said["at"], said["reader"]
                result.counts[reader] += 1
            elif "escape" in said:
                result.escapes.append((reader, at, said["escape"]))
            elif "seconds" in said:
                result.seconds[reader] += said["seconds"]
            else:
                done = True
        code = process.wait()
        at += 1
        if not done:
            result.escapes.append((reader, at - 1, f"the process ended with {code}"))
            if reader == "the start":
                raise RuntimeError(f"the readers cannot be made or do not read what is valid ({began}, {code})")
    return result


def main() -> int:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--show", type=int, metavar="NUMBER")
    given = parser.parse_args()
    if given.child:
        child(given.only, given.seed, given.first, given.inputs)
    if given.show is not None:
        pattern = chosen(given.only)
        reader = pattern[given.show % len(pattern)]
        with tempfile.TemporaryDirectory() as place:
            reader.make(Path(place))
            print(attempt(reader, Path(place), given.seed, given.show, show=True))
        return 0
    began = time.perf_counter()
    result = fuzz(given.inputs, only=tuple(given.only), seed=given.seed)
    for name, count in result.counts.items():
        escaped = sum(reader == name for reader, *_ in result.escapes)
        print(f"{name:20}{count:7} inputs {escaped:6} escapes {1000 * result.seconds[name] / count:9.1f} ms each")
    for kind, count in Counter((name, said[:150]) for name, _, said in result.escapes).most_common(60):
        example = next(number for name, number, said in result.escapes if (name, said[:150]) == kind)
        print(f"{count:5} x {kind[0]} (such as {example}): {kind[1]}")
    total = sum(result.counts.values())
    print(f"{total:,} inputs, {len(result.escapes):,} escapes, {time.perf_counter() - began:.0f} s")
    return bool(result.escapes)


if __name__ == "__main__":
    sys.exit(main())
