"""Whether a tokenized corpus can be trusted: read through, compared with its plan, and listened to.

`verify_corpus` reads every shard again, decodes a random sample with the codec that made the codes, and writes a
directory to keep: `index.html` with sounds and pictures, and `verify.json` with the same in numbers. It mends nothing.

Invariants: the report appears whole or not at all, also when shards are damaged; the same seed chooses the same
samples.

Example:
    verification = verify_job("shards/libritts", open_codec("melvq"), report="libritts-verified")
    print("\\n".join(verification.lines()))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmkit.codec.base import Codec
from slmkit.data.index import MANIFEST, Corpus
from slmkit.data.shards import ShardReader
from slmkit.errors import UserError
from slmkit.files import atomic_write, new_directory, provenance, read_json, write_json
from slmkit.tokenization.copies import Copy, OpenSource, make_copies, planned_audio
from slmkit.tokenization.integrity import PlannedKeys, Problem, check_shards
from slmkit.tokenization.plan import TokenizationPlan as Plan
from slmkit.tokenization.verify_page import render

PAGE, NUMBERS = "index.html", "verify.json"
SHOWN_PROBLEMS = 100  # in the error; the report has all


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found."""

    corpus: str
    codec: str
    shards: int
    samples: int
    seconds: float  # of speech
    failures: int  # items of the source that gave no sample
    outliers: dict[str, int]  # check -> utterances listed
    seed: int
    problems: tuple[Problem, ...]
    copies: tuple[Copy, ...]

    @property
    def mean_db(self) -> float | None:
        """Mean distance of the decoded speech to its source; None where nothing was compared."""
        return _mean([copy.distance_db for copy in self.copies])

    @property
    def worst_db(self) -> float | None:
        """The greatest of these distances."""
        return max((copy.distance_db for copy in self.copies if copy.distance_db is not None), default=None)

    @property
    def other_db(self) -> float | None:
        """Mean distance to the decoded speech of other utterances."""
        return _mean([copy.other_db for copy in self.copies])

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "corpus": self.corpus,
            "codec": self.codec,
            "counts": {
                "shards": self.shards,
                "samples": self.samples,
                "seconds": self.seconds,
                "failures": self.failures,
            },
            "outliers": self.outliers,
            "problems": [problem._asdict() for problem in self.problems],
            "log_mel_distance_db": {"mean": self.mean_db, "worst": self.worst_db, "mean_to_others": self.other_db},
            "seed": self.seed,
            "copies": [copy._asdict() for copy in self.copies],
            "made_by": provenance(),
        }

    def facts(self) -> list[tuple[str, str]]:
        """The numbers a person wants first."""
        found = [
            ("codec", self.codec),
            ("shards", f"{self.shards:,}"),
            ("samples", f"{self.samples:,}"),
            ("speech", f"{self.seconds / 3600:,.2f} h"),
            ("failures", f"{self.failures:,}"),
            ("outliers", f"{sum(self.outliers.values()):,}"),
        ]
        distances = (("mean distance", self.mean_db), ("worst distance", self.worst_db), ("to others", self.other_db))
        drawn = [("decoded", f"{len(self.copies)}, seed {self.seed}")] if self.copies else []
        return found + drawn + [(name, f"{db:.1f} dB") for name, db in distances if db is not None]

    def lines(self) -> list[str]:
        """The facts and the problems as text."""
        return [*(f"  {name}: {value}" for name, value in self.facts()), *(f"  {problem}" for problem in self.problems)]


def verify_job(
    out: str | Path, codec: Codec | None, *, samples: int = 20, seed: int = 0, report: str | Path
) -> Verification:
    """Verify a corpus against the plan and the audio it was made of, where it has a plan. Raises as `verify_corpus`."""
    if not Plan.exists(out):
        return verify_corpus(out, codec, samples=samples, seed=seed, report=report)
    plan = Plan.open(out)

    def planned_keys(shard: int) -> Sequence[str]:
        return [item.key for item in plan.items(shard)] if shard < len(plan.shards) else []

    return verify_corpus(
        out,
        codec,
        samples=samples,
        seed=seed,
        report=report,
        planned_keys=planned_keys,
        num_planned=len(plan.shards),
        # Nothing is decoded without a codec.
        open_source=planned_audio(out, 1 if codec is None else codec.spec.sample_rate),
    )


def verify_corpus(
    directory: str | Path,
    codec: Codec | None,
    *,
    samples: int = 20,
    seed: int = 0,
    report: str | Path,
    planned_keys: PlannedKeys = lambda shard: None,
    num_planned: int | None = None,
    open_source: OpenSource = lambda shard, key: None,
) -> Verification:
    """Read a corpus through, decode `samples` of it (none without a codec), and write the report.

    `planned_keys(shard)` gives the keys of a shard in the order of the plan, or None; `num_planned` is the number of
    shards planned; `open_source(shard, key)` gives the audio an utterance was made of, at the codec's rate, or None.

    Raises UserError when the corpus is not finished, was made with another codec, or `report` exists; and, after the
    report is written, when anything is damaged or not as planned: then all of it is named.
    """
    corpus, report = Corpus.open(directory), Path(report)
    if report.exists():
        raise UserError("the report exists already", got=report, next_step="remove it, or give another directory")
    if codec is not None:
        _check_codec(corpus, codec)
    with new_directory(report) as directory:
        problems = list(check_shards(corpus, planned_keys, num_planned))
        copies: list[Copy] = []
        if codec is not None:
            copies = make_copies(ShardReader(corpus), codec, _draw(len(corpus), samples, seed), open_source, directory)
        problems += [_doubt(copy) for copy in copies if copy.is_doubtful]
        verification = _verification(corpus, seed, problems, copies)
        write_json(directory / NUMBERS, verification.to_dict())
        page = render(title=verification.corpus, facts=verification.facts(), problems=problems, copies=copies)
        with atomic_write(directory / PAGE) as file:
            file.write(page.encode())
    if problems:
        raise _damaged(corpus, problems, report)
    return verification


def _check_codec(corpus: Corpus, codec: Codec) -> None:
    corpus.codec.check_compatible(codec.spec, this=str(corpus.directory), that="this command")
    if corpus.codec.speaker_dim != codec.spec.speaker_dim:
        raise UserError(
            f"{corpus.directory} cannot be decoded: its speaker vectors are not the codec's",
            got=f"width {corpus.codec.speaker_dim}",
            expected=f"width {codec.spec.speaker_dim}",
            next_step="verify it without a codec",
        )


def _draw(num_samples: int, wanted: int, seed: int) -> list[int]:
    """Numbers of samples, ascending."""
    drawn = np.random.default_rng(seed).choice(num_samples, size=min(wanted, num_samples), replace=False)
    return sorted(int(number) for number in drawn)


def _doubt(copy: Copy) -> Problem:
    what = f"sample {copy.key!r} decodes to speech that is no more like its source than another utterance's is"
    return Problem(copy.shard, f"{what}: {copy.distance_db:.1f} dB, {copy.other_db:.1f} dB")


def _verification(corpus: Corpus, seed: int, problems: Sequence[Problem], copies: Sequence[Copy]) -> Verification:
    manifest = read_json(corpus.directory / MANIFEST)
    return Verification(
        corpus=manifest["corpus"],
        codec=f"{corpus.codec.name} {corpus.codec.weights_sha256[:12]}".strip(),
        shards=len(corpus.shards),
        samples=len(corpus),
        seconds=corpus.seconds,
        failures=sum(manifest.get("failures", {}).values()),
        outliers=manifest.get("outliers", {}),
        seed=seed,
        problems=tuple(problems),
        copies=tuple(copies),
    )


def _damaged(corpus: Corpus, problems: Sequence[Problem], report: Path) -> UserError:
    num_files = len({problem.where for problem in problems})
    files = "1 file is" if num_files == 1 else f"{num_files} files are"
    listed = [f"\n  - {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    more = [f"\n  - and {len(problems) - SHOWN_PROBLEMS} more"] if len(problems) > SHOWN_PROBLEMS else []
    return UserError(
        f"{corpus.directory}: {files} damaged or not as planned{''.join(listed + more)}",
        next_step=f"see {report / PAGE}; restore the files from a copy, or remove the tar and the index of each shard "
        f"that is named, and `slmkit tokenize run` makes it again",
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
