"""Next-token models for other people's programs, and back from them.

`save_hf` writes a directory that transformers (4.5x and 5.x) and servers built on them (vLLM and its kind) read without
slmkit: a Qwen2ForCausalLM, its tokenizer with every appended token at its id, a generation config, and a chat template
that writes the published prompt. No code of its own, nothing to trust. Next to the names of transformers 5 the files
bear those that older versions look for (`rope_theta`, `torch_dtype`, `additional_special_tokens`), which would
otherwise take a default without a word.

`from_causal_lm` reads such a directory again, for instance after training elsewhere: weights and backbone are those of
the directory, vocabulary and codec those that the export noted in config.json under "slmkit".

It knows nothing of grammars: a server chooses among the whole vocabulary, and what it wrote has to be checked.

Invariant: `from_causal_lm` of what `save_hf` wrote is the same model, weight by weight.

Example:
    save_hf(model, "OUT", tokenizer=extended_tokenizer(base, model.layout))
    AutoModelForCausalLM.from_pretrained("OUT")     # no slmkit there
    from_causal_lm("OUT")
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import Qwen2ForCausalLM

from slmkit.data.vocab import VocabLayout
from slmkit.errors import UserError
from slmkit.files import read_json, write_json
from slmkit.model.config import SpeechLMConfig
from slmkit.model.pretrained import backbone_values, save
from slmkit.model.slm import SpeechLM

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
OURS = ("layout", "codec", "group", "head", "fusion", "speaker_dim", "softmax", "text_loss_weight")
# One user message is the human part of the published prompt; "Read this sentence: Hello." asks for speech.
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '[Assistant]: ' + message['content'] + '\\n\\n' }}"
    "{% else %}{{ '[Human]: ' + message['content'] + '\\n ' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[Assistant]:' }}{% endif %}"
)


def save_hf(model: SpeechLM, out_dir: str | Path, *, tokenizer: Any, source: Any = None) -> None:
    """Write a directory for transformers and servers. Raises UserError when they could not run such a model."""
    check_servable(model)
    out_dir = Path(out_dir)
    save(model, out_dir, tokenizer=tokenizer, source=source)
    values = read_json(out_dir / CONFIG)
    names = {"torch_dtype": values["dtype"], **values["rope_parameters"]}
    names.pop("rope_type")
    write_json(out_dir / CONFIG, {**values, **names}, replace=True)
    # Padding is named here alone: as a part of the model it would keep the end of text from being trained.
    ids = {
        "bos_token_id": model.layout.bos_id,
        "eos_token_id": model.layout.eos_id,
        "pad_token_id": model.layout.eos_id,
    }
    write_json(out_dir / GENERATION, {"do_sample": False, **ids}, replace=True)
    values = read_json(out_dir / TOKENIZER)
    special = values.pop("extra_special_tokens", [])
    for name in ("is_local", "local_files_only", "backend"):
        values.pop(name, None)
    names = {"additional_special_tokens": special, "chat_template": CHAT_TEMPLATE}
    write_json(out_dir / TOKENIZER, {**values, **names}, replace=True)
    (out_dir / "chat_template.jinja").unlink(missing_ok=True)  # of the text model


def check_servable(model: SpeechLM) -> None:
    """Raise UserError when plain generation over the whole vocabulary is not what the model was trained for."""
    if not model.is_plain:
        raise UserError(
            "AutoModelForCausalLM cannot load a model with speech heads or speaker input",
            got=f"group {model.group}, speaker_dim {model.config.speaker_dim}",
            next_step="use --format slmkit, and load it with SpeechLM.from_pretrained",
        )
    if model.config.softmax != "full":
        raise UserError(
            "a plain server would choose among all streams, and this model was trained on one at a time",
            got=f"softmax {model.config.softmax}",
            expected="softmax full",
            next_step="use --format slmkit; it loads with AutoModelForCausalLM, for a program that masks the streams",
        )


def from_causal_lm(directory: str | Path) -> SpeechLM:
    """The model of a directory that `save_hf` wrote, or that a program made from one.

    Raises UserError when the directory cannot be read, its weights are not those of its config, or it has lost what
    the export noted of vocabulary and codec.
    """
    directory = Path(directory)
    noted = read_json(directory / CONFIG)
    noted = noted.get(SpeechLMConfig.model_type) if isinstance(noted, dict) else None
    if not isinstance(noted, dict):
        raise UserError(
            f"{directory / CONFIG} says nothing of vocabulary and codec",
            expected=f"an entry {SpeechLMConfig.model_type!r}, as `slmkit consolidate --format hf` writes it",
            next_step="copy the entry from the config.json of the export that this model was made from",
        )
    try:
        read: Any = Qwen2ForCausalLM.from_pretrained(
            str(directory), use_safetensors=True, dtype="auto", output_loading_info=True, local_files_only=True
        )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot load the model in {directory}: {error}") from error
    plain, found = read
    wrong = sorted(map(str, (*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"])))
    if wrong:
        raise UserError(f"the weights in {directory} are not those of its config", got=", ".join(wrong[:3]))
    ours = {name: noted[name] for name in OURS if name in noted}
    layout = VocabLayout.from_dict(ours.get("layout", {}))
    backbone = backbone_values(plain.config.to_dict(), layout, plain.config.vocab_size)
    model = SpeechLM(SpeechLMConfig(backbone=backbone, **ours))
    nn.Module.to(model, plain.dtype)
    model.lm_model.load_state_dict(plain.state_dict())
    return model.eval()
