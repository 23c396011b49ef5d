"""Two machines with a real sshd each, and one without, on loopback addresses with names of their own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from launch.machines import daemon, end, named, need, processes_with, wait_for
from train.ranks import free_port

SSHD = """\
Port {port}
ListenAddress {address}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
"""
CLIENT = """\
Host {name}
    Port {port}
    HostName {address}
    IdentityFile {directory}/key
    IdentitiesOnly yes
    UserKnownHostsFile {directory}/known_hosts
    StrictHostKeyChecking accept-new
"""


class SshHosts(NamedTuple):
    """Names of machines; the last one has no sshd."""

    directory: Path
    up: tuple[str, str]
    down: str

    @property
    def variables(self) -> dict[str, str]:
        """What makes ssh and pdsh find them."""
        return {"PDSH_SSH_ARGS_APPEND": f"-F {self.directory}/client"}

    def hostfile(self, *names: str) -> str:
        """As an editor on Windows leaves it."""
        path = self.directory / f"hosts-{len(names)}-{names[-1]}"
        path.write_text("\ufeff" + "".join(f"{name} slots=1\r\n" for name in names), encoding="utf-8", newline="")
        return str(path)


@contextmanager
def ssh_hosts() -> Iterator[SshHosts]:
    """The machines for the block. Nothing of them stays."""
    need("sshd", "ssh", "ssh-keygen", "pdsh")
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants this empty directory, and distributions make it at boot
    directory = Path(tempfile.mkdtemp(prefix="slmkit-ssh-", dir="/tmp"))
    names = [f"{directory.name.lower()}-{number}" for number in (1, 2, 3)]
    addresses = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    try:
        with ExitStack() as stack:
            for key in ("key", "host_key"):
                words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / key)]
                subprocess.run(words, check=True)
            stack.enter_context(named(dict(zip(names, addresses, strict=True))))
            for name, address in zip(names, addresses, strict=True):
                values = {"name": name, "address": address, "port": free_port(), "directory": directory}
                with open(directory / "client", "a") as file:
                    file.write(CLIENT.format(**values))
                if name != names[-1]:
                    (directory / name).write_text(SSHD.format(**values))
                    stack.enter_context(daemon(["sshd", "-D", "-f", str(directory / name)]))
            hosts = SshHosts(directory, (names[0], names[1]), names[2])
            for name in hosts.up:
                wait_for(lambda name=name: _answers(hosts, name), 20, lambda name=name: f"no sshd on {name}")
            yield hosts
    finally:
        end(processes_with(str(directory)))
        shutil.rmtree(directory, ignore_errors=True)


def _answers(hosts: SshHosts, name: str) -> bool:
    words = ["ssh", "-F", str(hosts.directory / "client"), "-o", "BatchMode=yes", name, "true"]
    return subprocess.run(words, capture_output=True, env=dict(os.environ), check=False).returncode == 0
