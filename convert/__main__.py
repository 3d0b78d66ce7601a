"""The commands: python -m convert from-hf | to-hf | parity | release | resize-vocab | shape."""

import sys
from collections.abc import Sequence

from cptjax.command import line
from cptjax.command.line import Command

COMMANDS = {
    "from-hf": Command("a Hugging Face folder or Hub id -> a run at step 0", "convert.command:FromHf"),
    "to-hf": Command("a run's checkpoint -> a Hugging Face folder", "convert.command:ToHf"),
    "parity": Command("same numbers? exit code 0 if so, 1 if not", "convert.command:Parity"),
    "release": Command("a finished run -> a folder for the Hub, with its card", "convert.command:Release"),
    "resize-vocab": Command(
        "words of a domain as tokens of a Hugging Face folder or Hub id", "convert.command:ResizeVocab"
    ),
    "shape": Command("the shape of a Hugging Face folder or Hub id as our model.json", "convert.command:Shape"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    return line.main("convert", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
