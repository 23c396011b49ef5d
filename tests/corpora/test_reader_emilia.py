"""Emilia: tars whose members are paired, JSONL beside mp3, and every way in which one of the two is missing."""

import errno
import io
import json
import os
import tarfile
import unicodedata

import pytest
from raw_corpora import read_source

from slmkit.corpora import emilia
from slmkit.corpora.base import Audio, Utterance
from slmkit.corpora.content import open_audio
from slmkit.data.ledger import Failure
from slmkit.errors import BadSample, UserError

FULL = {
    "id": "EN_B00000_S00000_W000000",
    "wav": "x.mp3",
    "text": " A word. ",
    "duration": 2.5,
    "speaker": "EN_B00000_S00000",
    "language": "en",
    "dnsmos": 3.4,
    "phone_count": 12,
}


def make_tar(path, *members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def outcomes(items):
    return [(item.key, item.reason if isinstance(item, Failure) else "") for item in items]


def test_two_collections_below_one_root_are_named(tmp_path, caplog):
    for name in ("Emilia", "Emilia-YODAS"):
        assert "holds Emilia and Emilia-YODAS" not in caplog.text
        make_tar(tmp_path / name / "EN/EN-B000000.tar", ("X.mp3", b"x"), ("X.json", {**FULL, "id": name}))
        assert len(read_source("emilia", tmp_path / name)) == 1
    items = read_source("emilia", tmp_path)
    assert [item.source.partition("/")[0] for item in items] == ["Emilia", "Emilia-YODAS"]
    assert "holds Emilia and Emilia-YODAS, of different licences; filters.sources=[Emilia/*] leaves" in caplog.text


def test_a_tar_gives_all_fields_and_where_the_audio_lies(tmp_path):
    path = make_tar(tmp_path / "EN/EN-B000000.tar", ("a/X.mp3", b"sound" * 300), ("a/X.json", FULL))
    (item,) = read_source("emilia", tmp_path)
    assert item == Utterance(
        key="EN_B00000_S00000_W000000",
        audio=Audio(str(path), start_byte=512, num_bytes=1500),
        text="A word.",
        source="EN/EN-B000000.tar/a/X.mp3",
        speaker="EN_B00000_S00000",
        language="en",
        seconds=2.5,
        extra={"dnsmos": 3.4, "phone_count": 12},
    )
    assert open_audio(item.audio).read() == b"sound" * 300
    assert list(read_source("emilia", path)) == [item._replace(source="EN-B000000.tar/a/X.mp3")]


def test_a_member_larger_than_memory_is_refused_without_being_read(tmp_path):
    with open(tmp_path / "a.tar", "wb") as file:
        file.truncate(2**42)  # it takes no room
    with pytest.raises(BadSample, match=f"holds {2**41} bytes of audio") as caught:
        open_audio(Audio(str(tmp_path / "a.tar"), start_byte=512, num_bytes=2**41))
    assert caught.value.reason == "unreadable"


def test_null_and_missing_fields_are_unknown(tmp_path):
    null = dict.fromkeys(FULL) | {"text": "A."}
    make_tar(tmp_path / "a.tar", ("X.mp3", b"x"), ("X.json", null), ("Y.mp3", b"y"), ("Y.json", {"text": "B."}))
    first, second = read_source("emilia", tmp_path, language="zh")
    assert (first.key, first.speaker, first.language, first.seconds) == ("X", "", "zh", None)
    assert "dnsmos" not in first.extra
    assert (second.key, second.extra) == ("Y", {})
    assert (first.named_by_file, second.named_by_file) == (True, True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "malformed"),
        (b"[1]", "malformed"),
        (b"\xff", "malformed"),
        (b"[" * 10**5, "malformed"),
        (b'{"text": NaN}', "malformed"),
        ({"text": None}, "empty_transcript"),
        ({}, "empty_transcript"),
        ({"text": ["a"]}, "malformed"),
        ({"text": "a", "duration": "long"}, "malformed"),
        ({"text": "a", "duration": -1}, "malformed"),
        ({"text": "a", "dnsmos": {}}, "malformed"),
        ({"text": "a", "dnsmos": True}, "malformed"),
        ({"text": "a", "speech_share": "much"}, "malformed"),
        (b'{"text": "a", "dnsmos": 1' + b"0" * 400 + b"}", "malformed"),
        (b" " * (2**20 + 1), "malformed"),
    ],
)
def test_a_bad_json_costs_its_own_utterance_alone(tmp_path, content, reason):
    good = ("G.mp3", b"g"), ("G.json", {"text": "G."})
    make_tar(tmp_path / "a.tar", ("X.mp3", b"x"), ("X.json", content), *good)
    assert outcomes(read_source("emilia", tmp_path)) == [("X", reason), ("G", "")]


def test_members_are_paired_in_any_order_and_what_is_alone_is_counted(tmp_path):
    record = {"text": "A."}
    link = tarfile.TarInfo("L.mp3")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path = make_tar(
        tmp_path / "a.tar",
        ("N.json", record),
        ("B.json", record),
        ("A.mp3", b"a"),
        ("B.MP3", b"b"),
        ("d/A.mp3", b"other"),
        ("A.json", record),
        ("d/A.json", record),
        ("S.mp3", b"s"),
        ("S.mp3", b"s"),
        ("L.json", record),
        ("../../up.mp3", b"u"),
        ("/up.json", record),
        ("notes.txt", b""),
        ("._A.mp3", b""),
    )
    with tarfile.open(path, "a") as tar:
        tar.addfile(link)
    assert outcomes(read_source("emilia", tmp_path)) == [
        ("B", ""),
        ("A", ""),
        ("A", ""),  # its key is that of an earlier one: `key_refusal` says so
        ("S", "duplicate_key"),
        ("N", "missing"),
        ("S", "missing_transcript"),
        ("L", "missing"),
        ("up", "missing_transcript"),
        ("up", "missing"),
    ]


def test_a_damaged_tar_loses_only_what_is_damaged(tmp_path):
    record = {"text": "A."}
    names = [f"X{i}.{kind}" for i in range(4) for kind in ("mp3", "json")]
    path = make_tar(tmp_path / "a.tar", *((name, record if "json" in name else b"x" * 600) for name in names))
    content = bytearray(path.read_bytes())
    step = (512 + 1024) + (512 + 512)  # header and content of both
    content[step + 5] ^= 1  # the header of X1.mp3
    path.write_bytes(content[: 3 * step + 512 + 100])  # in the content of X3.mp3
    assert outcomes(read_source("emilia", tmp_path)) == [
        ("X0", ""),
        (f"a.tar@{step}", "damaged"),
        ("X2", ""),
        ("X1", "missing"),
        ("X3", "truncated"),
    ]


def test_a_tar_that_cannot_be_read_any_more_is_named(tmp_path, monkeypatch):
    make_tar(tmp_path / "a.tar", ("X.mp3", b"x"), ("X.json", {"text": "A."}))

    def gone(line):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(emilia, "parse_record", gone)
    with pytest.raises(UserError, match=r"cannot read .*a\.tar: Stale file handle"):
        read_source("emilia", tmp_path)


def test_a_pair_of_which_one_is_cut_short_is_one_failure(tmp_path):
    path = make_tar(tmp_path / "a.tar", ("X.json", {"text": "A."}), ("X.mp3", b"x" * 600))
    os.truncate(path, 1536 + 599)
    (item,) = read_source("emilia", tmp_path)
    assert (item.key, item.reason) == ("X", "truncated")


def test_no_more_than_so_many_members_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(emilia, "MAX_WAITING", 2)
    members = [(f"X{i}.mp3", b"x") for i in range(4)] + [("X3.json", {"text": "A."})]
    make_tar(tmp_path / "a.tar", *members)
    assert outcomes(read_source("emilia", tmp_path)) == [
        ("X0", "missing_transcript"),
        ("X1", "missing_transcript"),
        ("X3", ""),
        ("X2", "missing_transcript"),
    ]


def test_names_that_are_not_utf8_are_failures(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", encoding="utf-8", errors="surrogateescape") as tar:
        for name, content in (("caf\udce9.mp3", b"x"), ("caf\udce9.json", b'{"text": "A."}')):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with open(os.fsencode(tmp_path) + b"/caf\xe9.tar", "wb"):
        pass
    found = read_source("emilia", tmp_path)
    assert outcomes(found) == [("caf\udce9", ""), ("caf\\udce9.tar", "bad_key")]  # the first has no sound key
    assert found[0].source == "a.tar/caf\\udce9.mp3"


def test_lines_are_relative_to_their_folder_or_to_the_source(tmp_path):
    for name in ("EN/a/1.mp3", "EN/a/2.mp3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    rows = [{**FULL, "id": "1", "wav": "a/1.mp3"}, {"text": "B.", "wav": "EN/a/2.mp3"}, {"text": "C.", "wav": "3.mp3"}]
    (tmp_path / "EN/EN_B00000.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_source("emilia", tmp_path)
    assert [(item.key, item.audio) for item in found] == [
        ("1", Audio(f"{tmp_path}/EN/a/1.mp3")),
        ("2", Audio(f"{tmp_path}/EN/a/2.mp3")),
        ("3", Audio(f"{tmp_path}/EN/3.mp3")),
    ]
    assert (found[0].seconds, found[0].extra) == (2.5, {"dnsmos": 3.4, "phone_count": 12})
    (alone, *_) = read_source("emilia", tmp_path / "EN/EN_B00000.jsonl")
    assert (alone, found[0].source) == (found[0]._replace(source="a/1.mp3"), "EN/a/1.mp3")


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"text": "a"}', '{"wav": "", "text": "a"}', '{"wav": "\\u0000", "text": "a"}']
)
def test_a_bad_line_is_a_failure_with_its_number(tmp_path, line):
    (tmp_path / "x.jsonl").write_text(line + '\n{"wav": "g.mp3", "text": "G."}')
    assert outcomes(read_source("emilia", tmp_path)) == [("x.jsonl:1", "malformed"), ("g", "")]


def test_a_compressed_tar_is_named_in_the_ledger(tmp_path):
    path = make_tar(tmp_path / "EN/EN-B000000.tar", ("X.mp3", b"sound"), ("X.json", FULL))
    (tmp_path / "EN/EN-B000001.tar.gz").write_bytes(b"x")
    good, failure = read_source("emilia", tmp_path)
    assert good.audio.path == str(path)
    assert (failure.key, failure.reason) == ("EN/EN-B000001.tar.gz", "unsupported")


@pytest.mark.parametrize("name", ["EN-B1.tgz", "EN-B1.zip", "EN-B1.tar.gz.0", "EN-B1.tar.xz", "EN.jsonl.gz"])
def test_every_archive_is_named_in_the_ledger(tmp_path, name):
    make_tar(tmp_path / "EN-B0.tar", ("X.mp3", b"sound"), ("X.json", FULL))
    (tmp_path / name).write_bytes(b"x")
    assert (name, "unsupported") in outcomes(read_source("emilia", tmp_path))
    assert outcomes(read_source("emilia", tmp_path / name)) == [(name, "unsupported")]


def test_what_no_reader_knows_within_a_tar_is_named(tmp_path):
    record = {"text": "A."}
    accents = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    make_tar(
        tmp_path / "a.tar",
        ("X.ape", b"x"),
        ("X.json", record),
        ("Y.json", record),
        ("Y.npy", b"x"),
        ("more.tar.gz", b"x"),
        ("__MACOSX/Z.json", record),
        ("./.cache/Z.json", record),
        (f"./{accents[0]}.mp3", b"x"),
        (f"./{accents[1]}.json", record),
    )
    assert outcomes(read_source("emilia", tmp_path)) == [
        ("more.tar.gz", "unsupported"),
        (accents[0], ""),
        ("X", "unsupported"),
        ("Y", "missing"),
    ]


def test_an_unpacked_tar_is_read(tmp_path):
    for name in ("X.mp3", "Z.mp3", "W.ape", "V.mp3", "U.mp3"):
        (tmp_path / "EN" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "EN" / name).write_bytes(b"x")
    for name in ("X", "W", "config"):
        (tmp_path / f"EN/{name}.json").write_text(json.dumps(FULL))
    (tmp_path / "EN/V.json").write_text(" " * (2**20 + 1))
    os.mkfifo(tmp_path / "EN/U.json")
    os.mkfifo(tmp_path / "EN/U.tar")
    found = read_source("emilia", tmp_path)
    assert outcomes(found) == [
        ("EN/U.tar", "unsupported"),
        ("U", "missing_transcript"),
        ("V", "malformed"),
        ("EN_B00000_S00000_W000000", ""),
        ("Z", "missing_transcript"),
        ("W", "unsupported"),
    ]
    assert (found[3].audio, found[3].source) == (Audio(f"{tmp_path}/EN/X.mp3"), "EN/X.mp3")
    (tmp_path / "ZH").mkdir()
    (tmp_path / "ZH/lines.jsonl").touch()  # whose lines may name any audio that has no json of its own
    assert outcomes(read_source("emilia", tmp_path)) == [outcome for outcome in outcomes(found) if outcome[0] != "Z"]
    (tmp_path / "EN/lines.jsonl").write_text(json.dumps({**FULL, "wav": "X.mp3"}))  # then audio is that of the lines
    assert outcomes(read_source("emilia", tmp_path))[:1] == [("EN_B00000_S00000_W000000", "")]


def test_a_name_that_is_not_utf8_beside_a_json_is_a_failure(tmp_path):
    for name in (b"caf\xe9.mp3", b"caf\xe9.json", b"x.mp3"):
        with open(os.fsencode(tmp_path) + b"/" + name, "w") as file:
            file.write('{"text": "A."}')
    (tmp_path / "x.json").mkdir()
    (tmp_path / "y.mp3").touch()
    (tmp_path / "y.json").symlink_to("nowhere")
    assert outcomes(read_source("emilia", tmp_path)) == [
        ("caf\\udce9", "bad_key"),
        ("x", "missing_transcript"),
        ("y", "missing_transcript"),
    ]


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "EN.png").write_bytes(b"x")
    for source in (tmp_path / "EN.png", tmp_path):
        with pytest.raises(UserError, match=r"no tars and no JSONL files under[\s\S]*EN-B000000\.tar"):
            read_source("emilia", source)


def test_a_tar_that_cannot_be_opened_is_a_user_error(tmp_path):
    (tmp_path / "a.tar").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"cannot read .*a\.tar: No such file"):
        read_source("emilia", tmp_path)
