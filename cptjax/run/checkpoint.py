"""What a run folder keeps, and how a run starts: save, verify, resume.

FOLDER/model.json         ModelConfig
FOLDER/hf_config.json     the source's own config.json, when there was one
FOLDER/origin.json        where the weights came from: a folder or Hub id, and the commit of the latter
FOLDER/tokenizer/         the tokenizer's files
FOLDER/checkpoints/STEP/  params, opt_state (absent in a converted start), meta: the facts
FOLDER/set_aside/         what was in the way: damaged checkpoints, and those that a run went back behind

Orbax writes a step under a temporary name and renames it, so a killed save leaves the previous steps
whole. It stores no checksum of the arrays, so we keep one per leaf and check it on every restore. The
facts hold these, the step, the model, a hash of each file above that travels with the model, whatever
the run adds, and a hash over all of it.
"""

import contextlib
import itertools
import json
import reprlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, CustomSteps, EveryNSteps, LatestN

from cptjax.command.errors import first_of_group, reason, warn_of_damage
from cptjax.command.escape import listed
from cptjax.data.tokenizer import NAMING, Encoder
from cptjax.families import encoder, shape_of
from cptjax.files import (
    ahead,
    check_inside,
    folder_hashes,
    hash_of,
    read_json,
    sha256,
    write_json,
    written,
)
from cptjax.machine import processes
from cptjax.model import init_params
from cptjax.optim import AdamW, make_optimizer
from cptjax.shape import ModelConfig, ModernBertConfig
from cptjax.step import TrainState

ReadParameter = Callable[[tuple[str, ...]], np.ndarray]  # of a path such as ("final_norm", "scale")
CHECKPOINTS, MODEL, TOKENIZER = "checkpoints", "model.json", "tokenizer"
HF_CONFIG, ORIGIN, ASIDE = "hf_config.json", "origin.json", "set_aside"
OWN_HASH = "sha256"  # of a checkpoint's facts: of all else in them
MOST_SAID = 200  # characters, of what a library says
MOST_READ = 2**28  # bytes of arrays that are read together to be verified


class DamagedError(ValueError):
    """A checkpoint is not what was saved."""


def _checksum(x) -> jax.Array:
    """32-bit sum of an array's bits under odd weights: any changed word changes it, sharding does not."""
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{x.dtype.itemsize * 8}")).astype(jnp.uint32)
    weight = jnp.ones((), jnp.uint32)
    stride = 2
    for axis in reversed(range(x.ndim)):
        weight = weight + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return (bits * weight).sum(dtype=jnp.uint32)


def host_checksum(array: np.ndarray) -> int:
    """The sum of `_checksum` for a float32 array of this host, without a copy of it."""
    bits, total, size = array.reshape(-1).view(np.uint32), 0, 2**16  # a block stays in a core's cache
    weight = 1 + 2 * np.arange(min(bits.size, size), dtype=np.uint32)
    for start in range(0, bits.size, size):
        block = bits[start : start + size]
        total += int((block * weight[: block.size]).sum(dtype=np.uint32))
        total += 2 * start * int(block.sum(dtype=np.uint32))
    return total % 2**32


def checksums(tree: Any) -> dict[str, int]:
    """One checksum per array of a tree, by path."""
    return {path: int(sums[0]) for path, sums in _sums_here(tree).items()}


def _sums_here(tree: Any) -> dict[str, np.ndarray]:
    """The checksums of each array of a tree, by path, as each device of this process gets them: where devices hold
    copies, each sums those that it works with."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
    if isinstance(leaves[0], np.ndarray):
        sums = [[host_checksum(x) for x in leaves]]
    else:
        sums = [np.asarray(copy.data) for copy in _checksums(leaves).addressable_shards]
    return dict(zip(map(jax.tree_util.keystr, paths), np.transpose(sums), strict=True))


@jax.jit
def _checksums(leaves: tuple[jax.Array, ...]) -> jax.Array:
    return jnp.stack([_checksum(x) for x in leaves])


def _manager(folder: Path, handlers: Any = None, **options) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(**options)
    return ocp.CheckpointManager((folder / CHECKPOINTS).absolute(), options=options, handler_registry=handlers)


def _sealed(step: int, sums: Mapping[str, Any], files: Mapping[str, str], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a step as they are written: a copy, for Orbax writes it later, with a hash of all of it."""
    meta = json.loads(json.dumps({**facts, "step": step, "checksums": sums, "files": files}, allow_nan=False))
    return {**meta, OWN_HASH: hash_of(meta)}


class Saver:
    """Writes a run's state in the background; keeps the last `keep` steps, those in `always` and, if that is given, the
    multiples of `milestone_every`.

    Raises OSError, here or at the next call, when the disk refuses a save; `fails` is called with it as soon as that
    is met in the background, for other processes may wait for this one.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        always: tuple[int, ...],
        milestone_every: int | None = None,
        fails: Callable[[OSError], None] = lambda _: None,
    ):
        self._folder, self._files = folder, _own_files(folder)
        self._fails, self._barrier = fails, ocp.multihost.get_barrier_sync_fn()
        self._manager = _manager(
            folder,
            preservation_policy=AnyPreservationPolicy(
                [LatestN(keep), CustomSteps(list(always)), *map(EveryNSteps, filter(None, [milestone_every]))]
            ),
            # Else a folder that cannot be made leaves threads that wait for it for minutes, and the process with them.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False, barrier_sync_fn=self._meet),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, state: TrainState, facts: Mapping[str, Any]) -> None:
        """Save under `step`; `facts` are readable things kept beside the arrays (commit, fingerprints), "model"
        among them."""
        with _reporting(self._folder):
            if step in self._manager.all_steps():
                return
        parts = {"params": state.params, "opt_state": state.opt_state}
        sums = {name: checksums(tree) for name, tree in parts.items()}
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in parts.items()}
        meta = ocp.args.JsonSave(_sealed(step, sums, self._files, facts))
        with _reporting(self._folder):
            self._manager.save(step, args=ocp.args.Composite(**arrays, meta=meta))

    def _meet(self, *, key: str, timeout_ms: int) -> None:
        """Wait in the background for the other processes, where Orbax does. Whatever failed there, in writing, renaming
        or deleting, is still being handled when Orbax comes to its last barrier; it says so once all have come."""
        if isinstance(error := sys.exception(), Exception):
            self._fails(_refused(self._folder, error))
        self._barrier(key=key, timeout_ms=timeout_ms)

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
        raise _refused(folder, error) from error


def _refused(folder: Path, error: Exception) -> OSError:
    """What is said of a save that failed: of TensorStore's words not where it was and how it numbers that."""
    why, *numbers = _reason(error, most=None).split(" [os_error_code")
    why = why.rsplit('": ')[-1] if numbers else why
    try:
        steps = survey(folder)
        unread = next(iter(steps.damaged.values()), None) if steps.latest is None else None
    except OSError as also:  # storage that is gone
        unread = reason(also)
    if unread:
        left = f"what is there cannot be read: {unread}"
    else:
        left = "there is none yet" if steps.latest is None else f"step {steps.latest} is whole, mend that and run again"
    return OSError(f"cannot save a checkpoint in {folder / CHECKPOINTS}: {why[:MOST_SAID]}; {left}")


def _reason(error: Exception, most: int | None = MOST_SAID) -> str:
    """What TensorStore met, where Orbax shows its settings instead."""
    raised = first_of_group(error)
    cause = raised.__cause__ or raised
    return "No space left on device" if "No space left" in str(cause) else reason(cause)[:most]


@dataclass(frozen=True)
class Steps:
    """The checkpoints of a run folder: the facts of each whole one by its step, in order, and what is wrong with
    each other entry that has a number for a name. Whether arrays are whole is seen when they are restored."""

    whole: dict[int, dict[str, Any]]
    damaged: dict[str, str]

    @property
    def latest(self) -> int | None:
        """The last whole one; None when there is none."""
        return max(self.whole, default=None)


def survey(folder: Path) -> Steps:
    """Look at every checkpoint of a run folder."""
    whole, damaged = {}, {}
    steps = folder / CHECKPOINTS
    for path in steps.iterdir() if steps.is_dir() else ():
        if path.name.isdigit():
            try:
                whole[int(path.name)] = _read_facts(path)
            except (ValueError, OSError) as error:
                damaged[path.name] = f"checkpoint {path} is damaged: {error}"
    return Steps(dict(sorted(whole.items())), dict(sorted(damaged.items())))


def _read_facts(path: Path) -> dict[str, Any]:
    """The facts of a checkpoint. Raises ValueError or OSError when it is not whole."""
    facts = read_json(path / "meta" / "metadata")
    if facts.pop(OWN_HASH, None) != hash_of(facts) or not isinstance(facts.get("checksums"), dict):
        raise ValueError("its facts have changed since it was saved, or another version of this program saved it")
    if path.name != str(facts["step"]):
        raise ValueError(f"it holds step {facts['step']}")
    if missing := [name for name in facts["checksums"] if not (path / name).is_dir()]:
        raise ValueError(f"{', '.join(missing)} is missing")
    return facts


def latest_step(folder: Path) -> int | None:
    """The last whole checkpoint of a run folder, None when there is none."""
    return survey(folder).latest


def set_aside(path: Path, folder: Path, *, copy: bool = False) -> Path:
    """Move or copy what is in the way of a run to FOLDER/set_aside, under a name that is free there."""
    (folder / ASIDE).mkdir(exist_ok=True)
    names = itertools.chain([path.name], (f"{path.stem}-{number}{path.suffix}" for number in itertools.count(2)))
    aside = next(folder / ASIDE / name for name in names if not (folder / ASIDE / name).exists())
    if copy:
        shutil.copyfile(path, aside)
    else:
        path.rename(aside)
    return aside


def _restore(
    folder: Path, facts: Mapping[str, Any], step: int, parts: Mapping[str, Any], *, whole: bool = True
) -> dict[str, Any]:
    """The named parts of a checkpoint in the shapes and shardings of `parts`, checked.

    With `whole` false a part may name some of its arrays only, and those without a sharding come back in numpy. Of
    several processes each reads what its own devices hold, and all raise what is damaged for one of them.
    """
    where = folder / CHECKPOINTS / str(step)
    with processes.together(DamagedError):
        try:
            restored = {name: _read(where / name, target, whole) for name, target in parts.items()}
        except Exception as error:  # tensorstore raises anything from KeyError to groups of errors
            raise DamagedError(f"cannot read checkpoint {where}: {_reason(error)}") from error
    now = {name: _sums_here(tree) for name, tree in restored.items()}
    with processes.together(DamagedError):
        for name in parts:
            then = facts["checksums"][name]
            if damaged := [path for path, sums in now[name].items() if (sums != then.get(path)).any()]:
                differ = "differ from their checksums" if damaged[1:] else "differs from its checksum"
                raise DamagedError(f"checkpoint {where} is damaged: {name}{listed(damaged, most=1)} {differ}")
    return restored


def faults(folder: Path, step: int, facts: Mapping[str, Any]) -> Iterator[str | None]:
    """What is wrong with each array of a checkpoint; None: it is what was saved. In memory are MOST_READ bytes and one
    array at a time."""
    target = {"params": parameter_shapes(model_config(facts["model"], where="its facts"))}
    if "opt_state" in facts["checksums"]:
        tx = make_optimizer(AdamW(**facts["config"]["optimizer"]))
        target["opt_state"] = jax.eval_shape(tx.init, target["params"])
    for part, tree in _on_one_device(target).items():
        place = np.cumsum([x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)]) // MOST_READ
        for _, group in itertools.groupby(range(len(place)), place.__getitem__):
            yield from _faults(folder / CHECKPOINTS / str(step) / part, tree, list(group), facts["checksums"][part])


def _faults(path: Path, tree: Any, group: list[int], sums: Mapping[str, int]) -> Iterator[str | None]:
    """`faults` of some leaves of the tree at this path, read together if they can be."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    asked = [shape if number in group else ocp.PLACEHOLDER for number, (_, shape) in enumerate(leaves)]
    try:
        read = jax.tree.leaves(_read(path, jax.tree.unflatten(structure, asked), whole=False))
    except Exception as error:  # tensorstore raises anything from KeyError to groups of errors
        if len(group) == 1:
            yield f"{path.name}{names[group[0]]} cannot be read ({_reason(error)})"
        else:
            for number in group:
                yield from _faults(path, tree, [number], sums)
        return
    for number in group:
        whole = host_checksum(np.asarray(read[number])) == sums.get(names[number])
        yield None if whole else f"{path.name}{names[number]} differs from its checksum"


def _read(path: Path, target: Any, whole: bool) -> Any:
    """One part of a checkpoint. Orbax's managers wait for all processes when one restores; its handlers do not."""
    handler: Any = ocp.StandardCheckpointHandler()
    args: Any = ocp.args.StandardRestore(target)
    if not whole:
        handler = ocp.PyTreeCheckpointHandler()
        args = ocp.args.PyTreeRestore(target, jax.tree.map(_where, target), partial_restore=True)
    restored = handler.restore(path.absolute(), args=args)
    for read, asked in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
        if asked is not ocp.PLACEHOLDER and (read.shape, read.dtype) != (asked.shape, asked.dtype):
            raise ValueError(f"it holds {read.dtype} {list(read.shape)} for {asked.dtype} {list(asked.shape)}")
    return restored


def _where(asked: Any) -> ocp.RestoreArgs:
    sharding = getattr(asked, "sharding", None)
    return ocp.ArrayRestoreArgs(sharding=sharding) if sharding else ocp.RestoreArgs(restore_type=np.ndarray)


def _on_one_device(shapes: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def resume(folder: Path, facts: Mapping[str, Any], step: int, target: TrainState) -> TrainState:
    """The state saved under `step` with these facts, in the shapes and shardings of `target`.

    The mesh it was saved on does not matter. Raises DamagedError when an array differs from its checksum.
    """
    restored = _restore(folder, facts, step, {"params": target.params, "opt_state": target.opt_state})
    number = jax.device_put(jnp.int32(step), target.step.sharding)
    return TrainState(number, restored["params"], restored["opt_state"])


@partial(jax.jit, static_argnums=0)  # which keeps what it traced
def _drawn(config: ModelConfig) -> Any:
    return init_params(encoder(config, backend="reference"), jax.random.key(0))  # the shortest to trace


def parameter_shapes(config: ModelConfig) -> Any:
    """Shapes and dtypes of a model's parameters; nothing is allocated."""
    return _drawn.eval_shape(config)


def load_params(folder: Path, step: int | None = None, shardings: Any = None) -> tuple[int, ModelConfig, Any]:
    """Step, config and parameters of a run folder (the latest step by default), checked.

    `shardings` is a tree like the parameters; without it they land on one device. Raises
    FileNotFoundError when the folder holds no checkpoint, ValueError when it is damaged.
    """
    with processes.together():
        step, config, facts = find(folder, step)
    shapes = parameter_shapes(config)
    if shardings is None:
        target = _on_one_device(shapes)
    else:
        target = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings
        )
    return step, config, _restore(folder, facts, step, {"params": target})["params"]


def open_params(folder: Path, step: int | None = None) -> tuple[int, ModelConfig, ReadParameter]:
    """Step and config of a run folder, and a function that reads one parameter at a time, checked.

    Raises as `load_params` does; the function raises ValueError for a damaged parameter.
    """
    step, config, facts = find(folder, step)
    shapes = parameter_shapes(config)

    def read(path: tuple[str, ...]) -> np.ndarray:
        part: Any = shapes
        for key in path:
            part = part[key]
        for key in reversed(path):
            part = {key: part}
        array: Any = _restore(folder, facts, step, {"params": part}, whole=False)["params"]
        for key in path:
            array = array[key]
        return array

    return step, config, read


def find(folder: Path, step: int | None) -> tuple[int, ModelConfig, dict[str, Any]]:
    """A step of a run folder (the latest by default), its model and its facts. Raises as `load_params` does."""
    config, steps = read_model(folder), survey(folder)
    if step is None and not steps.whole and steps.damaged:
        raise DamagedError("; ".join(steps.damaged.values()))
    if str(step) in steps.damaged:
        raise DamagedError(steps.damaged[str(step)])
    step = steps.latest if step is None else step
    if step is None or step not in steps.whole:
        others = f" of step {step}, only of the steps {list(steps.whole)}" if steps.whole else ""
        raise FileNotFoundError(f"{folder} holds no checkpoint{others}")
    for damage in steps.damaged.values():
        warn_of_damage(f"{damage}; step {step} is read")
    return step, config, steps.whole[step]


def read_model(folder: Path) -> ModelConfig:
    """The ModelConfig of a run folder, compared, as all else that travels with its weights, with the facts of its
    last whole checkpoint. Raises FileNotFoundError when it is no run folder, ValueError for what has changed, and as
    `check_inside` does."""
    path = folder / MODEL
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not a run folder (no {MODEL}): convert a Hugging Face folder first with "
            f"python -m convert from-hf {folder} OUT"
        )
    check_inside(folder)
    config, steps = model_config(read_json(path), where=str(path)), survey(folder)
    if steps.latest is not None:
        _check_own_files(folder, config, steps.latest, steps.whole[steps.latest])
    return config


def _check_own_files(folder: Path, config: ModelConfig, step: int, facts: Mapping[str, Any]) -> None:
    then, now = asdict(model_config(facts["model"], where="its facts")), asdict(config)
    changed = [f"{MODEL}: {name} is {now[name]}, it was {then[name]}" for name in now if now[name] != then[name]]
    files, own = facts["files"], _own_files(folder)
    changed += [f"{name} is not the same" for name in sorted(files | own) if files.get(name) != own.get(name)]
    if changed:
        raise ValueError(
            f"{folder} has changed since step {step} was saved ({'; '.join(changed)}): bring the old files back"
        )


def _own_files(folder: Path) -> dict[str, str]:
    """The sha256 of each file that travels with the weights."""
    kept = {name: sha256(folder / name) for name in (HF_CONFIG, ORIGIN) if (folder / name).is_file()}
    return kept | {f"{TOKENIZER}/{name}": value for name, value in folder_hashes(folder / TOKENIZER).items()}


def model_config(values: dict[str, Any], *, where: str) -> ModelConfig:
    """The ModelConfig whose fields came from JSON. Raises ValueError, starting with `where`, for what is none."""
    try:
        shape = shape_of(values.get("model_type", ModernBertConfig.model_type))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if unknown := sorted(values.keys() - {field.name for field in fields(shape)}):
        raise ValueError(f"{where} has fields of no model: {reprlib.repr(unknown)}")
    given: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
    try:
        return shape(**given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def write_model(
    folder: Path, config: ModelConfig, *, tokenizer: Path | None, hf_config: dict | None, origin: dict | None
) -> None:
    """Write what a run folder says about its model, beside the checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MODEL, asdict(config))
    for name, content in ((HF_CONFIG, hf_config), (ORIGIN, origin)):
        if content is not None:
            write_json(folder / name, content)
    if tokenizer is not None:
        with written(folder / TOKENIZER) as partial:
            shutil.copytree(tokenizer, partial)


@dataclass(frozen=True)
class _Deferred:
    """A parameter that is read when it is written, so that a model is never in memory whole."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    tell: Callable[[int], None]  # its checksum

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class _DeferredHandler(ocp.type_handlers.NumpyHandler):
    """Writes one deferred parameter after the other, in Orbax's own format for arrays."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(self, values: Any, infos, args=None):
        with ahead(lambda value: value.read(), values) as arrays:
            for value, array, info, arg in zip(values, arrays, infos, args or [None] * len(values), strict=True):
                being_written = await super().serialize([array], [info], [arg or ocp.SaveArgs()])
                value.tell(host_checksum(array))  # meanwhile
                for each in being_written:
                    each.result()
        return []


def save_start(
    folder: Path, config: ModelConfig, read: ReadParameter, *, hf_config: dict | None, origin: dict | None
) -> None:
    """Make a run folder that a run can start from: the model's files and, as step 0, the parameters that
    `read` gives, each once; the next one is read while one is written."""
    write_model(folder, config, tokenizer=None, hf_config=hf_config, origin=origin)
    types = ocp.type_handlers.create_type_handler_registry((_Deferred, _DeferredHandler()))
    # Weights do not shrink; and what is never added to needs no database of arrays, which takes a copy more to write.
    plain = ocp.PyTreeCheckpointHandler(type_handler_registry=types, use_compression=False, use_ocdbt=False)
    sums: dict[str, int] = {}

    def deferred(path: Any, x: Any) -> _Deferred:
        tell = partial(sums.__setitem__, jax.tree_util.keystr(path))
        return _Deferred(x.shape, np.dtype(x.dtype), partial(read, path_keys(path)), tell)

    tree = jax.tree_util.tree_map_with_path(deferred, parameter_shapes(config))
    step = (folder / CHECKPOINTS / "0").absolute()
    with _reporting(folder):
        step.mkdir(parents=True)
        with ocp.Checkpointer(plain) as arrays, ocp.Checkpointer(ocp.JsonCheckpointHandler()) as facts:
            arrays.save(step / "params", args=ocp.args.PyTreeSave(tree))
            meta = _sealed(0, {"params": sums}, _own_files(folder), {"model": asdict(config)})
            facts.save(step / "meta", args=ocp.args.JsonSave(meta))


def path_keys(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The keys of a parameter's path as jax.tree_util gives it."""
    return tuple(entry.key for entry in path)


def own_vocabulary(tokenizer: Path) -> dict[str, Any]:
    """What the tokenizer of a model says, by field of a store's manifest; {} when the folder holds none.

    Of a tokenizer.json alone its hash: no other file names its special tokens, so the store's may.
    """
    path = tokenizer / "tokenizer.json"
    if not path.is_file():
        return {}
    alone = not any((tokenizer / name).is_file() for name in NAMING)
    return {"tokenizer_sha256": sha256(path)} if alone else Encoder(tokenizer).vocabulary
