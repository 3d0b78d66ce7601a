"""The commands of conversion: each a dataclass whose fields are its options. What they do is imported when they do it:
their help is there at once."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import Positional, UseAppendAction, arg

from cptjax.command.escape import say
from cptjax.command.line import Options


def _tell(notes: list[str]) -> None:
    for note in notes:
        say(f"note: {note}", stream=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class Conversion(Options):
    """What the commands of this package share: little memory."""

    judges: ClassVar[bool] = False  # whether PyTorch computes something, where it is

    def begin_process(self) -> None:
        """Hide PyTorch from transformers, which imports it where it is: that takes longer than all else imported."""
        if not self.judges:
            modules: dict[str, Any] = sys.modules
            modules["torch"] = None

    def __call__(self, rest: Sequence[str]) -> int | None:
        """Do the work; returns the exit code."""
        from cptjax.machine import host

        host.return_freed_memory()
        return self.work()

    def work(self) -> int | None:
        """What the command is for; returns the exit code, None for 0."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class FromHf(Conversion):
    """A Hugging Face folder or Hub id to a run at step 0."""

    source: Annotated[Positional[str], arg(metavar="SRC")]
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    revision: str | None = None  # branch, tag or commit of the Hub id
    overwrite: bool = False  # replace OUT, checkpoints included

    def work(self) -> None:
        """Convert, and say what was."""
        from convert import from_hf

        config = from_hf.convert_folder(self.source, self.out, revision=self.revision, overwrite=self.overwrite)
        say(f"wrote {self.out}: step 0, {config.num_hidden_layers} layers of {config.hidden_size}")


@dataclass(frozen=True, kw_only=True)
class Export(Conversion):
    """What is written of a run's checkpoint, and how."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]  # run folder
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    step: int | None = None  # the end of a phase, for a release; without it the last one
    read_as: Annotated[Literal["encoder", "decoder"] | None, arg(name="as")] = None  # without it as the run's source
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the file
    overwrite: bool = False  # replace OUT


@dataclass(frozen=True, kw_only=True)
class ToHf(Export):
    """A run's checkpoint to a Hugging Face folder."""

    max_shard_size: str | None = None  # of a file, such as 400MB; 5GB without it

    def work(self) -> None:
        """Write it, and say what was left out."""
        from convert import to_hf

        done = to_hf.convert_checkpoint(
            self.checkpoint,
            self.out,
            step=self.step,
            read_as=self.read_as,
            dtype=self.dtype,
            shard_size=to_hf.parse_size(self.max_shard_size or to_hf.SHARD_SIZE),
            overwrite=self.overwrite,
        )
        _tell(done.notes)
        say(f"wrote {self.out}: step {done.step} as {done.architecture}, {self.dtype}")


@dataclass(frozen=True, kw_only=True)
class Parity(Conversion):
    """Same numbers? Exit code 0 if so, 1 if not."""

    judges: ClassVar[bool] = True

    a: Annotated[Positional[str], arg(metavar="A")]  # the one to trust: Hugging Face folder or run folder
    b: Annotated[Positional[str], arg(metavar="B")]
    out: Path | None = None  # write every number to this JSON file

    def work(self) -> int:
        """Compare."""
        from convert import parity

        return parity.main(self.a, self.b, self.out)


@dataclass(frozen=True, kw_only=True)
class Release(Export):
    """A finished run to a folder for the Hub, with its card."""

    judges: ClassVar[bool] = True

    licence: Annotated[str | None, arg(name="license", metavar="ID")] = None  # such as apache-2.0, or a name; needed
    base_model: Annotated[str | None, arg(metavar="ID")] = None  # needed where the run began with no Hub id; or none
    language: Annotated[str | None, arg(metavar="CODE")] = None  # such as en
    name: str | None = None  # without it the name of OUT
    example: Annotated[str | None, arg(metavar="TEXT")] = None  # a sentence for the card's code, with one mask token
    rows: Annotated[Path | None, arg(metavar="FILE")] = None  # rows.jsonl of the evaluation
    related: Annotated[
        Sequence[str], UseAppendAction, arg(metavar="ID=TEXT")
    ] = ()  # another model's Hub id, and what it is
    notes: Annotated[Path | None, arg(metavar="FILE.md")] = None  # your own paragraphs, put into the card as they are
    carbon: float | None = None  # kg CO2e of a kWh where it ran, for the card; needs measured energy
    model_id: Annotated[str | None, arg(name="push", metavar="ID")] = None  # upload it to this Hub id
    private: bool = False  # with --push: make the repository private

    def work(self) -> None:
        """Release, and upload where that is asked for."""
        if self.private and self.model_id is None:
            raise ValueError("--private says how to --push: give the Hub id too")
        from convert import release

        told = {name: value for name, value in vars(self).items() if name not in ("checkpoint", "private", "traceback")}
        say(f"wrote {release.release(self.checkpoint, **told)}: read its README.md before you publish it")
        if self.model_id is not None:
            release.push(self.out, self.model_id, hidden=self.private)
            say(f"pushed to {self.model_id}")


@dataclass(frozen=True, kw_only=True)
class ResizeVocab(Conversion):
    """Words of a domain as tokens of a Hugging Face folder or Hub id."""

    source: Annotated[Positional[str], arg(metavar="SRC")]
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    tokens: Annotated[Path, arg(metavar="FILE")]  # one new token per line
    revision: str | None = None  # branch, tag or commit of the Hub id
    overwrite: bool = False  # replace OUT

    def work(self) -> None:
        """Write the folder, and say where the new tokens are."""
        from convert import vocab

        source, out = self.source, self.out
        done = vocab.resize_vocab(source, out, self.tokens, revision=self.revision, overwrite=self.overwrite)
        _tell(done.notes)
        say(
            f"wrote {out}: {done.in_slots} tokens in unused slots, {done.appended} appended; "
            f"vocab_size {done.old_size} before, {done.new_size} after"
        )


@dataclass(frozen=True, kw_only=True)
class Shape(Conversion):
    """The shape of a Hugging Face folder or Hub id as our model.json."""

    source: Annotated[Positional[str], arg(metavar="SRC")]
    revision: str | None = None  # branch, tag or commit of the Hub id

    def work(self) -> None:
        """Print it."""
        from convert import from_hf

        say(json.dumps(asdict(from_hf.read_shape(self.source, revision=self.revision))))
