"""The command line: `python -m convert from-hf | to-hf | parity | release | resize-vocab | shape`."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from absl import logging as absl_logging

from cptjax.command import errors
from cptjax.command.escape import say


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, as `errors.run_command` has them."""
    words = sys.argv[1:] if argv is None else argv
    return errors.run_command(lambda: _run(words), words)


def _run(words: Sequence[str]) -> int:
    absl_logging.set_verbosity(absl_logging.FATAL)  # orbax logs the errors it raises
    logging.getLogger("orbax").setLevel(logging.ERROR)
    from cptjax.machine import host

    host.return_freed_memory()
    args = parser().parse_args(words)
    return args.run(args)


def parser() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    from convert import to_hf

    top = argparse.ArgumentParser(prog="python -m convert")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    sub = commands.add_parser("from-hf", help="a Hugging Face folder or Hub id -> a run at step 0")
    sub.add_argument("source", metavar="SRC")
    sub.add_argument("out", metavar="OUT", type=Path)
    sub.add_argument("--revision", metavar="R", help="branch, tag or commit of the Hub id")
    sub.add_argument("--overwrite", action="store_true", help="replace OUT, checkpoints included")
    sub.set_defaults(run=run_from_hf)

    sub = commands.add_parser("to-hf", help="a run's checkpoint -> a Hugging Face folder")
    sub.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    sub.add_argument("out", metavar="OUT", type=Path)
    sub.add_argument("--step", metavar="N", type=int, help="default: the last one")
    sub.add_argument("--as", dest="read_as", choices=sorted(to_hf.AS), help="default: as the run's source")
    sub.add_argument("--dtype", choices=to_hf.DTYPES, default="float32", help="of the file; default: float32")
    sub.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        type=to_hf.parse_size,
        default=to_hf.SHARD_SIZE,
        help=f"of a file; default: {to_hf.SHARD_SIZE}",
    )
    sub.add_argument("--overwrite", action="store_true", help="replace OUT")
    sub.set_defaults(run=run_to_hf)

    sub = commands.add_parser("parity", help="same numbers? exit code 0 if so, 1 if not")
    sub.add_argument("a", metavar="A", help="the one to trust: Hugging Face folder or run folder")
    sub.add_argument("b", metavar="B")
    sub.add_argument("--out", metavar="FILE", type=Path, help="write every number to this JSON file")
    sub.set_defaults(run=run_parity)

    sub = commands.add_parser("release", help="a finished run -> a folder for the Hub, with its card")
    sub.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    sub.add_argument("out", metavar="OUT", type=Path)
    sub.add_argument("--license", dest="licence", metavar="ID", help="such as apache-2.0; needed")
    sub.add_argument("--base-model", metavar="ID", help="needed where the run did not start from a Hub id; or none")
    sub.add_argument("--language", metavar="CODE", help="such as en")
    sub.add_argument("--name", help="default: the name of OUT")
    sub.add_argument("--example", metavar="TEXT", help="a sentence for the card's code, with one mask token")
    sub.add_argument("--rows", metavar="FILE", type=Path, help="rows.jsonl of the evaluation")
    sub.add_argument("--step", metavar="N", type=int, help="the end of a phase; default: the last one")
    sub.add_argument("--as", dest="read_as", choices=sorted(to_hf.AS), help="default: as the run's source")
    sub.add_argument("--dtype", choices=to_hf.DTYPES, default="float32", help="of the file; default: float32")
    sub.add_argument("--push", dest="model_id", metavar="ID", help="upload it to this Hub id")
    sub.add_argument("--private", action="store_true", help="with --push: make the repository private")
    sub.add_argument("--overwrite", action="store_true", help="replace OUT")
    sub.set_defaults(run=run_release)

    sub = commands.add_parser("resize-vocab", help="words of a domain as tokens of a Hugging Face folder or Hub id")
    sub.add_argument("source", metavar="SRC")
    sub.add_argument("out", metavar="OUT", type=Path)
    sub.add_argument("--tokens", metavar="FILE", type=Path, required=True, help="one new token per line")
    sub.add_argument("--revision", metavar="R", help="branch, tag or commit of the Hub id")
    sub.add_argument("--overwrite", action="store_true", help="replace OUT")
    sub.set_defaults(run=run_resize_vocab)

    sub = commands.add_parser("shape", help="the shape of a Hugging Face folder or Hub id as our model.json")
    sub.add_argument("source", metavar="SRC")
    sub.add_argument("--revision", metavar="R", help="branch, tag or commit of the Hub id")
    sub.set_defaults(run=run_shape)
    for command in commands.choices.values():
        errors.add_option(command)
    return top


def run_from_hf(args: argparse.Namespace) -> int:
    """from-hf"""
    from convert import from_hf

    config = from_hf.convert_folder(args.source, args.out, revision=args.revision, overwrite=args.overwrite)
    say(f"wrote {args.out}: step 0, {config.num_hidden_layers} layers of {config.hidden_size}")
    return 0


def run_to_hf(args: argparse.Namespace) -> int:
    """to-hf"""
    from convert import to_hf

    done = to_hf.convert_checkpoint(
        args.checkpoint,
        args.out,
        step=args.step,
        read_as=args.read_as,
        dtype=args.dtype,
        shard_size=args.max_shard_size,
        overwrite=args.overwrite,
    )
    _tell(done.notes)
    say(f"wrote {args.out}: step {done.step} as {done.architecture}, {args.dtype}")
    return 0


def run_parity(args: argparse.Namespace) -> int:
    """parity"""
    from convert import parity

    return parity.main(args.a, args.b, args.out)


def _tell(notes: list[str]) -> None:
    for note in notes:
        say(f"note: {note}", stream=sys.stderr)


def run_release(args: argparse.Namespace) -> int:
    """release"""
    from convert import release

    if args.private and args.model_id is None:
        raise ValueError("--private says how to --push: give the Hub id too")
    told = {
        name: value
        for name, value in vars(args).items()
        if name not in ("run", "checkpoint", "out", "private", "traceback")
    }
    say(f"wrote {release.release(args.checkpoint, args.out, **told)}: read its README.md before you publish it")
    if args.model_id is not None:
        release.push(args.out, args.model_id, hidden=args.private)
        say(f"pushed to {args.model_id}")
    return 0


def run_resize_vocab(args: argparse.Namespace) -> int:
    """resize-vocab"""
    from convert import vocab

    done = vocab.resize_vocab(args.source, args.out, args.tokens, revision=args.revision, overwrite=args.overwrite)
    _tell(done.notes)
    say(
        f"wrote {args.out}: {done.in_slots} tokens in unused slots, {done.appended} appended; "
        f"vocab_size {done.old_size} before, {done.new_size} after"
    )
    return 0


def run_shape(args: argparse.Namespace) -> int:
    """shape"""
    from convert import from_hf

    say(json.dumps(asdict(from_hf.read_shape(args.source, revision=args.revision))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
