"""The commands: python -m eval bench step | convert | data | prepare."""

import argparse
import importlib
import sys
from pathlib import Path


def _shape(text: str) -> tuple[int, int]:
    rows, tokens = text.split("x")
    return int(rows), int(tokens)


def main() -> int:
    """Run one command; 0 when it was done, 2 with one line on stderr for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m eval", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    bench = commands.add_parser("bench", help="what our code costs beside its peers")
    whats = bench.add_subparsers(dest="what", required=True)
    step = whats.add_parser("step", help="a training step, beside PyTorch's")
    step.add_argument("--shapes", nargs="+", type=_shape, default=[(2, 512), (1, 2048)], help="ROWSxTOKENS")
    convert = whats.add_parser("convert", help="a conversion, beside transformers'")
    data = whats.add_parser("data", help="reading a token store, and planning its rows")
    data.add_argument("--store", type=Path, help="token store to read; a generated one without it")
    prepare = whats.add_parser("prepare", help="preparing text, beside the tokenizer alone")
    prepare.add_argument("--source", type=Path, required=True, help="file or folder of text")
    prepare.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    for parser_ in (step, convert, data, prepare):
        parser_.add_argument("--rounds", type=int, default=5)
        parser_.add_argument("--out", type=Path, default=None, help="JSON file")
    arguments = vars(parser.parse_args())
    what = arguments.pop("what")
    del arguments["command"]

    try:
        importlib.import_module(f"eval.bench.{what}").main(**arguments)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
