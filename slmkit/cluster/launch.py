"""What `slmkit launch` would start: which machines, ranks and devices, the command line, the variables that travel.

Three ways: this machine alone, the machines of a DeepSpeed hostfile, a Slurm job. A plan is a plain value; making one
reads no machine, and `launcher.py` starts it.

Invariant: a plan exists only if the global batch splits evenly over its processes.

Example:
    request, hosts = LaunchRequest(config="run.yaml"), read_hostfile("hosts")
    plan = plan_hosts(request, hosts, "hosts", batch=(64, 2), env=os.environ)
    "\\n".join(plan_lines(plan))
"""

import os
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

# Variables that the processes on other machines get from the one that launches, by name; of libraries and slmkit all
# that begin so. PATH is among them because DeepSpeed compiles operators with ninja and a compiler.
TRAVELLING = frozenset(
    (
        *("PYTHONPATH", "PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM"),
        *("TRITON_CACHE_DIR", "CUDA_HOME"),
    )
)
LIBRARIES = ("HF_", "TRANSFORMERS_", "TORCH_", "TORCHINDUCTOR_", "DS_", "NCCL_", "GLOO_", "UCX_")  # not TORCHELASTIC_
TRAVELLING_PREFIXES = (*LIBRARIES, "SLMKIT_")
# Names of variables whose values must not stand where others can read them: command lines, logs, dry runs.
SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|KEY|(^|_)(PAT|AUTH))S?($|_)", re.IGNORECASE)
SECRET_IN_TEXT = re.compile(r"(?<![\w.])([A-Za-z_]\w*)=([^\s,'\"]+)")
URL_WITH_PASSWORD = re.compile(r"://[^/@\s]+@")
HIDDEN = "***"
STAYING = frozenset(("DS_ENV_FILE",))
CHOSEN_LATER = "FREE_PORT"
DEEPSPEED = ("-m", "deepspeed.launcher.runner")  # the `deepspeed` command of this Python
NEEDS_ESCAPE = re.compile(r'([\\"$`])')


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """What to train, and how many processes where."""

    config: str
    overrides: tuple[str, ...] = ()
    processes: int | None = None  # on each machine
    nodes: int | None = None  # machines
    master_addr: str | None = None
    master_port: int | None = None
    verbose: bool = False  # DeepSpeed's messages too
    fit: bool = False  # measure which micro_rows is best, and train nothing

    @property
    def launcher(self) -> tuple[str, ...]:
        """The start of a command line of DeepSpeed's launcher.

        Its errors are left out too: it calls it one when the ranks stop with a checkpoint, and they and `slmkit launch`
        say what goes wrong.
        """
        return (sys.executable, *DEEPSPEED, "--log_level", "info" if self.verbose else "critical")

    @property
    def process(self) -> str:
        """What a rank runs under DeepSpeed's launcher."""
        return shlex.join([sys.executable, "-u", "-m", "slmkit", "--local_rank=N", *self.train_words])

    @property
    def train_words(self) -> list[str]:
        """The words after `slmkit`."""
        flags = [*(["--verbose"] if self.verbose else []), *(["--fit"] if self.fit else [])]
        return ["train", "--config", self.config, *self.overrides, *flags]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine and its part of the run."""

    name: str
    ranks: range
    devices: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """Everything that is decided before anything starts."""

    way: str  # "this machine alone", ...
    machines: tuple[Machine, ...]
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


def plan_local(request: LaunchRequest, batch: tuple[int, int], env: Mapping[str, str]) -> LaunchPlan:
    """This machine alone; `batch` is (global_rows, micro_rows).

    CUDA_VISIBLE_DEVICES is kept to: DeepSpeed would ignore it beside a number of processes. Raises UserError when it
    has fewer devices than there are processes.
    """
    if (request.nodes or 1) != 1:
        raise UserError(
            "--nodes needs a hostfile", got=request.nodes, next_step="name a hostfile with --hostfile, or use --slurm"
        )
    count = 1 if request.processes is None else request.processes
    visible = env.get("CUDA_VISIBLE_DEVICES", "")
    if visible:
        words = [word.strip() for word in visible.split(",")]
        if not all(word.isdecimal() for word in words) or len(words) < count:
            raise UserError(
                "CUDA_VISIBLE_DEVICES does not name a device for every process",
                got=f"{visible} for {count} processes",
                expected="device numbers, at least one per process",
                next_step="change CUDA_VISIBLE_DEVICES or --processes",
            )
        devices = tuple(int(word) for word in words[:count])
        chosen = ["--include", f"localhost:{','.join(map(str, devices))}"]
    else:
        devices, chosen = tuple(range(count)), ["--num_gpus", str(count)]
    port = str(request.master_port or CHOSEN_LATER)
    return LaunchPlan(
        way="this machine alone",
        machines=(Machine(name="localhost", ranks=range(count), devices=devices),),
        split=BatchSplit(global_rows=batch[0], micro_rows=batch[1], world_size=count),
        master=f"127.0.0.1, port {_port_words(request.master_port, 'this machine')}",
        master_port=request.master_port,
        command=(
            *(*request.launcher, *chosen, "--master_port", port, "--module", "slmkit"),
            *request.train_words,
        ),
        process=request.process,
        travelling=travelling(env),
    )


def plan_hosts(
    request: LaunchRequest, hosts: Sequence[Host], hostfile: str, *, batch: tuple[int, int], env: Mapping[str, str]
) -> LaunchPlan:
    """The machines of a hostfile, by DeepSpeed's launcher over pdsh and ssh.

    Raises UserError when there are fewer machines or slots than asked for, or a word that pdsh cannot carry.
    """
    if request.nodes is not None and not 1 <= request.nodes <= len(hosts):
        raise UserError(
            f"{hostfile} names fewer machines", got=f"--nodes {request.nodes}", expected=f"1 to {len(hosts)}"
        )
    hosts = tuple(hosts[: request.nodes])
    small = [host.name for host in hosts if host.slots < (request.processes or 1)]
    if small:
        raise UserError(
            f"{hostfile} has fewer slots than processes on {', '.join(small)}",
            got=f"--processes {request.processes}",
            next_step="leave --processes out to use every slot, or change the hostfile",
        )
    machines: list[Machine] = []
    for host in hosts:
        count, first = request.processes or host.slots, machines[-1].ranks.stop if machines else 0
        machines.append(Machine(name=host.name, ranks=range(first, first + count), devices=tuple(range(count))))
    master_addr, port = request.master_addr or hosts[0].name, str(request.master_port or CHOSEN_LATER)
    for word in (sys.executable, str(Path.cwd())):
        if shlex.quote(word) != word:
            raise UserError("DeepSpeed's launcher cannot pass this path on to other machines", got=repr(word))
    limits = [
        *(["--num_nodes", str(request.nodes)] if request.nodes else []),
        *(["--num_gpus", str(request.processes)] if request.processes else []),
    ]
    return LaunchPlan(
        way=f"the machines of {hostfile}, over ssh",
        machines=tuple(machines),
        split=BatchSplit(global_rows=batch[0], micro_rows=batch[1], world_size=machines[-1].ranks.stop),
        master=f"{master_addr}, port {_port_words(request.master_port, hosts[0].name)}",
        master_addr=master_addr,
        master_port=request.master_port,
        command=(
            # --force_multi: DeepSpeed would run the only machine of a hostfile here, whichever it names. The machines
            # are looked at before, all of them and with pdsh's options, hence --no_ssh_check.
            *(*request.launcher, "--hostfile", hostfile, "--force_multi", "--no_ssh_check", *limits),
            *("--master_addr", master_addr, "--master_port", port, "--module", "slmkit"),
            *(_for_pdsh(word) for word in request.train_words),
        ),
        process=request.process,
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


def plan_slurm(
    request: LaunchRequest, options: SlurmOptions, batch: tuple[int, int], env: Mapping[str, str]
) -> LaunchPlan:
    """A job of launch/train.sbatch. Raises UserError when the script is not there, or a word holds a secret."""
    script = Path(options.script or folder("launch") / "train.sbatch")
    if not os.path.isfile(script):
        raise UserError("there is no sbatch script", got=script, next_step="name launch/train.sbatch with --script")
    check_no_secrets(options.more)
    nodes, count = request.nodes or 1, request.processes or 1
    gpus = count if options.gpus is None else options.gpus
    asked = {
        "nodes": nodes,
        "ntasks-per-node": count,
        "gpus-per-node": gpus or None,
        "time": options.time,
        "partition": options.partition,
    }
    machines = [
        Machine(
            name=f"node {node} of the job",
            ranks=range(node * count, (node + 1) * count),
            devices=tuple(range(gpus)),
        )
        for node in range(nodes)
    ]
    return LaunchPlan(
        way="the nodes of a Slurm job",
        machines=tuple(machines),
        split=BatchSplit(global_rows=batch[0], micro_rows=batch[1], world_size=nodes * count),
        master=f"the job's first node, port {request.master_port or 'derived from the job id'}",
        master_port=request.master_port,
        command=(
            "sbatch",
            *(f"--{name}={value}" for name, value in asked.items() if value is not None),
            *options.more,
            str(script),
            *request.train_words[1:],
        ),
        process=shlex.join(["slmkit", *request.train_words]),
        travelling=travelling(env),
    )


def travelling(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that processes on other machines get, none that looks like a secret: they stand in a command line.

    Raises UserError for one with a line break, which cannot travel.
    """
    names = [name for name in sorted(env) if name in TRAVELLING or name.startswith(TRAVELLING_PREFIXES)]
    found = {name: env[name] for name in names if name not in STAYING and not is_secret(name)}
    for name, value in found.items():
        if "\n" in value:
            raise UserError(f"{name} holds a line break and cannot be passed on to other machines", got=repr(value))
    return found


def is_secret(name: str) -> bool:
    """Whether a variable of this name looks as if it held a token, a key or a password."""
    return SECRET.search(name) is not None


def masked(text: str) -> str:
    """A text without the values of what looks like a secret: NAME_TOKEN=..., and passwords in URLs."""
    text = SECRET_IN_TEXT.sub(lambda found: f"{found[1]}={HIDDEN}" if is_secret(found[1]) else found[0], text)
    return URL_WITH_PASSWORD.sub(f"://{HIDDEN}@", text)


def check_no_secrets(words: Sequence[str]) -> None:
    """Raise UserError where words for a command line hold a secret: whoever is on the machine can read them."""
    for word in words:
        if masked(word) != word:
            raise UserError(
                "a secret would stand in a command line, which every user of the machine can read",
                got=masked(word),
                next_step="export the variable before this command: Slurm passes the environment on to the job",
            )


def pdsh_value(value: str) -> str:
    """The value of a variable as DeepSpeed must be given it: it puts it between double quotes, in pdsh's command."""
    return NEEDS_ESCAPE.sub(r"\\\1", value).replace("%", "%%")


def plan_lines(plan: LaunchPlan) -> list[str]:
    """What `--dry-run` prints."""
    split = plan.split
    width = max(len(machine.name) for machine in plan.machines)
    lines = [f"{split.world_size} processes on {plan.way}"]
    for machine in plan.machines:
        devices = f"devices {_span(machine.devices)}" if machine.devices else "no devices"
        lines.append(f"  {machine.name:{width}}  ranks {_span(machine.ranks)}, {devices}")
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
    return [masked(line) for line in lines]


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
