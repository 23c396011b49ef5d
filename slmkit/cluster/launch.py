"""What `slmkit launch` would start: which machines, ranks and devices, the command line, the variables that travel.

Three ways: this machine alone, the machines of a DeepSpeed hostfile, a Slurm job. A plan is a plain value; making one
reads no machine, and `launcher.py` starts it.

Invariant: a plan exists only if the global batch splits evenly over its processes.

Example:
    plan = plan_hosts(Job(config="run.yaml"), read_hostfile("hostfile"), "hostfile", batch=(64, 2), env=os.environ)
    "\\n".join(describe(plan))
"""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slmkit.assets import folder
from slmkit.cluster.hosts import Host
from slmkit.errors import UserError
from slmkit.world import BatchSplit

# Variables that the processes on other machines get from the one that launches; all that begin so, too. PATH is among
# them because DeepSpeed compiles operators with ninja and a compiler.
TRAVELLING = frozenset(
    ("PYTHONPATH", "PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "VIRTUAL_ENV")
)
TRAVELLING_PREFIXES = ("TORCH_", "NCCL_", "GLOO_", "UCX_", "SLMKIT_", "HF_", "TRANSFORMERS_", "DS_")
STAYING = frozenset(("DS_ENV_FILE",))
CHOSEN_LATER = "FREE_PORT"
DEEPSPEED = ("-m", "deepspeed.launcher.runner")  # the `deepspeed` command of this Python
NEEDS_ESCAPE = re.compile(r'([\\"$`])')


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train, and how many processes where."""

    config: str
    overrides: tuple[str, ...] = ()
    processes: int | None = None  # on each machine
    nodes: int | None = None  # machines
    master_addr: str | None = None
    master_port: int | None = None

    @property
    def process(self) -> str:
        """What a rank runs under DeepSpeed's launcher."""
        return shlex.join([sys.executable, "-u", "-m", "slmkit", "--local_rank=N", *self.train_words])

    @property
    def train_words(self) -> list[str]:
        """The words after `slmkit`."""
        return ["train", "--config", self.config, *self.overrides]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A machine's part."""

    name: str
    ranks: range
    devices: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """Everything that is decided before anything starts."""

    way: str  # "this machine alone", ...
    places: tuple[Place, ...]
    split: BatchSplit
    master: str  # address and port, in words
    master_addr: str = "127.0.0.1"
    master_port: int | None = None  # None: a free one, found at the start
    command: tuple[str, ...]  # with CHOSEN_LATER for a port that is not known yet
    process: str  # what a rank runs
    travelling: Mapping[str, str]
    hosts: tuple[Host, ...] = ()  # reached over ssh; none for this machine alone and for Slurm

    def command_at(self, port: int) -> list[str]:
        """The command line with the port filled in."""
        return [word.replace(CHOSEN_LATER, str(port)) for word in self.command]


def plan_local(job: Job, batch: tuple[int, int], env: Mapping[str, str]) -> LaunchPlan:
    """This machine alone; `batch` is (global_rows, micro_rows).

    CUDA_VISIBLE_DEVICES is kept to: DeepSpeed would ignore it beside a number of processes. Raises UserError when it
    has fewer devices than there are processes.
    """
    if (job.nodes or 1) != 1:
        raise UserError(
            "--nodes without a hostfile", got=job.nodes, next_step="name a hostfile with --hostfile, or use --slurm"
        )
    count = 1 if job.processes is None else job.processes
    visible = env.get("CUDA_VISIBLE_DEVICES", "")
    if visible:
        devices = _devices(visible, count)
        chosen = ["--include", f"localhost:{','.join(map(str, devices))}"]
    else:
        devices, chosen = tuple(range(count)), ["--num_gpus", str(count)]
    port = str(job.master_port or CHOSEN_LATER)
    return LaunchPlan(
        way="this machine alone",
        places=(Place(name="localhost", ranks=range(count), devices=devices),),
        split=_split(batch, count),
        master=f"127.0.0.1, port {_port_words(job.master_port, 'this machine')}",
        master_port=job.master_port,
        command=(
            *(sys.executable, *DEEPSPEED, *chosen, "--master_port", port, "--module", "slmkit"),
            *job.train_words,
        ),
        process=job.process,
        travelling=travelling(env),
    )


def plan_hosts(
    job: Job, hosts: Sequence[Host], hostfile: str, *, batch: tuple[int, int], env: Mapping[str, str]
) -> LaunchPlan:
    """The machines of a hostfile, by DeepSpeed's launcher over pdsh and ssh.

    Raises UserError when there are fewer machines or slots than asked for, or a word that pdsh cannot carry.
    """
    if job.nodes is not None and not 1 <= job.nodes <= len(hosts):
        raise UserError(
            f"{hostfile} has not that many machines", got=f"--nodes {job.nodes}", expected=f"1 to {len(hosts)}"
        )
    hosts = tuple(hosts[: job.nodes])
    small = [host.name for host in hosts if host.slots < (job.processes or 1)]
    if small:
        raise UserError(
            f"{hostfile} has fewer slots than processes on {', '.join(small)}",
            got=f"--processes {job.processes}",
            next_step="leave --processes out to use every slot, or change the hostfile",
        )
    places: list[Place] = []
    for host in hosts:
        count, first = job.processes or host.slots, places[-1].ranks.stop if places else 0
        places.append(Place(name=host.name, ranks=range(first, first + count), devices=tuple(range(count))))
    master_addr, port = job.master_addr or hosts[0].name, str(job.master_port or CHOSEN_LATER)
    for word in (sys.executable, str(Path.cwd())):
        if shlex.quote(word) != word:
            raise UserError("DeepSpeed's launcher cannot carry this path to other machines", got=repr(word))
    limits = [
        *(["--num_nodes", str(job.nodes)] if job.nodes else []),
        *(["--num_gpus", str(job.processes)] if job.processes else []),
    ]
    return LaunchPlan(
        way=f"the machines of {hostfile}, over ssh",
        places=tuple(places),
        split=_split(batch, places[-1].ranks.stop),
        master=f"{master_addr}, port {_port_words(job.master_port, hosts[0].name)}",
        master_addr=master_addr,
        master_port=job.master_port,
        command=(
            # --force_multi: DeepSpeed would run the only machine of a hostfile here, whichever it names. The machines
            # are looked at before, all of them and with pdsh's options, hence --no_ssh_check.
            *(sys.executable, *DEEPSPEED, "--hostfile", hostfile, "--force_multi", "--no_ssh_check", *limits),
            *("--master_addr", master_addr, "--master_port", port, "--module", "slmkit"),
            *(_for_pdsh(word) for word in job.train_words),
        ),
        process=job.process,
        travelling=travelling(env),
        hosts=hosts,
    )


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """What a job asks of Slurm beside machines and processes; None leaves it to train.sbatch and the cluster."""

    time: str | None = None
    partition: str | None = None
    gpus: int | None = None  # on each machine; None: as many as processes
    script: str | None = None  # another than the train.sbatch that comes with slmkit
    more: tuple[str, ...] = ()  # further words for sbatch


def plan_slurm(job: Job, options: SlurmOptions, batch: tuple[int, int], env: Mapping[str, str]) -> LaunchPlan:
    """A job of launch/train.sbatch. Raises UserError when the script is not there."""
    script = Path(options.script or folder("launch") / "train.sbatch")
    if not script.is_file():
        raise UserError("there is no sbatch script", got=script, next_step="name launch/train.sbatch with --script")
    nodes, count = job.nodes or 1, job.processes or 1
    gpus = count if options.gpus is None else options.gpus
    asked = {
        "nodes": nodes,
        "ntasks-per-node": count,
        "gpus-per-node": gpus or None,
        "time": options.time,
        "partition": options.partition,
    }
    places = [
        Place(
            name=f"node {node} of the job",
            ranks=range(node * count, (node + 1) * count),
            devices=tuple(range(gpus)),
        )
        for node in range(nodes)
    ]
    return LaunchPlan(
        way="the nodes of a Slurm job",
        places=tuple(places),
        split=_split(batch, nodes * count),
        master=f"the job's first node, port {job.master_port or 'derived from the job id'}",
        master_port=job.master_port,
        command=(
            "sbatch",
            *(f"--{name}={value}" for name, value in asked.items() if value is not None),
            *options.more,
            str(script),
            *job.train_words[1:],
        ),
        process=shlex.join(["slmkit", *job.train_words]),
        travelling=travelling(env),
    )


def travelling(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that processes on other machines get. Raises UserError for one with a line break, which cannot."""
    names = [name for name in sorted(env) if name in TRAVELLING or name.startswith(TRAVELLING_PREFIXES)]
    found = {name: env[name] for name in names if name not in STAYING}
    for name, value in found.items():
        if "\n" in value:
            raise UserError(f"{name} holds a line break and cannot travel to other machines", got=repr(value))
    return found


def pdsh_value(value: str) -> str:
    """The value of a variable as DeepSpeed must be given it: it puts it between double quotes, in pdsh's command."""
    return NEEDS_ESCAPE.sub(r"\\\1", value).replace("%", "%%")


def describe(plan: LaunchPlan) -> list[str]:
    """What `--dry-run` prints."""
    split = plan.split
    width = max(len(place.name) for place in plan.places)
    lines = [f"{split.world_size} processes on {plan.way}"]
    for place in plan.places:
        devices = f"devices {_span(place.devices)}" if place.devices else "no devices"
        lines.append(f"  {place.name:{width}}  ranks {_span(place.ranks)}, {devices}")
    lines += [
        f"master: {plan.master}",
        f"batch: {split.global_rows} rows = {split.world_size} processes x {split.micro_rows} rows x "
        f"{split.accumulation} micro-batches",
        "variables that travel:",
        *(f"  {name}={value}" for name, value in plan.travelling.items()),
        "command:",
        f"  {shlex.join(plan.command)}",
        "every process then runs:",
        f"  {plan.process}",
    ]
    return lines


def _split(batch: tuple[int, int], world_size: int) -> BatchSplit:
    return BatchSplit(global_rows=batch[0], micro_rows=batch[1], world_size=world_size)


def _devices(visible: str, count: int) -> tuple[int, ...]:
    words = [word.strip() for word in visible.split(",")]
    if not all(word.isdecimal() for word in words) or len(words) < count:
        raise UserError(
            "CUDA_VISIBLE_DEVICES does not name a device for every process",
            got=f"{visible} for {count} processes",
            expected="device numbers, at least one per process",
            next_step="change CUDA_VISIBLE_DEVICES or --processes",
        )
    return tuple(int(word) for word in words[:count])


def _for_pdsh(word: str) -> str:
    """A word that DeepSpeed's launcher pastes into a shell's command line; it quotes only words with spaces."""
    quoted = re.sub(r"([\\$`])", r"\\\1", word) if " " in word else shlex.quote(word)
    return quoted.replace("%", "%%")


def _port_words(port: int | None, where: str) -> str:
    return str(port) if port else f"a free one on {where}, found at the start"


def _span(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    if list(numbers) != list(range(first, last + 1)):
        return ",".join(map(str, numbers))
    return str(first) if first == last else f"{first}-{last}"
