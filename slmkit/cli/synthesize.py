"""Speak a sentence with an exported model.

The voice comes from --speaker: an audio file, a .npy vector, or CORPUS:KEY (a sample of a tokenized corpus). A model
trained with speaker input follows it; any other model needs it all the same, because the codec does.
"""

import argparse
import time

SUMMARY = "text to a WAV file with an exported model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory that `slmkit consolidate` wrote")
    parser.add_argument("text", help="what to say")
    parser.add_argument("--codec", required=True, help="directory of the codec the model was trained on")
    parser.add_argument("--speaker", required=True, help="voice: an audio file, a .npy vector, or CORPUS:KEY")
    parser.add_argument("--out", default="speech.wav", help="WAV file to write (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the WAV file if it exists")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", type=int, default=0, help="keep the k most probable classes, 0 all (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="keep this share of the probability (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of what is sampled (default: %(default)s)")
    parser.add_argument("--max-sec", type=float, default=30.0, help="longest speech, seconds (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from slmkit.audio.io import write_wav
    from slmkit.errors import UserError
    from slmkit.infer.sampling import Sampling
    from slmkit.infer.synthesizer import Synthesizer

    try:
        sampling = Sampling(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)
    except ValueError as error:
        raise UserError(str(error)) from error
    if Path(args.out).exists() and not args.overwrite:
        raise UserError("the WAV file exists", got=args.out, next_step="give another --out, or --overwrite")
    synthesizer = Synthesizer.load(args.model, args.codec, args.device)
    speaker = synthesizer.read_speaker(args.speaker)
    began = time.perf_counter()
    speech = synthesizer.speak(args.text, speaker, sampling=sampling, max_sec=args.max_sec, seed=args.seed)
    took = time.perf_counter() - began
    write_wav(args.out, speech.wave, speech.sample_rate, replace=args.overwrite)
    out = speech.output
    print(
        f"{args.out}: {speech.seconds:.2f} s of speech in {took:.2f} s, {out.num_steps} steps, "
        f"{out.codes.shape[1]} frames, stopped by: {out.limit or out.reason}"
    )
    return 0
