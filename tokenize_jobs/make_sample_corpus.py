"""Make `sample_corpus/`, the small speech corpus that ships with slmkit, in the folder layout of LibriTTS.

Needs espeak-ng; the version that made the files beside this script is in `sample_corpus/MADE_BY.txt`. The same versions
of espeak-ng, soxr and libsndfile give the same bytes. Sentences and recordings are free to use for any purpose.

    python tokenize_jobs/make_sample_corpus.py OUT
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from slmkit.audio.io import read_audio
from slmkit.audio.units import seconds_to_samples

SAMPLE_RATE = 16000
CHAPTER = 101
WORDS_PER_MINUTE = 165
PAUSE_SEC = 0.08  # before and after each sentence
# Speaker, voice of espeak-ng and pitch (0..99); then sentences.
CORPUS = """\
11 en-us 45
The kettle is on the stove. | We left before the rain began.
She keeps her keys in a blue bowl. | Nobody saw the train arrive.

12 en-gb+f2 55
Please close the window tonight. | My brother grows apples and pears.
The shop opens at half past nine. | A small boat crossed the lake.

13 en-gb-scotland+m3 35
The path goes up through the wood. | He wrote a short letter home.
Fresh bread was cooling by the door. | They sang until the lamp went out.

14 en-us+f4 60
Could you pass me the salt? | Her garden is full of yellow roses.
The dog sleeps under the table. | I will call you on Thursday.

15 en-029+m7 50
The bus was late again today. | Put the wet coats by the fire.
This old clock has never stopped. | Seven geese flew over the house.

16 en-gb-x-rp+f3 65
The children built a tower of bricks. | Our teacher asked a hard question.
Snow covered the valley in March. | You may keep the change.

17 en-us+m2 30
The judge spoke in a low voice. | Milk and honey make good tea.
We found the map behind a shelf. | Is there a doctor on the ship?

18 en-gb-x-gbclan+f5 50
He paid for the fish with coins. | The river runs slow in summer.
Each of the boys drew a horse. | Thank you for joining us.
"""


def speak(voice: str, pitch: str, sentence: str, flac: Path) -> None:
    """Say a sentence into a 16 kHz 16-bit FLAC file."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "spoken.wav"
        options = ["-v", voice, "-p", pitch, "-s", str(WORDS_PER_MINUTE), "-z", "-w", str(wav)]
        subprocess.run(["espeak-ng", *options, sentence], check=True)
        wave = np.pad(read_audio(wav, SAMPLE_RATE), seconds_to_samples(PAUSE_SEC, SAMPLE_RATE))
    soundfile.write(flac, wave, SAMPLE_RATE, format="FLAC", subtype="PCM_16")


def main(out: Path) -> None:
    """Write every sentence of `CORPUS` below `out`, which must not exist."""
    out.mkdir(parents=True)
    version = subprocess.run(["espeak-ng", "--version"], check=True, capture_output=True, text=True).stdout
    made_by = version.partition(" Data at")[0].strip()
    for block in CORPUS.split("\n\n"):
        head, *lines = block.splitlines()
        speaker, voice, pitch = head.split()
        sentences = [sentence for line in lines for sentence in line.split(" | ")]
        folder = out / speaker / str(CHAPTER)
        folder.mkdir(parents=True)
        for paragraph, sentence in enumerate(sentences):
            stem = f"{speaker}_{CHAPTER}_{paragraph:06d}_{0:06d}"
            speak(voice, pitch, sentence, folder / f"{stem}.flac")
            (folder / f"{stem}.normalized.txt").write_text(f"{sentence}\n", encoding="utf-8")
        made_by += f"\nspeaker {speaker}: voice {voice}, pitch {pitch}"
    (out / "MADE_BY.txt").write_text(f"{made_by}\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} OUT")
    main(Path(sys.argv[1]))
