"""Loading a checkpoint on another number of processes than wrote it.

DeepSpeed keeps weights and moments in one part per process. On as many processes each reads its part; on another number
the first process rewrites the checkpoint in DeepSpeed's universal form (one file per parameter and moment) under
`RUN/universal`, all processes load that, and it is removed. The checkpoint itself is only read.

Step and data position do not depend on the number of processes; the global batch stays, and `BatchSplit` cuts it anew.

Invariant: `RUN/universal` is loaded only by the start that wrote it. What a killed start has left there is removed by
`checkpoint.clean` before anything is read.

Example:
    engine = TrainEngine.create(..., universal=num_writers(found) != world.size)
    with loadable(run_dir, found, world) as root:
        engine.load(root, found.path.name)
"""

import argparse
import contextlib
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slmkit.checkpoints import checkpoint
from slmkit.config.run_dir import UNIVERSAL, Checkpoint
from slmkit.group import barrier, in_first
from slmkit.log import get_logger
from slmkit.world import World

logger = get_logger(__name__)


def num_writers(found: Checkpoint) -> int:
    """How many processes wrote the checkpoint."""
    return int(found.state["facts"]["processes"])


@contextmanager
def loadable(run_dir: str | Path, found: Checkpoint, world: World) -> Iterator[Path]:
    """The directory in which every process of `world` finds the checkpoint under its name, for the block.

    Raises UserError, in every process, when the checkpoint cannot be converted.
    """
    if num_writers(found) == world.size:
        yield found.path.parent
        return
    root = Path(run_dir) / UNIVERSAL
    if world.is_first:
        logger.info("%s was written by %d processes: converting it for %d", found.path, num_writers(found), world.size)
    in_first(lambda: to_universal(found.path, root / found.path.name))
    yield root
    barrier()
    if world.is_first:
        shutil.rmtree(root)


def to_universal(source: Path, target: Path) -> None:
    """Rewrite checkpoint `source` as directory `target`, in the form that any number of processes can load.

    `target` must not exist; when this is interrupted, what is there is of no use. One process calls it. It works alone
    and needs memory for the part of one process at a time. Raises UserError when `source` cannot be read or the disk
    refuses.
    """
    from deepspeed.checkpoint import ds_to_universal

    options = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,  # more would fork a process that has threads
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=False,
    )
    try:
        with (
            checkpoint.writing(target),
            checkpoint.no_code_runs(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            target.mkdir(parents=True)
            ds_to_universal.main(options)
    except (*checkpoint.UNREADABLE, AssertionError, AttributeError, TypeError) as error:
        raise checkpoint.unreadable(source, error) from error
