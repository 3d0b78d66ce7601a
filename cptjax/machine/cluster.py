"""Where a process stands among those of its run: from the command line, or from whatever launched them."""

import os
from typing import Any, NamedTuple

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
SLURM_COUNT, MPI_COUNT = "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"


class Place(NamedTuple):
    """Where process 0 listens, how many processes there are, and which one this is."""

    host: str
    port: int
    count: int
    index: int
    devices: list[int] | None = None  # of this machine's GPUs, those of this process; None for all

    @property
    def is_loopback(self) -> bool:
        """Whether all are on one machine, and no other can come."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


def place(distributed: str, within: float) -> Place | None:
    """What `--distributed` says; None for a process by itself.

    `auto` asks jax's three variables, Slurm (srun), Open MPI, the variables or the metadata server of a TPU pod, and
    Kubernetes: all but the first as jax knows them, which may wait `within` seconds for a host's name. ValueError when
    one of them says what cannot be, or not enough.
    """
    if distributed == "off":
        return None
    if distributed != "auto":
        address, *numbers = distributed.split(",")
        if len(numbers) != 2:
            raise ValueError(f"--distributed is {distributed!r}: it is auto, off or HOST:PORT,PROCESSES,NUMBER")
        return _given(*(("--distributed", text) for text in (address, *numbers)))
    tasks = _number(SLURM_COUNT, os.environ.get(SLURM_COUNT) or "1", 1)
    ranks = _number(MPI_COUNT, os.environ.get(MPI_COUNT) or "1", 1)
    own = {name: os.environ.get(name) or "" for name in (ADDRESS, COUNT, INDEX)}
    if any(own.values()):
        own[INDEX] = own[INDEX] or os.environ.get("JOB_COMPLETION_INDEX", "")  # of Kubernetes
    launched = max(tasks, ranks) > 1 and not (own[COUNT] and own[INDEX])  # a launcher may know all but the address
    if any(own.values()) and not (launched and own[ADDRESS]):
        if missing := [name for name, text in own.items() if not text]:
            raise ValueError(f"to join the other processes, set {', '.join(missing)} too")
        return _given(*own.items())
    if tasks > 1:
        return _of_jax("SlurmCluster", within, alone_on_host=os.environ.get("SLURM_STEP_NUM_NODES") == str(tasks))
    if ranks > 1 and not own[ADDRESS] and "OMPI_MCA_orte_hnp_uri" not in os.environ:
        raise ValueError(f"Open MPI 5 does not say where process 0 is: mpirun -x {ADDRESS}=HOST:PORT does")
    if ranks > 1:
        return _of_jax("OmpiCluster", within, alone_on_host=os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1")
    return _of_pod(within)


def _given(address: tuple[str, str], count: tuple[str, str], index: tuple[str, str]) -> Place:
    """From texts, each with the name of what said it."""
    host, _, port = address[1].rpartition(":")
    if not host:
        raise ValueError(f"{address[0]} is {port!r}: it is HOST:PORT")
    number = _number(address[0], port, 1, 2**16 - 1)
    processes = _number(*count, 1)
    return Place(host.strip("[]"), number, processes, _number(*index, 0, processes - 1))


def _number(name: str, text: str, least: int, most: int = 2**20) -> int:
    """A whole number that a variable of the environment ends with."""
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise ValueError(f"{name} says {text!r} where a number from {least} to {most} is needed")
    return int(text)


def _of_pod(within: float) -> Place | None:
    """On a TPU VM or in a pod of Kubernetes; None for one that is alone, or elsewhere."""
    try:
        for name in ("GkeTpuCluster", "GceTpuCluster"):
            if _jax(name).is_env_present():
                return _of_jax(name, within)
        if os.environ.get("JOB_COMPLETION_INDEX") and _jax("K8sCluster").is_env_present():
            return _of_jax("K8sCluster", within)
    except Exception as error:  # whatever a metadata server or an API answers, or that none does
        raise ValueError(
            f"cannot learn which other processes there are ({type(error).__name__}: {error}): "
            "--distributed off trains by this one alone, HOST:PORT,PROCESSES,NUMBER says it"
        ) from error
    return None


def _of_jax(name: str, within: float, *, alone_on_host: bool = True) -> Place | None:
    """What jax knows of a launcher. A process that is not alone on its host has one GPU, by its number there."""
    known = _jax(name)
    count = known.get_process_count()
    if count == 1:
        return None
    port = os.environ.get("JAX_COORDINATOR_PORT")
    address = os.environ.get(ADDRESS) or known.get_coordinator_address(int(within), port)
    devices = None if alone_on_host or os.environ.get("JAX_LOCAL_DEVICE_IDS") else [known.get_local_process_id()]
    return _given((name, address), (name, str(count)), (name, str(known.get_process_id())))._replace(devices=devices)


def _jax(name: str) -> Any:
    """One of jax's launchers, which it has in a private module."""
    from jax._src import clusters

    return getattr(clusters, name)


def in_words(processes: list[int]) -> str:
    """Of ascending numbers: process 1, processes 0, 2-7."""
    runs: list[list[int]] = []
    for process in processes:
        if runs and runs[-1][-1] == process - 1:
            runs[-1] = [runs[-1][0], process]
        else:
            runs.append([process])
    return f"process{'es' * (len(processes) > 1)} {', '.join('-'.join(map(str, run)) for run in runs)}"
