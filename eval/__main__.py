"""The commands: python -m eval bench attention | loss | step | compare | rounding | convert | data | prepare."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from cptjax.command import errors
from cptjax.files import check_out


def _shape(names: str):
    """A type of numbers with an x between them, as many as there are `names`."""

    def numbers(text: str) -> tuple[int, ...]:
        found = tuple(map(whole_number, text.split("x")))
        if len(found) != names.count("x") + 1:
            raise ValueError(names)
        return found

    numbers.__name__ = names  # what argparse calls it in its message
    return numbers


def whole_number(text: str) -> int:
    """A number from 1 on that an array's side may have."""
    if not 0 < (number := int(text)) < 2**31:
        raise ValueError(text)
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, as `errors.run_command` has them."""
    words = sys.argv[1:] if argv is None else argv
    return errors.run_command(lambda: _run(words), words)


def parser() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    top = argparse.ArgumentParser(prog="python -m eval", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    bench = commands.add_parser("bench", help="what our code costs beside its peers")
    whats = bench.add_subparsers(dest="what", required=True)
    attention = whats.add_parser("attention", help="every backend of attention: errors, speed, memory")
    attention.add_argument(
        "--backends", nargs="+", help="all without it; splash off a TPU only when named, interpreted"
    )
    attention.add_argument("--heads", type=whole_number, default=12)
    attention.add_argument("--width", type=whole_number, default=64, help="of a head")
    attention.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    loss = whats.add_parser("loss", help="the chunked loss, beside the plain one")
    loss.add_argument(
        "--shapes",
        nargs="+",
        type=_shape("TOKENSxVOCABxWIDTH"),
        default=[(8192, 50368, 768)],
        help="TOKENSxVOCABxWIDTH",
    )
    step = whats.add_parser("step", help="a training step of ours alone")
    step.add_argument(
        "--shapes", nargs="+", type=_shape("ROWSxTOKENS"), default=[(2, 512), (1, 2048)], help="ROWSxTOKENS"
    )
    rounding = whats.add_parser("rounding", help="the error of a bfloat16 gradient, beside PyTorch's autocast")
    rounding.add_argument("--shapes", nargs="+", type=_shape("ROWSxTOKENS"), default=[(1, 512)], help="ROWSxTOKENS")
    compare = whats.add_parser("compare", help="a training step, beside PyTorch's")
    compare.add_argument("--peers", nargs="*", default=["eager", "sdpa", "flex", "compile"])
    compare.add_argument("--forward", action="store_true", help="the forward pass alone, loss included")
    compare.add_argument("--plot", type=Path, dest="plot_file", metavar="FILE.png", help="speed and memory by length")
    for parser_ in (attention, compare):
        parser_.add_argument(
            "--lengths", nargs="+", type=whole_number, default=[512, 2048, 8192], help="tokens of a row"
        )
        parser_.add_argument("--rows", type=whole_number, default=1)
    for parser_ in (step, compare, rounding):
        parser_.add_argument("--sizes", nargs="+", default=["base"], help="of base, large")
        parser_.add_argument("--objectives", nargs="+", default=["mlm"], help="of mlm, clm")
    convert = whats.add_parser("convert", help="a conversion, beside transformers'")
    data = whats.add_parser("data", help="reading a token store, and planning its rows")
    data.add_argument("--store", type=Path, help="token store to read; a generated one without it")
    prepare = whats.add_parser("prepare", help="preparing text, beside the tokenizer alone")
    prepare.add_argument("--source", type=Path, required=True, help="file or folder of text")
    prepare.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    for parser_ in (attention, loss, step, compare, convert, data, prepare):
        parser_.add_argument("--rounds", type=whole_number, default=5)
    for parser_ in (attention, loss, step, compare, rounding, convert, data, prepare):
        parser_.add_argument("--out", type=Path, default=None, help="JSON file")
        errors.add_option(parser_)
    return top


def _run(words: Sequence[str]) -> None:
    arguments = vars(parser().parse_args(words))
    what = arguments.pop("what")
    del arguments["command"], arguments["traceback"]
    for path in (arguments["out"], arguments.get("plot_file")):
        check_out(path)
    importlib.import_module(f"eval.bench.{what}").main(**arguments)


if __name__ == "__main__":
    sys.exit(main())
