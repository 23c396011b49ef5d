"""The YAML file of a study, as one tree of frozen models.

Options of the commands are written as on the command line, in one text: `options: --limit 100 --slots 8`.

Example:
    study = load_study("launch/studies/quick.yaml", ["out=/scratch/quick"])
"""

import itertools
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import AfterValidator, Field, StringConstraints

from slmkit.config.load import Config, load_config
from slmkit.config.train import Task
from slmkit.config.values import Count, Flag, Group, Name, Natural, PathText, Positive, Takes, Text

Label = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$", max_length=40),
    Takes("letters, digits and _"),
]
Kind = Literal["codec", "shards", "base", "train", "export", "scores"]
PAPER_COLUMNS = (  # of the tables of arXiv 2506.12537
    *("success", "wer", "utmos", "distillmos", "wavlm_similarity", "codec_similarity"),
    *("steps_per_sec", "real_time_factor"),
    *("alignment_cosine", "alignment_euclidean", "alignment_riemannian"),
    *("exact_match", "f1", "speech_exact_match", "speech_f1"),
)


def _split(text: str) -> str:
    shlex.split(text)  # raises ValueError where a quote is not closed
    return text


Words = Annotated[Text, AfterValidator(_split), Takes("options as on a command line")]


class CorpusOptions(Config):
    """A corpus of recordings, tokenized with a codec once."""

    source: PathText = Field(description="folder or file with the audio")
    options: Words = Field(default="", description="of `slmkit tokenize run`, such as --config libritts batch_sec=60")


class CodecOptions(Config):
    """A codec; one of path, add and fit."""

    path: PathText | None = Field(default=None, description="codec that is there: a directory or a hub id")
    add: PathText | None = Field(default=None, description="published codec to convert, as for `slmkit codec add`")
    fit: PathText | None = Field(default=None, description="folder of audio that the built-in codec is fitted to")
    options: Words = Field(default="", description="of `slmkit codec add` or `fit`, such as --streams 4")


class BaseOptions(Config):
    """A base model; one of path and texts."""

    path: PathText | None = Field(default=None, description="base model: a directory or a hub id")
    texts: Label | None = Field(
        default=None, description="corpus of the study whose text a tiny base model is made with (`slmkit init-base`)"
    )
    options: Words = Field(default="", description="of `slmkit init-base`, such as --hidden-size 64")


class StudySource(Config):
    """What a stage trains on."""

    corpus: Label | None = Field(default=None, description="corpus of the study")
    path: PathText | None = Field(default=None, description="JSONL file of text conversations, in place of a corpus")
    task: Task = Field(default="tts", description="what the examples teach: tts, asr, text or qa")
    weight: Positive = Field(default=1.0, description="passes over this source in an epoch")
    max_samples: Count | None = Field(default=None, description="only the first samples of the source")


class StageOptions(Config):
    """A training; each stage after the first begins with the weights of the one before."""

    name: Label = Field(description="name of the stage, such as pretrain")
    config: Name = Field(description="run config (see `slmkit train`) to begin with: a YAML file or a recipe's name")
    sources: Annotated[tuple[StudySource, ...], MinLen(1), Takes("a list of groups of options, at least one")] = Field(
        description="what it trains on"
    )
    eval_corpus: Label | None = Field(default=None, description="corpus of the study to evaluate on meanwhile")
    options: Words = Field(default="", description="of the run config, as KEY=VALUE")


class EvaluationOptions(Config):
    """A set of scores that each model gets; a table of the result."""

    corpus: Label = Field(description="corpus of the study with the utterances")
    options: Words = Field(default="", description="of `slmkit evaluate`, such as --limit 100 --asr ORG/NAME")
    copy_options: Words | None = Field(
        default=None,
        description="of `slmkit evaluate --copy`, to score what each codec makes of the recordings; null: not scored",
    )


class Where(Config):
    """Which cells: those that have one of the values of each option; all where none is given."""

    codec: tuple[Label, ...] = Field(default=(), description="codecs")
    base: tuple[Label, ...] = Field(default=(), description="bases")
    group: tuple[Group, ...] = Field(default=(), description="groups")
    head: tuple[Label, ...] = Field(default=(), description="heads")
    fusion: tuple[Label, ...] = Field(default=(), description="fusions")
    speaker: tuple[Flag, ...] = Field(default=(), description="with or without speaker vectors")


class Rule(Config):
    """Further options of the training of some cells."""

    where: Where = Field(default=Where(), description="which cells")
    stage: Label | None = Field(default=None, description="only in this stage")
    options: Words = Field(description="of the run config, as KEY=VALUE")


class Resources(Config):
    """What a step gets."""

    processes: Count = Field(default=1, description="processes on each machine; more than one only to train")
    nodes: Count = Field(default=1, description="machines; more than one only to train as a Slurm job")
    cpus: Count | None = Field(default=None, description="CPUs of each process, in Slurm")
    gpus: Natural = Field(default=0, description="GPUs on each machine, in Slurm")
    time: Name | None = Field(default=None, description="time limit in Slurm; the job goes on after it by itself")


class StudyConfig(Config):
    """A study: a model of each combination of codec, base, group, head, fusion and speaker, trained and evaluated."""

    out: PathText = Field(description="directory for everything the study makes")
    table: Label = Field(
        default="table", description="folder in it for the table: studies of one directory share steps of equal names"
    )
    title: Text = Field(default="", description="title of the table")
    corpora: dict[Label, CorpusOptions] = Field(description="corpora by name")
    codecs: dict[Label, CodecOptions] = Field(description="codecs by name")
    bases: dict[Label, BaseOptions] = Field(default={}, description="base models by name")
    groups: tuple[Group, ...] = Field(default=(), description="speech tokens a step: 0 next-token, 3, 6, 12, ...")
    heads: tuple[Label, ...] = Field(default=("linear",), description="kinds of speech heads (group > 0)")
    fusions: tuple[Literal["mean", "mlp"], ...] = Field(
        default=("mlp",), description="how the embeddings of a group become one (group > 0)"
    )
    speaker: tuple[Flag, ...] = Field(default=(False,), description="with speaker vectors, without, or both")
    leave_out: tuple[Where, ...] = Field(default=(), description="cells that are not wanted")
    stages: tuple[StageOptions, ...] = Field(default=(), description="trainings of a cell; [] compares codecs alone")
    rules: tuple[Rule, ...] = Field(default=(), description="further options of the training of some cells")
    evaluations: dict[Label, EvaluationOptions] = Field(description="scores by name")
    columns: tuple[Name, ...] = Field(
        default=PAPER_COLUMNS, description="metrics of the table; those that nothing has are left out"
    )
    at_once: Count = Field(default=1, description="steps at the same time on one machine")
    resources: dict[Kind, Resources] = Field(
        default={}, description="what the steps of a kind get: codec, shards, base, train, export, scores"
    )

    def clashes(self) -> Iterable[tuple[bool, str]]:
        known = {"corpus": [*self.corpora], "codec": [*self.codecs], "base": [*self.bases]}
        named: list[tuple[str, str, str]] = []  # option, kind, name
        for name, base in self.bases.items():
            yield _not_one(f"bases.{name}", base, "path", "texts")
            named += [(f"bases.{name}.texts", "corpus", base.texts)] if base.texts else []
        for name, codec in self.codecs.items():
            yield _not_one(f"codecs.{name}", codec, "path", "add", "fit")
        for step, asked in self.resources.items():
            got, is_one = f"{asked.processes} processes on {asked.nodes} nodes", asked.processes == asked.nodes == 1
            yield step != "train" and not is_one, f"resources.{step}: got {got}, expected 1 on 1; only train has more"
        for number, stage in enumerate(self.stages):
            for place, source in enumerate(stage.sources):
                option = f"stages[{number}].sources[{place}]"
                yield _not_one(option, source, "corpus", "path")
                named += [(f"{option}.corpus", "corpus", source.corpus)] if source.corpus else []
            if stage.eval_corpus:
                named.append((f"stages[{number}].eval_corpus", "corpus", stage.eval_corpus))
        for name, evaluation in self.evaluations.items():
            named.append((f"evaluations.{name}.corpus", "corpus", evaluation.corpus))
        for option, where in itertools.chain(
            ((f"leave_out[{number}]", where) for number, where in enumerate(self.leave_out)),
            ((f"rules[{number}].where", rule.where) for number, rule in enumerate(self.rules)),
        ):
            named += [(f"{option}.codec", "codec", name) for name in where.codec]
            named += [(f"{option}.base", "base", name) for name in where.base]
        for option, kind, name in named:
            yield name not in known[kind], f"{option}: got {name!r}, expected one of {', '.join(known[kind]) or 'none'}"
        names = [stage.name for stage in self.stages]
        yield len(set(names)) < len(names), f"stages: got the names {names}, expected different ones"
        for number, rule in enumerate(self.rules):
            is_known = rule.stage is None or rule.stage in names
            yield not is_known, f"rules[{number}].stage: got {rule.stage!r}, expected one of {', '.join(names)}"
        yield not self.evaluations, "evaluations: got none, expected at least one"
        yield bool(self.stages) and not self.bases, "bases, stages: got no base, expected one for the stages"
        yield bool(self.stages) and not self.groups, "groups, stages: got no group, expected one for the stages"


def _not_one(option: str, given: Config, *choices: str) -> tuple[bool, str]:
    """The clash of a group of options of which exactly one must be given."""
    found = [name for name in choices if getattr(given, name) is not None]
    line = f"{option}: got {' and '.join(found) or 'none'}, expected one of {', '.join(choices)}"
    return len(found) != 1, line


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """The study that a YAML file and overrides describe. Paths are relative to the working directory.

    Raises UserError or ConfigError as `load_config` does.
    """
    return load_config(StudyConfig, path, overrides)
