"""A model that speaks without end, servers of it, and clients, for the tests of the server."""

import contextlib
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from memorising import BASE
from transformers import Qwen2Config

from slmkit.audio.io import write_wav
from slmkit.codec.melvq import MelVQ
from slmkit.data.text import TextTokenizer
from slmkit.infer.synthesizer import Synthesizer
from slmkit.model.config import SpeechLMConfig
from slmkit.model.pretrained import backbone_values, base_layout, extended_tokenizer, save
from slmkit.model.slm import SpeechLM
from slmkit.serve.server import Server
from slmkit.serve.service import ServeSettings, Service

RATE = 16_000
TEXT = "A small boat crossed the lake."
ENDLESS_SEC = 60.0  # longer than any test takes
WAIT_SEC = 60.0  # for what comes at once on a machine that has time


def make_chain(root: Path) -> Path:
    """`codec`, `voices` and `model` in `root`. Untrained, but made to begin to speak at once and never to end: how long
    it speaks is up to the request."""
    random = np.random.default_rng(0)
    waves = [(0.1 * random.standard_normal(RATE)).astype(np.float32) for _ in range(4)]
    codec = MelVQ.fit(waves, seed=0, num_entries=32)
    codec.save(root / "codec")
    (root / "voices").mkdir()
    anna, bert = random.standard_normal((2, codec.spec.speaker_dim)).astype(np.float32)
    np.save(root / "voices" / "anna.npy", anna)
    write_wav(root / "voices" / "bert.wav", waves[1], RATE)

    tokenizer = TextTokenizer.load(BASE)
    layout = base_layout(tokenizer, codec.spec, 3)
    shape = Qwen2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=layout.size,
        tie_word_embeddings=False,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    config = SpeechLMConfig(
        backbone=backbone_values(shape.to_dict(), layout, layout.size),
        layout=layout.to_dict(),
        codec=codec.spec.to_dict(),
        group=3,
        speaker_dim=codec.spec.speaker_dim,
    )
    model = SpeechLM(config).eval()
    synthesizer = Synthesizer(model, tokenizer, codec)
    texts = (TEXT, "Hello.", "The river froze over one winter night.")
    with torch.no_grad():
        for head, size in zip(model.heads, layout.codebook_sizes, strict=True):
            head.output.weight.mul_(20)  # some classes are far more probable than others
            head.output.bias[size:] = -1e4
        for _ in range(50):  # until both kinds of prompts are followed by speech
            row = 10 * torch.randn(shape.hidden_size)  # so that it is chosen at any temperature
            model.lm_model.lm_head.weight.zero_()
            model.lm_model.lm_head.weight[layout.id_of("<sosp>")] = row
            model.lm_model.lm_head.weight[layout.eos_id] = -row
            requests = [
                make(text, vector, max_sec=0.1)
                for make in (synthesizer.reading, synthesizer.answering)
                for text in texts
                for vector in (anna, bert)
            ]
            if all(output.codes.shape[1] for output in synthesizer.engine.generate(requests)):
                break
        else:
            raise AssertionError("no row of <sosp> fits all prompts")
    save(model, root / "model", tokenizer=extended_tokenizer(BASE, layout))
    return root


class Client(httpx.Client):
    """Sends requests to a server on this machine."""

    def __init__(self, port: int) -> None:
        limits = httpx.Limits(max_connections=None)
        super().__init__(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_SEC, limits=limits, trust_env=False)
        self.port = port

    def speech(self, path: str = "/v1/audio/speech", **fields: Any) -> httpx.Response:
        return self.post(path, json=speech_fields(path, **fields))

    def begin(self, **fields: Any) -> socket.socket:
        """A connection whose request for speech is sent."""
        body = json.dumps(speech_fields(**{"max_sec": ENDLESS_SEC, **fields})).encode()
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_SEC)
        sock.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
        sock.sendall(body)
        return sock

    def figure(self, name: str) -> float:
        """One of `/metrics`, as `requests_total{outcome="done"}`."""
        found = re.search(rf"^slmkit_{re.escape(name)} (\S+)$", self.get("/metrics").text, re.MULTILINE)
        assert found, name
        return float(found[1])


def speech_fields(path: str = "/v1/audio/speech", **fields: Any) -> dict[str, Any]:
    values = {"input": TEXT, "voice": "anna", "max_sec": 0.2} | fields
    if path == "/v1/answer":
        values["question"] = values.pop("input")
    return values


def code_of(response: httpx.Response) -> str:
    """Of an error, whose form is checked."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if response.status_code >= 500 else "invalid_request_error")
    assert "Traceback" not in error["message"]
    return error["code"]


def read_all(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            data += part
    return data


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SEC
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def make_service(synthesizer: Synthesizer, root: Path, **settings: Any) -> Service:
    voices = {name: synthesizer.read_speaker(root / "voices" / name) for name in ("anna.npy", "bert.wav")}
    named = {name.partition(".")[0]: vector for name, vector in voices.items()}
    return Service(synthesizer, named, ServeSettings(**{"model": "tiny", "max_sec": ENDLESS_SEC} | settings))


@contextlib.contextmanager
def serving(
    synthesizer: Synthesizer, root: Path, *, grace_sec: float = 0.0, **settings: Any
) -> Iterator[tuple[Server, Client]]:
    """A server in threads of this process."""
    service = make_service(synthesizer, root, **settings)
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    with Server(service, listener, grace_sec=grace_sec) as server, Client(server.port) as client:
        yield server, client


class Gate:
    """Lets so many steps of the engine pass, and holds back the next until it is opened."""

    def __init__(self, synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch, num_steps: int = 0) -> None:
        self._open, steps = threading.Event(), itertools.count()
        step = synthesizer.engine.step

        def gated_step() -> list:
            assert next(steps) < num_steps or self._open.wait(WAIT_SEC)
            return step()

        monkeypatch.setattr(synthesizer.engine, "step", gated_step)

    def open(self) -> None:
        self._open.set()
