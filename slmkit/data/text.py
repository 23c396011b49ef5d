"""Text to token ids, safe for text from strangers.

The vocabulary's special tokens (`<sosp>`, `<a17>`, `<|im_start|>`, ...) are written by `prompt` and `sequence` as ids;
in a user's text they are ordinary characters. So text is encoded by the byte-pair model alone, with every added token
of the tokenizer taken out. For text without such tokens the ids equal those of the full tokenizer.

Example:
    tokenizer = TextTokenizer.load("Qwen2.5-0.5B")
    tokenizer.encode(" The speech is: ")
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slmkit.errors import UserError

BOS_TOKEN = "<|im_start|>"


class TextTokenizer:
    """Byte-pair encoding of plain text, with the facts a `VocabLayout` needs of the base tokenizer."""

    def __init__(self, backend_json: str, *, base_size: int, bos_id: int, eos_id: int) -> None:
        import tokenizers

        state = json.loads(backend_json)
        state["added_tokens"] = []
        state["post_processor"] = None
        self._backend = tokenizers.Tokenizer.from_str(json.dumps(state))
        self.fingerprint = hashlib.sha256(self._backend.to_str().encode()).hexdigest()
        self.base_size, self.bos_id, self.eos_id = base_size, bos_id, eos_id

    @staticmethod
    def load(directory: str | Path) -> "TextTokenizer":
        """Read the tokenizer files of a base model or an export.

        Raises UserError when they are missing or lack the tokens `<|im_start|>` and end of text.
        """
        return TextTokenizer.from_transformers(load_transformers_tokenizer(directory), source=str(directory))

    @staticmethod
    def from_transformers(tokenizer: Any, source: str = "tokenizer") -> "TextTokenizer":
        """From a fast transformers tokenizer. `base_size` counts all its tokens, extended or not."""
        bos_id = tokenizer.convert_tokens_to_ids(BOS_TOKEN)
        if bos_id is None or bos_id == tokenizer.unk_token_id or tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer of {source} lacks {BOS_TOKEN} or an end-of-text token",
                next_step="use a Qwen2.5 base model, or make one with `slmkit init-base`",
            )
        return TextTokenizer(
            tokenizer.backend_tokenizer.to_str(),
            base_size=len(tokenizer),
            bos_id=bos_id,
            eos_id=tokenizer.eos_token_id,
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; no special token ever comes out. Unpaired surrogates are replaced by U+FFFD."""
        clean = text.encode("utf-8", errors="replace").decode("utf-8")
        return self._backend.encode(clean, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids that `encode` gave."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "backend_json": self._backend.to_str(),
            "base_size": self.base_size,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state.pop("backend_json"), **state)  # type: ignore[misc]


def load_transformers_tokenizer(directory: str | Path) -> Any:
    """The fast transformers tokenizer in a local directory; never from a hub, never with code of its own."""
    from transformers import AutoTokenizer

    if not Path(directory).is_dir():
        raise UserError("there is no such model directory", got=directory, next_step="give a local directory")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot load the tokenizer in {directory}: {error}") from error
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer in {directory} is not a fast one", next_step="save it with tokenizer.json")
    return tokenizer
