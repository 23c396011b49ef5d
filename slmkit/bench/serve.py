"""What clients of the real server hear: how soon the first sound comes, who hears a gap, whether all of it is right.

`slmkit serve` runs in a process of its own. For each number of clients, so many threads ask over HTTP, each for one
streamed answer after the other, for --seconds; what has begun then goes on to its end. Each answer has a listener who
plays the bytes as they arrive (`infer/playback.py`). The requests are few and asked for over and over; before all
others, each is asked for alone.

Invariant: a figure is printed with the number of answers that were cut, refused, or other than alone in any byte.

Example:
    slmkit bench serve models/mtp12 --clients 1 4 16 --seconds 20
"""

import argparse
import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from slmkit.errors import UserError
from slmkit.infer.playback import Continuity, PlaybackClock
from slmkit.texts import above_zero, positive

SUMMARY = "what clients of the server hear: first sound, gaps, whether every answer is whole and equal to itself alone"
TEXTS = (
    "A small boat crossed the lake.",
    "The river froze over one winter night, and in the morning the children walked to the other side.",
    "Hello.",
    "Nobody had told the old clock maker that the tower would be taken down before the end of the year.",
)
SAMPLE_BYTES = 2
READ_BYTES = 2**16
WAIT_SEC = 300.0  # for a byte of an answer
SHOWN_CHARS = 1000  # of the log of a server that did not begin
ROW = "{:>7} {:>8} {:>9} {:>8} {:>9} {:>9} {:>8} {:>8} {:>8} {:>8} {:>9}"
HEAD = (
    "clients",
    "answers",
    "with gap",
    "gaps s",
    "first s",
    "95 % s",
    "speech",
    "cut",
    "refused",
    "unequal",
    "server's",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory that `slmkit consolidate` wrote, or a hub id")
    parser.add_argument("--clients", type=positive, nargs="+", default=[1, 4, 16], help="at a time (default: 1 4 16)")
    parser.add_argument("--seconds", type=above_zero, default=20.0, help="for each number of clients (default: 20)")
    parser.add_argument("--slots", type=positive, help="answers at a time (default: the most clients)")
    parser.add_argument("--max-sec", type=above_zero, default=10.0, help="longest answer (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="of speech (default: %(default)s)")
    parser.add_argument("--codec", help="as of `slmkit serve`")
    parser.add_argument("--voices", nargs="+", metavar="SOURCE", help="as of `slmkit serve`")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    slots = args.slots or max(args.clients)
    words = [args.model, "--slots", str(slots), "--max-sec", str(args.max_sec), "--device", args.device]
    words += ["--codec", args.codec] if args.codec else []
    words += ["--voices", *args.voices] if args.voices else []
    with running_server([*words, "--max-waiting", str(max(args.clients))]) as address:
        asked = make_requests(address, args.temperature, args.max_sec)
        ask(address, asked[0])  # warms model and codec
        alone = [ask(address, body) for body in asked]
        if cut := [answer for answer in alone if not answer.is_whole]:
            raise UserError(f"the server did not answer a request alone: {cut[0].error}")
        result: dict[str, Any] = {"model": args.model, "device": args.device, "slots": slots, "cases": []}
        if not args.json:
            kinds = f"{len(asked)} requests, {sum(answer.seconds for answer in alone):.1f} s of speech"
            print(
                f"{args.device}, {slots} slots, {kinds}; "
                "first s and 95 %: half and 95 of 100 begin so soon; server: gaps that it has seen itself"
            )
            print(ROW.format(*HEAD), flush=True)
        for number in args.clients:
            result["cases"].append(bench_case(address, asked, alone, num_clients=number, seconds=args.seconds))
            if not args.json:
                print(row(result["cases"][-1]), flush=True)
    if args.json:
        print(json.dumps(result, indent=2))
    return 0


@dataclass(frozen=True, kw_only=True)
class Heard:
    """One answer, as a client has got it."""

    sound: bytes
    clock: PlaybackClock
    is_whole: bool  # it came with its end
    status: int = 200
    error: str = ""
    seconds: float = 0.0  # of speech


def bench_case(
    address: str, asked: Sequence[dict[str, Any]], alone: Sequence[Heard], *, num_clients: int, seconds: float
) -> dict[str, Any]:
    """What `num_clients` clients hear, who ask one request after the other for `seconds` seconds."""
    began, seen = time.monotonic(), gaps_of_server(address)
    deadline = began + seconds

    def client(first: int) -> list[tuple[int, Heard]]:
        heard: list[tuple[int, Heard]] = []
        while not heard or time.monotonic() < deadline:
            number = (first + len(heard)) % len(asked)
            heard.append((number, ask(address, asked[number])))
        return heard

    with ThreadPoolExecutor(num_clients) as clients:
        answers = [pair for found in clients.map(client, range(num_clients)) for pair in found]
    took = time.monotonic() - began
    whole = [(number, answer) for number, answer in answers if answer.is_whole]
    continuity = Continuity.of([answer.clock for _, answer in answers])
    return {
        "clients": num_clients,
        "answers": len(answers),
        "with_gap": continuity.with_gap,
        "gap_share": continuity.gap_share,
        "gap_sec": continuity.gap_sec,
        "first_audio_median_sec": continuity.first_audio_median_sec,
        "first_audio_p95_sec": continuity.first_audio_p95_sec,
        "speech_sec_per_sec": sum(answer.seconds for _, answer in whole) / took,
        "refused": sum(answer.status != 200 for _, answer in answers),
        "cut": sum(answer.status == 200 and not answer.is_whole for _, answer in answers),
        "unequal": sum(answer.sound != alone[number].sound for number, answer in whole),
        "server_with_gap": gaps_of_server(address) - seen,
    }


def ask(address: str, body: dict[str, Any]) -> Heard:
    """One streamed answer, heard as it comes."""
    place, clock, sound, rate = urlsplit(address), PlaybackClock(time.monotonic()), bytearray(), 0
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=WAIT_SEC)
    try:
        connection.request("POST", "/v1/audio/speech", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            message = response.read().decode(errors="replace")
            return Heard(sound=b"", clock=clock, is_whole=False, status=response.status, error=message)
        rate = int(response.headers["X-Slmkit-Sample-Rate"])
        while piece := response.read1(READ_BYTES):  # raises where the connection ends before the mark of the last chunk
            sound += piece
            clock.hear(time.monotonic(), len(piece) / SAMPLE_BYTES / rate)
    except (OSError, http.client.HTTPException) as error:
        return Heard(sound=bytes(sound), clock=clock, is_whole=False, error=f"{type(error).__name__}: {error}")
    finally:
        connection.close()
    return Heard(sound=bytes(sound), clock=clock, is_whole=True, seconds=len(sound) / SAMPLE_BYTES / rate)


def make_requests(address: str, temperature: float, max_sec: float) -> list[dict[str, Any]]:
    """Of every text and the first voices, each with a seed of its own."""
    voices = [voice["id"] for voice in json.loads(fetch(address, "/v1/audio/voices"))["voices"]][:2]
    return [
        {
            "input": text,
            "voice": voice,
            "seed": 10 * i + j,
            "temperature": temperature,
            "max_sec": max_sec,
            "watch": False,  # a model that has learnt nothing speaks on, too
            "response_format": "pcm",
            "stream": True,
        }
        for i, text in enumerate(TEXTS)
        for j, voice in enumerate(voices)
    ]


def gaps_of_server(address: str) -> int:
    """Streamed answers with a gap, as the server has counted them."""
    name = 'slmkit_streams_total{heard="with_gap"} '
    lines = fetch(address, "/metrics").splitlines()
    return int(float(next(line.removeprefix(name) for line in lines if line.startswith(name))))


def fetch(address: str, path: str) -> str:
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=WAIT_SEC)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().read().decode()


@contextlib.contextmanager
def running_server(words: Sequence[str]) -> Iterator[str]:
    """The address of `slmkit serve` with these words and a free port. Raises UserError with its last words when it does
    not begin."""
    command = [sys.executable, "-m", "slmkit", "serve", *words, "--port", "0"]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            if not line.startswith("listening at "):
                server.wait(WAIT_SEC)
                log.seek(0)
                raise UserError(f"the server did not begin: {log.read()[-SHOWN_CHARS:].strip()}")
            yield line.split()[2]
        finally:
            server.terminate()


def row(case: dict[str, Any]) -> str:
    """A case as a line of the table."""

    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    return ROW.format(
        case["clients"],
        case["answers"],
        f"{100 * case['gap_share']:.1f} %",
        f"{case['gap_sec']:.2f}",
        seconds(case["first_audio_median_sec"]),
        seconds(case["first_audio_p95_sec"]),
        f"{case['speech_sec_per_sec']:.2f}x",
        case["cut"],
        case["refused"],
        case["unequal"],
        case["server_with_gap"],
    )
