"""The commands: python -m eval bench step | convert."""

import argparse
import sys
from pathlib import Path


def _shape(text: str) -> tuple[int, int]:
    rows, tokens = text.split("x")
    return int(rows), int(tokens)


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m eval", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    bench = commands.add_parser("bench", help="what our code costs beside its peers")
    bench.add_argument("what", choices=("step", "convert"))
    bench.add_argument("--shapes", nargs="+", type=_shape, default=[(2, 512), (1, 2048)], help="ROWSxTOKENS, of a step")
    bench.add_argument("--rounds", type=int, default=5)
    bench.add_argument("--out", type=Path, default=None, help="JSON file")
    arguments = parser.parse_args()

    from eval.bench import convert, step

    try:
        if arguments.what == "step":
            step.main(arguments.shapes, arguments.rounds, arguments.out)
        else:
            convert.main(arguments.rounds, arguments.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
