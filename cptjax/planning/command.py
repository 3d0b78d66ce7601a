"""The commands that look ahead: plan, doctor. What they do is imported when they do it: their help is there at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import OmitArgPrefixes

from cptjax.command.escape import say
from cptjax.command.line import Options
from cptjax.files import check_out, write_json
from cptjax.machine.devices import device_facts, nearest
from cptjax.planning.assumptions import Assumptions
from cptjax.run.command import OfConfig


@dataclass(frozen=True, kw_only=True)
class Plan(OfConfig):
    """FLOPs, memory, time and cost of a config before there is any hardware. Any field of the config can be given too,
    plan CONFIG --help lists them."""

    topology: str | None = None  # TPUs to compile for, such as v5e:4x4; not needed here, the package libtpu is
    devices: int | None = None  # how many devices to plan for, by formula; needs --device
    device: str | None = None  # their kind, such as 'NVIDIA GeForce RTX 4090'; --memory and --peak together do without
    assumptions: OmitArgPrefixes[Assumptions] = field(default_factory=Assumptions)
    out: Path | None = None  # JSON file

    def __call__(self, rest: Sequence[str]) -> None:
        """Print the plan."""
        self.assumptions.check()
        device = self._device()
        import jax

        from cptjax.data.batches import Batches
        from cptjax.planning import plan
        from cptjax.run.set_up import to_train
        from cptjax.run.sizing import in_words

        if self.topology:
            jax.config.update("jax_platforms", "cpu")  # the TPUs are elsewhere
        check_out(self.out)
        run = self.run(rest)
        report = plan.plan(
            run,
            to_train(run, plan.shape_of(run)),
            topology=self.topology,
            devices=self.devices or (1 if device else None),
            device=device,
            assumptions=self.assumptions,
        )
        say(plan.text(report).rstrip("\n"))
        if absent := [store for store in run.data.shares if not Path(store).is_dir()]:
            say(f"how often the text is read is not told, for it is not there: {', '.join(absent)}")
        else:
            say("\n".join(in_words(run, Batches(run.data), report["micro_batches"])))
        if self.out is not None:
            write_json(self.out, report)

    def _device(self) -> str | None:
        """The kind of the devices that are not here, None where they are or a topology is given. Raises ValueError
        where it is not clear which are meant, or nothing is known of them."""
        given = self.assumptions
        device = self.device
        if device is None and self.topology is None and given.memory and given.peak:
            device = f"device of {given.memory:g} GiB and {given.peak:g} TFLOP/s"
        if (self.devices is not None and device is None) or (self.topology and device):
            raise ValueError(
                "give --devices and --device together, or --topology, or neither for this machine's devices"
            )
        if self.devices is not None and self.devices < 1:
            raise ValueError(f"--devices is {self.devices}: it must be at least 1")
        if device and not given.peak and device_facts(device) is None:
            raise ValueError(
                f"nothing is known of {device!r}: give --memory and --peak, or a name as jax has it, such as "
                f"{' or '.join(nearest(device))}"
            )
        return device


@dataclass(frozen=True, kw_only=True)
class Doctor(Options):
    """What this machine is, and which kernels are right and fast on it."""

    out: Path | None = None  # JSON file

    def __call__(self, rest: Sequence[str]) -> None:
        """Print what was found. Raises ValueError for what is wrong here."""
        check_out(self.out)
        from cptjax.planning import doctor

        report = doctor.examine()
        say(doctor.text(report).rstrip("\n"))
        if self.out is not None:
            write_json(self.out, report)
        if failures := doctor.failures(report):
            raise ValueError("; ".join(failures))
