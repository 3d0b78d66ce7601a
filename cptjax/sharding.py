"""Where arrays live: the mesh, one table of rules for parameters, rows of the batch over devices.

Axes of the mesh: `data` copies the parameters, `fsdp` shards them and gathers them when used, `tensor`
splits heads and feed-forward. GSPMD does the rest (arXiv:2105.04663), but where it would exchange too much: there the
model and the loss say what each device does with its own rows or heads (`on_own_rows`, `on_own_heads`).
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

AnyMesh = jax.sharding.Mesh | jax.sharding.AbstractMesh
LANES = 128  # of a TPU's vector registers: arrays lie in tiles so wide
AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # a batch row goes to one device of these axes
VOCABULARY = ("tensor", "fsdp")  # what is split along the vocabulary

# How a table with a row per word, position or token type is split: the first of these whose devices divide it. Along
# its width last, for a lookup from a table split so makes XLA copy it whole.
TABLE = (P(VOCABULARY), P("tensor", "fsdp"), P(None, VOCABULARY), P())

# (path pattern, spec). Weights: width D over fsdp, heads or feed-forward F over tensor. Tables: as TABLE says.
RULES: tuple[tuple[str, P], ...] = (
    (r"embeddings/\w+_embeddings|decoder/(weight|bias)", P(VOCABULARY)),
    (r"attn/Wqkv", P(None, "tensor", None, "fsdp")),
    (r"attn/Wqkv_bias", P(None, "tensor", None)),
    (r"attn/Wo", P("fsdp", "tensor", None)),
    (r"mlp/Wi", P(None, "tensor", "fsdp")),
    (r"mlp/Wi_bias", P(None, "tensor")),
    (r"mlp/Wo", P("fsdp", "tensor")),
    (r"(head|pooler)/dense", P(None, "fsdp")),
    (r"(attn/Wo|mlp/Wo|head/dense|pooler/dense)_bias|classifier/(weight|bias)", P()),
    (r"(\w*norm)/(scale|bias)", P()),
)


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis; -1 on one axis means all that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def mesh_sizes(shape: Mesh, count: int) -> tuple[int, ...]:
    """Devices along each axis, of `count`. ValueError when the shape does not use every device exactly once."""
    sizes = [shape.data, shape.fsdp, shape.tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh {sizes} (data, fsdp, tensor): sizes are positive, and one at most may be -1")
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, count // -int(np.prod(sizes)))
    if int(np.prod(sizes)) != count:
        raise ValueError(
            f"mesh data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]} needs {int(np.prod(sizes))} devices, "
            f"but there are {count}: choose sizes whose product is {count}"
        )
    return tuple(sizes)


def make_mesh(shape: Mesh, devices: list | None = None) -> jax.sharding.Mesh:
    """The device mesh. Raises ValueError when the shape does not use every device exactly once."""
    devices = jax.devices() if devices is None else devices
    sizes, auto = mesh_sizes(shape, len(devices)), (AxisType.Auto,) * len(AXES)
    if (ordered := by_slices(sizes, devices)) is not None:
        return jax.sharding.Mesh(ordered, AXES, axis_types=auto)
    return jax.make_mesh(sizes, AXES, axis_types=auto, devices=devices)


def by_slices(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray | None:
    """Devices that are in slices, fast inside and slow between, in the order of a mesh of these sizes.

    Slices lie along `data`, which exchanges least, what it has no room for along `fsdp`, never along `tensor`. None
    where there is one slice, or the sizes do not allow it: then they lie as they come.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    along_data = math.gcd(sizes[0], slices)
    slow = along_data, math.gcd(sizes[1], slices // along_data), 1
    if slices == 1 or math.prod(slow) != slices:
        return None
    fast = tuple(size // between for size, between in zip(sizes, slow, strict=True))
    return mesh_utils.create_hybrid_device_mesh(fast, slow, devices, allow_split_physical_axes=True)


def spec_for(path: str, shape: Sequence[int], mesh: AnyMesh) -> P:
    """How a parameter of this shape is split over the mesh: the one rule it matches, after a layer axis where it is
    stacked.

    Raises ValueError when no rule or more than one matches, and for a dimension that its mesh axes do not divide.
    """
    rule = _rule(path)
    if VOCABULARY in rule:
        return _table_spec(shape, mesh)
    stacked = (None,) if is_stacked(path) else ()
    spec = P(*stacked, *rule, *(None,) * (len(shape) - len(stacked) - len(rule)))
    for size, devices, axes in _undivided(spec, shape, mesh):
        raise ValueError(f"{path}: dimension {size} is not a multiple of the {devices} devices of {axes}")
    return spec


def _rule(path: str) -> P:
    matching = [spec for pattern, spec in RULES if re.fullmatch(rf"(.*/)?({pattern})", path)]
    if len(matching) != 1:
        raise ValueError(f"parameter {path} matches {len(matching)} sharding rules, it must match exactly one")
    return matching[0]


def _table_spec(shape: Sequence[int], mesh: AnyMesh) -> P:
    """How a table [V, D], what it is made of along its words [V], or one number, is split."""
    specs = (P(*spec[: len(shape)], *(None,) * (len(shape) - len(spec))) for spec in TABLE)
    return next(spec for spec in specs if not _undivided(spec, shape, mesh))


def _undivided(spec: P, shape: Sequence[int], mesh: AnyMesh) -> list[tuple[int, int, tuple[str, ...]]]:
    """The dimensions that their devices do not divide: size, number of devices and their axes."""
    axes = [(entry,) if isinstance(entry, str) else entry or () for entry in spec]
    parts = [int(np.prod([mesh.shape[axis] for axis in names])) for names in axes]
    return [each for each in zip(shape, parts, axes, strict=True) if each[0] % each[1]]


def is_stacked(path: str) -> bool:
    """Whether a parameter holds several layers, along its first axis."""
    return path.startswith("blocks/")


def parameter_path(path: tuple[Any, ...]) -> str:
    """A parameter's name in RULES, such as blocks/l0/mlp/Wi, from its place in any tree that holds parameters."""
    return "/".join(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))


def shard_tree(mesh: AnyMesh, shapes: Any) -> Any:
    """The sharding of every leaf of a parameter tree, or of an optimiser state that mirrors one.

    What counts steps is replicated. Raises ValueError for a dimension that its mesh axes do not divide.
    """

    def placed(path, leaf):
        name = parameter_path(path)
        if not name or jax.tree_util.GetAttrKey("count") in path:
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, spec_for(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(placed, shapes)


def row_devices(mesh: AnyMesh) -> int:
    """How many devices the rows of a batch are spread over."""
    return int(np.prod([mesh.shape[axis] for axis in ROWS]))


def device_rows(rows: int) -> int:
    """How many of `rows` rows a device of the mesh in use has; all of them without a mesh, or where a device has been
    given its own rows already."""
    mesh = jax.sharding.get_abstract_mesh()
    return rows if mesh.empty or set(ROWS) <= set(mesh.manual_axes) else -(-rows // row_devices(mesh))


def platform() -> str:
    """The platform that a program is traced for, such as cpu: that of the mesh in use, whose devices need not be here;
    jax's default without a mesh."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def own_rows(mesh: jax.sharding.Mesh, rows: int) -> list[int]:
    """Numbers of the rows that devices of this process hold, of a batch of `rows`: each once, ascending.

    The order of a mesh's devices need not be that of their processes, and several may hold the same rows.
    """
    places: Any = NamedSharding(mesh, P(ROWS)).addressable_devices_indices_map((rows,)).values()
    return sorted({row for (place,) in places for row in range(rows)[place]})


def put(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh, rows: int) -> dict[str, jax.Array]:
    """The `own_rows` of a batch of `rows` -> the global batch, rows spread over the data and fsdp axes."""
    sharding, own = NamedSharding(mesh, P(ROWS)), own_rows(mesh, rows)

    def place(x):
        def held(index):  # its rows follow each other in `own` too
            return x[slice(*np.searchsorted(own, index[0].indices(rows)[:2]))]

        return jax.make_array_from_callback((rows, *x.shape[1:]), sharding, held)

    return {name: place(x) for name, x in batch.items()}


def pin_rows(x: jax.Array) -> jax.Array:
    """Keep activations sharded by row under the current mesh; XLA might otherwise follow the weights."""
    return jax.lax.with_sharding_constraint(x, P(ROWS))


def pin_parameters(tree: Any) -> Any:
    """Keep a tree of parameters, or of their gradients, sharded by the rules under the current mesh, if any."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jax.lax.with_sharding_constraint(x, spec_for(parameter_path(path), x.shape, mesh)), tree
    )


def gather_tables(params: Any) -> Any:
    """The parameters with tables whole on every device of the fsdp axis, and split over `tensor` along words only.

    Once a step: in every micro-batch the gathering would cost as much as that of many layers.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return params

    def gathered(path, x):
        if VOCABULARY not in _rule(parameter_path(path)):
            return x
        words = _table_spec(x.shape, mesh)[0]
        return jax.lax.with_sharding_constraint(x, P("tensor" if words else None))

    return jax.tree_util.tree_map_with_path(gathered, params)


def on_own_rows(function: Callable, split: Sequence[bool]) -> Callable:
    """`function(*arrays) -> (summed, kept)` where each device of the mesh in use works on its own rows of the batch.

    `split` says which arrays are cut along their rows; the others, such as gathered tables, are whole. `kept`
    comes back cut along its rows. What is in `summed` goes along the vocabulary, or is one number: it is added
    up over the devices once, and comes back split as the tables are. Without a mesh, `function` itself: left to
    itself the partitioner adds up in every turn of a loop, and gathers the sums again.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function

    def local(*arrays):
        summed, kept = function(*arrays)
        return jax.tree.map(lambda x: x[None], summed), kept

    def joined(*arrays):
        in_specs = tuple(P(ROWS) if is_split else P() for is_split in split)
        work = jax.shard_map(local, in_specs=in_specs, out_specs=P(ROWS), axis_names=set(ROWS), check_vma=False)
        summed, kept = work(*arrays)
        return jax.tree.map(add_up, summed), kept

    # Outside, by the partitioner: inside it would gather what `tensor` splits, for that axis is not manual there.
    def add_up(x):
        return jax.lax.with_sharding_constraint(x.sum(0), _table_spec(x.shape[1:], mesh))

    return joined


def on_own_heads(attend: Callable) -> Callable:
    """`attend(q, k, v, segment_BL)`, of arrays [B, L, H, K], where each device of the mesh in use works on its own rows
    and heads, as kernels must, which the partitioner cannot split. Without a mesh, `attend` itself."""
    if jax.sharding.get_abstract_mesh().empty:
        return attend
    heads = P(ROWS, None, "tensor", None)
    return jax.shard_map(attend, in_specs=(heads,) * 3 + (P(ROWS, None),), out_specs=heads, check_vma=False)
