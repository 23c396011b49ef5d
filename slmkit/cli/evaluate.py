"""Score a model on utterances of a corpus, in two stages: generate and store everything, then score what is stored.

  slmkit evaluate MODEL --corpus SHARDS --codec CODEC --out OUT --limit 100
  slmkit evaluate --copy --corpus SHARDS --codec CODEC --out CEILING
  slmkit evaluate --only score --corpus SHARDS --codec CODEC --out OUT --asr WHISPER
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

from slmkit.cli.arguments import natural, positive
from slmkit.cli.speaking import add_sampling_arguments, open_synthesizer, settings_of
from slmkit.errors import UserError

if TYPE_CHECKING:
    from slmkit.codec.base import Codec
    from slmkit.data.index import Corpus
    from slmkit.evaluate.spoken import Tools

DEFAULT_LIMIT = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="directory that `slmkit consolidate` wrote")
    parser.add_argument("--copy", action="store_true", help="score copy synthesis in place of a model")
    parser.add_argument("--corpus", help="tokenized corpus with the true codes")
    parser.add_argument("--codec", help="directory of the codec")
    parser.add_argument("--out", required=True, help="directory for waves, codes and scores")
    parser.add_argument("--only", choices=("generate", "score"), help="one of the two stages alone")
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
    group.add_argument("--slots", type=positive, default=1, help="utterances decoded at a time (default: %(default)s)")
    add_sampling_arguments(group)


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
    if args.compare:
        from slmkit.evaluate.compare import compare_directories, text_table

        print("\n".join(text_table(compare_directories(args.compare, args.out, common=args.common))))
        return 0
    if not args.corpus or not args.codec:
        raise UserError("an evaluation needs a corpus and its codec", next_step="give --corpus and --codec")
    if args.only != "score" and bool(args.model) == args.copy:
        raise UserError(
            "an evaluation is of a model or of the codec's own copies", expected="a model directory, or --copy"
        )
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
    from slmkit.files import check_directory
    from slmkit.jobs import JOB, check_empty

    check_directory("the codec", args.codec)
    if args.model:
        check_directory("the model", args.model)
    for path, file, what in (
        (args.corpus, "manifest.json", "a tokenized corpus"),
        (args.model, "config.json", "a model that `slmkit consolidate` wrote"),
        (args.asr, "config.json", "a Whisper model"),
        (args.wavlm, "config.json", "a WavLM model"),
        (args.utmos, "", "the weights of UTMOS22-strong"),
        (args.keys, "", "a list of keys"),
        (args.unseen_speakers, "", "a list of speakers"),
    ):
        if path and not Path(path).exists():
            raise UserError(f"{path} does not exist", expected=what)
        if path and file and not (Path(path) / file).is_file():
            raise UserError(f"{path} is not {what}", expected=f"a directory with {file}")
    is_begun = (Path(args.out) / JOB).is_file()
    if args.only == "score" and not is_begun:
        raise UserError(f"{args.out} holds no generated outputs", next_step="generate them first: without --only score")
    if not is_begun:
        check_empty(args.out)


def _generate(args: argparse.Namespace, corpus: "Corpus", codec: "Codec") -> None:
    from slmkit import log
    from slmkit.evaluate.generation import copy_synthesis, generate
    from slmkit.evaluate.selection import NamedVoice, read_list, read_voices, select
    from slmkit.model.pretrained import export_sha256

    log.set_up()
    settings = settings_of(args)
    keys = read_list(args.keys, "keys") if args.keys else None
    limit = args.limit if args.limit is not None or keys else DEFAULT_LIMIT
    synthesizer = None
    if not args.copy:
        synthesizer = open_synthesizer(args, num_slots=args.slots, longest_sec=settings.max_sec, codec=codec)
    voices = read_voices(args.voices, synthesizer.read_speaker if synthesizer else None)
    selected = select(corpus, voices, limit=limit or None, every=args.every, keys=keys)
    if synthesizer is None:
        copy_synthesis(codec, corpus, selected, settings, args.out, task=args.task)
        return
    outside, model = [voice for voice in voices if isinstance(voice, NamedVoice)], export_sha256(args.model)
    generate(
        synthesizer, corpus, selected, settings, args.out, task=args.task, model=model, voices=outside, name=args.model
    )


def _score(args: argparse.Namespace, corpus: "Corpus", codec: "Codec") -> None:
    from slmkit.evaluate.report import write_page
    from slmkit.evaluate.results import REPORT_PAGE
    from slmkit.evaluate.scoring import score_outputs
    from slmkit.evaluate.selection import read_list
    from slmkit.evaluate.spoken import Truths

    tools = _tools(args)
    unseen = frozenset(read_list(args.unseen_speakers, "speakers")) if args.unseen_speakers else frozenset()
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
    from slmkit.evaluate.metrics.naturalness import Utmos
    from slmkit.evaluate.metrics.voices import WavLMVoice
    from slmkit.evaluate.outputs import finished
    from slmkit.evaluate.recognizer import Recognizer
    from slmkit.evaluate.spoken import Tools
    from slmkit.model.pretrained import export_sha256, load

    model = None
    if args.alignment:
        if not args.model or export_sha256(args.model) != finished(args.out).settings["model"]:
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
