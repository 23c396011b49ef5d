"""How fast a run goes and what it spends its time and memory on, between two logged steps.

Each process counts for itself: positions, codec frames, float operations, time waited for data, time a checkpoint held
it up. In a logged step, and only then, a few numbers of every process are exchanged.

The slowest process: in a step the processes wait for each other, so all take the same time. What tells them apart is
the time each spends by itself: waiting for its data, and the forward passes, in which ZeRO-1 and ZeRO-2 exchange
nothing (on a GPU between two events on its stream, without waiting for it). The process with the most of it is named
with how much more that is than the median. Under ZeRO-3 forward passes wait for the others' weights too, so it shows
less than there is. The backward pass, whose exchanges overlap with it, is not seen.

MFU is the float operations of the model (see `model.flops`) per second and device over the peak of the device; null
where the peak is not known.

Invariant: nothing here waits for a device but in a logged step.

Example:
    pace = pace_of(run, model, device)
    for batch in pace.timed(batches):
        pace.add(batch)
    record |= pace.result()
"""

import gc
import re
import resource
import socket
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from slmkit.group import from_all, is_grouped, sum_over_ranks
from slmkit.model.flops import BatchSizes, Flops, known_peak
from slmkit.train.metrics import Record
from slmkit.train.run import Run
from slmkit.train.settings import precision
from slmkit.world import World

T = TypeVar("T")
GIB = 2**30
FREE_SHARE = 0.08  # of a GPU's memory that should stay free: utterances of other lengths leave other gaps in it
HOST_SHARE = 0.7  # of the memory that a host has left: what may be taken where there is no GPU
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


@dataclass
class _Counts:
    """What happened since the last result, in this process."""

    start: float = field(default_factory=lambda: time.perf_counter())
    micro_batches: int = 0
    tokens: int = 0
    frames: int = 0
    room: int = 0  # positions the rows could hold
    flops: int = 0
    wait_sec: float = 0.0
    forward_sec: float = 0.0
    events: list[tuple[Any, Any]] = field(default_factory=list)  # around the forward passes on a GPU


class Pace:
    """See the module. Without `costs` no float operations are counted; without `peak_tflops` (of a device, dense) there
    is no MFU. `accumulation`: micro-batches of a step."""

    def __init__(
        self,
        world: World | None = None,
        device: torch.device | None = None,
        *,
        accumulation: int = 1,
        frame_rate: float = 1.0,
        costs: Flops | None = None,
        peak_tflops: float | None = None,
    ) -> None:
        self._world, self._device = world or World(), device or torch.device("cpu")
        self._accumulation, self._frame_rate = accumulation, frame_rate
        self._costs, self._peak = costs, peak_tflops
        self._stall_sec, self._stall_since = 0.0, time.perf_counter()
        self._entered: Any = None
        self.restart()

    def restart(self) -> None:
        """Forget what was counted so far, but for stalls."""
        self._counts = _Counts()

    def stalled(self, seconds: float) -> None:
        """A checkpoint held this process up for `seconds`."""
        self._stall_sec += seconds

    def watch(self, model: torch.nn.Module) -> None:
        """Take the time of the forward passes of `model` in training."""
        model.register_forward_pre_hook(self._enter)
        model.register_forward_hook(self._leave)

    def timed(self, items: Iterator[T]) -> Iterator[T]:
        """`items`; the time each takes to come counts as waiting for data."""
        while True:
            start = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self._counts.wait_sec += time.perf_counter() - start
            yield item

    def add(self, batch: Any) -> None:
        """Count a micro-batch in. One without utterances is there only to keep step."""
        counts = self._counts
        counts.micro_batches += 1
        counts.room += batch.row_tokens
        if batch.keys:
            counts.tokens += batch.num_tokens
            counts.frames += batch.num_frames
            counts.flops += self._costs.training(BatchSizes.of(batch)) if self._costs else 0

    def result(self) -> Record:
        """Speeds and memory of all processes together since the last result. Every process must call it."""
        now, counts = time.perf_counter(), self._counts
        seconds, since = max(now - counts.start, 1e-9), max(now - self._stall_since, 1e-9)
        own_sec = counts.wait_sec + counts.forward_sec + self._events_sec()
        work = [counts.tokens, counts.frames, counts.room, counts.flops, counts.wait_sec]
        table = self._exchange([*work, self._stall_sec, own_sec, device_gib(self._device), host_gib()])
        tokens, frames, room, flops, wait = (sum(column) for column in table[:5])
        stalls, owns, on_devices, on_hosts = table[5:]
        size, stall = self._world.size, max(stalls)
        self._stall_sec, self._stall_since = 0.0, now
        self.restart()
        return {
            "speed/tokens_per_sec": tokens / seconds,
            "speed/audio_hours_per_hour": frames / self._frame_rate / seconds,
            "speed/sec_per_step": seconds * self._accumulation / max(counts.micro_batches, 1),
            "speed/tflops_per_device": flops / seconds / size / 1e12,
            "speed/mfu": flops / seconds / size / (self._peak * 1e12) if self._peak else None,
            "speed/padding_share": 1 - tokens / room if room else 0.0,
            "speed/data_wait_share": wait / seconds / size,
            "speed/checkpoint_stall_sec": stall,
            "speed/checkpoint_stall_share": stall / since,
            **slowest(owns),
            "memory/device_peak_gib": max(on_devices) if self._device.type == "cuda" else None,
            "memory/host_peak_gib": max(on_hosts),
        }

    def _exchange(self, mine: list[float]) -> list[list[float]]:
        """One list per number, with the value of every process in order."""
        table = torch.zeros(len(mine), self._world.size, dtype=torch.float64, device=self._device)
        table[:, self._world.rank] = torch.tensor(mine, dtype=torch.float64)
        return sum_over_ranks(table).tolist()

    def _enter(self, module: torch.nn.Module, _: Any) -> None:
        self._entered = self._now() if module.training else None

    def _leave(self, *_: Any) -> None:
        if self._entered is None:
            return
        if self._device.type == "cuda":
            self._counts.events.append((self._entered, self._now()))
        else:
            self._counts.forward_sec += time.perf_counter() - self._entered
        self._entered = None

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _events_sec(self) -> float:
        if not self._counts.events:
            return 0.0
        torch.cuda.synchronize(self._device)
        return sum(start.elapsed_time(end) for start, end in self._counts.events) / 1000


def pace_of(run: Run, model: Any, device: torch.device) -> Pace:
    """What measures the steps of a run."""
    pace = Pace(
        run.world,
        device,
        accumulation=run.split.accumulation,
        frame_rate=run.codec.frame_rate,
        costs=Flops(model),
        peak_tflops=peak_of(run, device),
    )
    pace.watch(model)
    return pace


def peak_of(run: Run, device: torch.device) -> float | None:
    """TFLOP/s of a device, dense, if known."""
    return run.config.peak_tflops or known_peak(device, in_bf16=precision(run.settings) == "bf16")


def slowest(own_sec: list[float]) -> Record:
    """The process that needs longest by itself, and by how many percent of the median; null for a single one."""
    if len(own_sec) == 1:
        return {"speed/slowest_rank": None, "speed/slowest_percent": None}
    rank, median = max(range(len(own_sec)), key=own_sec.__getitem__), max(statistics.median(own_sec), 1e-9)
    return {"speed/slowest_rank": rank, "speed/slowest_percent": 100 * (own_sec[rank] / median - 1)}


def device_gib(device: torch.device) -> float:
    """The most GPU memory this process had in tensors; 0 without a GPU."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else 0.0


def host_gib() -> float:
    """The most memory this process had on the host. Its workers are not in it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Memory:
    """The memory of a device, or of the host where it is a CPU, whose processes share it.

    `total_gib` is all there is for this process, `limit_gib` what it should use at most.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            self.total_gib = torch.cuda.mem_get_info(device)[1] / GIB
            self.limit_gib = (1 - FREE_SHARE) * self.total_gib
        else:
            host = socket.gethostname()
            left_gib = host_bytes_left() / GIB / (from_all(host).count(host) if is_grouped() else 1)
            self.total_gib, self.limit_gib = host_gib() + left_gib, host_gib() + HOST_SHARE * left_gib

    def restart(self) -> None:
        """Give back what is not in use, and forget the peak where that can be."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float:
        """The most that was in use since `restart`: torch's pool, with what others and libraries have on the device.

        On a CPU the most that this process ever had.
        """
        if self.device.type != "cuda":
            return host_gib()
        free, total = torch.cuda.mem_get_info(self.device)
        others = total - free - torch.cuda.memory_reserved(self.device)
        return (torch.cuda.max_memory_reserved(self.device) + others) / GIB


def host_bytes_left() -> float:
    """Memory that the host could still give, or the container of this process; infinite where neither is known."""

    def said(path: Path) -> str:
        return path.read_text().strip() if path.is_file() else ""

    found = re.search(r"MemAvailable:\s+(\d+) kB", said(MEMINFO))
    left = [1024.0 * int(found[1])] if found else []
    limit, used = said(CGROUP / "memory.max"), said(CGROUP / "memory.current")
    left += [float(int(limit) - int(used))] if limit.isdigit() and used.isdigit() else []
    return min(left, default=float("inf"))
