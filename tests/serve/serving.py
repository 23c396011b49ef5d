"""A model that speaks without end, servers of it, and a client, for the tests of the server."""

import contextlib
import dataclasses
import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from memorising import BASE, memorise, one_batch, small_model

from slmkit.audio.io import read_audio, write_wav
from slmkit.codec.melvq import MelVQ
from slmkit.data.shards import Sample
from slmkit.data.text import TextTokenizer
from slmkit.infer.request import Output
from slmkit.infer.synthesizer import Synthesizer
from slmkit.model.pretrained import extended_tokenizer, save
from slmkit.serve.server import Server
from slmkit.serve.service import Service, Settings
from slmkit.serve.worker import Worker

AUDIO = Path(__file__).resolve().parents[2] / "tokenize_jobs" / "sample_corpus"
RATE = 16_000
TEXT = "A small boat crossed the lake."


def make_chain(root: Path) -> Path:
    """`codec`, `voices` and `model` in `root`. What the model reads it begins to say at once and never ends: how long
    it speaks is up to the request."""
    waves = [read_audio(path, RATE)[: 2 * RATE] for path in sorted(AUDIO.glob("1[12]/*/*.flac"))]
    codec = MelVQ.fit(waves, seed=0)
    codec.save(root / "codec")
    samples = []
    for wave in (torch.from_numpy(wave[4000:8000]) for wave in waves[:2]):
        encoded = codec.encode(wave[None], torch.tensor([len(wave)]))
        samples.append(Sample(str(len(samples)), encoded.codes[0].numpy(), encoded.speaker[0].numpy(), {"text": TEXT}))
    tokenizer = TextTokenizer.load(BASE)
    model = small_model(tokenizer, codec.spec, 3, speaker_dim=codec.spec.speaker_dim)
    memorise(model, one_batch(model, tokenizer, samples))
    with torch.no_grad():
        for head, size in zip(model.heads, model.layout.codebook_sizes, strict=True):
            head.output.weight[size:] = 0
    save(model, root / "model", tokenizer=extended_tokenizer(BASE, model.layout))
    (root / "voices").mkdir()
    np.save(root / "voices" / "anna.npy", samples[0].speaker)
    write_wav(root / "voices" / "bert.wav", waves[1], RATE)
    return root


class Reply(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def values(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of an error, whose form is checked."""
        error = self.values["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == ("server_error" if self.status >= 500 else "invalid_request_error")
        assert "Traceback" not in error["message"]
        return error["code"]


@dataclasses.dataclass
class Client:
    """Sends requests to a server, each on its own connection."""

    port: int

    def send(self, method: str, path: str, body: bytes | str | None = None, **headers: str) -> Reply:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            return Reply(reply.status, reply.headers, reply.read())

    def get(self, path: str) -> Reply:
        return self.send("GET", path)

    def speech(self, path: str = "/v1/audio/speech", **fields: Any) -> Reply:
        values = {"input": TEXT, "voice": "anna", "max_sec": 0.2} | fields
        if path == "/v1/answer":
            values["question"] = values.pop("input")
        return self.send("POST", path, json.dumps(values))

    def open(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def raw(self, data: bytes) -> bytes:
        """All that comes back for these bytes until the server closes."""
        with self.open() as sock:
            sock.sendall(data)
            return read_all(sock)

    def begin(self, **fields: Any) -> socket.socket:
        """A connection whose request for speech is sent."""
        body = json.dumps({"input": TEXT, "voice": "anna"} | fields).encode()
        sock = self.open()
        sock.sendall(
            b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        return sock

    def wait_for(self, **figures: int) -> None:
        """Until `/metrics` says so."""
        deadline = time.monotonic() + 30
        while (now := self.get("/metrics").values) | figures != now:
            assert time.monotonic() < deadline, f"{now} and not {figures}"
            time.sleep(0.02)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            data += part
    return data


@contextlib.contextmanager
def serving(synthesizer: Synthesizer, root: Path, **settings: Any) -> Iterator[tuple[Server, Client]]:
    """A server in threads of this process."""
    voices = {name: synthesizer.read_speaker(root / "voices" / name) for name in ("anna.npy", "bert.wav")}
    named = {name.partition(".")[0]: vector for name, vector in voices.items()}
    service = Service(synthesizer, named, Settings(**{"model": "tiny", "max_sec": 8.0} | settings))
    with Server(service, "127.0.0.1", 0) as server:
        yield server, Client(server.port)


def stand_still_when_full(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all slots taken nothing goes on until the worker is told to stop: no answer is over before that."""
    engine = worker._synthesizer.engine
    step = engine.step

    def step_unless_full() -> list[tuple[int, Output]]:
        while not engine.num_free and worker._stop_at is None:
            time.sleep(0.01)
        return step()

    monkeypatch.setattr(engine, "step", step_unless_full)
