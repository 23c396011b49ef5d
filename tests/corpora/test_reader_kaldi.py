"""Kaldi directories: tables side by side, parts of recordings, arks, and never a command."""

import io

import numpy as np
import pytest
import soundfile

from slmkit.corpora.base import Audio, Cut, Utterance
from slmkit.corpora.content import open_audio
from slmkit.corpora.kaldi import read_kaldi
from slmkit.data import lines
from slmkit.data.ledger import Failure
from slmkit.errors import BadSample, UserError


def directory(root, **tables):
    for name, text in tables.items():
        path = root / name.replace("wav_scp", "wav.scp")
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def outcomes(items):
    return [(item.key, item.reason if isinstance(item, Failure) else item.text) for item in items]


def test_all_tables_are_joined(tmp_path):
    directory(
        tmp_path,
        wav_scp="\ufeffa /abs/a.wav\r\nb wavs/b.flac\r\n",
        text="\ufeffa  Hello there \r\nb\tBye é\n",
        utt2spk="a s1\nb s2\n",
        utt2dur="a 1.5\n",
        utt2lang="b de\n",
    )
    assert list(read_kaldi(tmp_path, "en")) == [
        Utterance("a", Audio("/abs/a.wav"), "Hello there", "/abs/a.wav", "s1", "en", 1.5),
        Utterance("b", Audio(f"{tmp_path}/wavs/b.flac"), "Bye é", "wavs/b.flac", "s2", "de"),
    ]


def test_parts_of_recordings_are_cuts(tmp_path):
    directory(
        tmp_path,
        wav_scp="rec1 r.wav\nrec2 cat x |\nrec2 again.wav\nunused u.wav\n",
        segments="a rec1 0.5 2\nb rec1 2 1\nc rec1 x 3\nd rec1 1\ne rec3 0 1\nf rec2 0 1\ng rec1 0 -2\nh rec1 nan 2\n",
        text="".join(f"{key} Word\n" for key in "abcdefghi"),
        utt2dur="a 99\n",
    )
    found = list(read_kaldi(tmp_path))
    assert found[1] == Utterance(
        "a", Audio(f"{tmp_path}/r.wav"), "Word", "r.wav", seconds=1.5, cut=Cut(0.5, 2.0, 0.5, 2.0)
    )
    assert outcomes(found) == [
        ("rec2", "duplicate_key"),
        ("a", "Word"),
        ("b", "bad_times"),
        ("c", "malformed"),
        ("d", "malformed"),
        ("e", "missing"),
        ("f", "pipe"),
        ("g", "bad_times"),
        ("h", "bad_times"),
        ("i", "missing"),
    ]


def test_a_part_to_the_end_of_a_recording_and_its_channel(tmp_path):
    directory(
        tmp_path,
        wav_scp="rec1 r.wav\n",
        segments="a rec1 0.5 -1\nb rec1 1 -1.00 0\nc rec1 0 2 1\nd rec1 0 2 B\ne rec1 0 2 1 1\nf rec1 nan -1\n"
        "g rec1 0 inf\nh rec1 1e12 -1\ni rec1 0 2 -1\n",
        text="".join(f"{key} Word\n" for key in "abcdefghi"),
        utt2dur="a 3.5\n",
    )
    first, second, third, *rest = read_kaldi(tmp_path)
    assert (first.cut, first.seconds, first.audio.channel) == (Cut(0.5, -1.0, 0.5, -1.0), 3.5, None)
    assert (second.cut, second.seconds, second.audio.channel) == (Cut(1.0, -1.0, 1.0, -1.0), None, 0)
    assert (third.cut, third.seconds, third.audio.channel) == (Cut(0.0, 2.0, 0.0, 2.0), 2.0, 1)
    assert [item.reason for item in rest] == [*["malformed"] * 2, *["bad_times"] * 3, "malformed"]
    assert "a line of segments is not KEY RECORDING START END, or with a CHANNEL" in rest[1].detail
    assert "the channel in segments is not a number from 0" in rest[0].detail


def test_what_has_no_partner_or_cannot_be_used_is_a_failure(tmp_path):
    directory(
        tmp_path,
        wav_scp=b"a a.wav\nb sph2pipe -f wav x.sph |\nc c\0.wav\nd d.wav\nf f.wav\ng g.wav\nh\ni \xff.wav\n"
        b"j j.wav\n\xff x.wav\n",
        text=b"a One\na Two\nb Word\nc Word\ne Word\nf\ng \xff\nh Word\ni Word\nj Word\n\xff Word\n",
        utt2dur="a 1\na 2\nj long\nz 3\n",
        utt2spk="nobody s\n",
    )
    marker = tmp_path / "marker"
    assert outcomes(read_kaldi(tmp_path)) == [
        ("a", "One"),
        ("a", "duplicate_key"),
        ("a", "duplicate_key"),
        ("b", "pipe"),
        ("c", "malformed"),
        ("d", "missing_transcript"),
        ("e", "missing"),
        ("f", "empty_transcript"),
        ("g", "transcript_not_utf8"),
        ("h", "malformed"),
        ("i", "malformed"),
        ("j", "malformed"),
        ("\\udcff", "bad_key"),
    ]
    directory(tmp_path, wav_scp=f"a touch {marker} |\n", text="a Word\n", utt2dur="")
    assert outcomes(read_kaldi(tmp_path)) == [("a", "pipe")]
    assert not marker.exists()


@pytest.mark.parametrize("name", ["wav.scp", "text", "segments", "utt2spk", "utt2dur", "utt2lang"])
def test_a_table_that_is_not_sorted_says_how_to_sort_it(tmp_path, name):
    directory(tmp_path, wav_scp="B r.wav\na r.wav\n", text="B x\na x\n")
    assert len(list(read_kaldi(tmp_path))) == 2  # by bytes: upper case first
    (tmp_path / name).write_text("a x\nB x\n")
    with pytest.raises(UserError, match=rf"{name} is not sorted: line 2[\s\S]*LC_ALL=C sort -o {name} {name}"):
        list(read_kaldi(tmp_path))


def test_a_huge_line_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 30)
    directory(tmp_path, wav_scp="a a.wav\nb b.wav\n", text="a One\nb " + "x" * 60 + "\n")
    assert outcomes(read_kaldi(tmp_path)) == [("a", "One"), ("text:2", "malformed"), ("b", "missing_transcript")]


@pytest.mark.parametrize("missing", ["wav.scp", "text"])
def test_a_directory_without_its_tables_is_refused(tmp_path, missing):
    directory(tmp_path, wav_scp="a a.wav\n", text="a One\n")
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=rf"has no file {missing}[\s\S]*next: "):
        list(read_kaldi(tmp_path))


# --- arks


def wav(seed):
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(seed).uniform(-0.5, 0.5, 500 + seed), 16000, format="WAV")
    return file.getvalue()


def test_a_wav_in_an_ark_is_read_to_its_own_end(tmp_path):
    parts = [wav(1), wav(2), wav(3)]
    ark, scp = b"", ""
    for key, part in zip("abc", parts, strict=True):
        ark += f"{key} ".encode()
        scp += f"{key} x.ark:{len(ark)}\n"
        ark += part
    (tmp_path / "x.ark").write_bytes(ark)
    directory(tmp_path, wav_scp=scp, text="a One\nb Two\nc Three\n")
    found = list(read_kaldi(tmp_path))
    assert found[1].audio == Audio(f"{tmp_path}/x.ark", start_byte=4 + len(parts[0]))
    assert [open_audio(item.audio).read() for item in found] == parts


def test_what_an_ark_does_not_tell_is_refused(tmp_path):
    path = tmp_path / "x.ark"
    path.write_bytes(b"a " + wav(1)[:-4])  # said to be longer than the ark: the decoder finds it cut short
    assert len(open_audio(Audio(str(path), start_byte=2)).read()) == len(wav(1)) - 4
    for header in (b"fLaC", b"RIFF\xff\xff\xff\xff", b"RIF"):
        path.write_bytes(b"a " + header + bytes(200))
        with pytest.raises(BadSample, match="is not a WAV file with a length") as caught:
            open_audio(Audio(str(path), start_byte=2))
        assert caught.value.reason == "unreadable"
    for start in (2 + len(header) + 200, 1000):
        with pytest.raises(BadSample, match="ends before byte") as caught:
            open_audio(Audio(str(path), start_byte=start))
        assert caught.value.reason == "missing"
