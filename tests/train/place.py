"""A tiny base model and corpus, and runs on them in real processes, for tests."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from synthetic import WORDS, write_corpus
from train.ranks import ROOT, finish_ranks, run_ranks, start_ranks

from slmkit.model.init_base import init_base
from slmkit.train.metrics import is_start, read_metrics

WORKER = str(Path(__file__).with_name("train_worker.py"))
STEPS = 12
FRAMES = (4, 16)
MODELS: dict[str, dict[str, Any]] = {
    "ntp": {"group": 0},
    "mtp": {"group": 6, "head": "mlp", "fusion": "mlp", "speaker": True},
}
UNEQUAL = ("time", "speed/", "memory/")  # what differs between runs that are equal
Records = list[dict[str, Any]]


class Place(NamedTuple):
    """A directory with a base model, a corpus and runs."""

    directory: Path

    @classmethod
    def make(cls, directory: Path, *, arch: str = "qwen2", num_layers: int = 2) -> "Place":
        write_corpus(directory / "corpus", 30, frames=FRAMES)
        sizes: dict[str, Any] = {"hidden_size": 32, "num_layers": num_layers, "vocab_size": 280}
        init_base([" ".join(WORDS)] * 3, directory / "base", arch=arch, **sizes)
        return cls(directory)

    def config(self, name: str, model: str | dict[str, Any] = "ntp", **change: Any) -> dict[str, Any]:
        data = {"corpus": str(self.directory / "corpus"), "row_tokens": 160, "num_workers": 0}
        values = {
            "run_dir": str(self.directory / name),
            "base": str(self.directory / "base"),
            "deepspeed": str(ROOT / "ds_configs" / "zero2_fp32.json"),
            "data": {**data, **change.pop("data", {})},
            "model": MODELS[model] if isinstance(model, str) else model,
            "optimizer": {"lr": 2e-3, "clip_norm": 0.3, "weight_decay": 0.1},
            "global_rows": 4,
            "steps": STEPS,
            "log_every_steps": 1,
            "save_every_steps": 1000,
        }
        return {**values, **change}

    def run(self, world_size: int, tasks: list[dict[str, Any]]) -> list[Any]:
        files = [str(self.directory / f"{kind}-{world_size}.json") for kind in ("tasks", "results")]
        Path(files[0]).write_text(json.dumps(tasks))
        run_ranks(world_size, [WORKER, *files])
        return json.loads(Path(files[1]).read_text())

    def kill(self, world_size: int, task: dict[str, Any]) -> None:
        """Run a task that ends by SIGKILL."""
        file = self.directory / "task.json"
        file.write_text(json.dumps([task]))
        processes = start_ranks(world_size, [WORKER, str(file), "none"])
        processes[0].wait(timeout=600)
        for process in processes:
            process.kill()
        assert finish_ranks(processes)[0][0] == -9

    def metrics(self, name: str) -> Records:
        """The lines of a run that an equal run has too: no starts, times and speeds."""
        lines = [line for line in read_metrics(self.directory / name / "metrics.jsonl") if not is_start(line)]
        return [{k: v for k, v in line.items() if not k.startswith(UNEQUAL)} for line in lines]
