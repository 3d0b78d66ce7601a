"""A command line: commands by name, each a dataclass whose fields are its options and whose call is its work.

So an option's default, type and help stand once, in the dataclass that it fills; tyro reads them there.
"""

import contextlib
import importlib
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, ClassVar, NamedTuple, NoReturn, get_args

from absl import logging as absl_logging

from cptjax import __version__
from cptjax.command import errors
from cptjax.command.escape import nearest, say
from cptjax.command.signals import Stopped

ASKING = (signal.SIGTERM, signal.SIGUSR1)  # what schedulers send before they kill
SEVERAL = r"(\S+): Could not find valid parse for arguments: \[(.*)\] Argument helptext: \S+ \[(.*?\])\] .*"
SAID = {  # what int() and float() say of a text that is none, and tyro of a value that may have several forms
    r"invalid literal for int\(\) with base 10: (.*)": r"\1 is no whole number, such as 1000",
    r"could not convert string to float: (.*)": r"\1 is no number, such as 0.1",
    r"Exceeds the limit .*": "the number has too many digits",
    r"no type matching .* - <class '\w+'>: (.*)": r"\1, nor None",
}


class Command(NamedTuple):
    """What a list of commands says of one, and where its dataclass is, as MODULE:NAME: only that of the one that is
    asked for is imported."""

    help: str
    place: str


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every command takes."""

    traceback: bool = False  # show where in the program an error arose

    goes_on: ClassVar[bool] = False  # whether the same command goes on with an interrupted one
    rules: ClassVar[tuple[Any, ...]] = ()  # tyro's, for types that it does not know

    @classmethod
    def passes_on(cls, words: Sequence[str]) -> bool:
        """Whether options that are not its own are for another to judge."""
        return False

    @classmethod
    def tell_more(cls, words: Sequence[str]) -> None:
        """Print what help says of options that are for another, once its own are printed."""

    def begin_process(self) -> None:
        """What comes before the work where the process is this command's alone, and nobody's who calls from Python."""

    def __call__(self, rest: Sequence[str]) -> int | None:
        """Do the work, with the words that are passed on; returns the exit code, None for 0."""
        raise NotImplementedError


def main(package: str, commands: Mapping[str, Command], argv: Sequence[str] | None = None) -> int:
    """Run one command of a package; returns its exit code, as `errors.run_command` has them."""
    alone = argv is None
    words = sys.argv[1:] if argv is None else argv

    def work() -> int | None:
        try:
            return _run(package, commands, words, alone)
        finally:
            if alone:  # the process ends now: a scheduler that asks again, or late, gets the exit code there is
                for signum in ASKING:
                    signal.signal(signum, signal.SIG_IGN)

    return errors.run_command(work, words)


def _run(package: str, commands: Mapping[str, Command], words: Sequence[str], alone: bool) -> int | None:
    for signum in ASKING:
        signal.signal(signum, _stop)
    absl_logging.set_verbosity(absl_logging.FATAL)  # orbax logs the errors it raises
    logging.getLogger("orbax").setLevel(logging.ERROR)
    if errors.OPTION not in words:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of orbax's writers that fail together it awaits one
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # the Hub's library logs each retry before it raises
    work, rest = parse(package, commands, words)
    if alone:
        work.begin_process()
    try:
        return work(rest)
    except UnknownOption as error:  # passed on to a config: what the command itself takes may have been meant
        raise UnknownOption(error.word, {*error.known, *_taken(type(work), {})}) from None
    except KeyboardInterrupt as stop:
        if work.goes_on:
            stop.args = ("the same command goes on",)
        raise


def _stop(signum: int, _: object) -> None:
    raise Stopped(signum, "")  # it ends the work as Ctrl-C does, and the exit code says: come again


def parse(package: str, commands: Mapping[str, Command], words: Sequence[str]) -> tuple[Options, list[str]]:
    """The command that these words ask for, and the words that are passed on.

    Raises ValueError for words that it does not take, SystemExit once help is printed.
    """
    name = next((name for name in (" ".join(words[:n]) for n in (1, 2)) if name in commands), None)
    if name is None:
        _list(f"python -m {package}", commands, words)
    module, _, kind = commands[name].place.partition(":")
    options = getattr(importlib.import_module(module), kind)
    from tyro.conf import FlagCreatePairsOff  # here, for a list of commands needs none of tyro
    from tyro.constructors import ConstructorRegistry

    own = words[len(name.split()) :]
    passes_on = options.passes_on(own)
    registry = ConstructorRegistry()
    for rule in (_optional, *options.rules):
        registry.primitive_rule(rule)
    asked = {"prog": f"python -m {package} {name}", "registry": registry, "return_unknown_args": passes_on}
    try:
        filled = fill(options, own, config=(FlagCreatePairsOff,), **asked)
    except SystemExit:  # help was asked for, and printed
        options.tell_more(own)
        raise
    return filled if passes_on else (filled, [])


def _list(program: str, commands: Mapping[str, Command], words: Sequence[str]) -> NoReturn:
    """Print the commands where help is asked for, or the version. Raises ValueError for a word that is none of them."""
    if [*words] == ["--version"]:
        say(f"cptjax {__version__}")
        raise SystemExit(0)
    if not {"-h", "--help"} & {*words[:2]}:
        grouped = {name.split()[0] for name in commands if " " in name}  # bench attention, bench loss, ...
        name = " ".join(words[: 2 if {*words[:1]} & grouped else 1])
        asked = f"no command is called {name!r}{nearest(name, commands)}" if words else "no command is given"
        raise ValueError(f"{asked}: {program} takes {', '.join(commands)}")
    width = max(map(len, commands))
    say(f"usage: {program} COMMAND ...\n")
    say("\n".join(f"  {name:{width}}  {command.help}" for name, command in commands.items()))
    say(f"\n{program} COMMAND --help tells of its options.")
    raise SystemExit(0)


class UnknownOption(ValueError):
    """A `word` is no option: the nearest of those `known` may have been meant."""

    def __init__(self, word: str, known: Iterable[str]):
        super().__init__(f"no option is called {word}{nearest(word, known)}; --help lists all")
        self.word, self.known = word, known


def fill(kind: Any, words: Sequence[str], **options: Any) -> Any:
    """A dataclass from words, as `tyro.cli` does it with these options.

    Raises ValueError for what it does not take, in one line, SystemExit once help is printed.
    """
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=list(words), **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        said = _in_one_line(complaint.getvalue())
        if said.startswith("Unrecognized options: "):
            unknown = said.removeprefix("Unrecognized options: ").split(" Perhaps you meant: ")[0].split(", ")
            word = next((word for word in unknown if word.startswith("-")), None)
            if word is None:
                raise ValueError(f"{unknown[0]!r} is a word too many; --help lists what is taken") from stop
            raise UnknownOption(word.split("=")[0], _taken(kind, options)) from stop
        raise ValueError(said.split(" Unrecognized options: ")[0]) from stop  # these may be for the config


def _taken(kind: Any, options: Mapping[str, Any]) -> set[str]:
    """The options that a dataclass takes, as its help lists them."""
    import tyro

    listed = io.StringIO()
    with contextlib.redirect_stdout(listed), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], **options)
    return set(re.findall(r"--[a-z][\w.-]*", listed.getvalue()))


def _in_one_line(printed: str) -> str:
    """What tyro says in a box with a title, as a sentence, without its help, its words and Python's."""
    lines = [line.strip(" │|") for line in printed.splitlines()[1:]]
    text = re.sub(SEVERAL, r"\1 takes \3, not \2; --help tells more", " ".join(x for x in lines if re.search(r"\w", x)))
    said = re.split("Argument helptext:|For full help", text)[0].strip()
    said = re.sub(r"^Error parsing (\w*[a-z]\w*: )?", "", said)  # the name of a dataclass, or of a field that holds it
    for theirs, plain in SAID.items():
        said = re.sub(theirs, plain, said)
    return said


def _optional(kind: Any) -> Any:
    """tyro's rule for what may be absent: it is written as what may be there."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    inner = [x for x in get_args(kind.type) if x is not NoneType]
    if NoneType not in get_args(kind.type) or len(inner) != 1:
        return None
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(inner[0], kind.markers))
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None
    return replace(spec, is_instance=lambda _: True, str_from_instance=lambda x: [str(x)])
