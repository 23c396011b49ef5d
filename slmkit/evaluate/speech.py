"""Scores of a model on utterances of a corpus: generate first, store everything, then score what is stored.

Stage one speaks each sentence in its own voice and stores codes, waves and how it ended. Stage two compares with the
corpus: codes frame by frame, and log-mel distance to the codec's copy synthesis of the true codes. Each stage can be
run by itself.

Files in the output directory: `outputs.jsonl`, `codes/NNNN.npy`, `wavs/NNNN.wav`, `scores.json`.

Example:
    generate_outputs(synthesizer, corpus, range(4), out)
    print(summary_lines(score_outputs(out, corpus, synthesizer)))
"""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slmkit.audio.io import read_audio, write_wav
from slmkit.data.index import Corpus
from slmkit.data.shards import ShardReader
from slmkit.errors import UserError
from slmkit.evaluate.codes import frame_agreement
from slmkit.evaluate.mel import log_mel_distance
from slmkit.files import atomic_write, write_json
from slmkit.infer.synthesizer import Synthesizer

OUTPUTS = "outputs.jsonl"


def generate_outputs(synthesizer: Synthesizer, corpus: Corpus, numbers: Iterable[int], out: Path) -> None:
    """Speak the sentences of the given samples and store codes, wave and record of each.

    A sentence for which the model gives no speech is recorded with zero frames. Raises UserError when `out` exists.
    """
    if out.exists():
        raise UserError("the output directory exists", got=out, next_step="give another --out")
    reader = ShardReader(corpus)
    records = []
    for place, number in enumerate(numbers):
        sample = reader.read(number)
        assert sample.speaker is not None, "Synthesizer refuses a codec without speaker vectors"
        began = time.perf_counter()
        generation = synthesizer.generate(sample.meta["text"], sample.speaker)
        record = {
            "place": place,
            "number": number,
            "key": sample.key,
            "text": sample.meta["text"],
            "frames": generation.codes.shape[1],
            "steps": generation.num_steps,
            "stop": generation.limit or generation.reason,
            "decode_sec": time.perf_counter() - began,
        }
        records.append(record)
        with atomic_write(out / "codes" / f"{place:04d}.npy") as file:
            np.save(file, generation.codes, allow_pickle=False)
        if record["frames"]:
            wave = synthesizer.decode(generation.codes, torch.from_numpy(sample.speaker))
            write_wav(out / "wavs" / f"{place:04d}.wav", wave, synthesizer.codec.spec.sample_rate)
    with atomic_write(out / OUTPUTS) as file:
        file.writelines(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def score_outputs(out: Path, corpus: Corpus, synthesizer: Synthesizer) -> dict[str, Any]:
    """Score what `generate_outputs` stored in `out`; writes and returns `scores.json`.

    Raises UserError when the outputs are missing or belong to another corpus.
    """
    try:
        records = [json.loads(line) for line in (out / OUTPUTS).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{out} holds no generated outputs: {error}", next_step="generate them first") from error
    reader = ShardReader(corpus)
    rows = [_score(record, out, reader, synthesizer) for record in records]
    spoken = [row for row in rows if row["frames"]]
    frame_rate = synthesizer.codec.spec.frame_rate
    seconds = sum(row["frames"] for row in rows) / frame_rate
    summary = {
        "utterances": len(rows),
        "ended_share": float(np.mean([row["stop"] == "end" for row in rows])),
        "frame_agreement": np.mean([row["frame_agreement"] for row in rows], axis=0).tolist(),
        "log_mel_distance_db": float(np.mean([row["log_mel_distance_db"] for row in spoken])) if spoken else None,
        "real_time_factor": sum(row["decode_sec"] for row in rows) / seconds if seconds else None,
        "steps_per_second_of_speech": sum(row["steps"] for row in rows) / seconds if seconds else None,
    }
    scores = {"summary": summary, "utterances": rows}
    write_json(out / "scores.json", scores, replace=True)
    return scores


def summary_lines(scores: dict[str, Any]) -> str:
    """The summary as lines for a person."""
    return "\n".join(f"  {name}: {_shown(value)}" for name, value in scores["summary"].items())


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{item:.4f}" for item in value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _score(record: dict[str, Any], out: Path, reader: ShardReader, synthesizer: Synthesizer) -> dict[str, Any]:
    sample = reader.read(record["number"])
    if sample.key != record["key"]:
        raise UserError("the outputs were generated for another corpus", got=sample.key, expected=record["key"])
    truth = sample.codes[: synthesizer.model.layout.num_streams]
    codes = np.load(out / "codes" / f"{record['place']:04d}.npy", allow_pickle=False)
    scored = {**record, "frame_agreement": frame_agreement(truth, codes).tolist()}
    if not record["frames"]:
        return scored
    rate = synthesizer.codec.spec.sample_rate
    wave = read_audio(out / "wavs" / f"{record['place']:04d}.wav", rate)
    assert sample.speaker is not None, "generate_outputs needs speaker vectors"
    copy = synthesizer.decode(truth, torch.from_numpy(sample.speaker))
    shared = min(len(wave), len(copy))
    return {**scored, "log_mel_distance_db": log_mel_distance(copy[:shared], wave[:shared], rate)}
