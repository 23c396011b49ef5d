"""How far text and speech lie apart inside a model: cosine, Euclidean and Riemannian distance of hidden states.

The states are those behind the last layer, which the model's heads read, of a sentence and of its true codes, laid out
as in training ("read this sentence", the speech), teacher-forced. Text positions are those of the sentence's own words
in the prompt, without the instruction around them; speech positions are those of the codes, without `<eosp>`: K per
frame for a next-token model, one per step for a multi-token one.

Only the names of the measures are taken from arXiv 2506.12537; its numbers need not be comparable. Here they are
 - cosine: of the mean text state and the mean speech state;
 - euclidean: the length of the difference of the two means;
 - riemannian: how differently the states spread around their means. With C the covariance of one set (divided by its
   number n), A = 0.9 C + 0.1 (trace C / D) I is positive definite for any n, and the distance of A and B is the
   affine-invariant one, sqrt(sum of log^2 of the eigenvalues of A^-1 B). The shrinkage is fixed, so that values of
   different utterances and models can be compared; they do depend on the numbers of positions, so compare models on
   the same utterances. Where few positions meet a wide model the eigenvalues are taken in the space that the positions
   span; beyond it both matrices are multiples of I. All in float64.

Shapes: n text positions, m speech positions, D width.

Invariants: equal sets have cosine 1 and distances 0; swapping the sets changes nothing; rotating or scaling all states
alike leaves the Riemannian distance.

Example:
    alignment(*hidden_pair(model, tokenizer, sample)).riemannian
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from slmkit.data import prompt
from slmkit.data.sequence import build, tokenize
from slmkit.data.shards import Sample
from slmkit.data.text import TextTokenizer
from slmkit.errors import BadSample
from slmkit.evaluate.metrics import Metric, Scores, measures, single
from slmkit.evaluate.metrics.voices import cosine
from slmkit.evaluate.spoken import Spoken
from slmkit.model.slm import SpeechLM

SHRINKAGE = 0.1  # share of the covariance that is spread evenly over all directions

Matrix = npt.NDArray[np.float64]
HiddenStates = npt.NDArray[np.float32]


class Alignment(NamedTuple):
    """Of one pair of sets."""

    cosine: float
    euclidean: float
    riemannian: float | None  # None where a set does not spread: fewer than two positions, or all alike


@measures(
    Metric(
        name="alignment_cosine",
        label="align cosine",
        better="higher",
        order=90,
        note="Of the mean hidden states of a sentence and of its true speech, behind the last layer.",
    ),
    Metric(
        name="alignment_euclidean",
        label="align Euclid",
        better="lower",
        digits=2,
        order=91,
        note="Distance of the same two means.",
    ),
    Metric(
        name="alignment_riemannian",
        label="align Riemann",
        better="lower",
        digits=2,
        order=92,
        note="Distance of how the states spread around their means.",
    ),
    needs=["model"],
)
def text_speech_alignment(spoken: Spoken) -> Scores:
    assert spoken.tools.model is not None, "the registry asks for it"
    try:
        found = alignment(*hidden_pair(*spoken.tools.model, spoken.truths.sample(spoken.record.number)))
    except BadSample:  # without text or speech
        return {f"alignment_{name}": None for name in Alignment._fields}
    return {f"alignment_{name}": single(value) for name, value in found._asdict().items()}


@torch.inference_mode()
def hidden_pair(model: SpeechLM, tokenizer: TextTokenizer, sample: Sample) -> tuple[HiddenStates, HiddenStates]:
    """Text states float32 [n, D] and speech states float32 [m, D] of a sample, as the heads see them: normalized.

    Raises BadSample when the sample has no text, no frames, or no speaker vector where the model wants one.
    """
    aware, device = model.config.speaker_dim > 0, model.device
    if not sample.codes.shape[1]:
        raise BadSample("empty", f"{sample.key} has no frames")
    if aware and sample.speaker is None:
        raise BadSample("missing_field", f"{sample.key} has no speaker vector, and the model needs one")
    segments = prompt.example("tts", sample.meta, speaker=aware)
    pieces = tokenize(segments, tokenizer.encode, model.layout)
    example = build(pieces, sample.codes[: model.layout.num_streams], model.layout, model.group)
    vectors = torch.from_numpy(sample.speaker)[None].to(device) if aware and sample.speaker is not None else None
    embedded = model.embed(
        torch.from_numpy(example.tokens).to(device),
        torch.from_numpy(example.speech_mask).to(device),
        vectors,
        torch.from_numpy(example.speaker_positions).to(device),
    )[None]
    states = model.hidden(embedded, torch.arange(embedded.shape[1], device=device)[None])[0].float().cpu().numpy()

    starts = np.cumsum([0, *(len(piece.ids) for piece in pieces)])
    # The first text of the prompt is instruction and sentence in one piece. What its ends share with the tokens of the
    # instruction alone is not of the sentence; a token that holds a bit of both is.
    number = next(i for i, segment in enumerate(segments) if segment.kind == "text")
    before = prompt.TEMPLATES["tts"].partition("{text}")[0].removeprefix("[Human]")
    after = segments[number].value[len(before) + len(prompt.normalize_text(sample.meta["text"])) :]
    ids = pieces[number].ids
    first = _num_shared(tokenizer.encode(before), ids)
    last = len(ids) - _num_shared(tokenizer.encode(after)[::-1], ids[first:][::-1])
    words = states[starts[number] + first : starts[number] + last]

    number = next(i for i, piece in enumerate(pieces) if piece.kind == "speech")
    num_after = starts[-1] - starts[number + 1]
    return words, states[starts[number] : len(states) - num_after - 1]  # without <eosp>


def _num_shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many first entries are equal."""
    return next((i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b)))


def alignment(text_hidden: npt.NDArray[Any], speech_hidden: npt.NDArray[Any]) -> Alignment:
    """Measures of text states float [n, D] and speech states float [m, D].

    Raises ValueError when a set is empty or the widths differ.
    """
    text, speech = text_hidden.astype(np.float64), speech_hidden.astype(np.float64)
    if text.ndim != 2 or speech.ndim != 2 or not len(text) or not len(speech) or text.shape[1] != speech.shape[1]:
        raise ValueError(f"states of shapes {text.shape} and {speech.shape}, expected [n, D] and [m, D], n and m > 0")
    means = text.mean(axis=0), speech.mean(axis=0)
    return Alignment(
        cosine=cosine(*means),
        euclidean=float(np.linalg.norm(means[0] - means[1])),
        riemannian=_spread_distance(text - means[0], speech - means[1]),
    )


def spd_distance(a: Matrix, b: Matrix) -> float:
    """Affine-invariant Riemannian distance of symmetric positive definite matrices [D, D] (Pennec et al. 2006).

    Raises ValueError when the first is not positive definite.
    """
    try:
        lower = np.linalg.cholesky(a)
    except np.linalg.LinAlgError as error:
        raise ValueError("the matrix is not positive definite") from error
    whitened = np.linalg.solve(lower, np.linalg.solve(lower, b).T)
    return float(np.linalg.norm(np.log(np.linalg.eigvalsh((whitened + whitened.T) / 2))))


def _spread_distance(text: Matrix, speech: Matrix) -> float | None:
    """Distance of the shrunk covariances of centred states [n, D] and [m, D]."""
    width = text.shape[1]
    levels = [float(np.square(states).sum() / len(states) / width) for states in (text, speech)]
    if not all(levels):
        return None
    num_beyond = max(0, width - len(text) - len(speech))
    if num_beyond:
        basis, _ = np.linalg.qr(np.concatenate([text, speech]).T)
        text, speech = text @ basis, speech @ basis
    shrunk = [
        (1 - SHRINKAGE) * states.T @ states / len(states) + SHRINKAGE * level * np.eye(states.shape[1])
        for states, level in zip((text, speech), levels, strict=True)
    ]
    inside = spd_distance(*shrunk)
    return float(np.hypot(inside, np.sqrt(num_beyond) * np.log(levels[1] / levels[0])))
