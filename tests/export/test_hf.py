"""Format hf in plain transformers: what was learnt by heart is said there, too; and exports turned into others."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from memorising import BASE, memorise, one_batch, small_model
from safetensors.torch import load_file, save_file
from synthetic import codec_spec
from transformers import AutoTokenizer, Qwen2ForCausalLM

from slmkit import export as module
from slmkit.cli.main import main
from slmkit.data.prompt import prompt_only, tts
from slmkit.data.sequence import build, tokenize
from slmkit.data.shards import Sample
from slmkit.data.text import TextTokenizer
from slmkit.data.vocab import VocabLayout
from slmkit.errors import UserError
from slmkit.export import CHAT_TEMPLATE, convert, from_causal_lm, is_export, write_hf
from slmkit.files import read_json
from slmkit.infer.engine import Engine
from slmkit.infer.grammar import make_grammar
from slmkit.infer.request import Output, Request
from slmkit.model.pretrained import extended_tokenizer, load, read_export_config, save
from slmkit.model.slm import SpeechLM

TEXTS = ("The river froze", "Eleven lanterns along the wall")
WITHOUT_SLMKIT = """
import json, sys
sys.modules["slmkit"] = None  # importing it is an error from here on
from transformers import AutoModelForCausalLM, AutoTokenizer
texts, directories = json.loads(sys.argv[1]), sys.argv[2:]
for directory in directories:
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    answers = []
    for text in texts:
        message = {"role": "user", "content": f"Read this sentence: {text}."}
        prompt = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=200)[0].tolist()
        size = ids["input_ids"].shape[1]
        answers.append({"prompt": out[:size], "answer": out[size:], "written": tokenizer.decode(out[size:])})
    heard = {"answers": answers, "dtype": str(model.dtype), "rope": model.config.rope_parameters["rope_theta"]}
    heard["modules"] = [name for name in sys.modules if name.startswith("transformers_modules")]
    print(json.dumps({**heard, "tied": model.lm_head.weight is model.model.embed_tokens.weight}))
"""


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.load(BASE)


@pytest.fixture(scope="module")
def parrot(tokenizer: TextTokenizer) -> tuple[SpeechLM, list[Sample]]:
    """A next-token model that knows two utterances of random codes by heart; its rotary base is that of Qwen2.5."""
    rng = np.random.default_rng(5)
    spec = codec_spec()
    codes = [rng.integers(0, 16, (3, frames)).astype(np.uint16) for frames in (9, 14)]
    samples = [Sample(f"u{i}", codes[i], None, {"text": text}) for i, text in enumerate(TEXTS)]
    model = small_model(tokenizer, spec, 0, like=BASE)
    assert model.config.backbone_config.rope_parameters["rope_theta"] == 1e6
    memorise(model, one_batch(model, tokenizer, samples))
    return model, samples


def exported(model: SpeechLM, out: Path) -> Path:
    out.mkdir()
    write_hf(model, out, tokenizer=extended_tokenizer(BASE, model.layout))
    return out


def prompt_ids(tokenizer: TextTokenizer, layout: VocabLayout, text: str) -> list[int]:
    return build(tokenize(prompt_only(tts(text)), tokenizer.encode, layout), None, layout, 0).tokens[:, 0].tolist()


@pytest.mark.full
def test_transformers_alone_says_what_the_engine_says(
    parrot: tuple[SpeechLM, list[Sample]], tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    save(parrot[0], tmp_path / "model", tokenizer=extended_tokenizer(BASE, parrot[0].layout))
    dtypes = ("float32", "bfloat16")
    for dtype in dtypes:
        assert convert(tmp_path / "model", tmp_path / dtype, format="hf", dtype=dtype) == dtype
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SLMKIT, json.dumps(TEXTS), *dtypes],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    for dtype, line in zip(dtypes, done.stdout.splitlines()[-2:], strict=True):
        heard = json.loads(line)
        assert (heard["dtype"], heard["rope"], heard["tied"]) == (f"torch.{dtype}", 1e6, True)
        assert heard["modules"] == [], "code from the directory was run"
        model = load(tmp_path / dtype)
        prompts = [prompt_ids(tokenizer, model.layout, text) for text in TEXTS]
        outputs = Engine(model, num_slots=2).generate([Request(prompt=tuple(ids)) for ids in prompts])
        for i, output in enumerate(outputs):
            check_same(model, prompts[i], heard["answers"][i], output, parrot[1][i].codes)


def check_same(
    model: SpeechLM, prompt: list[int], heard: dict[str, Any], output: Output, codes: npt.NDArray[np.uint16]
) -> None:
    """What transformers heard and said, token by token, beside the engine's output and what was learnt."""
    assert heard["prompt"] == prompt
    assert heard["answer"][-1] == model.layout.eos_id
    grammar = make_grammar(model.layout, 0)
    for token in heard["answer"]:
        if grammar.mode == "text":
            grammar.accept_text(token)
        else:
            grammar.accept_speech([token])
    assert grammar.mode == "end"
    assert tuple(grammar.text_ids) == output.text_ids
    assert np.array_equal(grammar.codes(), output.codes)
    assert np.array_equal(output.codes, codes)
    speech = "".join(f"<{'abc'[k]}{code}>" for frame in codes.T for k, code in enumerate(frame))
    assert f"<sosp>{speech}<eosp>" in heard["written"]


def test_the_files_are_what_servers_expect(parrot: tuple[SpeechLM, list[Sample]], tmp_path: Path) -> None:
    """Names of transformers 4 beside those of 5, for vLLM reads either; a wrong name means a default without a word."""
    model, out = parrot[0], tmp_path / "out"
    tokenizer = extended_tokenizer(BASE, model.layout)
    tokenizer.chat_template = "that of the text model"
    out.mkdir()
    write_hf(model, out, tokenizer=tokenizer)
    config = read_json(out / "config.json")
    expected = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "dtype": "float32",
        "torch_dtype": "float32",
        "rope_theta": 1e6,
        "vocab_size": model.layout.size,
        "tie_word_embeddings": True,
        "eos_token_id": model.layout.eos_id,
    }
    assert {name: config[name] for name in expected} == expected
    weights = load_file(out / "model.safetensors")
    assert weights["model.embed_tokens.weight"].shape[0] == config["vocab_size"]
    assert not [name for name in weights if not name.startswith("model.")], "a tied head stands once"
    eos = model.layout.eos_id
    generation = read_json(out / "generation_config.json")
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (eos, eos)
    words = read_json(out / "tokenizer_config.json")
    assert words["tokenizer_class"] == "Qwen2Tokenizer"
    assert "<|im_start|>" in words["additional_special_tokens"]
    assert not {"extra_special_tokens", "auto_map"} & words.keys()
    assert "auto_map" not in config
    added = {token["content"]: token["id"] for token in read_json(out / "tokenizer.json")["added_tokens"]}
    assert all(added[token] == model.layout.base_size + i for i, token in enumerate(model.layout.added_tokens()))
    assert not list(out.glob("*.py"))
    assert AutoTokenizer.from_pretrained(out).chat_template == words["chat_template"] == "<|im_start|>" + CHAT_TEMPLATE
    assert not (out / "chat_template.jinja").exists()


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("hf", {"group": 3}, "speech heads or speaker input\n  got:      group 3, speaker_dim 0"),
        ("hf", {"group": 0, "speaker_dim": 8}, "speech heads or speaker input\n  got:      group 0, speaker_dim 8"),
        ("hf", {"group": 0, "softmax": "stream"}, "a plain server would choose from all"),
        ("published", {"group": 3, "fusion": "mlp"}, "the published format has no mlp fusion"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_before_it_is_written(
    format: Any,
    options: dict[str, Any],
    message: str,
    tokenizer: TextTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(module, "_write_export")
    model = small_model(tokenizer, codec_spec(), hidden_size=16, num_layers=1, **options)
    save(model, tmp_path / "model", tokenizer=extended_tokenizer(BASE, model.layout))
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "model", tmp_path / "out", format=format)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "ours",
    [5, {"group": "x"}, {"layout": {}}, {"codec": 3}, {"group": 3}, {"speaker_dim": 8}, {"text_loss_weight": "much"}],
    ids=str,
)
def test_damaged_notes_of_vocabulary_and_codec_are_named(
    parrot: tuple[SpeechLM, list[Sample]], tmp_path: Path, ours: Any
) -> None:
    out = exported(parrot[0], tmp_path / "out")
    config = read_json(out / "config.json")
    ours = {**config["slmkit"], **ours} if isinstance(ours, dict) else ours
    (out / "config.json").write_text(json.dumps({**config, "slmkit": ours}))
    with pytest.raises(UserError):
        from_causal_lm(out)
    if ours == 5:
        with pytest.raises(UserError, match="is not in slmkit's format"):
            read_export_config(out)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(64, dtype=torch.float64), "are of a float type that slmkit does not write"),
        (torch.full((64,), torch.inf), "are not finite"),
    ],
)
def test_weights_that_cannot_be_written_are_named(
    parrot: tuple[SpeechLM, list[Sample]], tmp_path: Path, weight: torch.Tensor, message: str
) -> None:
    out = exported(parrot[0], tmp_path / "out")
    weights = {name: value.to(weight.dtype) for name, value in load_file(out / "model.safetensors").items()}
    weights["model.norm.weight"] = weight[: len(weights["model.norm.weight"])]
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    config, dtype = read_json(out / "config.json"), str(weight.dtype).removeprefix("torch.")
    config["slmkit"]["dtype"] = dtype
    (out / "config.json").write_text(json.dumps({**config, "dtype": dtype, "torch_dtype": dtype}))
    for read in (from_causal_lm, lambda path: convert(path, tmp_path / "other")):
        with pytest.raises(UserError, match=message):
            read(out)


def test_an_import_that_fails_leaves_nothing(parrot: tuple[SpeechLM, list[Sample]], tmp_path: Path) -> None:
    out = exported(parrot[0], tmp_path / "out")
    (out / "codec_source.json").write_text("[]")
    assert main(["import-model", str(out), str(tmp_path / "imported")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_model_trained_on_elsewhere_comes_back(
    parrot: tuple[SpeechLM, list[Sample]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another program loads it, changes every weight, pads the vocabulary and saves it in its own way."""
    model = parrot[0]
    out = exported(model, tmp_path / "out")
    plain = Qwen2ForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    plain.resize_token_embeddings(model.layout.size + 30, mean_resizing=False)
    with torch.no_grad():
        for weight in plain.parameters():
            weight.mul_(1.5)
    plain.save_pretrained(tmp_path / "theirs")
    AutoTokenizer.from_pretrained(out).save_pretrained(tmp_path / "theirs")
    assert main(["import-model", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    assert "NTP, without speaker input" in capsys.readouterr().out
    back = load(tmp_path / "ours", layout=model.layout)
    expected = {f"lm_model.{name}": value for name, value in plain.state_dict().items()}
    found = back.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert back.dtype == torch.bfloat16
    assert back.config.backbone_config.vocab_size == model.layout.size + 30
    assert back.config.codec_spec == model.config.codec_spec
    assert AutoTokenizer.from_pretrained(tmp_path / "ours").convert_tokens_to_ids("<c7>") == model.layout.code_id(2, 7)


def test_directories_that_are_no_such_model(
    parrot: tuple[SpeechLM, list[Sample]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = exported(parrot[0], tmp_path / "out")
    config = read_json(out / "config.json")
    weights = load_file(out / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(
        {key: value for key, value in weights.items() if key != name}, out / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=rf"are not those of its config\n  got:      {name}"):
        from_causal_lm(out)
    (out / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot load the model in"):
        from_causal_lm(out)
    (out / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != "slmkit"}))
    with pytest.raises(UserError, match="does not describe vocabulary and codec"):
        from_causal_lm(out)
    assert main(["import-model", str(out), str(tmp_path / "x"), "--base", str(BASE)]) == 2
    assert "has its own tokenizer and codec" in capsys.readouterr().err
    assert main(["import-model", str(out / "model.safetensors"), str(tmp_path / "x")]) == 2
    assert "needs the text model it started from" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_an_export_becomes_another(
    parrot: tuple[SpeechLM, list[Sample]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From format hf to slmkit to published, and in bfloat16 where it is asked for; the first is left as it was."""
    out = exported(parrot[0], tmp_path / "hf")
    assert is_export(out)
    assert main(["consolidate", str(out), str(tmp_path / "ours")]) == 0
    assert "in float32, read back and equal" in capsys.readouterr().out
    assert main(["consolidate", str(tmp_path / "ours"), str(tmp_path / "pub"), "--format", "published"]) == 0
    assert main(["consolidate", str(out), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    state = parrot[0].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in load(tmp_path / "ours").state_dict().items())
    assert all(torch.equal(v, state[k].bfloat16()) for k, v in load(tmp_path / "half").state_dict().items())
    published = load_file(tmp_path / "pub" / "model.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in published.items())
    capsys.readouterr()
    assert main(["consolidate", str(out), str(tmp_path / "x"), "--step", "3"]) == 2
    assert "an export has no steps" in capsys.readouterr().err
    assert main(["consolidate", str(tmp_path / "pub"), str(tmp_path / "x")]) == 2
    assert "holds no slmkit model\n  got:      a config.json of qwen2" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
