"""Whether a tokenized corpus can be trusted: every shard is read and compared, and a sample is decoded to listen to.

`verify_corpus` reads every shard again, decodes a random sample with the codec that made the codes, and writes a
directory to keep: `index.html` with sounds and pictures, and `verify.json` with the same in numbers. It repairs
nothing.

Invariants: the report appears whole or not at all, also when shards are damaged; the same seed chooses the same
samples.

Example:
    verification = verify_corpus("shards/libritts", open_codec("melvq"), report="libritts-verified")
    print("\\n".join(verification.lines()))
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmkit import pages
from slmkit.codec.base import Codec
from slmkit.data.index import MANIFEST, Corpus
from slmkit.data.shards import ShardReader
from slmkit.errors import UserError
from slmkit.files import atomic_write, new_directory, provenance, read_json, write_json
from slmkit.tokenization.copies import DECODED_WAV, PICTURE_PNG, SOURCE_WAV, Copy, make_copies, planned_audio
from slmkit.tokenization.integrity import ShardProblem, check_shards
from slmkit.tokenization.outliers import LIMITS
from slmkit.tokenization.plan import TokenizationPlan

VERIFY_PAGE, VERIFY_NUMBERS = "index.html", "verify.json"
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
    problems: tuple[ShardProblem, ...]
    copies: tuple[Copy, ...]

    def distances_db(self) -> dict[str, float | None]:
        """Mean and largest distance of the decoded speech to its source, and the mean distance to the decoded speech of
        other utterances; None where nothing was compared."""
        own = [copy.distance_db for copy in self.copies if copy.distance_db is not None]
        others = [copy.other_db for copy in self.copies if copy.other_db is not None]
        return {
            "mean": sum(own) / len(own) if own else None,
            "worst": max(own, default=None),
            "mean_to_others": sum(others) / len(others) if others else None,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "corpus": self.corpus,
            "codec": self.codec,
            "counts": {name: getattr(self, name) for name in ("shards", "samples", "seconds", "failures")},
            "outliers": self.outliers,
            "problems": [problem._asdict() for problem in self.problems],
            "log_mel_distance_db": self.distances_db(),
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
        if self.copies:
            found.append(("decoded samples", f"{len(self.copies)}, seed {self.seed}"))
        labels = {"mean": "mean distance", "worst": "largest distance", "mean_to_others": "mean distance to others"}
        return found + [(labels[name], f"{db:.1f} dB") for name, db in self.distances_db().items() if db is not None]

    def lines(self) -> list[str]:
        """The facts and the problems as text."""
        return [*(f"  {name}: {value}" for name, value in self.facts()), *(f"  {problem}" for problem in self.problems)]

    def verdict(self) -> str:
        """How many files have problems, as a clause."""
        num_files = len({problem.where for problem in self.problems})
        return f"{num_files} {'file is' if num_files == 1 else 'files are'} damaged or not as planned"

    def page(self) -> str:
        """The page: what is wrong, and the decoded utterances to listen to, doubtful ones first."""
        measured = [db for copy in self.copies for db in (copy.distance_db, copy.other_db) if db is not None]
        longest_db = max(measured, default=0.0) or 1.0
        unlimited = (float("-inf"), float("inf"))
        shown = []
        for copy in sorted(self.copies, key=lambda copy: (not copy.is_doubtful, -(copy.distance_db or 0.0))):
            about = [(name, getattr(copy, name)) for name in ("key", "shard", "speaker", "language", "source")]
            files = [("source", SOURCE_WAV)] * (copy.distance_db is not None) + [("decoded", DECODED_WAV)]
            checks = []
            for name, value in copy.checks.items():
                low, high = LIMITS.get(name, unlimited)
                checks.append((name, f"{value:g}", not low <= value <= high))
            shown.append(
                {
                    "text": copy.text,
                    "is_doubtful": copy.is_doubtful,
                    "sounds": [(label, file.format(copy.name)) for label, file in files],
                    "picture": PICTURE_PNG.format(copy.name),
                    "distance_db": copy.distance_db,
                    "other_db": copy.other_db,
                    "share": 100 * (copy.distance_db or 0.0) / longest_db,
                    "other_share": None if copy.other_db is None else 100 * copy.other_db / longest_db,
                    "about": [pair for pair in about if pair[1]] + [("length", f"{copy.seconds:.2f} s")],
                    "checks": checks,
                }
            )
        return pages.render(
            "verify.html",
            title=f"{self.corpus} verified",
            corpus=self.corpus,
            verdict=f"{self.verdict()}.",
            facts=self.facts(),
            problems=self.problems,
            copies=shown,
        )


def verify_corpus(
    directory: str | Path,
    codec: Codec | None,
    *,
    samples: int = 20,
    seed: int = 0,
    report: str | Path,
) -> Verification:
    """Read a corpus through, decode `samples` of it (none without a codec), and write the report.

    Where it has a plan, it is compared with that, and decoded speech with the audio it was made of.

    Raises UserError when the corpus is not finished, was made with another codec, or `report` exists; and, after the
    report is written, when anything is damaged or not as planned: then all of it is named.
    """
    corpus, report = Corpus.open(directory), Path(report)
    if os.path.exists(report):
        raise UserError("the report exists already", got=report, next_step="remove it, or give another directory")
    if codec is not None:
        corpus.codec.check_compatible(codec.spec, this=str(corpus.directory), that="this command")
        if codec.spec.decodes_voice and corpus.codec.speaker_dim != codec.spec.speaker_dim:
            raise UserError(
                f"{corpus.directory} cannot be decoded: its speaker vectors are not the codec's",
                got=f"width {corpus.codec.speaker_dim}",
                expected=f"width {codec.spec.speaker_dim}",
                next_step="verify it without a codec",
            )
    plan = TokenizationPlan.open(directory) if TokenizationPlan.exists(directory) else None

    def planned_keys(shard: int) -> Sequence[str] | None:
        if plan is None:
            return None
        return [item.key for item in plan.items(shard)] if shard < len(plan.shards) else []

    with new_directory(report) as made:
        problems = list(check_shards(corpus, planned_keys, None if plan is None else len(plan.shards)))
        copies: list[Copy] = []
        if codec is not None:
            rng, count = np.random.default_rng(seed), min(samples, len(corpus))
            drawn = sorted(int(number) for number in rng.choice(len(corpus), size=count, replace=False))
            open_source = planned_audio(directory, codec.spec.sample_rate)
            copies = make_copies(ShardReader(corpus), codec, drawn, open_source, made)
        problems += [
            ShardProblem(
                copy.shard,
                f"sample {copy.key!r} decodes to speech that is no more like its source than another utterance's is: "
                f"{copy.distance_db:.1f} dB, {copy.other_db:.1f} dB",
            )
            for copy in copies
            if copy.is_doubtful
        ]
        manifest = read_json(corpus.directory / MANIFEST)
        verification = Verification(
            corpus=manifest["corpus"],
            codec=f"{corpus.codec.name} {corpus.codec.weights_sha256[:12]}".strip(),
            shards=len(corpus.shards),
            samples=len(corpus),
            seconds=corpus.seconds,
            failures=sum(corpus.failures.values()),
            outliers=dict(corpus.outliers),
            seed=seed,
            problems=tuple(problems),
            copies=tuple(copies),
        )
        write_json(made / VERIFY_NUMBERS, verification.to_dict())
        with atomic_write(made / VERIFY_PAGE) as file:
            file.write(verification.page().encode())
    if problems:
        listed = [f"\n  - {problem}" for problem in problems[:SHOWN_PROBLEMS]]
        if len(problems) > SHOWN_PROBLEMS:
            listed.append(f"\n  - and {len(problems) - SHOWN_PROBLEMS} more")
        raise UserError(
            f"{corpus.directory}: {verification.verdict()}{''.join(listed)}",
            next_step=f"see {report / VERIFY_PAGE}; restore the files from a copy, or remove the tar and the index of "
            "each shard that is named and give `slmkit tokenize run` again, which makes them anew",
        )
    return verification
