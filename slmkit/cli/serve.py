"""Speak for other programs: a small HTTP server with a page to try it on.

  slmkit serve OUT --codec CODEC --voices voices/
  curl http://127.0.0.1:8000/v1/audio/speech -d '{"input": "Hello there.", "voice": "anna"}' > hello.wav

A voice is a WAV, FLAC or .npy file (of a folder, all of them; its name is the file's), or CORPUS:KEY of a tokenized
corpus (its name is the key). Addresses, all in JSON but for sound:

  POST /v1/audio/speech   as OpenAI's: input, voice, response_format (wav, pcm, flac, mp3), stream or stream_format
                          (audio, sse); also temperature, top_k, top_p, repetition_penalty, seed, max_sec
  POST /v1/answer         the same with a question in place of input: role-playing QA; text, and speech in base64
  GET  /v1/models, /v1/audio/voices, /health, /metrics, and the page at /

A streamed WAV file has the length 0xFFFFFFFF, "unknown", in its header. The server has no passwords: it listens on
this machine alone unless --host says otherwise. SIGTERM or SIGINT end it: running answers have 5 s to end, then exit
code 0.
"""

import argparse

from slmkit.cli.arguments import natural, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory that `slmkit consolidate` wrote")
    parser.add_argument("--codec", required=True, help="directory of the codec the model was trained on")
    parser.add_argument("--voices", required=True, nargs="+", metavar="SOURCE", help="folders, files, CORPUS:KEY")
    parser.add_argument("--name", help="of the model in requests (default: its directory's)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=natural, default=8000, help="0 picks a free one (default: %(default)s)")
    parser.add_argument("--slots", type=positive, default=4, help="answers at a time (default: %(default)s)")
    parser.add_argument(
        "--max-waiting", type=natural, default=32, help="requests that wait; more are refused (default: %(default)s)"
    )
    parser.add_argument("--max-chars", type=positive, default=2000, help="longest text (default: %(default)s)")
    parser.add_argument("--max-sec", type=float, default=30.0, help="longest speech, seconds (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    import time
    from pathlib import Path

    from slmkit import log
    from slmkit.infer.synthesizer import Synthesizer, Voices
    from slmkit.serve.server import Server
    from slmkit.serve.service import Service, Settings
    from slmkit.serve.voices import read_voices
    from slmkit.stopping import Signals

    log.set_up()
    settings = Settings(
        model=args.name or Path(args.model).resolve().name,
        max_chars=args.max_chars,
        max_sec=args.max_sec,
        max_waiting=args.max_waiting,
    )
    synthesizer = Synthesizer.load(args.model, args.codec, args.device, num_slots=args.slots, max_sec=args.max_sec)
    voices = read_voices(args.voices, Voices(synthesizer.codec).vector)
    service = Service(synthesizer, voices, settings)
    with Signals.installed() as signals, Server(service, args.host, args.port) as server:
        print(f"listening at {server.address} with {len(voices)} voices: {', '.join(voices)}", flush=True)
        if not server.is_loopback:
            log.get_logger("slmkit.serve").warning("anyone who can reach this address may use it: no passwords here")
        while signals.received is None and service.worker.is_alive:
            time.sleep(0.1)
        signals.is_obeyed = True
        print("stopping", flush=True)
    return 0
