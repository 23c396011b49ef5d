"""A model that goes on learning where another one ended: pre-training, then fine-tuning.

The weights come from an export, everything else from the new run: its base, codec and options describe the model, and
the export must be that model. Only two things may differ. A model without speaker input may get one: its projector is
drawn anew. The loss (softmax, text_loss_weight) may be another; it has no weights. Both are named in `changes`.

It knows no optimizer and no data: the moments of the first run do not come along.

Invariant: every weight of the export is in the model, unchanged but for its float type, which becomes float32.

Example:
    config = config_on_base("Qwen2.5-0.5B", codec=spec, group=3, speaker=True)
    changes = check_export("exports/pretrained", config, base_dir="Qwen2.5-0.5B")
    model = from_export("exports/pretrained", config, seed=0)
"""

import hashlib
from pathlib import Path
from typing import Any

import torch

from slmkit.data.text import TextTokenizer
from slmkit.errors import UserError
from slmkit.files import read_json, sha256_file
from slmkit.model.config import SpeechLMConfig
from slmkit.model.pretrained import LAYOUT_FILE, LOCAL, load, seeded
from slmkit.model.slm import SpeechLM

WEIGHTS = "*.safetensors"
EQUAL = ("group", "head", "fusion")  # options that shape the weights
FREE = ("softmax", "text_loss_weight")  # options of the loss alone
PROJECTOR = "spk_emb_proj."


def check_export(directory: str | Path, config: SpeechLMConfig, *, base_dir: str | Path) -> list[str]:
    """Whether a model of `config` on `base_dir` can start from the weights of an export; weights are not read.

    Returns a sentence for everything that changes. Raises UserError naming the first thing that does not fit.
    """
    export = read_export_config(directory)
    for name in EQUAL:
        _check_same(f"model.{name}", getattr(export, name), getattr(config, name), directory)
    if export.speaker_dim and not config.speaker_dim:
        _check_same("model.speaker", True, False, directory)
    config.codec_spec.check_compatible(export.codec_spec, this="this run", that=str(directory))
    config.vocab_layout.check_equal(export.vocab_layout, this="this run", that=str(directory))
    theirs, ours = export.backbone or {}, config.backbone or {}
    for name in ours:
        _check_same(f"{name} of the base model", theirs.get(name), ours[name], directory)
    their_text, our_text = (TextTokenizer.load(path).fingerprint for path in (directory, base_dir))
    _check_same("the tokenizer (sha256)", their_text, our_text, directory)
    changes = [
        f"{name} is {getattr(config, name)}, and was {getattr(export, name)} in {directory}"
        for name in FREE
        if getattr(export, name) != getattr(config, name)
    ]
    if config.speaker_dim and not export.speaker_dim:
        changes.append(f"the model of {directory} had no speaker input: its projector starts from new weights")
    return changes


def from_export(directory: str | Path, config: SpeechLMConfig, *, seed: int) -> SpeechLM:
    """The float32 model of `config` with the weights of an export that `check_export` accepts.

    A new speaker projector is drawn with `seed`. Raises UserError when the export cannot be loaded.
    """
    source = load(directory, layout=config.vocab_layout)
    with seeded(seed):
        model = SpeechLM(config)
    state = {name: weight.to(torch.float32) for name, weight in source.state_dict().items()}
    found = model.load_state_dict(state, strict=False)
    assert not found.unexpected_keys, found.unexpected_keys
    assert all(name.startswith(PROJECTOR) for name in found.missing_keys), found.missing_keys
    return model


def read_export_config(directory: str | Path) -> SpeechLMConfig:
    """The config of an export in slmkit's format. Raises UserError when `directory` holds none."""
    directory = Path(directory)
    if not (directory / LAYOUT_FILE).is_file():
        raise UserError(
            "init_from is not the directory of an exported model",
            got=directory,
            expected=f"{LAYOUT_FILE}, config.json and weights, as `slmkit consolidate` writes them",
            next_step="consolidate a run, or bring a published checkpoint in with `slmkit import-model`",
        )
    values = read_json(directory / "config.json")
    ours = values.get(SpeechLMConfig.model_type, values) if isinstance(values, dict) else {}
    if "layout" not in ours or "codec" not in ours:
        raise UserError(
            f"the model in {directory} is not in slmkit's format",
            expected="what `slmkit consolidate --format slmkit` writes",
            next_step="bring a published checkpoint in with `slmkit import-model`",
        )
    return SpeechLMConfig.from_pretrained(directory, **LOCAL)


def weights_sha256(directory: str | Path) -> str:
    """SHA-256 of the weights of an export. Raises UserError when there are none."""
    files = sorted(Path(directory).glob(WEIGHTS))
    if not files:
        raise UserError(
            "init_from holds no weights",
            got=directory,
            expected=WEIGHTS,
            next_step="restore the model that the run started from, or name another one for a new run",
        )
    if len(files) == 1:
        return sha256_file(files[0])
    return hashlib.sha256("".join(f"{file.name} {sha256_file(file)}\n" for file in files).encode()).hexdigest()


def _check_same(name: str, theirs: Any, ours: Any, directory: str | Path) -> None:
    if theirs != ours:
        raise UserError(
            f"the model in {directory} is not the model of this run: {name} differs",
            got=theirs,
            expected=ours,
            next_step="set what the model was made with in the run config, or start from another model",
        )
