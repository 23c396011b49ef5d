"""Which token id means what: the base text vocabulary, the special tokens and the code streams.

`VocabLayout` is data: it is saved with every checkpoint and export and compared at load. The two published layouts
append the same tokens in different orders (facts of the published code of arXiv 2506.12537):

- "ntp": code streams, then `<sosp> <eosp> [Human] [Assistant] <|placeholder|> [ta] [ua]`
- "mtp": `[Human] [Assistant] <sosp> <|placeholder|>`, code streams, then `<eosp> <|speech_pad|>`

It knows nothing of tokenizers beyond how many tokens the base one has, and which ids its bos and eos are.

Invariant: ids of the appended tokens are base_size, base_size + 1, ... without a gap.

Example:
    layout = VocabLayout.published("ntp", base_size=151665, bos_id=151644, eos_id=151643, codebook_sizes=(1024,) * 3)
    layout.code_id(stream=1, code=5)      # id of <b5>
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from slmkit.codec.base import check_num_streams
from slmkit.errors import UserError

Kind = Literal["ntp", "mtp"]
STREAM_LETTERS = (*"abcdefghijklmnopqrstuvwxyz", "aa", "ab", "ac", "ad", "ae", "af")
BEFORE_CODES = {"ntp": (), "mtp": ("[Human]", "[Assistant]", "<sosp>", "<|placeholder|>")}
AFTER_CODES = {
    "ntp": ("<sosp>", "<eosp>", "[Human]", "[Assistant]", "<|placeholder|>", "[ta]", "[ua]"),
    "mtp": ("<eosp>", "<|speech_pad|>"),
}


MAX_SIZE = 2**23  # tokens of a layout that is read: more are a damaged file


@dataclass(frozen=True, kw_only=True)
class VocabLayout:
    """Token ids of one model. `specials` are (token, id) pairs; `streams` are (letter, first id, codebook size)."""

    kind: Kind
    base_size: int  # tokens of the base text tokenizer
    bos_id: int
    eos_id: int  # also the padding token
    specials: tuple[tuple[str, int], ...]
    streams: tuple[tuple[str, int, int], ...]

    @staticmethod
    def published(
        kind: Kind, *, base_size: int, bos_id: int, eos_id: int, codebook_sizes: tuple[int, ...]
    ) -> "VocabLayout":
        """The published layout of `kind` over a base tokenizer of `base_size` tokens.

        Raises UserError when there are more streams than letters.
        """
        check_num_streams(len(codebook_sizes), "the vocabulary")
        next_id = base_size
        specials, streams = [], []
        for token in BEFORE_CODES[kind]:
            specials.append((token, next_id))
            next_id += 1
        for letter, size in zip(STREAM_LETTERS, codebook_sizes, strict=False):
            streams.append((letter, next_id, size))
            next_id += size
        for token in AFTER_CODES[kind]:
            specials.append((token, next_id))
            next_id += 1
        return VocabLayout(
            kind=kind,
            base_size=base_size,
            bos_id=bos_id,
            eos_id=eos_id,
            specials=tuple(specials),
            streams=tuple(streams),
        )

    @property
    def size(self) -> int:
        """Number of token ids, appended ones included."""
        return self.base_size + len(self.specials) + sum(size for _, _, size in self.streams)

    @property
    def num_streams(self) -> int:
        return len(self.streams)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return tuple(size for _, _, size in self.streams)

    def id_of(self, token: str) -> int:
        """Id of a special token. Raises UserError when this layout lacks it."""
        for name, token_id in self.specials:
            if name == token:
                return token_id
        raise UserError(
            f"the {self.kind} vocabulary has no token {token}",
            expected=", ".join(name for name, _ in self.specials),
            next_step="use a task that this kind of model was published with, or a model of the other kind",
        )

    def code_id(self, stream: int, code: int) -> int:
        """Token id of entry `code` of stream number `stream`."""
        _, first, size = self.streams[stream]
        if not 0 <= code < size:
            raise ValueError(f"code {code} is outside stream {stream} with {size} entries")
        return first + code

    def added_tokens(self) -> list[str]:
        """Every appended token in the order of its id, starting at `base_size`."""
        names = dict(self.specials)
        by_id = {token_id: token for token, token_id in names.items()}
        for letter, first, size in self.streams:
            by_id.update({first + code: f"<{letter}{code}>" for code in range(size)})
        return [by_id[token_id] for token_id in range(self.base_size, self.size)]

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "VocabLayout":
        """Inverse of `to_dict`. Raises UserError when the values are not a layout."""
        try:
            specials = tuple((_text(token), _natural(token_id)) for token, token_id in values["specials"])
            streams = tuple(
                (_text(letter), _natural(first), _natural(size)) for letter, first, size in values["streams"]
            )
            for name in ("base_size", "bos_id", "eos_id"):
                _natural(values[name])
            if values["kind"] not in BEFORE_CODES:
                raise ValueError(f"kind is {values['kind']!r:.100}")
            check_num_streams(len(streams), "the vocabulary")
            layout = VocabLayout(**{**values, "specials": specials, "streams": streams})
            if layout.size > MAX_SIZE or len(dict(specials)) != len(specials):
                raise ValueError(f"{layout.size} tokens, {len(specials)} of them special")
            next_id = layout.base_size
            ranges = [(token_id, 1) for _, token_id in specials] + [(first, size) for _, first, size in streams]
            for first, size in sorted(ranges):
                if first != next_id:
                    raise ValueError(f"an appended token has the id {first}, not {next_id}")
                next_id += size
            return layout
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"not a vocabulary layout: {repr(error)[:200]}", next_step="use a vocab_layout.json that slmkit wrote"
            ) from error

    @property
    def sha256(self) -> str:
        """Hash of all ids."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def check_equal(self, other: "VocabLayout", *, this: str, that: str) -> None:
        """Raise UserError naming the first difference between this layout and `other`."""
        mine, theirs = self._named(), other._named()
        for name in [*mine, *(name for name in theirs if name not in mine)]:
            if mine.get(name) != theirs.get(name):
                raise UserError(
                    f"the vocabulary of {that} is not the vocabulary of {this}: {name} differs",
                    got=theirs.get(name, "absent"),
                    expected=mine.get(name, "absent"),
                    next_step="use data, checkpoint and model made with one layout",
                )

    def _named(self) -> dict[str, Any]:
        named: dict[str, Any] = {
            "kind": self.kind,
            "base_size": self.base_size,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
        }
        named.update({f"id of {token}": token_id for token, token_id in self.specials})
        for letter, first, size in self.streams:
            named[f"first id of stream {letter}"] = first
            named[f"codebook size of stream {letter}"] = size
        return named


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.100} is not text")
    return value


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_SIZE:
        raise TypeError(f"{value!r:.100} is not a whole number from 0 to {MAX_SIZE}")
    return value
