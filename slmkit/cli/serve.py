"""Serve a model over HTTP: OpenAI's speech API, and a demo page.

  slmkit serve MODEL
  curl http://127.0.0.1:8000/v1/audio/speech -d '{"input": "Hello there.", "voice": "11"}' > hello.wav

MODEL knows its codec (another one: --codec), and its own voices are served. --voices names others instead: an audio or
.npy file, named like the file, or CORPUS:KEY of a tokenized corpus, named like the key. A folder gives all its voices.
Where neither model nor codec takes a voice, the only one is "default". Addresses:

  POST /v1/audio/speech   as OpenAI's: input, voice, response_format (wav, pcm, flac, mp3, opus, aac), stream or
                          stream_format (audio, sse); also temperature, top_k, top_p, repetition_penalty, seed, max_sec
  POST /v1/answer         the same with `question` in place of `input`; gives text, and speech in base64
  POST /v1/audio/speaker  a sound file of 1 to 20 s gives its speaker vector, which requests may send as their voice;
                          the server keeps neither
  GET  /v1/models, /v1/audio/voices, /health, /metrics (Prometheus), /docs, and the page at /

Clients of OpenAI's that name no format expect mp3, and this server sends them wav: --format mp3 does as OpenAI. Clients
with a model name built in are served with --alias tts-1.

The header of a streamed WAV file gives the length 0xFFFFFFFF, which means "unknown". The server has no passwords: it
listens on this machine only, unless --host says otherwise. SIGTERM, SIGINT or SIGUSR1 stop it: running answers get 5 s
to finish, then it exits with code 0. Needs `pip install 'slmkit[serve]'`.
"""

import argparse
import os
import socket
from pathlib import Path

from slmkit.cli.arguments import port_number
from slmkit.cli.speaking import CODEC, DTYPE, DTYPES, MODEL, find_model, may_need_no_voice
from slmkit.errors import UserError
from slmkit.texts import natural, positive

PACKAGES = ("fastapi", "uvicorn", "sse_starlette", "prometheus_client")  # of the extra `serve`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL)
    parser.add_argument("--codec", help=CODEC)
    parser.add_argument(
        "--voices", nargs="+", metavar="SOURCE", help="folders, files, CORPUS:KEY (default: the voices of the model)"
    )
    parser.add_argument("--name", help="name of the model in requests (default: the name of its directory)")
    parser.add_argument(
        "--alias", nargs="+", action="extend", default=[], metavar="NAME", help="further names of the model, as tts-1"
    )
    parser.add_argument(
        "--format",
        choices=("wav", "pcm", "flac", "mp3", "opus", "aac"),
        default="wav",
        help="of sounds, where a request names none; OpenAI's is mp3 (default: %(default)s)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument(
        "--port", type=port_number, default=8000, help="port; 0 picks a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--slots", type=positive, default=4, help="answers generated at the same time (default: %(default)s)"
    )
    parser.add_argument(
        "--max-waiting",
        type=natural,
        default=32,
        help="most requests that wait; further ones are refused (default: %(default)s)",
    )
    parser.add_argument(
        "--max-chars", type=positive, default=20_000, help="longest text, in characters (default: %(default)s)"
    )
    parser.add_argument(
        "--max-sec", type=float, default=30.0, help="longest speech of a sentence, in seconds (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, help=DTYPE)


def served_name(name: str) -> str:
    """Of a model, in requests: the name of its directory, or of its repository."""
    return Path(name).resolve().name.partition("@")[0]


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound there (port 0: a free one) and does not listen yet. Raises UserError."""
    listener = None
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        return listener
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        raise UserError(
            f"cannot listen at {host}, port {port}: {error}", next_step="give another --host or --port"
        ) from error


def run(args: argparse.Namespace) -> int:
    import importlib.util
    import time

    from slmkit import log
    from slmkit.model.companions import voices_beside
    from slmkit.serve.voices import find_voices
    from slmkit.stopping import Signals
    from slmkit.texts import counted

    # What needs no torch is checked before torch is imported, which takes seconds.
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"the server needs {', '.join(missing)}", next_step="pip install 'slmkit[serve]'")
    log.set_up()
    find_model(args)
    if not os.path.isfile(Path(args.model, "config.json")):
        raise UserError(f"{args.model} holds no model", next_step="name a directory that `slmkit consolidate` wrote")
    sources = find_voices(args.voices or ()) or voices_beside(args.model)
    if not sources and not may_need_no_voice(args.model):
        raise UserError("the model has no voices beside it", got=args.model, next_step="name some with --voices")
    with bind(args.host, args.port) as listener:
        from slmkit.garbage import settle
        from slmkit.infer.synthesizer import Synthesizer
        from slmkit.serve.server import Server
        from slmkit.serve.service import ServeSettings, Service

        settings = ServeSettings(
            model=args.name or served_name(args.model_name),
            aliases=tuple(args.alias),
            format=args.format,
            max_chars=args.max_chars,
            max_sec=args.max_sec,
            max_waiting=args.max_waiting,
        )
        options = {"num_slots": args.slots, "max_sec": args.max_sec, "dtype": args.dtype}
        synthesizer = Synthesizer.load(args.model, args.codec, args.device, **options)
        read = synthesizer.voices.vector
        if not args.voices and not synthesizer.takes_voice:
            sources = {}
        voices = {name: read(source) for name, source in sources.items()}
        service = Service(synthesizer, voices, settings)
        settle()  # a collection that walks through the model and all modules would be heard in a stream
        with Signals.installed() as signals, Server(service, listener) as server:
            print(
                f"listening at {server.address} with {counted(len(service.voices), 'voice')}: "
                f"{', '.join(service.voices)}",
                flush=True,
            )
            log.get_logger("slmkit.serve").info(
                "models %s; sounds are %s where a request names no format", ", ".join(settings.names), settings.format
            )
            if not server.is_loopback:
                log.get_logger("slmkit.serve").warning(
                    "there are no passwords: anyone who can reach this address can use the server"
                )
            while signals.received is None and server.is_alive:
                time.sleep(0.1)
            signals.is_obeyed = True
            # Not on standard output: whoever read the address from it may have closed it.
            log.get_logger("slmkit.serve").info("stopping")
    if service.worker.is_alive:  # in a long computation; Python would wait for its thread
        os._exit(0)
    return 0
