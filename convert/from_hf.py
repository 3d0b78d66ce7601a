"""A Hugging Face folder, read strictly: every tensor is used, or the folder is refused.

Only config.json and safetensors are read; no pickle, no remote code.
"""

import re
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from convert import portable, table
from convert.families import family_of
from convert.family import refusals
from convert.tensors import DTYPES, LENGTH
from cptjax import bounds
from cptjax.command.bar import bar
from cptjax.command.errors import reading
from cptjax.command.escape import listed, say
from cptjax.data.tokenizer import how_to_make, load_tokenizer, quoted
from cptjax.files import TOKENIZER_FILES, check_inside, copy_tokenizer, new_folder, parse_json, read_json
from cptjax.machine import hub
from cptjax.run import checkpoint
from cptjax.run.checkpoint import parameter_shapes, path_keys
from cptjax.shape import ModelConfig

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NEEDED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
WITNESSES = {  # our parameter, and the axis of its tensor, that show a field of config.json
    "vocab_size": ("embeddings/tok_embeddings", 0),
    "hidden_size": ("embeddings/tok_embeddings", 1),
    "max_position_embeddings": ("embeddings/position_embeddings", 0),
    "type_vocab_size": ("embeddings/token_type_embeddings", 0),
    "intermediate_size": ("mlp/Wo", 1),
    "num_labels": ("classifier/weight", 0),
}
MOST_PROBLEMS = 50  # of the tensors that do not fit
EXACT = ("F32", "F16", "BF16")  # safetensors dtypes whose every value is a float32


def load(source: str | Path, *, revision: str | None = None, shardings: Any = None) -> tuple[ModelConfig, dict]:
    """Shape and float32 parameters of a model, from a folder or a Hub id.

    Numpy arrays; with `shardings`, a tree like the parameters, each goes to its devices as soon as it is
    read. Raises FileNotFoundError where there is no such model, and ValueError, naming every offending
    field or tensor at once, where there is one that this project cannot represent exactly.
    """
    weights = open_weights(find(source, revision=revision))
    leaves, tree = jax.tree.flatten(parameter_shapes(weights.config))
    places = [None] * len(leaves) if shardings is None else jax.tree.leaves(shardings)
    arrays = [
        array if place is None else jax.make_array_from_callback(array.shape, place, array.__getitem__)
        for (_, array), place in zip(weights.parameters(), places, strict=True)
    ]
    return weights.config, jax.tree.unflatten(tree, arrays)


def convert_folder(
    source: str | Path, out: Path, *, revision: str | None = None, overwrite: bool = False
) -> ModelConfig:
    """Write the run folder whose step 0 is this model. Raises as `load` and `new_folder` do, and
    ValueError where the tokenizer has ids that the model has not; says on stderr where there is no tokenizer."""
    with new_folder(Path(out), markers=(checkpoint.MODEL,), overwrite=overwrite) as partial:
        folder = find(source, revision=revision)
        weights = open_weights(folder)
        check_tokenizer(folder, weights.config.vocab_size)
        copy_tokenizer(folder, partial / checkpoint.TOKENIZER)
        origin = {"source": str(source), "revision": None if Path(source).is_dir() else folder.name}
        hf_config = read_json(folder / "config.json")
        size = sum(4 * x.size for x in jax.tree.leaves(parameter_shapes(weights.config)))
        with bar(size, "B", "converting") as shown:

            def read(path: tuple[str, ...]) -> np.ndarray:
                array = weights.parameter(path)
                shown.update(array.nbytes)
                return array

            checkpoint.save_start(partial, weights.config, read, hf_config=hf_config, origin=origin)
        weights.check()
    if not (folder / "tokenizer.json").is_file():
        made = how_to_make(folder, source)
        say(f"warning: {made}; no text can be prepared for this model, and no run released, without", stream=sys.stderr)
    return weights.config


def read_shape(source: str | Path, *, revision: str | None = None) -> ModelConfig:
    """The shape of a Hugging Face folder or Hub id, whose weights are not read. Raises as `load` does."""
    folder = find(source, revision=revision, weights=False)
    return read_config(read_json(folder / "config.json"), where=f"{source}/config.json")


def find(source: str | Path, *, revision: str | None = None, weights: bool = True) -> Path:
    """The folder itself when it exists, else the Hub repository of that id, downloaded, its weights on request.

    Without a network, and with HF_HUB_OFFLINE=1, the Hub's cache on this disk answers. Raises as `check_inside` does.
    """
    if Path(source).is_dir():
        if revision is not None:
            raise ValueError(f"{source} is a local folder; a revision needs a Hub id")
        check_inside(Path(source))
        return Path(source)
    patterns = ["*.safetensors", INDEX, "config.json", *TOKENIZER_FILES] if weights else ["config.json"]
    fetched = hub.fetch(str(source), patterns, revision)
    if weights and not any(fetched.glob("*.safetensors")):
        import huggingface_hub

        names: list[str] = []
        with suppress(Exception):  # no network, in the words of whichever library: what the Hub holds stays unknown
            names = huggingface_hub.list_repo_files(str(source), revision=revision)
        _refuse_pickles(str(source), names)
    check_inside(fetched)
    return fetched


def architecture_of(raw: dict, *, where: str = "config.json") -> str:
    """The model class that a config.json names, or the one to read its model as. Raises ValueError unless it is one in
    `table.ARCHITECTURES`."""
    kinds = list(dict.fromkeys(form.model_type for form in table.ARCHITECTURES.values()))
    if raw.get("model_type") not in kinds:
        raise ValueError(f"{where}: model_type is {raw.get('model_type')!r}, expected one of {kinds}")
    named = raw.get("architectures")
    name = str(named[0]) if isinstance(named, list) and len(named) == 1 else ""
    name = table.READ_AS.get(name, name)
    if name not in table.ARCHITECTURES or table.ARCHITECTURES[name].model_type != raw["model_type"]:
        known = [name for name, form in table.ARCHITECTURES.items() if form.model_type == raw["model_type"]]
        raise ValueError(f"{where}: architectures is {named}, expected one of {', '.join(known)}")
    return name


def config_class(architecture: str) -> Any:
    """transformers' config class of a model class; what it would log of a config is said here, or does not matter."""
    from transformers import CONFIG_MAPPING, logging

    logging.set_verbosity_error()
    return CONFIG_MAPPING[table.ARCHITECTURES[architecture].model_type]


def read_config(raw: dict, *, where: str = "config.json") -> ModelConfig:
    """The model's shape from a config.json of transformers 4 or 5.

    Raises ValueError, starting with `where`, for what is missing or has no counterpart here.
    """
    architecture = architecture_of(raw, where=where)
    try:
        return _read_config(raw, architecture)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _read_config(raw: dict, architecture: str) -> ModelConfig:
    family, form = family_of(architecture), table.ARCHITECTURES[architecture]
    raw = family.prepared(raw, architecture)
    said = {name: value for name, value in raw.items() if name in family.said() | bounds.ELSEWHERE}
    wrong = bounds.complaints(dict.fromkeys(NEEDED) | said)  # here, for transformers counts up to any number
    wrong += portable.complaints(raw)
    if wrong:
        raise ValueError("; ".join(wrong))
    if type(pad := raw.get("pad_token_id")) is int and not 0 <= pad < raw["vocab_size"]:
        raise ValueError(f"pad_token_id {pad} is no id of a vocabulary of {raw['vocab_size']}")
    with refusals():
        normal: Any = config_class(architecture).from_dict(raw)
    values = {name: getattr(normal, name) for name in family.same() if hasattr(normal, name)}
    values |= family.values(normal, architecture)
    values |= {"model_type": form.shape_type, "head": form.head}
    values |= {"num_labels": normal.num_labels if form.head == "classifier" else 0}
    config = family.shape(**values)
    family.check(raw, config, architecture)
    return config


class Stored(NamedTuple):
    """Where a tensor lies, and what its file's header says of it."""

    file: Path
    offset: int  # of its first byte there
    shape: tuple[int, ...]
    dtype: str  # in safetensors' words

    def tensor(self) -> np.ndarray:
        """A view of the file. Raises ValueError where it has been cut since its header was read."""
        with _told(self.file, ValueError):
            return np.memmap(self.file, DTYPES[self.dtype], "r", self.offset, self.shape)


class Weights:
    """The parameters of a folder, float32, read one at a time and never all at once.

    Raises ValueError, before there is any array, naming all that the files' headers show to be wrong.
    """

    def __init__(self, folder: Path, config: ModelConfig, architecture: str):
        self._folder = folder
        listed = [item for file in weight_files(folder) for item in _header(file, architecture)]
        tensors = dict(listed)
        self.config = config = family_of(architecture).fitted(config, architecture, tensors)
        wanted = {entry.hf_name: entry for entry in table.entries(config, architecture)}
        _leave_out(tensors, wanted, architecture, where=str(folder))
        self._twice: list[tuple[table.Copy, Stored, Stored]] = []  # tensors that are stored under two names
        for copy in table.copies(config, architecture):
            if copy.hf_name in tensors:
                alias = tensors.pop(copy.hf_name)  # alone where safetensors' save_model wrote the file
                if tensors.setdefault(copy.of, alias) is not alias:
                    self._twice.append((copy, alias, tensors[copy.of]))
        if unlike := [
            f"{field} is {getattr(config, field)}, the weights hold {size}"
            for field, size in _sizes(tensors, architecture).items()
            if getattr(config, field) not in (0, size)
        ]:
            raise ValueError(f"{folder / 'config.json'}: {'; '.join(unlike)}")
        problems = [f"twice: {name}" for name, times in Counter(name for name, _ in listed).items() if times > 1]
        problems += [
            problem for name, stored in tensors.items() if (problem := _mismatch(name, wanted.get(name), stored))
        ]
        problems += [f"missing: {table.stored_name(name, architecture)}" for name in wanted if name not in tensors]
        self._refuse(problems)
        self._pieces: dict[tuple[str, ...], list[tuple[table.Entry, Stored]]] = defaultdict(list)
        for name, stored in tensors.items():
            self._pieces[wanted[name].path].append((wanted[name], stored))
        self._not_finite: dict[str, None] = {}  # in the order in which they were read
        shapes = jax.tree_util.tree_leaves_with_path(parameter_shapes(config))
        self._shapes = {path_keys(path): x.shape for path, x in shapes}

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            named = listed(problems, most=MOST_PROBLEMS, between="; ")
            raise ValueError(f"{self._folder} does not fit its config: {named}")

    def parameter(self, path: tuple[str, ...]) -> np.ndarray:
        """One parameter in our layout; what is wrong with its values is kept for `check`."""
        array = np.zeros(self._shapes[path], np.float32)
        for entry, stored in self._pieces[path]:
            array[entry.index] = entry.to_ours(stored.tensor())
        if not np.isfinite(array).all():
            pieces = [entry for entry, _ in self._pieces[path]]
            self._not_finite |= {x.hf_name: None for x in pieces if not np.isfinite(array[x.index]).all()}
        return array

    def check(self) -> None:
        """Raise ValueError, naming every tensor that was read and is not finite, or is not what it is tied to."""
        untied = [
            f"{copy.hf_name} differs from {copy.of}, but {copy.why}"
            for copy, alias, stored in self._twice
            if alias.dtype not in DTYPES or not np.array_equal(alias.tensor(), stored.tensor())
        ]
        self._refuse([*(f"not finite: {name}" for name in self._not_finite), *untied])

    def parameters(self) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
        """Path and array of each parameter, in the order of the model's tree; then raises as `check` does."""
        for path in self._shapes:
            yield path, self.parameter(path)
        self.check()


def open_weights(folder: Path) -> Weights:
    """The weights of a folder, for the model that its config.json describes."""
    where = str(folder / "config.json")
    with reading(folder):
        raw = read_json(folder / "config.json")
        return Weights(folder, read_config(raw, where=where), architecture_of(raw, where=where))


def _header(file: Path, architecture: str) -> Iterator[tuple[str, Stored]]:
    """Full name and place of each tensor of a file, which the format's library has found whole."""
    with opened(file), file.open("rb") as stream:
        size = int.from_bytes(stream.read(LENGTH), "little")
        header = parse_json(stream.read(size), str(file))
    header.pop("__metadata__", None)
    for key, told in header.items():
        offset = LENGTH + size + told["data_offsets"][0]
        yield table.full_name(key, architecture), Stored(file, offset, tuple(told["shape"]), told["dtype"])


def _leave_out(tensors: dict[str, Stored], wanted: Collection[str], architecture: str, *, where: str) -> None:
    """Take buffers out of what a file holds, and what belongs to heads that no class here has, which is said."""
    names = table.NAMES[table.ARCHITECTURES[architecture].model_type]
    for name in names.buffers:
        tensors.pop(name, None)
    if left := sorted(name for name in tensors.keys() - wanted if name.startswith(names.left_over)):
        for name in left:
            del tensors[name]
        say(f"note: {where}: left out what a {architecture} has no place for: {', '.join(left)}", stream=sys.stderr)


def _sizes(tensors: Mapping[str, Stored], architecture: str) -> dict[str, int]:
    """Fields of the config as the tensors show them."""
    names = {row.path: row.hf_name for row in table.rows_of(architecture)}
    witnesses = {field: (names[path].format(i=0), axis) for field, (path, axis) in WITNESSES.items() if path in names}
    sizes = {
        field: tensors[name].shape[axis]
        for field, (name, axis) in witnesses.items()
        if name in tensors and len(tensors[name].shape) == 2
    }
    before = re.escape(names["mlp/Wo"].split("{i}")[0])
    layers = [1 + int(match[1]) for name in tensors if (match := re.match(rf"{before}(\d{{1,9}})\.", name))]
    return sizes | ({"num_hidden_layers": max(layers)} if layers else {})


def _mismatch(name: str, entry: table.Entry | None, stored: Stored) -> str:
    """What a file's header says against a tensor, nothing when it fits."""
    if entry is None:
        return f"unexpected: {name}"
    if stored.shape != entry.hf_shape:
        return f"wrong shape: {name} have {stored.shape} want {entry.hf_shape}"
    if stored.dtype not in EXACT:
        return f"not float: {name} is {stored.dtype}"
    return ""


def check_tokenizer(folder: Path, vocab_size: int) -> None:
    """Raise ValueError when the tokenizer of a folder, if it has one, makes ids that the model has not."""
    if (folder / "tokenizer.json").is_file():
        last = max(load_tokenizer(folder).get_vocab(with_added_tokens=True).values(), default=-1)
        if last >= vocab_size:
            raise ValueError(
                f"{folder}: the tokenizer has ids up to {last}, but vocab_size is {vocab_size}: "
                "one of them belongs to another model"
            )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or the shards its index names."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{folder / INDEX} has no weight_map")
        named = sorted(set(map(str, weight_map.values())))
        if strange := [name for name in named if Path(name).name != name or not name.endswith(".safetensors")]:
            raise ValueError(f"{folder / INDEX} names what is no shard beside it: {', '.join(strange)}")
        files = [folder / name for name in named]
        if absent := [path.name for path in files if not path.is_file()]:
            raise FileNotFoundError(f"{folder} lacks the shards {', '.join(absent)}")
        return files
    _refuse_pickles(str(folder), [path.name for path in folder.iterdir()])
    raise FileNotFoundError(f"{folder} has no {SINGLE} and no {INDEX}")


def _refuse_pickles(source: str, names: Iterable[str]) -> None:
    if pickled := sorted(name for name in names if name.endswith((".bin", ".pt"))):
        code = (
            "from transformers import AutoModelForMaskedLM as M; "
            f"M.from_pretrained({quoted(source)}).save_pretrained({quoted(f'{Path(source).name}-safetensors')})"
        )
        raise ValueError(
            f"{source} has {', '.join(pickled)} but no {SINGLE}; pickle is not read here. "
            f"If you trust the file, convert it where torch is installed: python -c {shlex.quote(code)}"
        )


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """An open safetensors file. Raises ValueError with the path for a broken one."""
    with _told(path, SafetensorError), safe_open(path, framework="numpy") as tensors:
        yield tensors


@contextmanager
def _told(path: Path, kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
