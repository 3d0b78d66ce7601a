"""What a run folder keeps, and how a run starts: save, verify, resume.

FOLDER/model.json         ModelConfig
FOLDER/hf_config.json     the source's own config.json, when there was one
FOLDER/tokenizer/         the tokenizer's files
FOLDER/checkpoints/STEP/  params, opt_state (absent in a converted start), meta

Orbax writes a step under a temporary name and renames it, so a killed save leaves the previous steps
whole. It stores no checksum of the arrays, so we keep one per leaf and check it on every restore.
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, CustomSteps, LatestN

from cptjax.files import read_json, sha256, write_json
from cptjax.model import ModelConfig, ModernBert, init_params
from cptjax.step import TrainState

CHECKPOINTS, MODEL, HF_CONFIG, TOKENIZER = "checkpoints", "model.json", "hf_config.json", "tokenizer"


def _checksum(x) -> jax.Array:
    """32-bit sum of an array's bits under odd weights: any changed word changes it, sharding does not."""
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{x.dtype.itemsize * 8}")).astype(jnp.uint32)
    weight = jnp.ones((), jnp.uint32)
    stride = 2
    for axis in reversed(range(x.ndim)):
        weight = weight + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return (bits * weight).sum(dtype=jnp.uint32)


def checksums(tree: Any) -> dict[str, int]:
    """One checksum per array of a tree, by path."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
    sums = jax.device_get(_checksums(leaves))
    return {jax.tree_util.keystr(path): int(value) for path, value in zip(paths, sums, strict=True)}


@jax.jit
def _checksums(leaves: tuple[jax.Array, ...]) -> list[jax.Array]:
    return [_checksum(x) for x in leaves]


def _manager(folder: Path, **options) -> ocp.CheckpointManager:
    return ocp.CheckpointManager((folder / CHECKPOINTS).absolute(), options=ocp.CheckpointManagerOptions(**options))


def _items(parts: Mapping[str, Any], facts: Mapping[str, Any]) -> ocp.args.Composite:
    meta = {**facts, "checksums": {name: checksums(tree) for name, tree in parts.items()}}
    arrays = {name: ocp.args.StandardSave(tree) for name, tree in parts.items()}
    return ocp.args.Composite(**arrays, meta=ocp.args.JsonSave(meta))


class Saver:
    """Writes a run's state in the background; keeps the last `keep` steps and those in `always`.

    Raises OSError, here or at the next call, when the disk refuses a save.
    """

    def __init__(self, folder: Path, keep: int, always: tuple[int, ...]):
        self._folder = folder
        self._manager = _manager(
            folder,
            preservation_policy=AnyPreservationPolicy([LatestN(keep), CustomSteps(list(always))]),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, state: TrainState, facts: Mapping[str, Any]) -> None:
        """Save under `step`; `facts` are readable things kept beside the arrays (commit, fingerprints)."""
        if step not in self._manager.all_steps():
            parts = {"params": state.params, "opt_state": state.opt_state}
            with _reporting(self._folder):
                self._manager.save(step, args=_items(parts, facts))

    def close(self) -> None:
        """Wait for the last save."""
        with _reporting(self._folder):
            self._manager.wait_until_finished()
            self._manager.close()


@contextlib.contextmanager
def _reporting(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what a full disk raises depends on the writer that met it
        last = latest_step(folder)
        raise OSError(
            f"cannot save a checkpoint in {folder / CHECKPOINTS}: {_first_line(error)}; "
            + ("there is none yet" if last is None else f"step {last} is whole, free the disk and run again")
        ) from error


def _first_line(error: Exception) -> str:
    cause = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
    text = "No space left on device" if "No space left" in str(cause) else str(cause)
    return text.splitlines()[0][:200] if text else type(cause).__name__


def latest_step(folder: Path) -> int | None:
    """The last whole checkpoint of a run folder, None when there is none."""
    steps = folder / CHECKPOINTS
    names = [entry.name for entry in steps.iterdir()] if steps.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=None)


def resumable(folder: Path, step: int) -> bool:
    """Whether a checkpoint holds an optimiser state too: a converted start does not."""
    return (folder / CHECKPOINTS / str(step) / "opt_state").is_dir()


def _restore(folder: Path, step: int, parts: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The named parts of a checkpoint in the shapes and shardings of `parts`, checked; and its facts."""
    args = {name: ocp.args.StandardRestore(target) for name, target in parts.items()}
    where = folder / CHECKPOINTS / str(step)
    try:
        with _manager(folder, create=False) as manager:
            found = manager.restore(step, args=ocp.args.Composite(**args, meta=ocp.args.JsonRestore()))
    except Exception as error:  # tensorstore raises anything from KeyError to groups of errors
        raise ValueError(f"cannot read checkpoint {where}: {_first_line(error)}") from error
    for name in parts:
        now, then = checksums(found[name]), found["meta"]["checksums"][name]
        if damaged := [path for path in now if now[path] != then.get(path)]:
            raise ValueError(
                f"checkpoint {where} is damaged: {name}{damaged[0]} and {len(damaged) - 1} more differ from "
                "their checksums; remove that folder to go on from the step before it"
            )
    return {name: found[name] for name in parts}, found["meta"]


def _on_one_device(shapes: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def resume(folder: Path, step: int, target: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The state saved under `step`, in the shapes and shardings of `target`, and the facts beside it.

    The mesh it was saved on does not matter. Raises ValueError when an array differs from its checksum.
    """
    found, facts = _restore(folder, step, {"params": target.params, "opt_state": target.opt_state})
    number = jax.device_put(jnp.int32(step), target.step.sharding)
    return TrainState(number, found["params"], found["opt_state"]), facts


def parameter_shapes(config: ModelConfig) -> Any:
    """Shapes and dtypes of a model's parameters; nothing is allocated."""
    return jax.eval_shape(lambda: init_params(ModernBert(config), jax.random.key(0)))


def load_params(folder: Path, step: int | None = None, shardings: Any = None) -> tuple[int, ModelConfig, Any]:
    """Step, config and parameters of a run folder (the latest step by default), checked.

    `shardings` is a tree like the parameters; without it they land on one device. Raises
    FileNotFoundError when the folder holds no checkpoint, ValueError when it is damaged.
    """
    config = read_model(folder)
    step = latest_step(folder) if step is None else step
    if step is None or not (folder / CHECKPOINTS / str(step)).is_dir():
        raise FileNotFoundError(f"{folder} holds no checkpoint{'' if step is None else f' of step {step}'}")
    shapes = parameter_shapes(config)
    if shardings is None:
        target = _on_one_device(shapes)
    else:
        target = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings
        )
    found, _ = _restore(folder, step, {"params": target})
    return step, config, found["params"]


def read_model(folder: Path) -> ModelConfig:
    """The ModelConfig of a run folder. Raises FileNotFoundError when it is not one."""
    path = folder / MODEL
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not a run folder (no {MODEL}): convert a Hugging Face folder first with "
            f"python -m convert from-hf {folder} OUT"
        )
    fields = read_json(path)
    return ModelConfig(**{**fields, "layer_types": tuple(fields["layer_types"])})


def write_model(folder: Path, config: ModelConfig, *, tokenizer: Path | None, hf_config: dict | None) -> None:
    """Write what a run folder says about its model, beside the checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MODEL, asdict(config))
    if hf_config is not None:
        write_json(folder / HF_CONFIG, hf_config)
    if tokenizer is not None and not (folder / TOKENIZER).exists():
        partial = folder / f".{TOKENIZER}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(tokenizer, partial)
        partial.rename(folder / TOKENIZER)


def save_start(folder: Path, config: ModelConfig, params: Any, *, hf_config: dict | None) -> None:
    """Make a run folder that a run can start from: the model's files and its parameters as step 0."""
    write_model(folder, config, tokenizer=None, hf_config=hf_config)
    params = jax.tree.map(jnp.asarray, params)
    with _reporting(folder), _manager(folder, enable_async_checkpointing=False) as manager:
        manager.save(0, args=_items({"params": params}, {}))


def tokenizer_sha256(folder: Path) -> str | None:
    """Hash of the tokenizer.json a run folder carries, None when it carries none."""
    path = folder / TOKENIZER / "tokenizer.json"
    return sha256(path) if path.is_file() else None
