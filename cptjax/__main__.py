"""The commands: python -m cptjax demo | prepare | train."""

import argparse
import logging
import os
import subprocess
import sys
from pathlib import Path

from absl import logging as absl_logging


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cptjax", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="the whole story on this machine in minutes")
    demo.add_argument("--workdir", type=Path, default=Path("runs/demo"))
    demo.add_argument("--text", nargs="+", type=Path, default=None, help="your own text instead of the demo's")

    prepare = commands.add_parser("prepare", help="text -> token store")
    prepare.add_argument("--source", required=True, help="files or folders, separated by commas")
    prepare.add_argument("--tokenizer", required=True, help="folder with tokenizer.json, or Hub id")
    prepare.add_argument("--out", required=True, type=Path)
    prepare.add_argument("--text-field", default="text", help="field of a JSON line that holds the text")
    prepare.add_argument("--txt-documents", choices=("file", "paragraph"), default="file")
    prepare.add_argument("--errors", choices=("strict", "replace"), default="strict", help="bytes that are not UTF-8")
    prepare.add_argument("--held-out", type=float, default=0.0, help="share of documents kept in OUT/held_out")
    prepare.add_argument("--overwrite", action="store_true")

    train = commands.add_parser(
        "train",
        help="train a config, or go on with what is in the work folder",
        epilog="Any field of the config can be given too, such as --phases.0.tokens 1000; see docs/configs.md.",
    )
    train.add_argument("config", type=Path)
    train.add_argument("--workdir", required=True, type=Path)
    train.add_argument("--mlm-twin", action="store_true", help="the matched baseline: no causal phase")
    return parser


def _prepare(arguments: argparse.Namespace) -> None:
    from cptjax import corpus

    manifest = corpus.prepare(
        arguments.source.split(","),
        arguments.tokenizer,
        arguments.out,
        text_field=arguments.text_field,
        errors=arguments.errors,
        txt_documents=arguments.txt_documents,
        held_out=arguments.held_out,
        overwrite=arguments.overwrite,
    )
    print(
        f"{arguments.out}: {manifest.documents:,} documents, {manifest.tokens:,} tokens, "
        f"{manifest.text_bytes / manifest.tokens:.2f} bytes a token, "
        + ", ".join(f"{count:,} {why} left out" for why, count in manifest.dropped.items())
    )


def _train(arguments: argparse.Namespace, overrides: list[str]) -> None:
    import jax
    from jax.experimental import multihost_utils

    from cptjax import checkpoint, config, host, sharding

    sharding.start_processes()
    if jax.default_backend() == "cpu":
        host.keep_freed_memory()
    run = config.override(config.load_config(arguments.config), overrides)
    if arguments.mlm_twin:
        run = config.mlm_twin(run)

    from cptjax.train import check_inputs, starting_folder, train

    started = (arguments.workdir / "config.json").exists()
    if run.init is not None and not started and not (Path(run.init) / checkpoint.MODEL).exists():
        # A Hugging Face folder or id: convert it as a user would. Anew until the run has started, for an
        # attempt that was refused may have left another model there. On the CPU: this process has the devices.
        check_inputs(run)
        if jax.process_index() == 0:
            origin = str(starting_folder(run, arguments.workdir))
            command = [sys.executable, "-m", "convert", "from-hf", run.init, origin, "--overwrite"]
            subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
        multihost_utils.sync_global_devices("converted")
    folder = train(run, arguments.workdir)
    print(f"{folder}: trained; plot in {folder / 'plot.png'}, export with python -m convert to-hf {folder} OUT")


def main() -> int:
    """Run one command; 0 when it was done, 2 with one line on stderr for a user's mistake."""
    absl_logging.set_verbosity(absl_logging.FATAL)  # orbax logs the errors it raises
    logging.getLogger("orbax").setLevel(logging.ERROR)
    parser = _parser()
    arguments, rest = parser.parse_known_args()
    try:
        if arguments.command == "train":
            _train(arguments, rest)
        elif rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        elif arguments.command == "prepare":
            _prepare(arguments)
        else:
            from cptjax.demo import demo

            demo(arguments.workdir, arguments.text)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped" + "; the run goes on with the same command" * (arguments.command == "train"), file=sys.stderr)
        return 130
    except subprocess.CalledProcessError as error:
        return error.returncode  # the command said on stderr what was wrong
    return 0


if __name__ == "__main__":
    sys.exit(main())
