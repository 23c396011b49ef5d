"""Score a model on utterances of a corpus, in two stages: generate and store everything, then score what is stored.

  slmkit evaluate MODEL --corpus SHARDS --codec CODEC --out OUT --limit 100 --slots 8
  slmkit evaluate --copy --corpus SHARDS --codec CODEC --out CEILING --limit 100
  slmkit evaluate --only score --corpus SHARDS --codec CODEC --out OUT --asr whisper-large-v3
  slmkit evaluate --compare OUT CEILING --out TABLE

OUT holds report.html (tables, plots, sounds), report.json, the spoken WAV files with their codes, and outputs.jsonl.
Each score is printed as soon as it is computed: mean and 95 % bootstrap interval over utterances. An interrupted
command continues when it is given again. OUT takes one model and one set of settings; scoring again adds scores. An
utterance without speech counts as a failure: no success, every word lost, no frame equal, silence in place of sound; it
is left out of the scores of voice and quality, and the tables count how many are.

--copy scores the codec's decoding of the true codes as if a model had chosen them: the ceiling.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmkit.cli.numbers import natural, positive

if TYPE_CHECKING:
    from slmkit.codec.base import Codec
    from slmkit.data.index import Corpus
    from slmkit.evaluate.spoken import Tools

SUMMARY = "speak or answer utterances of a corpus and score what comes out; compare models"
DEFAULT_LIMIT = 8
TELL_SEC = 10.0  # between lines of progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="directory that `slmkit consolidate` wrote")
    parser.add_argument("--copy", action="store_true", help="score copy synthesis in place of a model")
    parser.add_argument("--corpus", help="tokenized corpus with the true codes")
    parser.add_argument("--codec", help="directory of the codec")
    parser.add_argument("--out", required=True, help="directory for waves, codes and scores")
    parser.add_argument("--only", choices=("generate", "score"), help="one of the two stages")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    _add_choice(parser.add_argument_group("which utterances, in which voices"))
    _add_generation(parser.add_argument_group("how they are spoken"))
    _add_scoring(parser.add_argument_group("more scores; success, codes, sound, voice and speed are always scored"))
    others = parser.add_argument_group("several models side by side")
    others.add_argument("--compare", nargs="+", metavar="DIR", help="evaluations that were scored; --out must be new")
    others.add_argument("--common", action="store_true", help="leave out utterances that not all of them have")


def _add_choice(group: Any) -> None:
    group.add_argument("--limit", type=natural, help=f"how many, 0 for all (default: {DEFAULT_LIMIT}, all of --keys)")
    group.add_argument("--every", type=positive, default=1, metavar="N", help="every n-th (default: %(default)s)")
    group.add_argument("--keys", metavar="FILE", help="keys of the utterances, one on each line")
    group.add_argument(
        "--voices",
        nargs="+",
        default=["own"],
        metavar="VOICE",
        help="own, swapped (that of the next utterance by another speaker), an audio file, a .npy vector, CORPUS:KEY; "
        "each utterance is spoken in each (default: own)",
    )


def _add_generation(group: Any) -> None:
    group.add_argument(
        "--task", choices=("tts", "qa"), default="tts", help="read the text, or answer the question (default: tts)"
    )
    group.add_argument("--slots", type=positive, default=1, help="decoded at a time (default: %(default)s)")
    group.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    group.add_argument("--text-temperature", type=float, help="of text (default: as of speech)")
    group.add_argument("--top-k", type=int, default=0, help="keep the k most probable classes, 0 all (default)")
    group.add_argument("--top-p", type=float, default=1.0, help="keep this share of the probability (default: all)")
    group.add_argument("--repetition-penalty", type=float, default=1.0, help="1 is none (default)")
    group.add_argument("--seed", type=natural, default=0, help="of what is sampled (default: %(default)s)")
    group.add_argument("--max-sec", type=float, default=30.0, help="longest speech, seconds (default: %(default)s)")


def _add_scoring(group: Any) -> None:
    group.add_argument("--asr", metavar="DIR", help="Whisper model: WER and CER, EM and F1 of spoken answers")
    group.add_argument("--wavlm", metavar="DIR", help="WavLM model with an x-vector head: speaker similarity")
    group.add_argument("--utmos", metavar="FILE", help="weights of UTMOS22-strong: predicted naturalness")
    group.add_argument("--copy-quality", action="store_true", help="with --copy: STOI and PESQ against the recordings")
    group.add_argument(
        "--alignment", action="store_true", help="distance of text and speech in the hidden states of MODEL"
    )
    group.add_argument("--unseen-speakers", metavar="FILE", help="speakers not trained on: their scores apart as well")


def run(args: argparse.Namespace) -> int:
    from slmkit.errors import UserError

    if args.compare:
        from slmkit.evaluate.compare import compare_directories, text_table

        print("\n".join(text_table(compare_directories(args.compare, args.out, common=args.common))))
        return 0
    if not args.corpus or not args.codec:
        raise UserError("an evaluation needs a corpus and its codec", next_step="give --corpus and --codec")
    if args.only != "score" and bool(args.model) == args.copy:
        raise UserError("nothing says what is to speak", expected="a model directory, or --copy for the codec's copies")
    _check_paths(args)
    from slmkit.codec.open import open_codec
    from slmkit.data.index import Corpus

    corpus = Corpus.open(args.corpus)
    codec = open_codec(args.codec, args.device)
    if args.only != "score":
        _generate(args, corpus, codec)
    if args.only != "generate":
        _score(args, corpus, codec)
    return 0


def _check_paths(args: argparse.Namespace) -> None:
    """Refuse what is not there, or holds something else, before torch is imported."""
    from slmkit.errors import UserError

    wanted = [
        (args.corpus, "manifest.json", "a tokenized corpus"),
        (args.model, "config.json", "a model that `slmkit consolidate` wrote"),
        (args.asr, "config.json", "a Whisper model"),
        (args.wavlm, "config.json", "a WavLM model"),
        (args.utmos, "", "the weights of UTMOS22-strong"),
        (args.keys, "", "a list of keys"),
        (args.unseen_speakers, "", "a list of speakers"),
    ]
    for path, file, what in wanted:
        if path and not Path(path).exists():
            raise UserError(f"{path} does not exist", expected=what)
        if path and file and not (Path(path) / file).is_file():
            raise UserError(f"{path} is not {what}", expected=f"a directory with {file}")
    out = Path(args.out)
    is_begun = (out / "generation.json").is_file()
    if args.only == "score" and not is_begun:
        raise UserError(f"{out} holds no generated outputs", next_step="generate them first: without --only score")
    if out.exists() and not is_begun and not (out.is_dir() and all(file.suffix == ".part" for file in out.iterdir())):
        raise UserError("the output directory holds other things", got=out, next_step="give another --out")


def _generate(args: argparse.Namespace, corpus: "Corpus", codec: "Codec") -> None:
    import torch

    from slmkit.data.text import TextTokenizer
    from slmkit.evaluate.generation import copy_synthesis, generate, identity
    from slmkit.evaluate.selection import Voice, read_lines, read_voices, select
    from slmkit.infer.engine import positions_for
    from slmkit.infer.synthesizer import Synthesizer
    from slmkit.model.pretrained import load

    settings = _settings(args)
    keys = read_lines(args.keys, "keys") if args.keys else None
    limit = args.limit if args.limit is not None or keys else DEFAULT_LIMIT
    synthesizer = None
    if not args.copy:
        model: Any = torch.nn.Module.to(load(args.model), args.device)
        room = positions_for(model, args.max_sec)
        tokenizer = TextTokenizer.load(args.model)
        synthesizer = Synthesizer(model, tokenizer, codec, num_slots=args.slots, num_positions=room)
    voices = read_voices(args.voices, synthesizer.read_speaker if synthesizer else None)
    items = select(corpus, voices, limit=limit or None, every=args.every, keys=keys)
    tell = _teller()
    if synthesizer is None:
        copy_synthesis(codec, corpus, items, settings, args.out, tell=tell)
        return
    outside = [voice for voice in voices if isinstance(voice, Voice)]
    model_id = identity(args.model)
    generate(synthesizer, corpus, items, settings, args.out, model=model_id, voices=outside, name=args.model, tell=tell)


def _settings(args: argparse.Namespace) -> Any:
    from slmkit.errors import UserError
    from slmkit.evaluate.generation import Settings
    from slmkit.infer.sampling import Sampling

    try:
        cuts = {"top_k": args.top_k, "top_p": args.top_p, "repetition_penalty": args.repetition_penalty}
        sampling = Sampling(temperature=args.temperature, **cuts)
        text = None if args.text_temperature is None else Sampling(temperature=args.text_temperature, **cuts)
        return Settings(task=args.task, sampling=sampling, text_sampling=text, seed=args.seed, max_sec=args.max_sec)
    except ValueError as error:
        raise UserError(str(error)) from error


def _score(args: argparse.Namespace, corpus: "Corpus", codec: "Codec") -> None:
    from slmkit.evaluate.report import write_page
    from slmkit.evaluate.results import REPORT_PAGE
    from slmkit.evaluate.scoring import score_outputs
    from slmkit.evaluate.selection import read_lines
    from slmkit.evaluate.spoken import Truths

    tools = _tools(args)
    unseen = frozenset(read_lines(args.unseen_speakers, "speakers")) if args.unseen_speakers else frozenset()
    truths = Truths(corpus, codec)
    measured_with = {name: path for name in ("asr", "wavlm", "utmos") if (path := getattr(args, name))}
    print(f"{args.out}, scored on {args.corpus}:", flush=True)
    report = score_outputs(
        args.out,
        truths,
        tools,
        measured_with=measured_with,
        unseen=unseen,
        tell=lambda line: print(line, flush=True),
    )
    write_page(args.out, report, truths)
    print(f"see {Path(args.out) / REPORT_PAGE}")


def _tools(args: argparse.Namespace) -> "Tools":
    import torch

    from slmkit.data.text import TextTokenizer
    from slmkit.errors import UserError
    from slmkit.evaluate.generation import identity
    from slmkit.evaluate.metrics.naturalness import Utmos
    from slmkit.evaluate.metrics.voices import WavLMVoice
    from slmkit.evaluate.outputs import finished
    from slmkit.evaluate.recognizer import Recognizer
    from slmkit.evaluate.spoken import Tools
    from slmkit.model.pretrained import load

    model = None
    if args.alignment:
        if not args.model or identity(args.model) != finished(args.out).settings["model"]:
            raise UserError(
                "--alignment needs the model that spoke",
                got=args.model,
                expected=f"the model of the outputs in {args.out}",
            )
        model = torch.nn.Module.to(load(args.model), args.device), TextTokenizer.load(args.model)
    return Tools(
        recognizer=Recognizer.load(args.asr, args.device) if args.asr else None,
        wavlm=WavLMVoice.load(args.wavlm, args.device) if args.wavlm else None,
        utmos=Utmos.load(args.utmos, args.device) if args.utmos else None,
        copy_quality=args.copy_quality,
        model=model,
    )


def _teller() -> Any:
    """Shows how far generation is: a bar on a terminal, else a line now and then on standard error."""
    import sys
    import time

    from tqdm import tqdm

    told, bar = time.monotonic(), tqdm(desc="speaking", unit=" utterances", disable=None)

    def tell(done: int, total: int) -> None:
        nonlocal told
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()
        elif bar.disable and time.monotonic() - told >= TELL_SEC:
            told = time.monotonic()
            print(f"{done} of {total} utterances", file=sys.stderr)

    return tell
