"""What the processes of torch's process group tell each other, as plain values.

Every function here is a collective operation: all processes of the group call it, in the same order. The group itself
is made by `train.engine.process_group`.

Example:
    newest = from_first(find_newest() if world.is_first else None)
    total = sum_over_ranks(torch.tensor([3.0]))
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch
import torch.distributed as dist

from slmkit.errors import UserError
from slmkit.texts import excerpt

NAMES_SHOWN, VALUE_SHOWN = 8, 80  # of what differs between ranks, names and characters of a value
POLL_SEC = 10.0  # the longest wait inside one collective operation of `in_first`
_host_groups: list[Any] = []  # at most one, beside nccl


def from_first(value: Any) -> Any:
    """The first process's `value`, in every process."""
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def from_all(value: Any) -> list[Any]:
    """The `value` of every process, by rank, in every process."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_host_group())
    return values


def check_equal(what: str, values: Mapping[str, Any], next_step: str) -> None:
    """Raise UserError, in every process, naming the first rank whose `values` differ from the first process's, and how.

    `values` are plain JSON by name. Their hashes are compared first, so that equal ones cost next to nothing.
    """
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
    digests = from_all(digest)
    rank = next((rank for rank, other in enumerate(digests) if other != digests[0]), None)
    if rank is None:
        return
    first = from_first(dict(values))
    theirs = from_all(dict(values))[rank]
    names = sorted(name for name in first.keys() | theirs.keys() if first.get(name) != theirs.get(name))
    others = [str(other) for other in range(rank + 1, len(digests)) if digests[other] != digests[0]]
    also = f" (and ranks {', '.join(others)})" if others else ""

    def listed(some: Mapping[str, Any]) -> str:
        return "; ".join(f"{name} {excerpt(repr(some.get(name)), VALUE_SHOWN)}" for name in names[:NAMES_SHOWN])

    raise UserError(
        f"rank {rank}{also} has other {what} than rank 0: {', '.join(names[:NAMES_SHOWN])}",
        got=f"rank {rank}: {listed(theirs)}",
        expected=f"rank 0: {listed(first)}",
        next_step=next_step,
    )


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum of `values` over all processes, in place."""
    dist.all_reduce(values)
    return values


def largest(values: Sequence[float]) -> list[float]:
    """The largest of every value over all processes, through host memory: no accelerator is waited for."""
    numbers = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(numbers, dist.ReduceOp.MAX, group=_host_group())
    return numbers.tolist()


def barrier() -> None:
    """Wait for all processes."""
    dist.barrier()


def is_grouped() -> bool:
    """Whether there is a group. Without one, this process is alone."""
    return dist.is_initialized()


def in_first(work: Callable[[], None]) -> None:
    """`in_chosen`, for the first process."""
    in_chosen(work, is_chosen=not is_grouped() or dist.get_rank() == 0)


def in_chosen(work: Callable[[], None], *, is_chosen: bool) -> None:
    """Run `work` in the chosen processes while the others wait, however long it takes. Without a group, just run it.

    It runs in a thread beside short collective operations, none of which can time out. The first UserError is raised in
    every process.
    """
    if not is_grouped():
        work()
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(work) if is_chosen else None
        is_done, error, errors = running is None, None, list[UserError]()
        while True:
            if running is not None and not is_done:
                is_done = bool(wait([running], timeout=POLL_SEC).done)
                try:
                    if is_done:
                        running.result()
                except UserError as raised:
                    error = raised
            states = from_all((is_done, error))
            if all(is_done for is_done, _ in states):
                errors = [error for _, error in states if error is not None]
                break
    if errors:
        raise errors[0]


def leave() -> None:
    """Wait for all processes, then end the group."""
    dist.barrier()
    _host_groups.clear()
    dist.destroy_process_group()


def _host_group() -> Any:
    """A group that works on host memory; None, for the group of all, where that one does."""
    if dist.get_backend() == "gloo":
        return None
    if not _host_groups:
        _host_groups.append(dist.new_group(backend="gloo"))
    return _host_groups[0]
