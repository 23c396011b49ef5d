"""Continuing a checkpoint on another number of processes than wrote it.

DeepSpeed keeps weights and moments in one part per process. On as many processes each reads its part; on another number
the first process rewrites the checkpoint in DeepSpeed's universal form (one file per parameter and moment) under
`RUN/universal`, all processes load that, and it is removed. The checkpoint itself is only read.

Step and data position do not depend on the number of processes; the global batch stays, and `BatchSplit` cuts it anew.

Invariant: `RUN/universal` is loaded only by the start that wrote it. What a killed start has left there is removed by
`checkpoint.clean` before anything is read.

Example:
    trainer = Engine.create(..., universal=is_needed(found, world))
    with loadable(run_dir, found, world) as root:
        trainer.load(root, found.path.name)
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slmkit.config.run_dir import UNIVERSAL, Checkpoint
from slmkit.log import get_logger
from slmkit.train import engine
from slmkit.world import World

logger = get_logger(__name__)


def num_writers(found: Checkpoint) -> int:
    """How many processes wrote the checkpoint."""
    return int(found.state["facts"]["processes"])


def is_needed(found: Checkpoint, world: World) -> bool:
    """Whether `world` can load the checkpoint only in universal form."""
    return num_writers(found) != world.size


@contextmanager
def loadable(run_dir: str | Path, found: Checkpoint, world: World) -> Iterator[Path]:
    """The directory in which every process of `world` finds the checkpoint under its name, for the block.

    Raises UserError, in every process, when the checkpoint cannot be converted.
    """
    if not is_needed(found, world):
        yield found.path.parent
        return
    root = Path(run_dir) / UNIVERSAL
    if world.is_first:
        logger.info("%s was written by %d processes: converting it for %d", found.path, num_writers(found), world.size)
    engine.in_first(lambda: engine.convert(found.path, root / found.path.name))
    yield root
    engine.barrier()
    if world.is_first:
        shutil.rmtree(root)
