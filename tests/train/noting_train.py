"""One rank of `slmkit train` that appends the keys of every micro-batch to RUN/samples-RANK.jsonl:

python noting_train.py RUN [train options]
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from slmkit.cli.main import main
from slmkit.train.engine import TrainEngine


def note_samples(run: Path) -> None:
    """A line per micro-batch, written before the step is taken: {"step", "processes", "start", "keys"}."""
    run.mkdir(parents=True, exist_ok=True)
    notes = open(run / f"samples-{os.environ['RANK']}.jsonl", "a", buffering=1)  # noqa: SIM115  # until the end
    begin, micro_step = time.time(), TrainEngine.micro_step

    def noting(trainer: TrainEngine, batch: Any, **options: Any) -> Any:
        line = {"step": trainer._engine.global_steps + 1, "processes": int(os.environ["WORLD_SIZE"]), "start": begin}
        notes.write(json.dumps({**line, "keys": batch.keys}) + "\n")
        return micro_step(trainer, batch, **options)

    TrainEngine.micro_step = noting  # type: ignore[method-assign]


if __name__ == "__main__":
    note_samples(Path(sys.argv[1]))
    sys.exit(main(["train", *sys.argv[2:]]))
