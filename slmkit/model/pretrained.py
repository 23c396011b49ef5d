"""Models from directories and into directories.

`from_base` grows a speech language model on a text model: its weights, new rows for the appended tokens, new heads.
`save` writes an export that stands alone; `load` reads one. An export of a next-token model without speaker input is at
the same time a plain directory of the base's architecture: `AutoModelForCausalLM` loads it, too.

`from_export` goes on from the weights of an export: pre-training, then fine-tuning. Base, codec and options of the new
run describe the model, and the export must be that model (`check_export`). Only two things may differ. A model without
speaker input may get one: its projector is drawn anew. The loss (softmax, text_loss_weight) may be another; it has no
weights. Optimizer and data of the first run do not come along.

Only safetensors are read, only from local directories, and never code.

Invariant: `load` of what `save` wrote is the same model, weight by weight; `from_export` changes nothing but the float
type, to float32. Equal arguments and seed give equal models.

Example:
    model = from_base("Qwen2.5-0.5B", codec=spec, group=3, seed=0)
    save(model, "OUT", tokenizer=extended_tokenizer("Qwen2.5-0.5B", model.layout))
    load("OUT", layout=corpus_layout)
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM

from slmkit.codec.base import CodecSpec
from slmkit.config.run_dir import check_model_directory
from slmkit.data.text import TextTokenizer, load_transformers_tokenizer
from slmkit.data.vocab import VocabLayout
from slmkit.errors import UserError
from slmkit.files import new_directory, provenance, read_json, sha256_file, write_json
from slmkit.log import get_logger
from slmkit.model.architecture import TESTED, check_config
from slmkit.model.attention import Packing
from slmkit.model.backbone import DEFAULT_TYPE, new_causal_lm
from slmkit.model.companions import SOURCE_FILE
from slmkit.model.config import SpeechLMConfig, check_backbone_file
from slmkit.model.slm import SpeechLM
from slmkit.weights import LOCAL, UNREADABLE

log = get_logger(__name__)

LAYOUT_FILE, CODEC_FILE, PROVENANCE_FILE = "vocab_layout.json", "codec_spec.json", "provenance.json"
TRIAL_LENGTHS = (7, 4)  # positions of the two utterances with which a model is compared with transformers' own forward
TRIAL_TOLERANCE = 1e-3  # of the logits, relative to the largest
WEIGHTS = "*.safetensors"
FLOAT_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPING_OPTIONS = ("group", "head", "fusion")  # they shape the weights, so an export must have the same
LOSS_OPTIONS = ("softmax", "text_loss_weight")  # they have no weights
# What transformers raises where config.json or the weights are damaged.
UNLOADABLE = (*UNREADABLE, StrictDataclassError)
PROJECTOR = "spk_emb_proj."


def from_base(
    base_dir: str | Path,
    *,
    codec: CodecSpec,
    group: int = 0,
    speaker: bool = False,
    seed: int = 0,
    **options: Any,
) -> SpeechLM:
    """A float32 speech language model on the decoder in `base_dir`.

    `options`: head, fusion, softmax, text_loss_weight of `SpeechLMConfig`. Rows of the appended tokens and all that is
    new are drawn with `seed`. Raises UserError when `base_dir` holds no decoder whose architecture fits, when the parts
    do not fit, or when the base itself, run by transformers, gives other logits for its own tokens.
    """
    config = config_on_base(base_dir, codec=codec, group=group, speaker=speaker, **options)
    with _naming_the_base(base_dir):
        read: Any = AutoModelForCausalLM.from_pretrained(
            str(base_dir), use_safetensors=True, dtype=torch.float32, output_loading_info=True, **LOCAL
        )
    base, found = read
    missing = sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"])))
    if missing:  # transformers would go on with random weights
        raise UserError(f"the base model in {base_dir} lacks weights of its config", got=", ".join(missing[:3]))
    check_finite(base, base_dir)
    known = config.vocab_layout.base_size
    with seeded(seed):
        model = SpeechLM(config)
        state = base.state_dict()
        tables = {base.get_input_embeddings().weight.data_ptr(), base.get_output_embeddings().weight.data_ptr()}
        for name, weight in state.items():
            if weight.data_ptr() not in tables:
                continue
            # The appended rows are drawn around the mean of the base tokens' rows, as spread as they are.
            drawn = torch.randn(config.backbone_config.vocab_size - known, weight.shape[1])
            state[name] = torch.cat([weight[:known], weight[:known].mean(0) + weight[:known].std(0) * drawn])
    model.lm_model.load_state_dict(state)
    check_same_logits(model, base, base_dir)
    return model


def check_same_logits(model: SpeechLM, plain: Any, directory: str | Path) -> None:
    """Raise UserError unless `model` gives the logits of `plain`, transformers' own model of the same float32 weights.

    An architecture may do more than its layers show, such as scaling embeddings or logits. Compared are two packed
    utterances with each of them alone.
    """
    ids = torch.arange(sum(TRIAL_LENGTHS), device=model.device) % model.layout.base_size
    pieces = ids.split(TRIAL_LENGTHS)
    borders = torch.tensor([0, *TRIAL_LENGTHS], device=model.device).cumsum(0).int()
    positions = torch.cat([torch.arange(len(piece), device=model.device) for piece in pieces])
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        tokens = ids[:, None].expand(-1, max(1, model.group))
        packing = Packing(borders, len(ids))
        ours = model.lm_model.lm_head(model.hidden(model.embed(tokens)[None], positions[None], packing=packing))[0]
        theirs = torch.cat([plain(input_ids=piece[None], use_cache=False).logits[0] for piece in pieces])
    model.train(was_training)
    known = min(model.layout.base_size, theirs.shape[1])
    difference = (ours[:, :known] - theirs[:, :known]).abs().max() / theirs[:, :known].abs().max()
    if not difference <= TRIAL_TOLERANCE:
        raise UserError(
            f"the base model in {directory} gives other logits here than in transformers",
            got=f"a difference of {float(difference):.2g} of the largest",
            expected=f"at most {TRIAL_TOLERANCE}",
            next_step=f"use a base of another architecture; tested are {', '.join(TESTED)}",
        )


def config_on_base(
    base_dir: str | Path, *, codec: CodecSpec, group: int = 0, speaker: bool = False, **options: Any
) -> SpeechLMConfig:
    """The config of the model that `from_base` makes, without reading weights. Raises UserError as `from_base` does."""
    if speaker and not codec.speaker_dim:
        raise UserError("the codec gives no speaker vector", got=codec.name, next_step="set model.speaker to false")
    layout = base_layout(TextTokenizer.load(base_dir), codec, group)
    base = read_base_config(base_dir)
    with _naming_the_base(base_dir):
        return SpeechLMConfig(
            backbone=backbone_values(base.to_dict(), layout, max(base.vocab_size, layout.size)),
            layout=layout.to_dict(),
            codec=codec.to_dict(),
            group=group,
            speaker_dim=codec.speaker_dim if speaker else 0,
            **options,
        )


def base_layout(tokenizer: TextTokenizer, codec: CodecSpec, group: int) -> VocabLayout:
    """The published layout over a base tokenizer, for the codec's streams."""
    return VocabLayout.published(
        "mtp" if group else "ntp",
        base_size=tokenizer.base_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        codebook_sizes=tuple(stream.size for stream in codec.lm_streams),
    )


def extended_tokenizer(base_dir: str | Path, layout: VocabLayout) -> Any:
    """The transformers tokenizer of `base_dir` with the appended tokens of `layout`, ids as in the layout.

    Raises UserError when the tokenizer is not the one the layout was made over.
    """
    from tokenizers import AddedToken

    tokenizer = load_transformers_tokenizer(base_dir)
    if len(tokenizer) == layout.size and tokenizer.convert_tokens_to_ids("<eosp>") == layout.id_of("<eosp>"):
        return tokenizer
    if len(tokenizer) != layout.base_size:
        raise UserError(
            f"the tokenizer in {base_dir} is not the one of this model", got=len(tokenizer), expected=layout.base_size
        )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in layout.added_tokens()])
    if tokenizer.convert_tokens_to_ids(layout.added_tokens()) != list(range(layout.base_size, layout.size)):
        raise UserError(
            f"the tokenizer in {base_dir} does not number new tokens one after the other",
            next_step="use a base model whose token ids have no gaps",
        )
    return tokenizer


def save(model: SpeechLM, out_dir: str | Path, *, tokenizer: Any, source: Any = None) -> None:
    """Write an export: weights, config, tokenizer, layout, codec spec and provenance (`source` says what it is of).

    The directory appears whole or not at all. Raises UserError when it exists.
    """
    with new_directory(out_dir) as temporary:
        write_model(model, temporary, tokenizer=tokenizer, source=source)


def write_model(model: SpeechLM, directory: Path, *, tokenizer: Any, source: Any = None) -> None:
    """As `save`, into a directory that is there."""
    if model.is_plain:
        to_causal_lm(model, directory)
    else:
        model.save_pretrained(directory)
    describe(model, directory, tokenizer=tokenizer, source=source)


def describe(model: SpeechLM, directory: Path, *, tokenizer: Any, source: Any) -> None:
    """Write what every export has beside its weights and their config."""
    tokenizer.save_pretrained(directory)
    write_json(directory / LAYOUT_FILE, model.layout.to_dict())
    write_json(directory / CODEC_FILE, model.config.codec_spec.to_dict())
    write_json(directory / PROVENANCE_FILE, provenance(source))


def to_causal_lm(model: SpeechLM, out_dir: str | Path) -> None:
    """Write weights and config of a plain model as a causal language model that also loads as a SpeechLM."""
    assert model.is_plain, "others have parts that such a model lacks"
    config = model.lm_model.config
    dtype = str(model.dtype).removeprefix("torch.")  # the config may still say which type was read
    setattr(config, model.config.model_type, {**model.config.to_dict(), "dtype": dtype})
    model.lm_model.save_pretrained(out_dir)


def load(directory: str | Path, *, layout: VocabLayout | None = None, blame: str = "") -> SpeechLM:
    """The model of an export, in the float type it was saved in, ready for inference.

    Raises UserError when the directory holds none, its files contradict each other, a weight is not finite, or its
    vocabulary is not `layout`: then the first difference is named. `blame` is the option that chose the directory.
    """
    directory = Path(directory)
    name = f"{blame} ({directory})" if blame else str(directory)
    check_model_directory(directory)
    saved, config = VocabLayout.from_dict(read_json(directory / LAYOUT_FILE)), read_json(directory / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{directory / 'config.json'} does not hold a mapping", got=f"{config!r:.100}")
    _check_model_type(config, directory)
    try:
        read: Any = SpeechLM.from_pretrained(directory, use_safetensors=True, output_loading_info=True, **LOCAL)
    except UNLOADABLE as error:
        raise UserError(f"cannot load the model in {name}: {_said(error)}") from error
    model, found = read
    wrong = sorted(map(str, (*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"])))
    if wrong:  # transformers would go on with random weights
        raise UserError(f"the weights in {name} are not those of its config", got=", ".join(wrong[:3]))
    check_finite(model, name)
    saved.check_equal(model.layout, this=f"{directory / LAYOUT_FILE}", that=f"{directory / 'config.json'}")
    if layout is not None:
        layout.check_equal(model.layout, this="this run", that=str(directory))
    return model.eval()


def _check_model_type(config: dict[str, Any], directory: Path) -> None:
    if SpeechLMConfig.model_type not in (config.get("model_type"), *config):
        raise UserError(
            f"{directory} holds no slmkit model",
            got=f"a config.json of {config.get('model_type')!s:.100}",
            next_step="convert a published checkpoint with `slmkit import-model`",
        )


def check_float_type(dtype: torch.dtype, place: str | Path) -> None:
    """Raise UserError where the weights in `place` are of a float type that no export has."""
    if dtype not in FLOAT_TYPES.values():
        raise UserError(
            f"the weights in {place} are of a float type that slmkit does not write",
            got=str(dtype).removeprefix("torch."),
            expected=", ".join(FLOAT_TYPES),
            next_step="convert them with the program that made them",
        )


def check_finite(model: torch.nn.Module, place: str | Path) -> None:
    """Raise UserError naming the first weight of a model from `place` that is not finite: it would say nothing."""
    for name, weight in model.state_dict().items():
        if not bool(weight.isfinite().all()):
            raise UserError(
                f"the weights in {place} are not finite",
                got=f"{int((~weight.isfinite()).sum())} of {weight.numel()} numbers of {name}",
                next_step="the run that made them diverged, or the file is damaged: take an earlier checkpoint",
            )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw random weights from `seed`, and leave the process's own random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def read_base_config(base_dir: str | Path) -> Any:
    """The transformers config of a base model.

    Raises UserError when there is none, or its architecture does not fit. Weights are not read.
    """
    check_backbone_file(read_json(Path(base_dir) / "config.json"), f"{base_dir}/config.json")
    with _naming_the_base(base_dir):
        config = AutoConfig.from_pretrained(str(base_dir), **LOCAL)
        check_config(config)
        with torch.device("meta"):
            new_causal_lm(config)
    if config.model_type not in TESTED:
        log.warning(
            "%s: bases of the architecture %s are not tested; tested are %s",
            *(base_dir, config.model_type, ", ".join(TESTED)),
        )
    return config


@contextmanager
def _naming_the_base(base_dir: str | Path) -> Iterator[None]:
    try:
        yield
    except UNLOADABLE as error:
        raise UserError(f"cannot load the base model in {base_dir}: {_said(error)}") from error


def _said(error: Exception) -> str:
    return str(error)[:1000] or type(error).__name__


def backbone_values(values: dict[str, Any], layout: VocabLayout, rows: int) -> dict[str, Any]:
    """Config of the backbone. No padding token: transformers would never train its embedding, and it is eos here."""
    ids = {"bos_token_id": layout.bos_id, "eos_token_id": layout.eos_id, "pad_token_id": None}
    return {**values, **ids, "vocab_size": rows}


def check_export(directory: str | Path, config: SpeechLMConfig, *, base_dir: str | Path) -> list[str]:
    """Whether a model of `config` on `base_dir` can start from the weights of an export; weights are not read.

    Returns a sentence for everything that changes. Raises UserError naming the first thing that does not fit.
    """
    export = read_export_config(directory)
    for name in SHAPING_OPTIONS:
        _check_option(f"model.{name}", getattr(export, name), getattr(config, name), directory)
    if export.speaker_dim and not config.speaker_dim:
        _check_option("model.speaker", True, False, directory)
    config.codec_spec.check_compatible(export.codec_spec, this="this run", that=str(directory))
    config.vocab_layout.check_equal(export.vocab_layout, this="this run", that=str(directory))
    theirs, ours = ({"model_type": DEFAULT_TYPE, **(each.backbone or {})} for each in (export, config))
    for name in ("head_dim", *ours):  # not every architecture has the first
        _check_option(f"{name} of the base model", theirs.get(name), ours.get(name), directory)
    their_text, our_text = (TextTokenizer.load(path).fingerprint for path in (directory, base_dir))
    _check_option("the tokenizer (sha256)", their_text, our_text, directory)
    changes = [
        f"{name} is {getattr(config, name)}, and was {getattr(export, name)} in {directory}"
        for name in LOSS_OPTIONS
        if getattr(export, name) != getattr(config, name)
    ]
    if config.speaker_dim and not export.speaker_dim:
        changes.append(f"the model of {directory} had no speaker input: its projector starts from new weights")
    return changes


def from_export(directory: str | Path, config: SpeechLMConfig, *, seed: int) -> SpeechLM:
    """The float32 model of `config` with the weights of an export that `check_export` accepts.

    A new speaker projector is drawn with `seed`. Raises UserError when the export cannot be loaded.
    """
    source = load(directory, layout=config.vocab_layout, blame="init_from")
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
    if os.path.isdir(directory):
        check_model_directory(directory)  # says what to do with a run
    if not os.path.isfile(directory / LAYOUT_FILE):
        raise UserError(
            "init_from is not the directory of an exported model",
            got=directory,
            expected=f"{LAYOUT_FILE}, config.json and weights, as `slmkit consolidate` writes them",
            next_step="consolidate a run, or convert a published checkpoint with `slmkit import-model`",
        )
    values = read_json(directory / "config.json")
    ours = values.get(SpeechLMConfig.model_type, values) if isinstance(values, dict) else {}
    if not isinstance(ours, dict) or "layout" not in ours or "codec" not in ours:
        raise UserError(
            f"the model in {directory} is not in slmkit's format",
            expected="what `slmkit consolidate --format slmkit` writes",
            next_step="convert a published checkpoint with `slmkit import-model`",
        )
    _check_model_type(values, directory)
    try:
        return SpeechLMConfig.from_pretrained(directory, **LOCAL)
    except UNLOADABLE as error:
        raise UserError(f"cannot read the model's config in {directory}: {_said(error)}") from error


def export_sha256(directory: str | Path) -> str:
    """One hash of all files that make an export the model it is: weights, config, tokenizer, vocabulary, codec spec.

    Raises UserError when it holds no weights.
    """
    files = sorted([*Path(directory).glob(WEIGHTS), *Path(directory).glob("*.json")])
    if not any(file.match(WEIGHTS) for file in files):
        raise UserError(
            f"{directory} holds no model",
            expected="a directory that `slmkit consolidate` wrote",
            next_step="check the path, or restore the model",
        )
    files = [file for file in files if file.name not in (PROVENANCE_FILE, SOURCE_FILE)]  # which say where it is from
    listed = "".join(f"{file.name} {sha256_file(file)}\n" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def _check_option(name: str, theirs: Any, ours: Any, directory: str | Path) -> None:
    if theirs != ours:
        raise UserError(
            f"the model in {directory} is not the model of this run: {name} differs",
            got=theirs,
            expected=ours,
            next_step="give the run config the values of the model, or start from another model",
        )
