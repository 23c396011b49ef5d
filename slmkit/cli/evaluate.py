"""Score a model on utterances of a corpus, in two stages: generate and store the outputs, then score them.

  slmkit evaluate MODEL --corpus SHARDS --out OUT
  slmkit evaluate MODEL --copy --corpus SHARDS --out CEILING
  slmkit evaluate --only score --corpus SHARDS --out OUT --asr openai/whisper-large-v3
  slmkit evaluate --compare OUT CEILING --out TABLE

Model, codec and the models that score may be directories or hub ids. The codec is the one that MODEL notes, else that
of the corpus, unless --codec gives it.

Utterances are held-out ones: the model notes what it was trained on, and the report says what is known of that.
--trained measures memorisation instead. Of --keys those that were trained on are marked.

OUT holds report.html (tables, plots, sounds), report.json, the spoken WAV files with their codes, and outputs.jsonl.
Scores are printed as they are computed: mean and 95 % bootstrap interval over utterances. After an interruption, start
the same command again to continue; with a larger --limit it adds utterances. OUT takes one model and one set of
settings; scoring again adds scores. An utterance
without speech is a failure: every word counts as wrong, no frame as equal, and its sound as silence. It gets no scores
of voice and quality, and the tables say how many utterances have none.

--copy scores the codec's decoding of the true codes, which is the best that a model could do; with MODEL of the same
utterances.
"""

import argparse
import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmkit import log
from slmkit.cli.arguments import given
from slmkit.cli.speaking import MODEL, add_sampling_arguments, open_synthesizer, settings_of
from slmkit.errors import UserError
from slmkit.texts import natural, positive

if TYPE_CHECKING:
    from slmkit.codec.base import Codec
    from slmkit.data.index import Corpus

DEFAULT_LIMIT = 100
OF_COMPARISONS = ("compare", "common", "out")
PACKAGE_OF = {"distillmos": "distillmos", "dnsmos": "speechmos"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help=MODEL)
    parser.add_argument(
        "--copy", action="store_true", help="score the codec's copies of the corpus, not speech of MODEL"
    )
    parser.add_argument("--corpus", help="tokenized corpus with the true codes")
    parser.add_argument("--codec", help="codec, a directory or a hub id (default: that of MODEL or of the corpus)")
    parser.add_argument("--out", required=True, help="directory for waves, codes and scores")
    parser.add_argument("--only", choices=("generate", "score"), help="do only one of the two stages")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")

    chosen = parser.add_argument_group("utterances and voices")
    chosen.add_argument(
        "--limit",
        type=natural,
        help=f"number of utterances, from all over the corpus, 0: all (default: {DEFAULT_LIMIT}, or --keys)",
    )
    chosen.add_argument(
        "--trained", action="store_true", help="utterances that MODEL was trained on, in place of held-out ones"
    )
    chosen.add_argument("--every", type=positive, default=1, metavar="N", help="every Nth (default: %(default)s)")
    chosen.add_argument("--keys", metavar="FILE", help="keys of the utterances, one on each line")
    chosen.add_argument(
        "--voices",
        nargs="+",
        default=["own"],
        metavar="VOICE",
        help="own, swapped (the voice of the next utterance by another speaker), an audio file, a .npy vector, or "
        "CORPUS:KEY; each utterance is spoken in each voice (default: own; a model that takes no voice has only one)",
    )

    generation = parser.add_argument_group("generation")
    generation.add_argument(
        "--task", choices=("tts", "qa"), default="tts", help="read the text, or answer the question (default: tts)"
    )
    generation.add_argument(
        "--slots", type=positive, default=1, help="utterances generated at the same time (default: %(default)s)"
    )
    add_sampling_arguments(generation)

    scores = parser.add_argument_group("more scores; success, codes, sound, voice and speed are always scored")
    scores.add_argument("--asr", metavar="MODEL", help="Whisper model: WER and CER, EM and F1 of spoken answers")
    scores.add_argument("--wavlm", metavar="MODEL", help="WavLM model with an x-vector head: speaker similarity")
    scores.add_argument(
        "--utmos", metavar="FILE", help="weights of UTMOS22-strong, a file or ORG/NAME:FILE: predicted naturalness"
    )
    scores.add_argument(
        "--mos",
        nargs="+",
        choices=("distillmos", "dnsmos"),
        default=[],
        help="predicted by networks inside of Python packages: naturalness (distillmos), cleanness (dnsmos)",
    )
    scores.add_argument("--copy-quality", action="store_true", help="with --copy: STOI and PESQ against the recordings")
    scores.add_argument(
        "--alignment", action="store_true", help="distance of text and speech in the hidden states of MODEL"
    )
    scores.add_argument(
        "--unseen-speakers", metavar="FILE", help="speakers the model was not trained on: also scored separately"
    )

    others = parser.add_argument_group("comparison of several evaluations")
    others.add_argument("--compare", nargs="+", metavar="DIR", help="scored evaluations; --out must be new")
    others.add_argument("--common", action="store_true", help="compare only the utterances that all of them have")


def run(args: argparse.Namespace) -> int:
    log.set_up()
    if args.compare:
        if others := [flag for name, flag in given(args).items() if name not in OF_COMPARISONS]:
            expected = "DIR of several evaluations, --out and perhaps --common"
            raise UserError(f"{', '.join(others)}: --compare takes no such thing", expected=expected)
        from slmkit.evaluate.compare import compare_directories, text_table

        print("\n".join(text_table(compare_directories(args.compare, args.out, common=args.common))))
        return 0
    if args.common:
        raise UserError("--common: there are no evaluations to compare", next_step="name them with --compare")
    if not args.corpus:
        raise UserError("an evaluation needs a corpus", next_step="give --corpus")
    if args.only != "score" and not args.model and not args.copy:
        raise UserError("expected a model or --copy", got="neither")
    if args.trained and (args.keys or not args.model):
        what = "--trained chooses what a model was trained on"
        raise UserError(what, got="--keys, too" if args.keys else "no model", next_step="leave out one, or give MODEL")
    if args.copy_quality and not args.copy and args.only != "score":
        raise UserError("--copy-quality: it is the codec's copies that are measured so", next_step="give --copy, too")
    _check_paths(args)
    from slmkit.data.index import Corpus

    corpus = Corpus.open(args.corpus)
    codec = _open_codec(args, corpus)
    if args.only != "score":
        _generate(args, corpus, codec)
    if args.only != "generate":
        _score(args, corpus, codec)
    return 0


def _open_codec(args: argparse.Namespace, corpus: "Corpus") -> "Codec":
    """The given codec, that of the model, or that of the corpus. Raises UserError where none is known."""
    from slmkit.hub import local_path
    from slmkit.model.companions import check_codec_beside, codec_beside, codec_source

    is_noted = bool(args.model) and bool(codec_source(args.model))
    if args.codec is None and not is_noted and not corpus.codec_source:
        what = "neither a model nor the corpus says where the codec is"
        raise UserError(what, got=args.corpus, next_step="give it with --codec")
    if args.codec is None and is_noted:
        path = codec_beside(args.model)
    else:
        path = local_path(args.codec or corpus.codec_source, what="the codec")
    from slmkit.codec.open import open_codec  # takes seconds

    codec = open_codec(path, args.device)
    if args.codec is None and is_noted:
        check_codec_beside(args.model, codec.spec, path)
    return codec


def _check_paths(args: argparse.Namespace) -> None:
    """Check that every path exists and holds the right thing, before torch is imported. Raises UserError.

    Hub ids become the directories where their files are.
    """
    from slmkit.config.run_dir import check_model_directory
    from slmkit.hub import local_file, local_path, shown
    from slmkit.jobs import JOB, check_empty

    args.names = {}  # for the record: names that people gave, with the commits of hub ids
    kinds = {"model": "the model", "codec": "the codec", "asr": "the Whisper model", "wavlm": "the WavLM model"}
    for option, what in (kinds | {"utmos": "the weights of UTMOS22-strong"}).items():
        name = getattr(args, option)
        if name:
            path = (local_file if option == "utmos" else local_path)(name, what=what)
            args.names[option] = shown(name, path)
            setattr(args, option, str(path))
    if args.model:
        check_model_directory(args.model)
    for path, file, what in (
        (args.corpus, "manifest.json", "a tokenized corpus"),
        (args.model, "config.json", "a model that `slmkit consolidate` wrote"),
        (args.asr, "config.json", "a Whisper model"),
        (args.wavlm, "config.json", "a WavLM model"),
        (args.keys, "", "a list of keys"),
        (args.unseen_speakers, "", "a list of speakers"),
    ):
        if path and not os.path.exists(path):
            raise UserError(f"{path} does not exist", expected=what)
        if path and file and not os.path.isfile(Path(path) / file):
            raise UserError(f"{path} is not {what}", expected=f"a directory with {file}")
    is_begun = os.path.isfile(Path(args.out) / JOB)
    if args.only == "score" and not is_begun:
        raise UserError(f"{args.out} holds no generated outputs", next_step="generate them first, without --only score")
    if not is_begun:
        check_empty(args.out)


def _generate(args: argparse.Namespace, corpus: "Corpus", codec: "Codec") -> None:
    from slmkit.evaluate.generation import copy_synthesis, generate
    from slmkit.evaluate.selection import NamedVoice, read_list, read_voices, select
    from slmkit.model.pretrained import export_sha256
    from slmkit.model.trained_on import TrainedOn

    settings = settings_of(args)
    trained_on = TrainedOn.read(args.model) if args.model else None
    keys = read_list(args.keys, "keys") if args.keys else None
    limit = args.limit if args.limit is not None or keys else DEFAULT_LIMIT
    synthesizer = None
    if not args.copy:
        synthesizer = open_synthesizer(args, num_slots=args.slots, longest_sec=settings.max_sec, codec=codec)
    voices = read_voices(args.voices, codec, synthesizer)
    selected = select(
        corpus,
        voices,
        limit=limit or None,
        every=args.every,
        keys=keys,
        trained_on=trained_on,
        trained=args.trained,
        spread=keys is None and args.every == 1,
    )
    if synthesizer is None:
        copy_synthesis(codec, corpus, selected, settings, args.out, task=args.task)
        return
    outside, model = [voice for voice in voices if isinstance(voice, NamedVoice)], export_sha256(args.model)
    generate(
        synthesizer,
        corpus,
        selected,
        settings,
        args.out,
        task=args.task,
        model=model,
        voices=outside,
        name=args.names["model"],
        trained_on=trained_on,
    )


def _score(args: argparse.Namespace, corpus: "Corpus", codec: "Codec") -> None:
    import torch

    from slmkit.audio.dnsmos import Dnsmos
    from slmkit.data.text import TextTokenizer
    from slmkit.evaluate.metrics.naturalness import Utmos
    from slmkit.evaluate.metrics.opinion import DistillMos
    from slmkit.evaluate.outputs import finished
    from slmkit.evaluate.recognizer import Recognizer
    from slmkit.evaluate.report import write_page
    from slmkit.evaluate.results import REPORT_PAGE
    from slmkit.evaluate.scoring import score_outputs
    from slmkit.evaluate.selection import read_list
    from slmkit.evaluate.spoken import Tools, Truths
    from slmkit.model.pretrained import export_sha256, load
    from slmkit.voice.wavlm import WavLMVoice

    judges: dict[str, Any] = {}
    if "distillmos" in args.mos:
        judges["distillmos"] = DistillMos.load(args.device)
    if "dnsmos" in args.mos:
        judges["dnsmos"] = Dnsmos.load()
    model = None
    if args.alignment:
        if not args.model or export_sha256(args.model) != finished(args.out).settings["model"]:
            raise UserError(
                "--alignment needs the model that generated the outputs",
                got=args.model,
                expected=f"the model of the outputs in {args.out}",
            )
        model = torch.nn.Module.to(load(args.model), args.device), TextTokenizer.load(args.model)
    tools = Tools(
        recognizer=Recognizer.load(args.asr, args.device) if args.asr else None,
        wavlm=WavLMVoice.load(args.wavlm, args.device) if args.wavlm else None,
        utmos=Utmos.load(args.utmos, args.device) if args.utmos else None,
        copy_quality=args.copy_quality,
        model=model,
        **judges,
    )
    truths = Truths(corpus, codec)
    print(f"{args.out}, scored on {args.corpus}:", flush=True)
    report = score_outputs(
        args.out,
        truths,
        tools,
        measured_with={
            **{name: args.names[name] for name in ("asr", "wavlm", "utmos") if name in args.names},
            **{name: f"{PACKAGE_OF[name]} {version(PACKAGE_OF[name])}" for name in judges},
        },
        unseen=frozenset(read_list(args.unseen_speakers, "speakers")) if args.unseen_speakers else frozenset(),
        tell=lambda line: print(line, flush=True),
    )
    write_page(args.out, report, truths)
    print(f"see {Path(args.out) / REPORT_PAGE}")
