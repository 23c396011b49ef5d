"""Text to token ids, safe for text from strangers.

The vocabulary's special tokens (`<sosp>`, `<a17>`, `<|im_start|>`, ...) are written by `prompt` and `sequence` as ids;
in a user's text they are ordinary characters. So text is encoded by the byte-pair model alone, with every added token
of the tokenizer taken out. For text without such tokens the ids equal those of the full tokenizer.

An utterance begins with `<|im_start|>` where the tokenizer has it (Qwen, SmolLM), else with its own begin-of-text token
(`<|begin_of_text|>` of Llama), else with its end-of-text token, as texts that follow one another do. It ends with the
end-of-text token.

Example:
    tokenizer = TextTokenizer.load("Qwen2.5-0.5B")
    tokenizer.encode(" The speech is: ")
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slmkit.errors import UserError
from slmkit.files import read_json

BOS_TOKEN = "<|im_start|>"
MAX_TOKEN_ID, MAX_TOKENIZER_BYTES = 2**23, 2**28


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

        Raises UserError when they are missing, have no end-of-text token, or let plain text become a special token.
        """
        return TextTokenizer.from_transformers(load_transformers_tokenizer(directory), source=str(directory))

    @staticmethod
    def from_transformers(tokenizer: Any, source: str = "tokenizer") -> "TextTokenizer":
        """From a fast transformers tokenizer. `base_size` counts all its tokens, extended or not."""
        try:
            named = tokenizer.convert_tokens_to_ids(BOS_TOKEN)
            begins = (
                None if named == tokenizer.unk_token_id else named,
                tokenizer.bos_token_id,
                tokenizer.eos_token_id,
            )
        except (RecursionError, TypeError) as error:  # its unknown token is unknown itself
            raise UserError(f"the tokenizer of {source} is damaged: {str(error)[:200]}") from error
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer of {source} has no end-of-text token",
                next_step="name it as eos_token in tokenizer_config.json, or use another base model",
            )
        try:
            text = TextTokenizer(
                tokenizer.backend_tokenizer.to_str(),
                base_size=len(tokenizer),
                bos_id=next(token_id for token_id in begins if token_id is not None),
                eos_id=tokenizer.eos_token_id,
            )
            # In the vocabulary of the byte-pair model itself; an unknown character may well become the unknown token.
            known = tokenizer.backend_tokenizer.model.token_to_id
            special = {added.content: i for i, added in tokenizer.added_tokens_decoder.items() if added.special}
            inside = [token for token in special if known(token) is not None and token != tokenizer.unk_token]
            spoken = [token for token in inside if special[token] in text.encode(token)]
        except Exception as error:
            raise UserError(f"the tokenizer of {source} is damaged: {str(error)[:200]}") from error
        if spoken:
            raise UserError(
                f"the tokenizer of {source} makes special tokens of plain text",
                got=", ".join(spoken[:3]),
                expected="special tokens that only programs can write",
                next_step="use a base model with a byte-pair tokenizer, such as Qwen's, Llama's or SmolLM's",
            )
        return text

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

    if not os.path.isdir(directory):
        raise UserError("there is no such model directory", got=directory, next_step="give a local directory")
    file = Path(directory) / "tokenizer.json"
    if os.path.isfile(file):
        _check_token_ids(file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        reason = str(error)[:1000] or type(error).__name__
        raise UserError(f"cannot load the tokenizer in {directory}: {reason}") from error
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer in {directory} is not a fast one", next_step="save it with tokenizer.json")
    return tokenizer


def _check_token_ids(file: Path) -> None:
    """Raise UserError where ids are absurd: libraries make lists as long as the largest one."""
    values = read_json(file, max_bytes=MAX_TOKENIZER_BYTES)
    model = values.get("model") if isinstance(values, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    added = values.get("added_tokens") if isinstance(values, dict) else None
    ids += [token.get("id") for token in added or () if isinstance(token, dict)] if isinstance(added, list) else []
    wrong = [number for number in ids if not isinstance(number, int) or not 0 <= number < MAX_TOKEN_ID]
    if wrong:
        raise UserError(
            f"{file} holds ids of tokens that cannot be", got=f"{wrong[0]!r:.100}", expected=f"0 to {MAX_TOKEN_ID - 1}"
        )
