"""Codes in the published demo format (arXiv 2506.12537), one JSON object per line.

NTP: `{"uttid", "text", "tokens": "<a1><b2><c3><a4>..."}`. MTP with n frames a step: `tokens` maps `head_a_1`,
`head_b_1`, `head_c_1`, `head_a_2`, ... to a string of one code per step; frames that the last step has too many are
`<|speech_pad|>`. All give the same [3, T]: streams content 1, content 2, prosody of FACodec.

Shapes: T frames.

Invariant: reading what `slmkit` or the published code wrote gives back the codes; anything else is a `Failure`.

Example:
    parse_tokens("<a1><b2><c3><a4><b5><c6>")      # [[1, 4], [2, 5], [3, 6]]
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from slmkit.codec.base import CodecSpec, Stream
from slmkit.corpora.base import checked_text, text_field
from slmkit.data.ledger import Failure
from slmkit.data.lines import parse_record, read_lines
from slmkit.data.shards import Sample
from slmkit.errors import BadSample

SPEC = CodecSpec(
    name="facodec",
    sample_rate=16000,
    hop_samples=200,
    streams=(
        Stream("content_1", 1024, "content"),
        Stream("content_2", 1024, "content"),
        Stream("prosody", 1024, "prosody"),
    ),
    speaker_dim=0,
    weights_sha256="",
)
LETTERS = "abc"
PAD = "|speech_pad|"
CODE = re.compile(r"([abc])(0|[1-9][0-9]{0,3})")
SHOWN = 40  # characters of a bad token that an error shows


def read_published(path: str | Path) -> Iterator[Sample | Failure]:
    """Every record of a JSONL file. Raises UserError when the file cannot be read."""
    path = Path(path)
    for number, line in read_lines(path):
        source = f"{path.name}:{number}"
        key = source
        try:
            record = parse_record(line)
            uttid = text_field(record, "uttid", required=True)
            key = uttid or source
            codes = parse_tokens(record.get("tokens"))
            text = checked_text(text_field(record, "text", required=True), "the record")
        except BadSample as error:
            yield Failure.of(key, error)
            continue
        meta = {"text": text, "speaker": "", "language": "", "source": source}
        yield Sample(uttid, codes, None, {**meta, "seconds": codes.shape[1] / SPEC.frame_rate})


def parse_tokens(tokens: Any) -> np.ndarray:
    """Codes uint16 [3, T], T >= 1, of the `tokens` of a record. Raises BadSample "bad_tokens" saying what is wrong."""
    if isinstance(tokens, str):
        steps = _split(tokens)
        if len(steps) % len(LETTERS):
            raise _bad("the number of tokens is not a multiple of 3", got=len(steps))
        return np.array([_codes(steps[k :: len(LETTERS)], letter) for k, letter in enumerate(LETTERS)], dtype=np.uint16)
    if isinstance(tokens, dict):
        return _from_heads(tokens)
    raise _bad("the tokens are neither a string nor a group of heads", got=type(tokens).__name__)


def _from_heads(heads: dict[str, Any]) -> np.ndarray:
    num_frames = len(heads) // len(LETTERS)
    names = [f"head_{letter}_{frame + 1}" for frame in range(num_frames) for letter in LETTERS]
    if not names or set(names) != heads.keys() or not all(isinstance(head, str) for head in heads.values()):
        raise _bad("the heads are not head_a_1, head_b_1, head_c_1, head_a_2, ...", got=", ".join(heads)[:100])
    split = [_split(heads[name]) for name in names]
    num_steps = len(split[0])
    if any(len(head) != num_steps for head in split):
        raise _bad("the heads differ in length", got=[len(head) for head in split])
    real = sum(head[-1] != PAD for head in split)
    if real == 0 or real % len(LETTERS) or _has_hole(split):
        raise _bad(f"<{PAD}> may only fill whole frames at the end of the last step")
    codes = np.zeros((len(LETTERS), num_steps * num_frames), dtype=np.uint16)
    for i, head in enumerate(split):
        frame, stream = divmod(i, len(LETTERS))
        values = _codes(head[:-1] if head[-1] == PAD else head, LETTERS[stream])
        codes[stream, frame::num_frames][: len(values)] = values
    return codes[:, : (num_steps - 1) * num_frames + real // len(LETTERS)]


def _has_hole(split: list[list[str]]) -> bool:
    """Whether a code follows a pad within the last step."""
    last = [head[-1] == PAD for head in split]
    return last != sorted(last)


def _split(text: str) -> list[str]:
    """`<x><y>` -> ["x", "y"]; never empty."""
    if not (text.startswith("<") and text.endswith(">")):
        raise _bad("the tokens are not written <..><..>", got=repr(text[:SHOWN]))
    return text[1:-1].split("><")


def _codes(tokens: list[str], letter: str) -> list[int]:
    """The numbers of `tokens`, which must all be of stream `letter` and in its codebook."""
    size = SPEC.streams[LETTERS.index(letter)].size
    values = []
    for token in tokens:
        match = CODE.fullmatch(token)
        if not match or match[1] != letter or int(match[2]) >= size:
            raise _bad(
                "a token is not a code of its stream",
                got=f"<{token[:SHOWN]}>",
                expected=f"<{letter}0> to <{letter}{size - 1}>",
            )
        values.append(int(match[2]))
    return values


def _bad(what: str, *, got: Any = None, expected: Any = None) -> BadSample:
    return BadSample("bad_tokens", what, got=got, expected=expected)
