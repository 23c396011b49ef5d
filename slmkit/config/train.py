"""Options of a training run, as one tree of frozen models.

DeepSpeed's own numbers (precision, ZeRO buckets) live in the file that `deepspeed` names, everything else lives here;
`train/settings.py` refuses a number that stands in both and differs. All impossible values are reported at once.

Example:
    config = load_run("launch/quickstart.yaml", ["optimizer.lr=1e-4", "steps=100"])
"""

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import MaxLen, MinLen
from pydantic import Field

from slmkit.config.load import Config, load_config
from slmkit.config.values import (
    Count,
    Epochs,
    Flag,
    Group,
    Name,
    Natural,
    NotNegative,
    PathText,
    Positive,
    SecondsOrZero,
    Seed,
    Share,
    ShareBelowOne,
    Takes,
    Unit,
    Workers,
)
from slmkit.hub import local_path, parse

Task = Literal["tts", "asr", "text", "qa"]
Betas = Annotated[tuple[ShareBelowOne, ...], MinLen(2), MaxLen(2), Takes("a list of two numbers, 0 to below 1")]


class SourceConfig(Config):
    """One of several sources to train on."""

    path: PathText = Field(
        description="directory (or URL) of a corpus of shards; for the task text a JSONL file of conversations"
    )
    task: Task = Field(default="tts", description="what the examples teach: see data.task")
    weight: Positive = Field(
        default=1.0, description="passes over this source in an epoch; 0.5: each sample in every second epoch"
    )
    max_samples: Count | None = Field(default=None, description="only the first samples of the source")


class DataConfig(Config):
    """What to train on: one corpus, or several sources."""

    corpus: PathText | None = Field(
        default=None, description="directory of shards that `slmkit tokenize` or `slmkit import` wrote"
    )
    task: Task = Field(
        default="tts",
        description="what the examples teach: to speak a text (tts), to write down speech (asr), dialogue in text "
        "(text), to answer a question aloud (qa)",
    )
    max_samples: Count | None = Field(
        default=None, description="train on the first samples of the corpus only, to try things out"
    )
    sources: tuple[SourceConfig, ...] = Field(
        default=(), description="several sources, in place of corpus, task and max_samples"
    )
    row_tokens: Count = Field(
        default=2048, description="positions of a row; longer utterances are reported and left out"
    )
    num_workers: Workers = Field(
        default=2, description="processes per rank that read ahead; 0 reads in the training process"
    )
    eval_share: ShareBelowOne = Field(
        default=0.0, description="share of the sources held out for evaluation, chosen by a hash of the key"
    )
    eval_corpus: PathText | None = Field(
        default=None, description="directory of a corpus to evaluate on, instead of a share"
    )
    eval_speakers: tuple[Name, ...] = Field(
        default=(),
        description="voices held out for evaluation, instead of a share: names as in the samples' column speaker",
    )
    exclude_speakers: tuple[Name, ...] = Field(
        default=(), description="voices left out of training and evaluation, for later tests"
    )
    length_cache: PathText | None = Field(
        default=None, description="directory of length tables, to share them between runs; null: RUN/cache"
    )
    shard_cache: PathText | None = Field(
        default=None, description="directory on a fast disk to which shards are copied before reading"
    )
    shard_cache_gib: Annotated[Positive, Unit("GiB")] = Field(
        default=50.0, description="largest size of shard_cache; the least recently used shards are deleted first"
    )
    shuffle_shards: Count | None = Field(
        default=128,
        description="shards are read in random order, their samples shuffled within this many shards; null: within all",
    )
    on_damage: Literal["stop", "skip"] = Field(
        default="stop", description="what to do when a sample cannot be read; skipped ones are counted"
    )

    def clashes(self) -> Iterable[tuple[bool, str]]:
        has_share, has_corpus = self.eval_share > 0, self.eval_corpus is not None
        both = sorted({*self.eval_speakers} & {*self.exclude_speakers})
        given = "neither" if self.corpus is None else "both"
        yield (self.corpus is None) == (not self.sources), f"corpus, sources: got {given}, expected one of the two"
        yield (
            bool(self.sources) and (self.task != "tts" or self.max_samples is not None),
            "sources, task, max_samples: got sources and one of the others, which are for a single corpus; expected "
            "task and max_samples in each of sources",
        )
        yield (
            has_share and has_corpus,
            "eval_corpus, eval_share: got a corpus and a share, expected one of the two",
        )
        yield (
            bool(self.eval_speakers) and (has_share or has_corpus),
            "eval_speakers: got voices and an eval_share or eval_corpus, expected one of the three",
        )
        yield bool(both), f"eval_speakers, exclude_speakers: got {both} in both, expected different voices"

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


class ModelConfig(Config):
    """The speech language model that is built on the base model."""

    group: Group = Field(
        default=0, description="speech tokens predicted a step, of all streams together: 0 next-token, 3, 6, 12, ..."
    )
    head: str = Field(default="linear", description="kind of the speech heads (group > 0): linear, mlp or transformer")
    fusion: Literal["mean", "mlp"] = Field(
        default="mean", description="how the embeddings of a group become one (group > 0)"
    )
    speaker: Flag = Field(default=False, description="condition on the speaker vector")
    softmax: Literal["full", "stream"] = Field(
        default="full",
        description="softmax of next-token models (group 0): over the whole vocabulary, or over the token's stream",
    )
    text_loss_weight: Share = Field(default=0.2, description="weight of the text loss; speech has the rest")

    def clashes(self) -> Iterable[tuple[bool, str]]:
        yield (
            self.group > 0 and self.softmax != "full",
            "softmax, group: got 'stream' with group > 0, expected 'full'",
        )


class OptimizerConfig(Config):
    """AdamW (Loshchilov and Hutter 2019); matrices decay, vectors do not."""

    lr: Positive = Field(default=5e-4, description="highest learning rate")
    betas: Betas = Field(default=(0.9, 0.95), description="decay of the first and second moment")
    eps: Positive = Field(default=1e-8, description="added to the root of the second moment")
    weight_decay: NotNegative = Field(default=0.0, description="decoupled decay of matrices, per unit of learning rate")
    clip_norm: NotNegative = Field(default=1.0, description="largest norm of the gradient; 0 does not clip")


class ScheduleConfig(Config):
    """The learning rate over the run."""

    kind: Literal["cosine", "constant"] = Field(default="cosine", description="shape after the warm-up")
    warmup_share: Share = Field(default=0.03, description="share of the run in which the rate rises")
    warmup_steps: Natural | None = Field(
        default=None, description="steps in which the rate rises, in place of warmup_share"
    )
    min_lr_share: Share = Field(default=0.0, description="share of the highest rate at the end of the cosine")

    def num_warmup(self, total_steps: int) -> int:
        """Steps of warm-up in a run of `total_steps`."""
        return math.ceil(self.warmup_share * total_steps) if self.warmup_steps is None else self.warmup_steps


class TrainConfig(Config):
    """One run of `slmkit train`."""

    run_dir: PathText = Field(
        description="directory of the run; training continues from its newest complete checkpoint"
    )
    base: PathText = Field(
        description="base model (Qwen2.5, Qwen3, Llama, SmolLM3, or made by `slmkit init-base`): a directory, or a hub "
        "id such as Qwen/Qwen2.5-0.5B"
    )
    init_from: PathText | None = Field(
        default=None,
        description="exported model whose weights a new run starts from: a directory or a hub id",
    )
    revisions: dict[str, Name] = Field(
        default={},
        description="commit of each hub id in this config; filled in by the first start, so that a run goes on with "
        "the same files",
    )
    deepspeed: PathText = Field(
        description="DeepSpeed's settings, which hold the precision: a name such as zero2_bf16 "
        "(see `slmkit recipe list`), or a JSON file"
    )
    data: DataConfig = Field(description="examples")
    model: ModelConfig = Field(default=ModelConfig(), description="model")
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="optimizer")
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="learning rate")
    seed: Seed = Field(default=0, description="seed of the order of data and of new parameters")
    steps: Count | None = Field(default=None, description="optimizer steps of the run; give steps or epochs")
    epochs: Epochs | None = Field(default=None, description="passes over the corpus; give epochs or steps")
    global_rows: Count = Field(default=8, description="rows of an optimizer step over all processes")
    micro_rows: Count = Field(default=1, description="rows a process runs at once")
    compile: Flag = Field(
        default=False,
        description="run the decoder layers through torch.compile, which takes some minutes in the first step; not "
        "with ZeRO-3",
    )
    activation_checkpointing: Flag = Field(
        default=False,
        description="keep only the input of each decoder layer, and compute the rest again in the backward pass: much "
        "less memory, a third more float operations",
    )
    fused_kernels: Flag = Field(
        default=False,
        description="norms, rotary positions and SwiGLU by the Triton kernels of liger-kernel, on a GPU "
        "(pip install 'slmkit[liger]'); compile fuses them by itself",
    )
    tf32: Flag = Field(
        default=False,
        description="in float32 on a GPU, matrix products whose factors are rounded to 10 bits: faster, less exact",
    )
    log_every_steps: Count = Field(default=10, description="steps from one line of metrics.jsonl to the next")
    save_every_steps: Count = Field(
        default=500, description="steps from one checkpoint to the next; the last step always saves"
    )
    save_every_minutes: Annotated[Positive, Unit("minutes")] | None = Field(
        default=None, description="longest time between two checkpoints"
    )
    keep_last: Count = Field(default=2, description="newest checkpoints that are kept")
    keep_every_steps: Natural = Field(
        default=0, description="checkpoints of multiples of this are kept for good; 0: none"
    )
    async_save: Flag = Field(
        default=True, description="write checkpoints while training goes on, from a copy in host memory"
    )
    on_save_error: Literal["stop", "continue"] = Field(
        default="stop", description="what to do when a checkpoint or another file of the run cannot be written"
    )
    on_damaged_checkpoint: Literal["stop", "previous"] = Field(
        default="stop",
        description="what a start does when the newest checkpoint is damaged: stop, or use the one before",
    )
    max_skipped_steps: Natural = Field(
        default=10, description="steps with a non-finite loss or gradient that a run may skip in all"
    )
    hang_timeout_sec: SecondsOrZero = Field(
        default=600.0, description="how long a process may make no progress before the run ends; 0: no limit"
    )
    eval_every_steps: Count = Field(
        default=500, description="steps from one evaluation to the next, if any data is held out"
    )
    speak_every_steps: Natural = Field(
        default=0, description="steps from one set of speech samples to the next; 0 makes none"
    )
    codec: PathText | None = Field(
        default=None, description="codec for speech samples in TensorBoard: a directory or a hub id"
    )
    peak_tflops: Annotated[Positive, Unit("TFLOP/s")] | None = Field(
        default=None, description="peak bf16 speed of a device, for MFU; not needed for known GPUs"
    )

    @property
    def base_path(self) -> Path:
        """Directory of the base model, fetched where `base` is a hub id. Raises UserError, as `local_path`."""
        return self.place("base", self.base)

    @property
    def init_path(self) -> Path:
        """Directory of the exported model to start from, where there is one; as `base_path`."""
        assert self.init_from is not None
        return self.place("init_from", self.init_from)

    @property
    def codec_path(self) -> Path:
        """Directory of the codec, where there is one; as `base_path`."""
        assert self.codec is not None
        return self.place("codec", self.codec)

    def place(self, option: str, name: str) -> Path:
        """Where the directory or hub id `name` of an option is on this disk; a directory need not be there.

        Raises UserError as `local_path`, for a hub id.
        """
        if parse(name) is None:
            return Path(name)
        return local_path(name, what=option, commit=self.revisions.get(name))

    @property
    def hub_names(self) -> dict[str, str]:
        """The options that name something on the hub and are needed to train, with their ids."""
        names = {"base": self.base, "init_from": self.init_from}
        names |= {"codec": self.codec if self.speak_every_steps else None}
        return {option: name for option, name in names.items() if name is not None and parse(name) is not None}

    def clashes(self) -> Iterable[tuple[bool, str]]:
        yield (
            self.speak_every_steps > 0 and self.codec is None,
            "codec, speak_every_steps: got no codec, expected its directory when speak_every_steps is set",
        )
        given = "neither" if self.steps is None else "both"
        yield (self.steps is None) == (self.epochs is None), f"steps, epochs: got {given}, expected one of the two"
        yield (
            self.compile and self.fused_kernels,
            "compile, fused_kernels: got both, expected one: torch.compile fuses the same operations by itself",
        )


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The run that a YAML file and overrides describe.

    Paths are relative to the working directory. A DeepSpeed file that is not there but beside the YAML file is found
    too. Raises UserError or ConfigError as `load_config` does.
    """
    config = load_config(TrainConfig, path, overrides)
    beside = os.path.join(os.path.dirname(path), config.deepspeed)
    if os.path.isfile(config.deepspeed) or not os.path.isfile(beside):
        return config
    return config.model_copy(update={"deepspeed": beside})
