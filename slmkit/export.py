"""From a checkpoint of a run, or another export, to a model directory, in one of three formats:

- "slmkit": loads with `SpeechLM.from_pretrained`; a plain next-token model with `AutoModelForCausalLM`, too
- "hf": a plain next-token model for programs without slmkit, such as transformers 4.5x and 5.x and vLLM
- "published": `model.safetensors` with the keys of the published checkpoints (arXiv 2506.12537)

DeepSpeed puts the float32 weights of its ranks together; they fill the model that `RUN/model` describes. What was
written is read back and compared with the source, weight by weight, before the directory takes its name. DeepSpeed's
files are pickles, of which nothing is run: they are read as tensors and plain values.

In the format "hf" the files have, next to the names of transformers 5, those that older versions look for
(`rope_theta`, `rope_scaling`, `torch_dtype`, `additional_special_tokens`), which would otherwise take a default without
a word. The chat template writes the published prompt. A server knows no grammar: it chooses among the whole vocabulary,
and what it wrote has to be checked. `from_causal_lm` reads such a directory again, for instance after training
elsewhere.

Invariant: OUT exists only if it holds exactly the weights of its source, in the float type asked for; and
`from_causal_lm` of what `write_hf` wrote is the same model.

Example:
    consolidate("runs/tts", "exports/tts")      # the newest complete checkpoint
    convert("exports/tts", "exports/tts-bf16", format="hf", dtype="bfloat16")
    from_causal_lm("exports/tts-bf16")
"""

import contextlib
import io
import os
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from slmkit.checkpoints.checkpoint import UNREADABLE, no_code_runs, unreadable
from slmkit.codec.open import codec_files, open_codec
from slmkit.config.run_dir import MODEL, Checkpoint, check_contents, newest, read
from slmkit.data.text import load_transformers_tokenizer
from slmkit.data.vocab import VocabLayout
from slmkit.errors import UserError
from slmkit.files import check_new_directory, disk_errors_named, new_directory, read_json, write_json
from slmkit.hub import shown, source_of
from slmkit.model.companions import (
    check_codec_beside,
    codec_beside,
    copy_codec,
    copy_companions,
    write_companions,
)
from slmkit.model.config import SpeechLMConfig, check_backbone_file, check_model_file
from slmkit.model.pretrained import (
    FLOAT_TYPES,
    LAYOUT_FILE,
    LOCAL,
    UNLOADABLE,
    backbone_values,
    check_finite,
    check_float_type,
    describe,
    load,
    write_model,
)
from slmkit.model.published import check_published, to_published
from slmkit.model.slm import SpeechLM

Format = Literal["slmkit", "hf", "published"]
CONFIG_FILE, GENERATION_FILE, TOKENIZER_FILE = "config.json", "generation_config.json", "tokenizer_config.json"
NOTED_OPTIONS = ("layout", "codec", "group", "head", "fusion", "speaker_dim", "softmax", "text_loss_weight")
# One user message is the human part of the published prompt; "Read this sentence: Hello." asks for speech. Before it
# stands the token that begins an utterance.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '[Assistant]: ' + message['content'] + '\\n\\n' }}"
    "{% else %}{{ '[Human]: ' + message['content'] + '\\n ' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[Assistant]:' }}{% endif %}"
)
State = dict[str, torch.Tensor]


def consolidate(
    run_dir: str | Path,
    out_dir: str | Path,
    *,
    step: int | None = None,
    format: Format = "slmkit",
    dtype: str = "float32",
    codec: str | Path | None = None,
    with_codec: bool = False,
) -> Checkpoint:
    """Write the weights of checkpoint `step` (default: the newest complete one) to `out_dir`; returns the checkpoint.

    What the run noted of its codec and voices goes along; `codec` is noted in place of that one, and `with_codec` puts
    a copy beside the weights.

    Raises UserError when `out_dir` exists, there is no complete checkpoint of that step, its files do not fit together,
    what was written does not read back as it should, or the codec to be copied is not there or another one.
    """
    checkpoint = newest(run_dir) if step is None else read(run_dir, step)
    if checkpoint is None:
        raise UserError("the run has no complete checkpoint", got=run_dir, next_step="train until one is saved")
    check_new_directory(out_dir)
    config, described = trained_config(Path(run_dir), checkpoint), Path(run_dir) / MODEL
    _check_format(config, format)
    with new_directory(Path(out_dir)) as temporary:
        _add_companions(described, temporary, config, codec, with_codec=with_codec)
        check_contents(checkpoint)
        model = trained_model(config, checkpoint)
        source = {"run": Path(run_dir).name, "step": checkpoint.step, "facts": checkpoint.state["facts"]}
        _write_export(model, temporary, described, format=format, dtype=dtype, source=source)
    return checkpoint


def is_export(directory: str | Path) -> bool:
    """Whether `convert` is the one to ask, and not `consolidate`."""
    return os.path.isfile(Path(directory) / LAYOUT_FILE)


def convert(
    model_dir: str | Path,
    out_dir: str | Path,
    *,
    format: Format = "slmkit",
    dtype: str | None = None,
    codec: str | Path | None = None,
    with_codec: bool = False,
) -> str:
    """Write the model of an export in another format or float type (default: its own); returns the float type.

    In all else as `consolidate`.
    """
    with new_directory(Path(out_dir)) as temporary:
        model = load(model_dir)
        _check_format(model.config, format)
        if dtype is None:
            check_float_type(model.dtype, model_dir)
            dtype = str(model.dtype).removeprefix("torch.")
        _add_companions(Path(model_dir), temporary, model.config, codec, with_codec=with_codec)
        source = {"export": shown(Path(model_dir).name, model_dir)}
        _write_export(model, temporary, Path(model_dir), format=format, dtype=dtype, source=source)
    return dtype


def _check_format(config: SpeechLMConfig, format: Format) -> None:
    """Raise UserError where a format cannot hold the model, or a server could not generate with it."""
    if format == "published":
        check_published(config)
    if format != "hf":
        return
    if config.group or config.speaker_dim:
        raise UserError(
            "AutoModelForCausalLM cannot load a model with speech heads or speaker input",
            got=f"group {config.group}, speaker_dim {config.speaker_dim}",
            next_step="use --format slmkit, and load it with SpeechLM.from_pretrained",
        )
    if config.softmax != "full":
        raise UserError(
            "this model chooses each token from one stream, and a plain server would choose from all",
            got=f"softmax {config.softmax}",
            expected="softmax full",
            next_step="use --format slmkit; it loads with AutoModelForCausalLM, for a program that masks the streams",
        )


def _add_companions(
    described: Path, directory: Path, config: SpeechLMConfig, codec: str | Path | None, *, with_codec: bool
) -> None:
    """Put beside an export what is beside `described`; `codec` in place of the codec that is noted there."""
    copy_companions(described, directory)
    if codec is not None:
        spec = open_codec(codec).spec
        config.codec_spec.check_compatible(spec, this="the model", that=str(codec))
        write_companions(directory, spec, codec_source=source_of(codec))
    if with_codec:
        place = codec_beside(directory)
        spec = open_codec(place).spec
        check_codec_beside(directory, spec, place)
        config.codec_spec.check_compatible(spec, this="the model", that=str(place))
        copy_codec(directory, place, codec_files(place), spec)


def trained_config(run_dir: Path, checkpoint: Checkpoint) -> SpeechLMConfig:
    """What a run says of its model. Raises UserError where that cannot be read, or is not of the checkpoint's model."""
    try:
        config = SpeechLMConfig.from_pretrained(run_dir / MODEL, local_files_only=True)
    except UNLOADABLE as error:
        raise UserError(f"cannot read the description of the model in {run_dir / MODEL}: {error}") from error
    if config.vocab_layout.sha256 != checkpoint.state["facts"]["vocabulary"]:
        raise UserError(
            f"the vocabulary in {run_dir / MODEL} is not that of {checkpoint.path}",
            got=config.vocab_layout.sha256,
            expected=checkpoint.state["facts"]["vocabulary"],
        )
    return config


def trained_model(config: SpeechLMConfig, checkpoint: Checkpoint) -> SpeechLM:
    """The float32 model of a checkpoint. Raises UserError when weights and description do not fit together."""
    state = merged_weights(checkpoint)
    model = SpeechLM(config)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"the weights of {checkpoint.path} are not those of its model: {error}") from error
    check_finite(model, checkpoint.path)
    _compare(model.state_dict(), state, str(checkpoint.path))  # two values for a tied weight would differ here
    return model


def merged_weights(checkpoint: Checkpoint) -> State:
    """All weights by name, float32, as DeepSpeed puts them together; a tied weight stands under each of its names."""
    from deepspeed.utils import zero_to_fp32

    def optimizer_part(part: str) -> dict[str, Any]:
        """What one process wrote of the optimizer; tensors are read where they are used."""
        state: dict[str, Any] = torch.load(part, map_location="cpu", mmap=True, weights_only=True)
        return state["optimizer_state_dict"]

    path = checkpoint.path
    try:
        quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with quiet[0], quiet[1], no_code_runs():
            parts = zero_to_fp32.get_optim_files(str(path))
            if "zero_stage" in optimizer_part(parts[0]):
                return dict(zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(path.parent), tag=path.name))
            # ZeRO-1 in bf16 writes the parts of ZeRO-2 without saying which stage they are of, and is refused for it.
            groups = [optimizer_part(part)["single_partition_of_fp32_groups"] for part in parts]
            models = zero_to_fp32.parse_model_states(zero_to_fp32.get_model_state_files(str(path)))
            merge = zero_to_fp32._get_fp32_state_dict_from_zero2_checkpoint
            return dict(merge(len(parts), groups, models, exclude_frozen_parameters=False))
    except (*UNREADABLE, AssertionError, AttributeError, TypeError) as error:
        raise unreadable(path, error) from error


def _write_export(
    model: SpeechLM, directory: Path, description: Path, *, format: Format, dtype: str, source: dict[str, Any]
) -> None:
    """Write into a directory and compare; `description` is one with the model's tokenizer."""
    torch.nn.Module.to(model, FLOAT_TYPES[dtype])
    check_finite(model, f"{source.get('run') or source.get('export')}, as {dtype},")
    written: dict[str, Any] = {"source": {**source, "format": format, "dtype": dtype}}
    written["tokenizer"] = load_transformers_tokenizer(description)
    with disk_errors_named(directory):
        if format == "published":
            save_file(to_published(model), directory / "model.safetensors")
            model.lm_model.config.save_pretrained(directory)
            describe(model, directory, **written)
        else:
            write = write_hf if format == "hf" else write_model
            write(model, directory, **written)
    if format == "published":
        _compare(load_file(directory / "model.safetensors"), to_published(model), str(directory))
    else:
        _compare(load(directory, layout=model.layout).state_dict(), model.state_dict(), str(directory))
    if format == "hf":
        _compare(from_causal_lm(directory).state_dict(), model.state_dict(), str(directory))


def _compare(found: State, expected: State, where: str) -> None:
    """Raise UserError naming the first weight in which two states differ."""
    for name in sorted(found.keys() | expected.keys()):
        if name not in found or name not in expected:
            raise UserError(f"{where}: {name} is {'missing' if name not in found else 'unexpected'}")
        if found[name].dtype != expected[name].dtype or not torch.equal(found[name], expected[name]):
            raise UserError(
                f"{where}: {name} differs from the checkpoint",
                got=f"{found[name].dtype} {tuple(found[name].shape)}",
                expected=f"{expected[name].dtype} {tuple(expected[name].shape)}",
                next_step="check the disk and run the command again",
            )


def write_hf(model: SpeechLM, out_dir: Path, *, tokenizer: Any, source: Any = None) -> None:
    """Fill a directory for transformers and servers with a plain model."""
    write_model(model, out_dir, tokenizer=tokenizer, source=source)
    values = read_json(out_dir / CONFIG_FILE)
    rotary = dict(values["rope_parameters"])
    names = {name: rotary.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in rotary}
    names["torch_dtype"] = values["dtype"]
    if rotary["rope_type"] != "default":
        names["rope_scaling"] = rotary
    write_json(out_dir / CONFIG_FILE, {**values, **names}, replace=True)
    # Padding is named here alone: as a part of the model it would keep the end of text from being trained.
    ids = {
        "bos_token_id": model.layout.bos_id,
        "eos_token_id": model.layout.eos_id,
        "pad_token_id": model.layout.eos_id,
    }
    write_json(out_dir / GENERATION_FILE, {"do_sample": False, **ids}, replace=True)
    values = read_json(out_dir / TOKENIZER_FILE)
    special = values.pop("extra_special_tokens", [])
    for name in ("is_local", "local_files_only", "backend"):
        values.pop(name, None)
    begin = tokenizer.convert_ids_to_tokens(model.layout.bos_id)
    names = {"additional_special_tokens": special, "chat_template": begin + CHAT_TEMPLATE}
    if values.get("tokenizer_class") == "TokenizersBackend":  # as transformers 5 calls it
        names["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(out_dir / TOKENIZER_FILE, {**values, **names}, replace=True)
    (out_dir / "chat_template.jinja").unlink(missing_ok=True)  # of the text model


def from_causal_lm(directory: str | Path) -> SpeechLM:
    """The model of a directory that `write_hf` wrote, or that a program made from one.

    Raises UserError when the directory cannot be read, its weights are not those of its config, or it has lost what
    the export noted of vocabulary and codec.
    """
    directory = Path(directory)
    noted = read_json(directory / CONFIG_FILE)
    check_backbone_file(noted, f"{directory / CONFIG_FILE}")
    noted = noted.get(SpeechLMConfig.model_type) if isinstance(noted, dict) else None
    if not isinstance(noted, dict):
        raise UserError(
            f"{directory / CONFIG_FILE} does not describe vocabulary and codec",
            expected=f"an entry {SpeechLMConfig.model_type!r}, as `slmkit consolidate --format hf` writes it",
            next_step="copy the entry from the config.json of the export that this model was made from",
        )
    ours = {name: noted[name] for name in NOTED_OPTIONS if name in noted}
    check_model_file({"backbone": {}, **ours}, f"{directory / CONFIG_FILE}")
    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            str(directory), use_safetensors=True, dtype="auto", output_loading_info=True, **LOCAL
        )
    except UNLOADABLE as error:
        raise UserError(f"cannot load the model in {directory}: {error}") from error
    plain, found = read
    wrong = sorted(map(str, (*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"])))
    if wrong:
        raise UserError(f"the weights in {directory} are not those of its config", got=", ".join(wrong[:3]))
    check_finite(plain, directory)
    check_float_type(plain.dtype, directory)
    layout = VocabLayout.from_dict(ours["layout"])
    backbone = backbone_values(plain.config.to_dict(), layout, plain.config.vocab_size)
    model = SpeechLM(SpeechLMConfig(backbone=backbone, **ours))
    if not model.is_plain:
        raise UserError(
            f"{directory / CONFIG_FILE} describes speech heads or speaker input, of which there are no weights",
            got=f"group {model.group}, speaker_dim {model.config.speaker_dim}",
        )
    torch.nn.Module.to(model, plain.dtype)
    model.lm_model.load_state_dict(plain.state_dict())
    return model.eval()
