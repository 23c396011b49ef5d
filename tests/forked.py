"""Python processes for tests, forked from one that has torch, DeepSpeed, transformers and slmkit loaded.

An interpreter that loads them takes 7 CPU seconds, a fork of one that has them 20 ms. `Process` takes the words that
would follow `python` and behaves like `subprocess.Popen`: own environment, directory, pipes, signals and exit code.

Use a real interpreter where the start itself is tested: what is imported when, or how many threads (here one).

Example:
    done = run(["-m", "slmkit", "inspect", "RUN"])
    done.returncode, done.stdout, done.stderr
"""

import array
import atexit
import fcntl
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from slmkit.cli.main import QUIET
from slmkit.garbage import rare_collections, settle

ROOT = Path(__file__).resolve().parent.parent
PIPE, DEVNULL, STDOUT = subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT
MAX_REQUEST_BYTES = 2**20
START_SEC = 300  # the first compilation of DeepSpeed's operator included
# Of the server: as it is before any test changes it.
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **QUIET}


class Process:
    """A forked `python WORDS`."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.returncode: int | None = None
        self._reading = threading.Lock()
        ours: list[IO[str] | None] = []
        given: list[int] = []  # descriptors of the process: standard input, output, error
        to_close: list[int] = []
        null = os.open(os.devnull, os.O_RDWR)
        to_close.append(null)
        given.append(null)
        for number, target in ((1, stdout), (2, stderr)):
            if target == PIPE:
                read, write = os.pipe()
                ours.append(os.fdopen(read, encoding="utf-8", errors="replace"))
                to_close.append(write)
                given.append(write)
                continue
            ours.append(None)
            if target == STDOUT:
                given.append(given[1])
            elif target == DEVNULL:
                given.append(null)
            else:
                given.append(number if target is None else target if isinstance(target, int) else target.fileno())
        self.stdout, self.stderr = ours
        request = {
            "words": [str(word) for word in words],
            "env": dict(os.environ if env is None else env),
            "cwd": str(cwd or os.getcwd()),
            "session": start_new_session,
        }
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(_server())
        message = json.dumps(request).encode() + b"\n"
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", given))]
        self._connection.sendmsg([message[:1]], rights)
        self._connection.sendall(message[1:])
        self._answers = self._connection.makefile("r")
        self.pid = int(self._answers.readline())
        for descriptor in to_close:
            os.close(descriptor)

    def poll(self) -> int | None:
        """The exit code, or None while the process runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative after a signal. Raises subprocess.TimeoutExpired."""
        with self._reading:
            if self.returncode is None:
                with selectors.DefaultSelector() as selector:
                    selector.register(self._connection, selectors.EVENT_READ)
                    if not selector.select(timeout):
                        raise subprocess.TimeoutExpired(f"forked {self.pid}", timeout or 0.0)
                self.returncode = int(self._answers.readline())
                self._answers.close()
                self._connection.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote until its end. Raises subprocess.TimeoutExpired."""
        texts = ["", ""]

        def read(number: int, file: IO[str]) -> None:
            texts[number] = file.read()

        files = enumerate((self.stdout, self.stderr))
        threads = [threading.Thread(target=read, args=(i, file), daemon=True) for i, file in files if file]
        for thread in threads:
            thread.start()
        self.wait(timeout)
        for thread in threads:
            thread.join(timeout)
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        """Nothing where the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(words: Sequence[str], *, timeout: float = 600, check: bool = False, **options: Any) -> Any:
    """`Process` to its end, as subprocess.run(capture_output=True, text=True) would."""
    process = Process(words, stdout=PIPE, stderr=PIPE, **options)
    try:
        stdout, stderr = process.communicate(timeout)
    finally:
        process.kill()
    done = subprocess.CompletedProcess(list(words), process.returncode, stdout, stderr)
    if check:
        done.check_returncode()
    return done


_address: str | None = None


def _server() -> str:
    """The socket of the server that the processes of one test run share; the first call starts it."""
    global _address
    if _address is None:
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
        parent = os.getppid() if run else os.getpid()
        directory = Path(tempfile.gettempdir()) / f"slmkit-forked-{run or parent}"
        directory.mkdir(exist_ok=True)
        address = str(directory / "socket")
        with (directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.path.exists(address):
                _start(address, parent)
        _address = address
    return _address


def _start(address: str, parent: int) -> None:
    read, write = os.pipe()
    subprocess.Popen([sys.executable, __file__, address, str(parent), str(write)], env=ENV, pass_fds=[write])
    os.close(write)
    with os.fdopen(read, "rb") as ready, selectors.DefaultSelector() as selector:
        selector.register(ready, selectors.EVENT_READ)
        assert selector.select(START_SEC), "the server of forked processes does not start"
        assert ready.read(1), "the server of forked processes failed"


def serve(address: str, parent: int, ready: int) -> None:
    """While `parent` lives, fork a process for each connection; write its id, then its exit code, as lines into it."""
    with rare_collections():
        _load()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.write(ready, b"1")
    os.close(ready)
    settle()  # the collector of a child leaves the pages alone that it shares
    running: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        while _lives(parent):
            selected = {key.fileobj for key, _ in selector.select(timeout=1.0)}
            if wake_read in selected:
                os.read(wake_read, 4096)
                _reap(running)
            if listener in selected:
                connection, _ = listener.accept()
                words, descriptors = _request(connection)
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    for other in (listener, connection, *running.values()):
                        other.close()
                    _become(words, descriptors)
                for descriptor in set(descriptors):
                    os.close(descriptor)
                connection.sendall(f"{pid}\n".encode())
                running[pid] = connection
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(Path(address).parent)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _load() -> None:
    import deepspeed.module_inject.auto_ep_config
    import deepspeed.module_inject.auto_ep_layer  # noqa: F401
    import torch
    import torch.utils.tensorboard
    import transformers.models.auto.tokenization_auto
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401
    from deepspeed.ops.op_builder import CPUAdamBuilder
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import slmkit.cli.main
    import slmkit.infer.synthesizer
    import slmkit.train.loop  # noqa: F401

    torch.set_num_threads(1)
    get_checkpoint_conversion_mapping("qwen2")  # compiles hundreds of patterns, once
    CPUAdamBuilder().load(verbose=False)
    tasks = os.listdir("/proc/self/task")
    assert len(tasks) == 1, "a process with threads cannot be forked safely"


def _request(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    descriptors = array.array("i")
    content, rights, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(3 * descriptors.itemsize))
    for _, _, data in rights:
        descriptors.frombytes(data)
    while not content.endswith(b"\n"):
        content += connection.recv(MAX_REQUEST_BYTES)
    return json.loads(content), list(descriptors)


def _reap(running: dict[int, socket.socket]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        with running.pop(pid) as connection:
            try:
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            except OSError:
                continue  # nobody waits for it any more


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Be `python WORDS` in this process, to its end."""
    for number in (signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if request["session"]:
        os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    for descriptor in set(descriptors) - {0, 1, 2}:
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    code = 1
    try:
        code = _run(request["words"])
    except KeyboardInterrupt:
        code = 130
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - as an interpreter does
        traceback.print_exc()
    finally:
        _end(code)


def _run(words: list[str]) -> int:
    first, *rest = words
    if first == "-m":
        name, *rest = rest
        sys.argv = [name, *rest]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    elif first == "-c":
        code, *rest = rest
        sys.argv = ["-c", *rest]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [first, *rest]
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")
    return 0


def _end(code: int) -> None:
    """As an interpreter ends: exit handlers, threads that are no daemons, buffers; then at once."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code & 0xFF)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
