"""A real Slurm of two nodes on this machine: munged, slurmctld and two slurmd, with ports and names of their own."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from launch.machines import daemon, end, named, need, processes_with, program, wait_for
from train.ranks import ROOT, free_port

SCRIPT = ROOT / "launch" / "train.sbatch"
JOB_LIMIT_SEC = 300.0
RUNNING = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED")
CONF = """\
ClusterName=slmkit
SlurmctldHost={hostname}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
# A requeued job may not start before the credentials of its first start are gone.
AuthInfo=socket={munge}/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
ReturnToService=2
KillWait=30
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
NodeName={names[0]} NodeAddr=127.0.0.1 NodeHostname={hostname} Port={ports[1]} CPUs=4
NodeName={names[1]} NodeAddr=127.0.0.1 NodeHostname={hostname} Port={ports[2]} CPUs=4
PartitionName=main Nodes={names[0]},{names[1]} Default=YES MaxTime=INFINITE State=UP
"""


class Slurm(NamedTuple):
    """A cluster that runs."""

    directory: Path
    names: tuple[str, str]

    @property
    def env(self) -> dict[str, str]:
        """Environment of commands for this cluster, with this Python's `slmkit` in front."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(OUTSIDE)}
        path = f"{Path(sys.executable).parent}:{env['PATH']}"
        conf = str(self.directory / "slurm.conf")
        return env | {"PATH": path, "SLURM_CONF": conf, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def call(self, *words: str, **variables: str) -> str:
        """A Slurm command; it must succeed."""
        done = subprocess.run(words, env=self.env | variables, capture_output=True, text=True, cwd=self.directory)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    @property
    def output(self) -> str:
        """The option of sbatch with which `log` finds what a job prints."""
        return f"--output={self.directory}/job-%j.log"

    @property
    def array_output(self) -> str:
        """The same for the tasks of an array."""
        return f"--output={self.directory}/job-%A_%a.log"

    def submit(self, *words: str, script: Path = SCRIPT, **variables: str) -> str:
        """The id of a new job; words before "--" are for sbatch."""
        cut = words.index("--")
        output = self.array_output if any(word.startswith("--array") for word in words[:cut]) else self.output
        shown = self.call("sbatch", "--parsable", output, *words[:cut], str(script), *words[cut + 1 :], **variables)
        return shown.strip()

    def log(self, job: str) -> str:
        """What a job, or the task "12_3" of an array, has printed."""
        path = self.directory / f"job-{job}.log"
        return path.read_text() if path.exists() else ""

    def state(self, job: str) -> str:
        match = re.search(r"JobState=(\w+)", self.call("scontrol", "show", "job", job))
        assert match is not None
        return match[1]

    def finish(self, job: str) -> str:
        """Wait for the job's end; gives its state."""
        wait_for(lambda: self.state(job) not in RUNNING, JOB_LIMIT_SEC, lambda: f"{self.state(job)}: {self.log(job)}")
        return self.state(job)


@contextmanager
def slurm() -> Iterator[Slurm]:
    """A cluster for the block. Nothing of it stays."""
    need("munged", "slurmctld", "slurmd", "sbatch", "srun")
    directory = Path(tempfile.mkdtemp(prefix="slmkit-slurm-", dir="/tmp"))
    cluster = Slurm(directory, (f"{directory.name.lower()}-1", f"{directory.name.lower()}-2"))
    try:
        with ExitStack() as stack:
            munge = directory / "munge"
            _configure(cluster, munge)
            stack.enter_context(named(dict.fromkeys(cluster.names, "127.0.0.1")))
            files = {"key-file": "key", "socket": "socket", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
            words = [f"--{option}={munge / file}" for option, file in files.items()]
            stack.enter_context(daemon(["munged", "--foreground", *words], user="munge"))
            conf = str(directory / "slurm.conf")
            wait_for((munge / "socket").exists, 20, lambda: "munged did not start")
            stack.enter_context(daemon(["slurmctld", "-D", "-f", conf]))
            for name in cluster.names:
                stack.enter_context(daemon(["slurmd", "-D", "-f", conf, "-N", name], env={"SLURM_CONF": conf}))
            wait_for(lambda: _idle(cluster) == 2, 60, lambda: f"the nodes did not come up in {directory}")
            yield cluster
            subprocess.run([program("scancel"), "--user=root"], env=cluster.env, check=False)
            wait_for(lambda: not cluster.call("squeue", "--noheader").strip(), 60, lambda: "jobs do not end")
    finally:
        end(processes_with(str(directory)))
        shutil.rmtree(directory, ignore_errors=True)


def _configure(cluster: Slurm, munge: Path) -> None:
    """Directories and files; munge refuses ones that others can write to."""
    cluster.directory.chmod(0o755)
    munge.mkdir()
    (munge / "key").write_bytes(os.urandom(128))
    (munge / "key").chmod(0o400)
    for path in (munge, munge / "key"):
        shutil.chown(path, "munge", "munge")
    munge.chmod(0o711)
    (cluster.directory / "state").mkdir()
    values = {"directory": cluster.directory, "munge": munge, "names": cluster.names, "hostname": socket.gethostname()}
    conf = CONF.format(ports=[free_port() for _ in range(3)], **values)
    (cluster.directory / "slurm.conf").write_text(conf)


def _idle(cluster: Slurm) -> int:
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%T"], env=cluster.env, capture_output=True, text=True, check=False
    )
    return done.stdout.split().count("idle")


# What other tests of this process, or a job around them, may have left in the environment.
OUTSIDE = ("SLURM_", "SBATCH_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_RANK")
