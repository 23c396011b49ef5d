"""Which utterances of a corpus are spoken, and in which voices.

A model that notes what it was trained on is asked for utterances that it was not trained on, unless memorisation is
what is to be measured.

Invariant: the same arguments give the same items in the same order.

Example:
    selected = select(corpus, read_voices(["own"], codec, synthesizer), limit=8)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from slmkit.codec.base import Codec
from slmkit.data.index import Corpus
from slmkit.data.lengths import key_hash
from slmkit.data.lines import parse_line, read_lines
from slmkit.data.shards import ShardReader
from slmkit.errors import UserError
from slmkit.infer.synthesizer import Synthesizer, voice_not_taken
from slmkit.log import get_logger
from slmkit.model.trained_on import TrainedOn

OWN, SWAPPED = "own", "swapped"
DEFAULT = "default"  # the one voice of a model that takes none
log = get_logger(__name__)


class NamedVoice(NamedTuple):
    """A voice given from outside the corpus, by the name under which it was given."""

    name: str
    vector: npt.NDArray[np.float32]  # [D]


class Selected(NamedTuple):
    """An utterance and a voice. The voice is that of a sample of the corpus, or else one given from outside."""

    number: int  # of the sample with the sentence
    key: str
    voice: str  # "own", "swapped", "default", or the name of a voice from outside
    voice_number: int | None  # of the sample whose voice it is
    voice_key: str  # of that sample, "" for none


def select(
    corpus: Corpus,
    voices: Sequence[str | NamedVoice] = (OWN,),
    *,
    limit: int | None = None,
    every: int = 1,
    keys: Sequence[str] | None = None,
    trained_on: TrainedOn | None = None,
    trained: bool = False,
    spread: bool = False,
) -> list[Selected]:
    """Each utterance that is chosen, in each of the voices.

    Chosen are those of `keys` in the order given; or else all, where `trained_on` is known those that are not among it,
    or with `trained` those that are. Of them every n-th from the first, at most `limit`: the first ones, or with
    `spread` some from all over the corpus, which are also among those of a larger limit. Voices: "own"; "swapped", that
    of the next chosen utterance by another speaker; "default", for a model that takes none; or a `NamedVoice`.

    Raises UserError for a key that the corpus lacks, a voice given twice, nothing chosen, `trained` where `trained_on`
    is not known, or speakers that cannot be swapped because there is only one.
    """
    if trained and trained_on is None:
        what = "the model does not note what it was trained on, so there is no telling what --trained would choose"
        raise UserError(what, next_step="name the utterances with --keys, or export the model from its run again")
    if keys is not None:
        numbers = numbers_of(corpus, keys)
    elif trained_on is not None:
        numbers = _told_apart(corpus, trained_on, trained)
    else:
        numbers = list(range(len(corpus)))
    numbers = numbers[::every]
    if spread and limit is not None and limit < len(numbers):
        numbers = sorted(sorted(numbers, key=lambda number: key_hash(corpus.key(number)))[:limit])
    numbers = numbers[:limit]
    if not numbers:
        raise UserError(f"no utterance of {corpus.directory} is chosen", got=f"{len(corpus)} in the corpus")
    names = [voice if isinstance(voice, str) else voice.name for voice in voices]
    if len(set(names)) < len(names):
        raise UserError("a voice is given twice", got=", ".join(names))
    found: list[Selected] = []
    for name in names:
        others = dict(zip(numbers, numbers, strict=True)) if name == OWN else {}
        if name == SWAPPED:
            others = _swapped(corpus, numbers)
        for number in numbers:
            other = others.get(number)
            found.append(Selected(number, corpus.key(number), name, other, "" if other is None else corpus.key(other)))
    return found


def read_voices(names: Sequence[str], codec: Codec, synthesizer: Synthesizer | None) -> list[str | NamedVoice]:
    """Names of voices from a command line, those from outside with their vectors. Without a synthesizer: of copies.

    What takes no voice has only one: a model its "default", copies that of their codes, "own". Raises UserError for
    another; and for one from outside of copies, which have only the voices of the corpus.
    """
    if not (codec.spec.decodes_voice if synthesizer is None else synthesizer.takes_voice):
        if other := [name for name in names if name != OWN]:
            raise voice_not_taken(codec, other[0])
        if synthesizer is None:
            return [OWN]
        log.info("neither the model nor the codec takes a voice: the model speaks in the one it has")
        return [DEFAULT]
    voices: list[str | NamedVoice] = []
    for name in names:
        if name in (OWN, SWAPPED):
            voices.append(name)
        elif synthesizer is None:
            raise UserError("copy synthesis has only the voices of the corpus", got=name, expected=f"{OWN}, {SWAPPED}")
        else:
            voices.append(NamedVoice(name, synthesizer.read_speaker(name)))
    return voices


def read_list(path: str | Path, what: str) -> list[str]:
    """The lines of a list of keys or speakers, without the empty ones. Raises UserError naming the file."""
    try:
        lines = [parse_line(line).strip() for _, line in read_lines(path)]
    except UserError as error:
        raise UserError(f"cannot read the list of {what}: {error.what}", got=path) from error
    if not lines:
        raise UserError(f"the list of {what} is empty", got=path, expected="one on each line")
    return lines


def _told_apart(corpus: Corpus, trained_on: TrainedOn, trained: bool) -> list[int]:
    """The utterances that were trained on, or were not."""
    found: list[int] = []
    for start, shard in zip(corpus.starts, corpus.shards, strict=False):
        found += (int(start) + np.flatnonzero(trained_on.has_keys(shard.keys) == trained)).tolist()
    if found or not len(corpus):
        return found
    count = f"{len(corpus)} utterances"
    if trained:
        what = f"the model was trained on no utterance of {corpus.directory}, so there is no memorisation to measure"
        raise UserError(what, got=count, next_step="leave out --trained")
    raise UserError(
        f"the model was trained on every utterance of {corpus.directory}: scores of them would flatter it",
        got=count,
        expected="some that were held out",
        next_step="give another corpus, or train with data.eval_share; --trained measures memorisation",
    )


def numbers_of(corpus: Corpus, keys: Sequence[str]) -> list[int]:
    """The samples with these keys, each once. Raises UserError for one that the corpus lacks."""
    wanted = set(keys)
    number_of = {key: i for i in range(len(corpus)) if (key := corpus.key(i)) in wanted}
    missing = [key for key in dict.fromkeys(keys) if key not in number_of]
    if missing:
        raise UserError(
            f"{corpus.directory} has no utterance {missing[0]!r}", got=f"{len(missing)} of {len(wanted)} keys missing"
        )
    return [number_of[key] for key in dict.fromkeys(keys)]


def _swapped(corpus: Corpus, numbers: Sequence[int]) -> dict[int, int]:
    """Of each chosen utterance, the next one chosen (around the end) that another speaker says."""
    reader = ShardReader(corpus)
    speakers = [str(reader.read_meta(number).get("speaker", "")) for number in numbers]
    if len(set(speakers)) < 2:
        raise UserError(
            "voices cannot be swapped: one speaker says all chosen utterances",
            got=speakers[0],
            next_step="choose more utterances with --limit, --every or --keys",
        )
    count, swapped = len(numbers), {}
    for i, number in enumerate(numbers):
        turns = ((i + step) % count for step in range(1, count))
        swapped[number] = numbers[next(j for j in turns if speakers[j] != speakers[i])]
    return swapped
