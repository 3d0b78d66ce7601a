"""The commands: python -m cptjax demo | prepare | data-report | plan | doctor | train | replay | compare | verify."""

import sys
from collections.abc import Sequence

from cptjax.command import line
from cptjax.command.line import Command

COMMANDS = {
    "demo": Command("the whole story on this machine in minutes", "cptjax.demo.command:Demo"),
    "prepare": Command("text -> token store", "cptjax.corpus.command:Prepare"),
    "data-report": Command("what is in a token store, printed and as a page", "cptjax.corpus.command:DataReport"),
    "plan": Command(
        "FLOPs, memory, time and cost of a config before there is any hardware", "cptjax.planning.command:Plan"
    ),
    "doctor": Command(
        "what this machine is, and which kernels are right and fast on it", "cptjax.planning.command:Doctor"
    ),
    "train": Command("train a config, or go on with what is in the work folder", "cptjax.run.command:Train"),
    "replay": Command("one step of a run again, row by row", "cptjax.run.command:Replay"),
    "compare": Command("runs side by side: table, differences, pictures", "cptjax.run.command:Compare"),
    "verify": Command("runs, token stores and releases against their hashes", "cptjax.run.command:Verify"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    return line.main("cptjax", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
