"""Times the generation engine against the plain loop: NTP and MTP of three sizes, one answer and several at a time.

The plain loop (`tests/twins/generate.py`, so a checkout is needed) reads one prompt after the other, keeps its cache by
joining tensors, takes logits over the whole vocabulary and reads each choice from the device by itself. Both sides have
the same weights, answer the same prompts greedily, take turns, and the best round of each counts; the plain loop gets
no more than --plain of the prompts, since it takes as long for one as for another. The weights are random, changed in
the few rows that begin and end speech, so that every answer begins at once and does not end: a step is a speech step,
as nearly all are. Steps, tokens and frames per second are those of all answers together; the real-time factor (rtf) is
the seconds that a second of their speech takes, without the codec.

First audio: all answers are asked for at once, and heard as `infer/stream.py` does it. What counts are the seconds
until the last of them has its first piece: its prompt, the steps of the frames that the piece waits for, and the codec.
Without --codec it is FACodec with random weights. Measured once, when engine and codec are warm.

Gaps: with --listen, the answers go on for so many seconds of speech, and each has a listener who plays it as it comes
(`infer/playback.py`). What counts are the listeners who hear a gap. `slmkit bench serve` does it with a server between.

The floor is what reading the weights of a step once would take, at the speed at which this machine sums a tensor.

Same choices (--dtype bfloat16): the share of the codes of a float32 answer that the model chooses, too, after the codes
before them. The choices of random weights lie closer together than those of trained ones.

Invariant: a speed is printed with the number of answers whose codes are the plain loop's.

Example:
    slmkit bench decode --batch 1 8
    slmkit bench decode --dtype bfloat16 --batch 1 8
    slmkit bench decode --device cuda --dtype bfloat16 --batch 1 8 64
    slmkit bench decode --quick --group 12 --batch 1 4 16 --listen 5
"""

import argparse
import copy
import json
import time
from typing import Any

import numpy as np
import torch

from slmkit.bench import codec as facodec
from slmkit.bench.race import race, twin
from slmkit.bench.synthetic import FRAME_RATE, NUM_STREAMS, QWEN, ModelShape, model_config
from slmkit.codec.base import Codec
from slmkit.codec.open import open_codec, usable_device
from slmkit.codec.stream import first_piece_frames
from slmkit.errors import UserError
from slmkit.infer.engine import Engine
from slmkit.infer.playback import Continuity, PlaybackClock
from slmkit.infer.request import Output, Request, from_ids
from slmkit.infer.stream import SpeechStream
from slmkit.model.pretrained import seeded
from slmkit.model.slm import SpeechLM
from slmkit.texts import above_zero, natural, positive

SUMMARY = "steps, tokens and frames per second of generation, the engine against the plain loop"
GROUPS = (0, 3, 6, 12)
PROMPT_TOKENS = 16  # of the shortest prompt; each further one has one more
SOSP_LOGIT = 30.0  # behind a prompt: far above all others, which are near 0
DEFAULT_STEPS = {"cpu": 24, "cuda": 240}  # of an answer: so many that reading the prompt counts for little
STREAMED_BYTES = {"cpu": 2**28, "cuda": 2**32}  # of the tensor whose sum tells how fast memory is read
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


QUICK = ModelShape(
    base_tokens=500, codebook=32, hidden_size=96, intermediate_size=64, num_layers=2, num_heads=2, num_shared=2
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch", type=positive, nargs="+", default=[1, 8], help="answers at a time (default: 1 8; add 64 on a GPU)"
    )
    parser.add_argument("--group", type=natural, nargs="+", default=GROUPS, help="0 for NTP (default: 0 3 6 12)")
    parser.add_argument("--steps", type=positive, help="speech steps of an answer (default: 24, on a GPU 240)")
    parser.add_argument("--positions", type=positive, default=1024, help="of an answer's memory (default: %(default)s)")
    parser.add_argument(
        "--plain", type=positive, default=8, help="answers of the plain loop at most, one by one (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=positive, default=2, help="rounds, of which the best counts (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    parser.add_argument("--dtype", default="float32", choices=tuple(DTYPES), help="of the model (default: %(default)s)")
    parser.add_argument("--codec", metavar="DIR", help="that makes the first audio; default: FACodec of random weights")
    parser.add_argument(
        "--listen", type=above_zero, metavar="SEC", help="of each answer, for gaps (default: 0, the first sound alone)"
    )
    parser.add_argument("--quick", action="store_true", help="a toy shape that takes seconds; its ratios mean little")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    shape, device, dtype = QUICK if args.quick else QWEN, usable_device(args.device), DTYPES[args.dtype]
    codec = codec_to_hear(args.codec, device, shape)
    result: dict[str, Any] = {
        "device": args.device,
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "shape": "quick" if args.quick else "Qwen2.5-0.5B",
        "read_gb_per_sec": read_speed(device) / 1e9,
        "steps": args.steps or DEFAULT_STEPS[device.type],
        "positions": args.positions,
        "codec": codec.spec.name,
        "first_audio_frames": first_audio_frames(codec),
        "cases": [],
    }
    if not args.json:
        print(heading(result), flush=True)
    for group in args.group:
        with device:  # where random weights are drawn faster
            model = make_model(shape, group, max(args.batch))
        torch.nn.Module.to(model, device)
        same = None
        if dtype != torch.float32:
            exact = copy.deepcopy(model)
            torch.nn.Module.to(model, dtype=dtype)
            same = same_choices(model, exact, num_frames_of(model, result["steps"]))
            del exact  # its memory is not that of what is timed
        for batch in args.batch:
            engine = Engine(model, num_slots=batch, num_positions=args.positions)
            case = bench_case(engine, result["steps"], num_plain=min(batch, args.plain), repeats=args.repeats)
            heard = Continuity.of(clocks := listen(engine, codec, args.listen or 0.0))
            case["first_audio_sec"] = max(clock.first_audio_sec or 0.0 for clock in clocks)
            case["with_gap"], case["gap_sec"] = (heard.with_gap, heard.gap_sec) if args.listen else (None, None)
            case["floor_steps_per_sec"] = batch * result["read_gb_per_sec"] * 1e9 / weight_bytes(model)
            case["same_choices"] = same
            result["cases"].append(case)
            if not args.json:
                print(row(case), flush=True)
    if args.json:
        print(json.dumps(result, indent=2))
    return 0


def codec_to_hear(directory: str | None, device: torch.device, shape: ModelShape) -> Codec:
    """The codec in `directory`, or FACodec of random weights. Raises UserError for one that knows too few codes."""
    if directory is None:
        return facodec.make_codec(facodec.random_states(), device)
    codec = open_codec(directory, device)
    sizes = [stream.size for stream in codec.spec.lm_streams]
    if len(sizes) != NUM_STREAMS or min(sizes) < shape.codebook:
        expected = f"{NUM_STREAMS} streams of {shape.codebook} or more"
        raise UserError("the codec does not fit the benchmark's model", got=f"streams of {sizes}", expected=expected)
    return codec


def bench_case(engine: Engine, num_steps: int, *, num_plain: int, repeats: int) -> dict[str, Any]:
    """Speeds of answers of `num_steps` speech steps: the engine full of them, and `num_plain` by the plain loop."""
    model, batch, plain_loop = engine.model, engine.num_slots, twin("generate")
    num_frames = num_frames_of(model, num_steps)
    requests = make_requests(batch, num_frames)

    def plain() -> list[Any]:
        starts = [from_ids(prompt, model.layout, model.group) for prompt in make_prompts(num_plain)]
        return [plain_loop.generate(model, start, limits=plain_loop.Limits(max_frames=num_frames)) for start in starts]

    works = [lambda: engine.generate(requests), plain]
    (ours, fast_sec), (theirs, slow_sec) = race(works, rounds=repeats, device=model.device, warm_up=False)
    case: dict[str, Any] = {"group": model.group, "batch": batch, "plain_answers": num_plain}
    case["equal_answers"] = sum(np.array_equal(a.codes, b.codes) for a, b in zip(ours, theirs, strict=False))
    for side, answers, seconds in (("", ours, fast_sec), ("plain_", theirs, slow_sec)):
        steps = sum(answer.num_steps for answer in answers)
        frames = sum(answer.codes.shape[1] for answer in answers)
        case[f"{side}steps"], case[f"{side}frames"] = steps, frames
        case[f"{side}steps_per_sec"] = steps / seconds
        case[f"{side}tokens_per_sec"] = frames * NUM_STREAMS / seconds
        case[f"{side}frames_per_sec"] = frames / seconds
        case[f"{side}real_time_factor"] = seconds * FRAME_RATE / frames
    case["ratio"] = case["frames_per_sec"] / case["plain_frames_per_sec"]
    return case


def num_frames_of(model: SpeechLM, num_steps: int) -> int:
    """Frames that so many speech steps make, the last one begun."""
    return -(-num_steps * max(1, model.group) // NUM_STREAMS)


@torch.inference_mode()
def same_choices(model: SpeechLM, exact: SpeechLM, num_frames: int) -> float:
    """The share, 0 to 1, of greedy choices that `model` has in common with `exact`: both read an answer of `exact`, of
    `num_frames` frames, and choose every code of it after those before."""
    layout, width, positions = exact.layout, max(1, exact.group), PROMPT_TOKENS + 2 + num_frames * NUM_STREAMS
    (prompt,) = make_prompts(1)
    codes = Engine(exact, num_slots=1, num_positions=positions).generate(make_requests(1, num_frames))[0].codes
    ids = [layout.code_id(stream, int(code)) for frame in codes.T for stream, code in enumerate(frame)]
    steps = [ids[i : i + width] for i in range(0, len(ids) - width + 1, width)]
    text = [[token] * width for token in (*prompt, layout.id_of("<sosp>"))]
    tokens = torch.tensor([*text, *steps], device=exact.device)
    where = torch.arange(len(tokens), device=exact.device)

    def choices(one: SpeechLM) -> torch.Tensor:
        hidden = one.hidden(one.embed(tokens, where >= len(text))[None], where[None])
        before = slice(len(text) - 1, len(tokens) - 1)
        if one.group:
            heads = twin("generate").head_logits(one, hidden, where[None])
            return torch.cat([head[0, before, : layout.codebook_sizes[0]].argmax(dim=-1) for head in heads])
        logits = one.lm_model.lm_head(hidden[0, before])
        parts = [logits[k::NUM_STREAMS, first : first + size] for k, (_, first, size) in enumerate(layout.streams)]
        return torch.cat([part.argmax(dim=-1) for part in parts])

    return float((choices(model) == choices(exact)).float().mean())


def first_audio_frames(codec: Codec) -> int:
    """Frames that the first piece of a stream waits for."""
    return first_piece_frames(codec.spec) + (codec.reach_frames.after or 0)


def listen(engine: Engine, codec: Codec, seconds: float) -> list[PlaybackClock]:
    """What listeners hear of as many answers as there are slots, asked for at once: `seconds` of speech, or the first
    piece where that is longer."""
    batch, rate = engine.num_slots, codec.spec.sample_rate
    least, voice = first_audio_frames(codec), np.zeros(codec.spec.speaker_dim, dtype=np.float32)
    num_frames = max(least, int(seconds * FRAME_RATE))
    SpeechStream(codec, voice).push(np.zeros((NUM_STREAMS, least), dtype=np.uint16))  # warms the codec
    streams, outputs = [SpeechStream(codec, voice) for _ in range(batch)], dict[int, Output]()
    clocks = [PlaybackClock(time.perf_counter()) for _ in streams]
    for number, request in enumerate(make_requests(batch, num_frames)):
        engine.admit(request, number)
    while len(outputs) < batch:
        done = dict(engine.step())
        for number, (stream, clock) in enumerate(zip(streams, clocks, strict=True)):
            if number in outputs:
                continue
            first = stream.num_frames
            output = done.get(number)
            wave = stream.push(engine.frames(number, first) if output is None else output.codes[:, first:])
            clock.hear(time.perf_counter(), len(wave) / rate)
            if output is not None and num_frames > least:
                clock.hear(time.perf_counter(), len(stream.finish()) / rate)
        outputs |= done
    assert all(clock.first_audio_sec is not None for clock in clocks), "the benchmark's model did not speak"
    return clocks


def make_model(shape: ModelShape, group: int, num_prompts: int) -> SpeechLM:
    """Random weights that begin to speak behind each prompt of `make_prompts`, and do not stop."""
    with seeded(0):
        model = SpeechLM(model_config(shape, group)).eval()
    layout = model.layout
    with torch.inference_mode():
        ends = [_last_hidden(model, prompt) for prompt in make_prompts(num_prompts)]
    with torch.no_grad():
        rows = model.lm_model.lm_head.weight
        # the least row with which every prompt gives `<sosp>` the same logit
        rows[layout.id_of("<sosp>")] = torch.linalg.pinv(torch.stack(ends)) @ torch.full((len(ends),), SOSP_LOGIT)
        rows[layout.id_of("<eosp>")] = 0
        for head in model.heads:
            head.output.weight[shape.codebook :] = 0
    return model


def make_requests(count: int, num_frames: int) -> list[Request]:
    """Greedy answers of `num_frames` frames to the prompts of `make_prompts`."""
    return [Request(prompt=prompt, max_sec=(num_frames + 0.5) / FRAME_RATE) for prompt in make_prompts(count)]


def make_prompts(count: int) -> list[tuple[int, ...]]:
    """Token ids of text, each prompt one longer than the one before."""
    return [tuple(range(2 + i, 2 + i + PROMPT_TOKENS + i)) for i in range(count)]


def _last_hidden(model: SpeechLM, prompt: tuple[int, ...]) -> torch.Tensor:
    start = from_ids(prompt, model.layout, model.group)
    return model.hidden(model.embed_prompt(start), torch.arange(len(prompt))[None])[0, -1].clone()


def weight_bytes(model: SpeechLM) -> int:
    """Bytes of the weights that a speech step of the engine reads."""
    backbone = sum(weight.numel() for weight in model.backbone.layers.parameters())
    heads = sum(weight.numel() for weight in model.speech_heads.parameters())
    rows = 0 if model.group else max(model.layout.codebook_sizes) * model.config.hidden_size
    return model.dtype.itemsize * (backbone + heads + rows)


def read_speed(device: torch.device) -> float:
    """Bytes per second at which a large tensor is summed; the best of three."""
    num_bytes = STREAMED_BYTES[device.type]
    data = torch.ones(num_bytes // 4, device=device)
    return num_bytes / race([data.sum], rounds=3, device=device)[0].seconds


def heading(result: dict[str, Any]) -> str:
    """What holds for all cases, and the names of the columns of `row`."""
    return (
        f"{result['device']}, {result['dtype']}, {result['threads']} threads, {result['shape']} shape, "
        f"{result['steps']} steps, {result['positions']} positions, memory read at {result['read_gb_per_sec']:.1f} GB/s"
        f"; first audio: {result['first_audio_frames']} frames, {result['codec']}\n"
        f"{'':8}{'batch':>6}{'steps/s':>9}{'tokens/s':>10}{'frames/s':>10}{'rtf':>8}{'first s':>9}"
        f"{'gaps':>6}{'plain':>9}{'ratio':>7}{'floor':>9}{'same':>8}  equal"
    )


def row(case: dict[str, Any]) -> str:
    """A case as a line of the table."""
    name = f"MTP-{case['group']}" if case["group"] else "NTP"
    gaps = "-" if case["with_gap"] is None else case["with_gap"]
    same = "-" if case["same_choices"] is None else f"{case['same_choices']:.1%}"
    return (
        f"{name:8}{case['batch']:6}{case['steps_per_sec']:9.2f}{case['tokens_per_sec']:10.1f}"
        f"{case['frames_per_sec']:10.2f}{case['real_time_factor']:8.3f}{case['first_audio_sec']:9.3f}"
        f"{gaps:>6}{case['plain_frames_per_sec']:9.2f}{case['ratio']:7.2f}{case['floor_steps_per_sec']:9.1f}{same:>8}  "
        f"{case['equal_answers']} of {case['plain_answers']}"
    )
