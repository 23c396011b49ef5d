"""From a checkpoint of a run, or another export, to a directory that stands alone.

DeepSpeed puts the float32 weights of its ranks together; they fill the model that `RUN/model` describes, and the model
is written in one of three formats:

- "slmkit": loads with `SpeechLM.from_pretrained`; a plain next-token model with `AutoModelForCausalLM`, too
- "hf": a next-token model for transformers and servers without slmkit; refuses all others (`export.hf`)
- "published": `model.safetensors` with the keys of the published checkpoints (arXiv 2506.12537)

What was written is read back and compared with the source, weight by weight, before it takes its name.
DeepSpeed's files are pickles: consolidate only runs that you trust.

Invariant: OUT exists only if it holds exactly the weights of its source, in the float type asked for.

Example:
    consolidate("runs/tts", "exports/tts")      # the newest complete checkpoint
    convert("exports/tts", "exports/tts-bf16", format="hf", dtype="bfloat16")
"""

import contextlib
import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from slmkit.config.run_dir import MODEL, Checkpoint, newest, read
from slmkit.data.text import load_transformers_tokenizer
from slmkit.errors import UserError
from slmkit.export.hf import from_causal_lm, save_hf
from slmkit.files import new_directory, provenance, sha256_file, write_json
from slmkit.model.config import SpeechLMConfig
from slmkit.model.pretrained import CODEC_FILE, LAYOUT_FILE, PROVENANCE_FILE, load, save
from slmkit.model.published import save_published, to_published
from slmkit.model.slm import SpeechLM

Format = Literal["slmkit", "hf", "published"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
State = dict[str, torch.Tensor]


def consolidate(
    run_dir: str | Path,
    out_dir: str | Path,
    *,
    step: int | None = None,
    format: Format = "slmkit",
    dtype: str = "float32",
) -> Checkpoint:
    """Write the weights of checkpoint `step` (default: the newest complete one) to `out_dir`; returns the checkpoint.

    Raises UserError when `out_dir` exists, there is no complete checkpoint of that step, its files do not fit together,
    or what was written does not read back as it should.
    """
    checkpoint = newest(run_dir) if step is None else read(run_dir, step)
    if checkpoint is None:
        raise UserError("the run has no complete checkpoint", got=run_dir, next_step="train until the first one")
    with new_directory(Path(out_dir)) as temporary:
        model = trained_model(Path(run_dir), checkpoint)
        source = {"run": Path(run_dir).name, "step": checkpoint.step, "facts": checkpoint.state["facts"]}
        _write(model, temporary, Path(run_dir) / MODEL, format=format, dtype=dtype, source=source)
    return checkpoint


def export_sha256(directory: str | Path) -> str:
    """One hash of all files that make an export the model it is: weights, config, tokenizer, vocabulary, codec spec.

    Raises UserError when it holds no weights.
    """
    files = sorted([*Path(directory).glob("*.safetensors"), *Path(directory).glob("*.json")])
    if not any(file.suffix == ".safetensors" for file in files):
        raise UserError(f"{directory} holds no model", expected="a directory that `slmkit consolidate` wrote")
    listed = "".join(f"{file.name} {sha256_file(file)}\n" for file in files if file.name != PROVENANCE_FILE)
    return hashlib.sha256(listed.encode()).hexdigest()


def is_export(directory: str | Path) -> bool:
    """Whether `convert` is the one to ask, and not `consolidate`."""
    return (Path(directory) / LAYOUT_FILE).is_file()


def convert(model_dir: str | Path, out_dir: str | Path, *, format: Format = "slmkit", dtype: str | None = None) -> str:
    """Write the model of an export in another format or float type (default: its own); returns the float type.

    Raises UserError as `consolidate` does.
    """
    with new_directory(Path(out_dir)) as temporary:
        model = load(model_dir)
        dtype = dtype or str(model.dtype).removeprefix("torch.")
        source = {"export": Path(model_dir).name}
        _write(model, temporary, Path(model_dir), format=format, dtype=dtype, source=source)
    return dtype


def trained_model(run_dir: Path, checkpoint: Checkpoint) -> SpeechLM:
    """The float32 model of a checkpoint. Raises UserError when weights and description do not fit together."""
    try:
        config = SpeechLMConfig.from_pretrained(run_dir / MODEL, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the description of the model in {run_dir / MODEL}: {error}") from error
    if config.vocab_layout.sha256 != checkpoint.state["facts"]["vocabulary"]:
        raise UserError(
            f"the vocabulary in {run_dir / MODEL} is not that of {checkpoint.path}",
            got=config.vocab_layout.sha256,
            expected=checkpoint.state["facts"]["vocabulary"],
        )
    state = merged_weights(checkpoint)
    model = SpeechLM(config)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"the weights of {checkpoint.path} are not those of its model: {error}") from error
    _compare(model.state_dict(), state, str(checkpoint.path))  # two values for a tied weight would differ here
    return model


def merged_weights(checkpoint: Checkpoint) -> State:
    """All weights by name, float32, as DeepSpeed puts them together; a tied weight stands under each of its names."""
    from deepspeed.utils import zero_to_fp32

    path = checkpoint.path
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            parts = zero_to_fp32.get_optim_files(str(path))
            if _names_stage(parts[0]):
                return dict(zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(path.parent), tag=path.name))
            # ZeRO-1 in bf16 writes the parts of ZeRO-2 without saying which stage they are of, and is refused for it.
            groups = [_optimizer_part(part)["single_partition_of_fp32_groups"] for part in parts]
            models = zero_to_fp32.parse_model_states(zero_to_fp32.get_model_state_files(str(path)))
            merge = zero_to_fp32._get_fp32_state_dict_from_zero2_checkpoint
            return dict(merge(len(parts), groups, models, exclude_frozen_parameters=False))
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"DeepSpeed cannot put {path} together: {error}") from error


def _names_stage(part: str) -> bool:
    return "zero_stage" in _optimizer_part(part)


def _optimizer_part(part: str) -> dict[str, Any]:
    """What one process wrote of the optimizer; tensors are read where they are used."""
    state: dict[str, Any] = torch.load(part, map_location="cpu", mmap=True, weights_only=False)["optimizer_state_dict"]
    return state


def _write(
    model: SpeechLM, directory: Path, description: Path, *, format: Format, dtype: str, source: dict[str, Any]
) -> None:
    """Write into an empty directory and compare; `description` is one with the model's tokenizer."""
    torch.nn.Module.to(model, DTYPES[dtype])
    source = {**source, "format": format, "dtype": dtype}
    export = directory / "export"
    if format == "published":
        _write_published(model, export, description, source)
    else:
        write = save_hf if format == "hf" else save
        write(model, export, tokenizer=load_transformers_tokenizer(description), source=source)
        _compare(load(export, layout=model.layout).state_dict(), model.state_dict(), str(export))
    if format == "hf":
        _compare(from_causal_lm(export).state_dict(), model.state_dict(), str(export))
    for file in export.iterdir():
        file.rename(directory / file.name)
    export.rmdir()


def _write_published(model: SpeechLM, directory: Path, description: Path, source: Any) -> None:
    directory.mkdir()
    save_published(model, directory / "model.safetensors")
    load_transformers_tokenizer(description).save_pretrained(directory)
    model.lm_model.config.save_pretrained(directory)
    write_json(directory / LAYOUT_FILE, model.layout.to_dict())
    write_json(directory / CODEC_FILE, model.config.codec_spec.to_dict())
    write_json(directory / PROVENANCE_FILE, provenance(source))
    _compare(load_file(directory / "model.safetensors"), to_published(model), str(directory))


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
