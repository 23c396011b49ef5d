"""What clients of a server hear, by the real client and a server in this process; once with `slmkit serve` itself."""

import argparse
import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serve.serving import make_chain, serving

from slmkit.bench import serve
from slmkit.errors import UserError
from slmkit.infer.request import Output
from slmkit.infer.synthesizer import Synthesizer
from slmkit.serve.server import Server
from slmkit.serve.worker import Call

SECONDS = ["--seconds", "0.01", "--max-sec", "0.2"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chain(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def server(chain: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    synthesizer = Synthesizer.load(chain / "model", chain / "codec", num_slots=2)
    with serving(synthesizer, chain, max_waiting=2) as (made, _):
        monkeypatch.setattr(serve, "running_server", lambda words: contextlib.nullcontext(made.address))
        yield made


def run(chain: Path, *words: str) -> None:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    assert serve.run(parser.parse_args([str(chain / "model"), *SECONDS, *words])) == 0


@pytest.mark.full
def test_every_answer_is_counted_with_what_was_wrong(
    server: Server, chain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "TEXTS", serve.TEXTS[:1])
    run(chain, "--clients", "1", "2", "--json")
    result = json.loads(capsys.readouterr().out)
    assert [case["clients"] for case in result["cases"]] == [1, 2]
    for case in result["cases"]:
        assert case["answers"] >= case["clients"]
        assert (case["cut"], case["refused"], case["unequal"]) == (0, 0, 0)
        assert case["with_gap"] == case["server_with_gap"] == 0  # one piece each
        assert 0 < case["first_audio_median_sec"] <= case["first_audio_p95_sec"]

    asked = serve.make_requests(server.address, 0.8, 0.2)
    assert len({json.dumps(body) for body in asked}) == len(asked) == 2
    alone = [serve.ask(server.address, body) for body in asked]
    assert len({answer.sound for answer in alone}) > 1
    assert all(answer.seconds == 0.2 for answer in alone)
    other = alone[1:] + alone[:1]
    assert serve.bench_case(server.address, asked, other, num_clients=2, seconds=0.01)["unequal"] > 0
    wrong = [{**body, "max_sec": 1e9} for body in asked]
    case = serve.bench_case(server.address, wrong, alone, num_clients=2, seconds=0.01)
    assert case["refused"] == case["answers"] > 0
    assert case["first_audio_median_sec"] is None
    assert "-" in serve.row(case)

    # A stream that ends with an error has no last chunk.
    monkeypatch.setattr(server.service.worker, "_deliver", failing_late(server.service.worker._deliver))
    case = serve.bench_case(server.address, [{**asked[0], "max_sec": 1.3}], alone, num_clients=1, seconds=0.01)
    assert (case["answers"], case["cut"], case["refused"]) == (1, 1, 0)
    with pytest.raises(UserError, match="the server did not answer a request alone"):
        run(chain, "--max-sec", "1.3")


def failing_late(deliver: Callable[..., None]) -> Callable[..., None]:
    """The worker's `_deliver`, which has no codes any more once the first sound is out."""

    def failing(number: int, call: Call, output: Output | None) -> None:
        if call.clock.first_audio_sec is not None:
            raise RuntimeError("a detail")
        deliver(number, call, output)

    return failing


@pytest.mark.full
def test_the_command_itself_is_measured(
    chain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "TEXTS", serve.TEXTS[:1])
    run(chain, "--codec", str(chain / "codec"), "--voices", str(chain / "voices"), "--clients", "2")
    head, columns, row = capsys.readouterr().out.splitlines()
    assert re.match(r"cpu, 2 slots, 2 requests, 0\.4 s of speech; ", head)
    assert len(columns.split()) > 11
    assert row.split()[:1] == ["2"]
    with pytest.raises(UserError, match=r"the server did not begin: .*has no voices"):
        run(chain, "--clients", "1", "--codec", str(chain / "codec"))
