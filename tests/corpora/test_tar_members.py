"""Tars of strangers: every whole member is found, whatever is broken around it."""

import io
import random
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmkit.corpora import tar_members
from slmkit.corpora.tar_members import Damage, Member, members, parse_header
from slmkit.errors import UserError


def make_tar(path, contents, **options):
    """Name -> content or a ready TarInfo. Returns the members as the standard library sees them."""
    with tarfile.open(path, "w", **options) as tar:
        for name, content in contents.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    with tarfile.open(path) as tar:
        return [Member(info.name, info.offset_data, info.size) for info in tar if info.isreg()]


CONTENTS = {f"X{i}.mp3": random.Random(i).randbytes(size) for i, size in enumerate((700, 0, 1536, 1, 512, 3000, 40))}


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_kind_and_length_are_read(tmp_path, kind):
    long = {"d/" * 60 + "long.json": b"{}", "é" * 40 + ".mp3": b"abc"}
    if kind != tarfile.USTAR_FORMAT:
        long["n" * 300 + ".mp3"] = b"12"
    expected = make_tar(tmp_path / "a.tar", CONTENTS | long, format=kind)
    assert list(members(tmp_path / "a.tar")) == expected
    assert {found.name for found in expected} == CONTENTS.keys() | long.keys()


def test_a_size_in_an_extended_header_counts(tmp_path):
    info = tarfile.TarInfo("big.mp3")
    info.size, info.pax_headers = 5, {"size": "5", "comment": "x"}
    expected = make_tar(tmp_path / "a.tar", {"big.mp3": info, "b.mp3": b"b"}, format=tarfile.PAX_FORMAT)
    assert [found.name for found in expected][:1] == ["big.mp3"]
    assert next(members(tmp_path / "a.tar")) == expected[0]


def test_links_folders_and_devices_are_not_named(tmp_path):
    odd = {}
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        odd[kind] = tarfile.TarInfo(f"odd{kind.decode()}.mp3")
        odd[kind].type, odd[kind].linkname = kind, "/etc/passwd"
    expected = make_tar(tmp_path / "a.tar", {**odd, "../up.mp3": b"up", "/abs.mp3": b"abs"})
    assert list(members(tmp_path / "a.tar")) == expected
    assert [found.name for found in expected] == ["../up.mp3", "/abs.mp3"]


def test_a_name_that_is_not_utf8_is_kept_with_escapes(tmp_path):
    make_tar(tmp_path / "a.tar", {"caf\udce9.mp3": b"x"}, encoding="utf-8", errors="surrogateescape")
    assert next(members(tmp_path / "a.tar")).name == "caf\udce9.mp3"


def test_joined_tars_are_read_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_members, "SCAN_BYTES", 4096)  # the zeros between are longer
    first = make_tar(tmp_path / "a.tar", {"a.mp3": b"a"})
    second = make_tar(tmp_path / "b.tar", {"b.mp3": b"b"})
    size = (tmp_path / "a.tar").stat().st_size
    (tmp_path / "ab.tar").write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    moved = [found._replace(start_byte=found.start_byte + size) for found in second]
    assert list(members(tmp_path / "ab.tar")) == first + moved


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_whole_members_are_found_around_any_damage(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "a.tar"
    expected = make_tar(path, CONTENTS)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, expected[-1].start_byte + 40))
    length = data.draw(st.integers(1, 1200))
    how = data.draw(st.sampled_from(["noise", "zeros", "removed", "cut off"]))
    shift = 0
    if how == "noise":
        content[at : at + length] = random.Random(at).randbytes(length)
    elif how == "zeros":
        content[at : at + length] = bytes(length)
    elif how == "removed":
        length = min(length, 511)  # with more gone, the end of a tar may lie within what its last but one member claims
        shift = -len(content[at : at + length])
        del content[at : at + length]
    else:
        length = len(content) - at
        del content[at:]
    path.write_bytes(content)
    found = [found for found in members(path) if isinstance(found, Member) and found.whole]
    before = [each for each in expected if each.start_byte + each.num_bytes <= at]
    behind = [
        each._replace(start_byte=each.start_byte + shift) for each in expected if each.start_byte - 512 >= at + length
    ]
    assert [each for each in found if each in before + behind] == before + behind
    names = [each.name for each in found]
    assert len(names) == len(set(names))


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30)


@settings(max_examples=200, deadline=None)
@given(NAMES, st.integers(0, 2**40), st.sampled_from(b"0157xgLKS\0"), st.sampled_from([0, 1, 2]), st.binary(max_size=3))
def test_a_header_is_read_as_by_the_standard_library(name, size, kind, form, damage):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.uid = size % 2**33 if form == tarfile.USTAR_FORMAT else size, bytes([kind]), 7
    block = info.tobuf(form, "utf-8", "surrogateescape")[-512:]
    block = damage + block[len(damage) :]
    try:
        expected = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        assert parse_header(block) is None
        return
    found = parse_header(block)
    assert (found.size, found.kind) == (expected.size, expected.type)
    assert found.name.rstrip("/") == expected.name.rstrip("/")


def test_headers_of_the_oldest_tars_and_of_sums_of_signed_bytes():
    block = bytearray(tarfile.TarInfo("é.mp3").tobuf(tarfile.USTAR_FORMAT))
    block[257:] = bytes(512 - 257)
    others = bytes(block[:148] + b" " * 8 + block[156:])
    for total in (sum(others), sum(byte - 256 * (byte > 127) for byte in others)):
        block[148:156] = b"%06o\0 " % total
        assert parse_header(bytes(block)).name == "é.mp3"
    for digits in (b"%06o\0 " % 1, b"9" * 8, b"-0000012", b"\xff" * 8):
        block[148:156] = digits
        assert parse_header(bytes(block)) is None
    assert parse_header(bytes(block)[:500]) is None


def test_each_damage_is_reported_once_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_members, "SCAN_BYTES", 1024)
    path = tmp_path / "a.tar"
    expected = make_tar(path, CONTENTS)
    content = bytearray(path.read_bytes())
    content[expected[2].start_byte - 500] ^= 1
    path.write_bytes(content)
    damage = Damage(expected[2].start_byte - 512, "no header is there")
    assert list(members(path)) == [*expected[:2], damage, *expected[3:]]
    path.write_bytes(content[: expected[5].start_byte + 2999])
    assert list(members(path))[-1] == expected[5]._replace(whole=False)


def test_a_length_that_is_not_true_loses_no_member_behind_it(tmp_path):
    info = tarfile.TarInfo("liar.mp3")
    info.size = 2**40
    expected = make_tar(tmp_path / "a.tar", {"good.mp3": b"x"})
    good = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + good)
    assert list(members(tmp_path / "a.tar")) == [
        Member("liar.mp3", 512, 2**40, whole=False),
        expected[0]._replace(start_byte=expected[0].start_byte + 512),
    ]
    info.type = b"x"
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + good)
    assert [found.name for found in members(tmp_path / "a.tar")] == ["good.mp3"]
    info.type = b"?"
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + good)
    first, second = members(tmp_path / "a.tar")
    assert (first, second.name) == (Damage(0, "its content goes on beyond the end of the tar"), "good.mp3")


@pytest.mark.parametrize("content", [b"", b"\0" * 10240, b"\0" * 700])
def test_an_empty_tar_has_no_members_and_no_damage(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    assert list(members(tmp_path / "a.tar")) == []


@pytest.mark.parametrize("content", [b"x", b"PK\3\4" * 400, b"7 path=\xff\n"])
def test_what_is_no_tar_is_one_damage(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    assert list(members(tmp_path / "a.tar")) == [Damage(0, "no header is there")]


@pytest.mark.parametrize("records", [b"", b"x", b"99999999999999999999 path=a\n", b"3 =\n0 a=b\n", b"9 size=x\n"])
def test_broken_extended_headers_do_no_harm(tmp_path, records):
    info = tarfile.TarInfo("x")
    info.type, info.size = b"x", len(records)
    extended = info.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512 if records else 0, b"\0")
    make_tar(tmp_path / "a.tar", {"good.mp3": b"x"})
    (tmp_path / "a.tar").write_bytes(extended + (tmp_path / "a.tar").read_bytes())
    assert [found.name for found in members(tmp_path / "a.tar")] == ["good.mp3"]


def test_a_tar_that_cannot_be_read_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        list(members(tmp_path / "none.tar"))
