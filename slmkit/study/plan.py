"""What a study does, decided before anything starts: its cells, and its steps in an order in which each can be done.

A cell is one model: a codec, a base, a group, a head, a fusion, with or without speaker vectors. A step is one command
of slmkit that fills one directory. Codecs, shards and bases are made once and shared by the cells that need them.

A plan is a plain value; making one looks at no file but the run configs. Names of cells and steps depend on the cell
alone: a study to which cells are added keeps those that it has.

Invariant: a step stands behind all steps that it needs, and its digest changes with what made those.

Example:
    plan = plan_study(load_study("launch/studies/quick.yaml"))
    [step.name for step in plan.steps][:2]          # ["codec-melvq1", "shards-demo-melvq1"]
"""

import hashlib
import itertools
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path

import yaml

from slmkit.config.load import parse_yaml
from slmkit.errors import UserError
from slmkit.study.config import EvaluationOptions, Kind, Resources, StageOptions, StudyConfig, Where

FOLDERS: dict[Kind, str] = {
    "codec": "codecs",
    "shards": "shards",
    "base": "bases",
    "train": "runs",
    "export": "models",
    "scores": "scores",
}
SHOWN_DIGEST = 16  # hexadecimal digits


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model of a study."""

    codec: str
    base: str
    group: int
    head: str  # "" for next-token models, which have neither head nor fusion
    fusion: str
    speaker: bool

    @property
    def name(self) -> str:
        parts = [self.codec, self.base, self.kind, self.head, self.fusion, "speaker" if self.speaker else ""]
        return "-".join(part for part in parts if part)

    @property
    def kind(self) -> str:
        """ntp, mtp3, ..."""
        return f"mtp{self.group}" if self.group else "ntp"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command, which fills one directory."""

    kind: Kind
    label: str  # the name of the directory
    words: tuple[str, ...]  # after `slmkit`
    directory: str
    needs: tuple[str, ...]  # names of steps
    digest: str  # of the words, and of the digests of what is needed

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.label}"

    @property
    def appears_whole(self) -> bool:
        """Whether the command makes its directory at its end alone, and refuses one that exists."""
        return self.kind in ("base", "export") or self.words[:2] == ("codec", "add")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a table: a cell, or the codec alone (`cell` is None)."""

    evaluation: str
    codec: str
    cell: Cell | None
    step: str  # which gives its scores


@dataclass(frozen=True)
class StudyPlan:
    """Everything that is decided before anything starts."""

    config: StudyConfig
    cells: tuple[Cell, ...]
    steps: tuple[Step, ...]
    rows: tuple[Row, ...]

    @cached_property
    def by_name(self) -> dict[str, Step]:
        return {step.name: step for step in self.steps}

    def step(self, name: str) -> Step:
        """Raises UserError where there is no such step."""
        if name not in self.by_name:
            raise UserError("the study has no such step", got=name, next_step="see `slmkit study plan --commands`")
        return self.by_name[name]

    def all_needs(self, name: str) -> set[str]:
        """Names of the steps that a step needs, and those that they need."""
        direct = self.by_name[name].needs
        return set(direct).union(*(self.all_needs(need) for need in direct))

    def resources(self, step: Step) -> Resources:
        return self.config.resources.get(step.kind, Resources())

    def model_label(self, row: Row) -> str:
        """What tells the model of a row from the others: the options in which the cells of the study differ."""
        if row.cell is None:
            return f"{row.codec}, codec alone"
        differing = {item.name for item in fields(Cell) if len({getattr(cell, item.name) for cell in self.cells}) > 1}
        shown = {
            "codec": row.cell.codec,
            "base": row.cell.base,
            "group": f"MTP-{row.cell.group}" if row.cell.group else "NTP",
            "head": row.cell.head,
            "fusion": row.cell.fusion,
            "speaker": "speaker" if row.cell.speaker else "no speaker",
        }
        several = {cell.head for cell in self.cells if cell.group}, {cell.fusion for cell in self.cells if cell.group}
        for name, values in zip(("head", "fusion"), several, strict=True):  # NTP alone is no other kind
            if len(values) < 2:
                differing.discard(name)
        return " ".join(text for name, text in shown.items() if name in differing and text) or row.cell.name


def plan_study(config: StudyConfig) -> StudyPlan:
    """The plan of a study. Raises UserError where no cell is left."""
    cells = tuple(_cells(config)) if config.stages else ()
    if config.stages and not cells:
        raise UserError("the study has no cell", next_step="look at groups, heads and leave_out")
    steps = _Steps(config)
    copies = [(name, one) for name, one in config.evaluations.items() if one.copy_options is not None]
    rows = []
    for codec in config.codecs:
        for name, evaluation in copies:
            rows.append(Row(evaluation=name, codec=codec, cell=None, step=steps.copy(name, evaluation, codec)))
        for cell in (cell for cell in cells if cell.codec == codec):
            model = ""
            for stage in config.stages:
                model = steps.stage(stage, cell, model)
            for name, evaluation in config.evaluations.items():
                rows.append(
                    Row(evaluation=name, codec=codec, cell=cell, step=steps.scores(name, evaluation, cell, model))
                )
    if not rows:
        raise UserError("the study compares nothing", next_step="give stages, or copy_options of an evaluation")
    return StudyPlan(config, cells, tuple(steps.known.values()), tuple(rows))


def _cells(config: StudyConfig) -> Iterator[Cell]:
    """Of each codec all kinds of models; a next-token model once, whatever the heads and fusions."""
    seen = set()
    axes = (config.codecs, config.bases, config.speaker, config.groups, config.heads, config.fusions)
    for codec, base, speaker, group, head, fusion in itertools.product(*axes):
        kind = (head, fusion) if group else ("", "")
        cell = Cell(codec=codec, base=base, group=group, head=kind[0], fusion=kind[1], speaker=speaker)
        if cell not in seen and not any(matches(where, cell) for where in config.leave_out):
            seen.add(cell)
            yield cell


def matches(where: Where, cell: Cell) -> bool:
    """Whether a cell is one of those."""
    wanted = {name: getattr(where, name) for name in type(where).model_fields}
    return all(getattr(cell, name) in values for name, values in wanted.items() if values)


@dataclass
class _Steps:
    """Makes steps, each once. The methods give names of steps."""

    config: StudyConfig
    known: dict[str, Step] = field(default_factory=dict)

    def add(self, kind: Kind, label: str, words: Sequence[str], needs: Sequence[str]) -> str:
        directory = self.directory(kind, label)
        needs = tuple(dict.fromkeys(need for need in needs if need))
        made_of = json.dumps([list(words), [self.known[need].digest for need in needs]])
        digest = hashlib.sha256(made_of.encode()).hexdigest()[:SHOWN_DIGEST]
        step = Step(kind=kind, label=label, words=tuple(words), directory=directory, needs=needs, digest=digest)
        self.known.setdefault(step.name, step)
        return step.name

    def directory(self, kind: Kind, label: str) -> str:
        return str(Path(self.config.out) / FOLDERS[kind] / label)

    def codec(self, name: str) -> tuple[str, str]:
        """(step or "", the codec's directory or id)."""
        codec = self.config.codecs[name]
        if codec.path is not None:
            return "", codec.path
        out, options = self.directory("codec", name), shlex.split(codec.options)
        if codec.add is not None:
            return self.add("codec", name, ["codec", "add", codec.add, out, *options], ()), out
        assert codec.fit is not None
        # A fit that was interrupted may have left one of its two files.
        return self.add("codec", name, ["codec", "fit", codec.fit, out, "--replace", *options], ()), out

    def shards(self, corpus: str, codec: str) -> tuple[str, str]:
        """(step, directory of the shards)."""
        needed, path = self.codec(codec)
        label, options = f"{corpus}-{codec}", self.config.corpora[corpus]
        out = self.directory("shards", label)
        words = ["tokenize", "run", options.source, path, out, "--no-progress", *shlex.split(options.options)]
        return self.add("shards", label, words, [needed]), out

    def base(self, name: str) -> tuple[str, str]:
        """(step or "", the base's directory or id)."""
        base = self.config.bases[name]
        if base.path is not None:
            return "", base.path
        assert base.texts is not None
        needed, corpus = self.shards(base.texts, next(iter(self.config.codecs)))  # its text is that of any codec
        out = self.directory("base", name)
        return self.add("base", name, ["init-base", out, "--corpus", corpus, *shlex.split(base.options)], [needed]), out

    def stage(self, stage: StageOptions, cell: Cell, model: str) -> str:
        """The step that exports what a cell has learned in a stage; `model` is that of the stage before, or ""."""
        codec_step, codec = self.codec(cell.codec)
        base_step, base = self.base(cell.base)
        needs, sources = [codec_step, base_step, model], []
        for source in stage.sources:
            path = source.path
            if source.corpus is not None:
                needed, path = self.shards(source.corpus, cell.codec)
                needs.append(needed)
            limit = {} if source.max_samples is None else {"max_samples": source.max_samples}
            sources.append({"path": path, "task": source.task, "weight": source.weight, **limit})
        label = f"{cell.name}-{stage.name}"
        values = {
            "run_dir": self.directory("train", label),
            "base": base,
            "codec": codec,
            "data.corpus": None,
            "data.task": "tts",  # these two are for a single corpus
            "data.max_samples": None,
            "data.sources": sources,
            "model.group": cell.group,
            "model.speaker": cell.speaker,
        }
        if cell.group:
            values |= {"model.head": cell.head, "model.fusion": cell.fusion}
        if model:
            values["init_from"] = self.known[model].directory
        if stage.eval_corpus:
            needed, values["data.eval_corpus"] = self.shards(stage.eval_corpus, cell.codec)
            needs.append(needed)
        words = ["train", "--config", stage.config, *(f"{name}={_yaml(value)}" for name, value in values.items())]
        words += shlex.split(stage.options)
        for rule in self.config.rules:
            if rule.stage in (None, stage.name) and matches(rule.where, cell):
                words += shlex.split(rule.options)
        train = self.add("train", label, words, needs)
        out = self.directory("export", label)
        words = ["consolidate", self.known[train].directory, out, "--codec", codec]
        return self.add("export", label, words, [train, codec_step])

    def scores(self, name: str, evaluation: EvaluationOptions, cell: Cell, model: str) -> str:
        path = self.known[model].directory
        return self._evaluation(name, evaluation.corpus, cell.codec, [path, *shlex.split(evaluation.options)], model)

    def copy(self, name: str, evaluation: EvaluationOptions, codec: str) -> str:
        assert evaluation.copy_options is not None
        return self._evaluation(name, evaluation.corpus, codec, ["--copy", *shlex.split(evaluation.copy_options)], "")

    def _evaluation(self, name: str, corpus: str, codec: str, words: Sequence[str], model: str) -> str:
        codec_step, path = self.codec(codec)
        needed, shards = self.shards(corpus, codec)
        label = f"{self.known[model].label if model else f'{codec}-copy'}-{name}"
        where = ["--corpus", shards, "--codec", path, "--out", self.directory("scores", label)]
        return self.add("scores", label, ["evaluate", *words, *where], [model, codec_step, needed])


def _yaml(value: object) -> str:
    """A value as an override has it. A path stands as it is, unless YAML would take it for something else."""
    try:
        is_plain = isinstance(value, str) and parse_yaml(value) == value
    except (yaml.YAMLError, ValueError):
        is_plain = False
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False)


def describe(plan: StudyPlan, *, commands: bool = False) -> list[str]:
    """What `slmkit study plan` prints."""
    shared = [step for step in plan.steps if step.kind in ("codec", "shards", "base")]
    counts = Counter(step.kind for step in plan.steps)
    counted = ", ".join(f"{counts[kind]} {kind}" for kind in FOLDERS if counts[kind])
    models = f"{len(plan.cells)} model{'s' if len(plan.cells) != 1 else ''}"
    lines = [f"{models}, {len(plan.steps)} steps ({counted}), in {plan.config.out}"]
    users = Counter(need for cell_step in plan.steps for need in cell_step.needs)
    lines += ["made once:", *(f"  {step.name}, for {users[step.name]} steps" for step in shared)]
    lines += ["models:", *(f"  {cell.name}" for cell in plan.cells)] if plan.cells else []
    scored = Counter(row.evaluation for row in plan.rows)
    lines += ["tables:", *(f"  {name}: {count} rows" for name, count in scored.items())]
    if commands:
        for step in plan.steps:
            needs = f"  after {', '.join(step.needs)}" if step.needs else ""
            lines += [f"{step.name}:{needs}", f"  slmkit {shlex.join(step.words)}"]
    return lines
