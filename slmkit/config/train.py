"""What a training run is made of, as one tree of frozen dataclasses.

DeepSpeed's own numbers (precision, ZeRO buckets) live in the file that `deepspeed` names, everything else lives here;
`train/settings.py` refuses a number that stands in both and differs. All impossible values are reported at once.

Example:
    config = load_config(TrainConfig, "launch/quickstart.yaml", ["optimizer.lr=1e-4", "steps=100"])
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from slmkit.config.load import option

Task = Literal["tts", "asr", "text", "qa"]


def check(problems: Iterable[tuple[bool, str]]) -> None:
    """Raise ValueError with one line for every (is wrong, line) pair that is wrong."""
    lines = [line for is_wrong, line in problems if is_wrong]
    if lines:
        raise ValueError("\n".join(lines))


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One of several things to train on."""

    path: str = option(help="directory (or URL) of a corpus of shards; for the task text a JSONL file of conversations")
    task: Task = option("tts", help="prompt of the examples")
    weight: float = option(
        1.0, help="passes over this source in an epoch of the run; 0.5: each sample every second one"
    )
    max_samples: int | None = option(None, help="only the first samples of the source")

    def __post_init__(self) -> None:
        check(
            [
                (not 0 < self.weight < math.inf, f"weight: got {self.weight}, expected more than 0"),
                (
                    self.max_samples is not None and self.max_samples < 1,
                    f"max_samples: got {self.max_samples}, expected at least 1",
                ),
            ]
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which examples: one corpus, or several sources."""

    corpus: str | None = option(None, help="directory of shards that `slmkit tokenize` or `slmkit import` wrote")
    task: Task = option("tts", help="prompt of the corpus's examples")
    max_samples: int | None = option(None, help="train on the first samples of the corpus only, to try things out")
    sources: tuple[SourceConfig, ...] = option((), help="several sources, in place of corpus, task and max_samples")
    row_tokens: int = option(2048, help="positions of a row; longer utterances are reported and left out")
    num_workers: int = option(2, help="processes per rank that read ahead; 0 reads in the training process")
    eval_share: float = option(0.0, help="share of the sources held out for evaluation, chosen by a hash of the key")
    eval_corpus: str | None = option(None, help="directory of a corpus to evaluate on, instead of a share")
    eval_speakers: tuple[str, ...] = option(
        (), help="voices held out for evaluation, instead of a share: names as in the samples' column speaker"
    )
    exclude_speakers: tuple[str, ...] = option((), help="voices left out of training and evaluation, for later tests")
    length_cache: str | None = option(None, help="directory of length tables, to share them between runs; or RUN/cache")
    shard_cache: str | None = option(None, help="directory on a fast disk to which shards are copied before reading")
    shard_cache_gib: float = option(50.0, help="largest size of shard_cache; the least recently used shards go first")
    shuffle_shards: int | None = option(
        128, help="shards in random order, samples shuffled within this many; keeps open files few; null: within all"
    )
    on_damage: Literal["stop", "skip"] = option(
        "stop", help="what a sample that cannot be read does; skips are counted"
    )

    def __post_init__(self) -> None:
        check(
            [
                (
                    (self.corpus is None) == (not self.sources),
                    f"corpus, sources: got {'neither' if self.corpus is None else 'both'}, expected one of the two",
                ),
                (self.row_tokens < 1, f"row_tokens: got {self.row_tokens}, expected at least 1"),
                (
                    self.max_samples is not None and self.max_samples < 1,
                    f"max_samples: got {self.max_samples}, expected at least 1",
                ),
                (self.num_workers < 0, f"num_workers: got {self.num_workers}, expected 0 or more"),
                (not 0 <= self.eval_share < 1, f"eval_share: got {self.eval_share}, expected 0 <= share < 1"),
                (
                    self.eval_share > 0 and self.eval_corpus is not None,
                    "eval_corpus: got a corpus and an eval_share, expected one of the two",
                ),
                (
                    bool(self.eval_speakers) and (self.eval_share > 0 or self.eval_corpus is not None),
                    "eval_speakers: got voices and an eval_share or eval_corpus, expected one of the three",
                ),
                (
                    not set(self.eval_speakers).isdisjoint(self.exclude_speakers),
                    f"eval_speakers, exclude_speakers: got {sorted({*self.eval_speakers} & {*self.exclude_speakers})}"
                    " in both, expected different voices",
                ),
                *(
                    ("" in getattr(self, name), f"{name}: got an empty name, expected names of voices")
                    for name in ("eval_speakers", "exclude_speakers")
                ),
                (
                    not 0 < self.shard_cache_gib < math.inf,
                    f"shard_cache_gib: got {self.shard_cache_gib}, expected more than 0",
                ),
                (
                    self.shuffle_shards is not None and self.shuffle_shards < 1,
                    f"shuffle_shards: got {self.shuffle_shards}, expected at least 1",
                ),
            ]
        )

    @property
    def unseen_speakers(self) -> tuple[str, ...]:
        """The voices that are not trained on."""
        return tuple(sorted({*self.eval_speakers, *self.exclude_speakers}))

    @property
    def all_sources(self) -> tuple[SourceConfig, ...]:
        """The sources; a single corpus is one."""
        if self.corpus is None:
            return self.sources
        return (SourceConfig(path=self.corpus, task=self.task, max_samples=self.max_samples),)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model grows on the base model."""

    group: int = option(
        0, help="speech tokens predicted a step: 0 next-token, 3, 6, 12, ... (a multiple of the streams)"
    )
    head: Literal["linear", "mlp", "transformer"] = option("linear", help="kind of the speech heads (group > 0)")
    fusion: Literal["mean", "mlp"] = option("mean", help="how the embeddings of a group become one (group > 0)")
    speaker: bool = option(False, help="condition on the speaker vector")
    softmax: Literal["full", "stream"] = option("full", help="classes of next-token losses (group 0)")
    text_loss_weight: float = option(0.2, help="weight of the text loss; speech has the rest")

    def __post_init__(self) -> None:
        weight = self.text_loss_weight
        check(
            [
                (self.group < 0, f"group: got {self.group}, expected 0 or a multiple of the codec's streams"),
                (not 0 <= weight <= 1, f"text_loss_weight: got {weight}, expected 0 to 1"),
                (self.group > 0 and self.softmax != "full", "softmax: got 'stream' with group > 0, expected 'full'"),
            ]
        )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019); matrices decay, vectors do not."""

    lr: float = option(5e-4, help="highest learning rate")
    betas: tuple[float, ...] = option((0.9, 0.95), help="decay of the first and second moment")
    eps: float = option(1e-8, help="added to the root of the second moment")
    weight_decay: float = option(0.0, help="decoupled decay of matrices, per unit of learning rate")
    clip_norm: float = option(1.0, help="largest norm of the gradient; 0 does not clip")

    def __post_init__(self) -> None:
        betas_fit = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        check(
            [
                (not 0 < self.lr < math.inf, f"lr: got {self.lr}, expected more than 0"),
                (not betas_fit, f"betas: got {list(self.betas)}, expected two numbers from 0 to below 1"),
                (not 0 < self.eps < math.inf, f"eps: got {self.eps}, expected more than 0"),
                (not 0 <= self.weight_decay < math.inf, f"weight_decay: got {self.weight_decay}, expected 0 or more"),
                (not 0 <= self.clip_norm < math.inf, f"clip_norm: got {self.clip_norm}, expected 0 or more"),
            ]
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the run."""

    kind: Literal["cosine", "constant"] = option("cosine", help="shape after the warm-up")
    warmup_share: float = option(0.03, help="share of the run in which the rate rises")
    warmup_steps: int | None = option(None, help="steps in which the rate rises, in place of warmup_share")
    min_lr_share: float = option(0.0, help="share of the highest rate at the end of the cosine")

    def __post_init__(self) -> None:
        check(
            [
                (not 0 <= self.warmup_share <= 1, f"warmup_share: got {self.warmup_share}, expected 0 to 1"),
                ((self.warmup_steps or 0) < 0, f"warmup_steps: got {self.warmup_steps}, expected 0 or more"),
                (not 0 <= self.min_lr_share <= 1, f"min_lr_share: got {self.min_lr_share}, expected 0 to 1"),
            ]
        )

    def num_warmup(self, total_steps: int) -> int:
        """Steps of warm-up in a run of `total_steps`."""
        return math.ceil(self.warmup_share * total_steps) if self.warmup_steps is None else self.warmup_steps


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of `slmkit train`."""

    run_dir: str = option(help="directory of the run; training continues from its newest complete checkpoint")
    base: str = option(help="directory of the base model (Qwen2.5, or made by `slmkit init-base`)")
    init_from: str | None = option(None, help="directory of an exported model whose weights a new run starts from")
    deepspeed: str = option(help="DeepSpeed's JSON file, such as ds_configs/zero2_bf16.json; holds the precision")
    data: DataConfig = option(help="examples")
    model: ModelConfig = option(factory=ModelConfig, help="model")
    optimizer: OptimizerConfig = option(factory=OptimizerConfig, help="optimizer")
    schedule: ScheduleConfig = option(factory=ScheduleConfig, help="learning rate")
    seed: int = option(0, help="of the order of the data and of the new parameters")
    steps: int | None = option(None, help="optimizer steps of the run; this or epochs")
    epochs: int | None = option(None, help="passes over the corpus; this or steps")
    global_rows: int = option(8, help="rows of an optimizer step over all processes")
    micro_rows: int = option(1, help="rows a process runs at once")
    log_every_steps: int = option(10, help="steps from one line of metrics.jsonl to the next")
    save_every_steps: int = option(500, help="steps from one checkpoint to the next; the last step always saves")
    save_every_minutes: float | None = option(None, help="time after which a checkpoint is due in any case")
    keep_last: int = option(2, help="newest checkpoints that are kept")
    keep_every_steps: int = option(0, help="checkpoints of multiples of this are kept for good; 0: none")
    async_save: bool = option(True, help="write checkpoints while training goes on, from a copy in host memory")
    on_save_error: Literal["stop", "continue"] = option("stop", help="what a full disk does to the run")
    max_skipped_steps: int = option(10, help="steps with a non-finite loss or gradient that a run may skip in all")
    hang_timeout_sec: float = option(
        600.0, help="how long a process may make no progress before the run ends; 0: for ever"
    )
    eval_every_steps: int = option(500, help="steps from one evaluation to the next, if any data is held out")
    speak_every_steps: int = option(0, help="steps from one set of speech samples to the next; 0 makes none")
    codec: str | None = option(None, help="directory of the codec, for speech samples in TensorBoard")
    peak_tflops: float | None = option(None, help="dense TFLOP/s of a device, for MFU; known GPUs need none")

    def __post_init__(self) -> None:
        at_least_one = ("global_rows", "micro_rows", "log_every_steps", "save_every_steps", "keep_last")
        small = [(name, getattr(self, name)) for name in (*at_least_one, "eval_every_steps")]
        lengths = [(name, value) for name in ("steps", "epochs") if (value := getattr(self, name)) is not None]
        check(
            [
                *((value < 1, f"{name}: got {value}, expected at least 1") for name, value in [*small, *lengths]),
                (self.seed < 0, f"seed: got {self.seed}, expected 0 or more"),
                (
                    self.speak_every_steps > 0 and self.codec is None,
                    "codec: got none, expected the codec's directory when speak_every_steps is set",
                ),
                (self.speak_every_steps < 0, f"speak_every_steps: got {self.speak_every_steps}, expected 0 or more"),
                (self.keep_every_steps < 0, f"keep_every_steps: got {self.keep_every_steps}, expected 0 or more"),
                (self.max_skipped_steps < 0, f"max_skipped_steps: got {self.max_skipped_steps}, expected 0 or more"),
                (
                    not 0 <= self.hang_timeout_sec < math.inf,
                    f"hang_timeout_sec: got {self.hang_timeout_sec}, expected 0 or more",
                ),
                *(
                    (value is not None and not 0 < value < math.inf, f"{name}: got {value}, expected more than 0")
                    for name in ("save_every_minutes", "peak_tflops")
                    for value in [getattr(self, name)]
                ),
                (len(lengths) != 1, f"steps, epochs: got {len(lengths)} of them, expected one"),
            ]
        )
