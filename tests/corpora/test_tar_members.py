"""Tars of strangers: every whole member is found, whatever is broken around it."""

import io
import random
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.corpora.tar_members import Damage, Member, members
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


def test_joined_tars_are_read_to_the_end(tmp_path):
    first = make_tar(tmp_path / "a.tar", {"a.mp3": b"a"})
    second = make_tar(tmp_path / "b.tar", {"b.mp3": b"b"})
    size = (tmp_path / "a.tar").stat().st_size
    (tmp_path / "ab.tar").write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    moved = [found._replace(start_byte=found.start_byte + size) for found in second]
    assert list(members(tmp_path / "ab.tar")) == first + moved


@given(st.data())
def test_whole_members_are_found_around_any_damage(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "a.tar"
    expected = make_tar(path, CONTENTS)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, expected[-1].start_byte + 40))
    length = data.draw(st.integers(1, 1200))
    how = data.draw(st.sampled_from(["noise", "zeros", "removed", "cut off"]))
    if how == "noise":
        content[at : at + length] = random.Random(at).randbytes(length)
    elif how == "zeros":
        content[at : at + length] = bytes(length)
    elif how == "removed":
        del content[at : at + length]
        length = len(content)  # what lies behind begins no block any more
    else:
        length = len(content) - at
        del content[at:]
    path.write_bytes(content)
    found = [found for found in members(path) if isinstance(found, Member) and found.whole]
    before = [each for each in expected if each.start_byte + each.num_bytes <= at]
    behind = [each for each in expected if each.start_byte - 512 >= at + length]
    assert [each for each in found if each in before + behind] == before + behind
    names = [each.name for each in found]
    assert len(names) == len(set(names))


def test_each_damage_is_reported_once_with_its_place(tmp_path):
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
    damage, found = members(tmp_path / "a.tar")
    assert (damage, found.name) == (Damage(0, "no header is there"), "good.mp3")
    info.type = b"?"
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + good)
    first, second = members(tmp_path / "a.tar")
    assert (first, second.name) == (Damage(0, "its content ends beyond the end of the tar"), "good.mp3")


@pytest.mark.parametrize("content", [b"", b"\0" * 10240, b"\0" * 700])
def test_an_empty_tar_has_no_members_and_no_damage(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    assert list(members(tmp_path / "a.tar")) == []


@pytest.mark.parametrize("content", [b"x", b"PK\3\4" * 400, b"7 path=\xff\n"])
def test_what_is_no_tar_is_one_damage(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    assert list(members(tmp_path / "a.tar")) == [Damage(0, "no header is there")]


BROKEN = {
    "empty": b"",
    "no record": b"x",
    "too long": b"99999999999999999999 path=a\n",
    "no length": b"3 =\n0 a=b\n",
    "no size": b"9 size=x\n",
    "a negative size": b"12 size=-99\n",
    "a long number": b"9" * 5000 + b" a=b\n",
    "no charset": b"18 hdrcharset=\xff\n",
    "a sparse file": b"22 GNU.sparse.map=1,x\n",
    "many digits": b"1" * 2**14,
}


@pytest.mark.parametrize("records", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("kind", [b"x", b"g"])
def test_broken_extended_headers_do_no_harm(tmp_path, records, kind):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, len(records)
    extended = info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)
    make_tar(tmp_path / "a.tar", {"good.mp3": b"x"})
    (tmp_path / "a.tar").write_bytes(extended + (tmp_path / "a.tar").read_bytes())
    assert [found.name for found in members(tmp_path / "a.tar") if isinstance(found, Member)][-1:] == ["good.mp3"]


def test_headers_without_end_within_each_other_end(tmp_path):
    info = tarfile.TarInfo("x")
    info.type = b"x"
    make_tar(tmp_path / "a.tar", {"good.mp3": b"x"})
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) * 2000 + (tmp_path / "a.tar").read_bytes())
    damage, found = members(tmp_path / "a.tar")
    assert (damage, found.name) == (Damage(0, "no header is there"), "good.mp3")


def test_a_tar_that_cannot_be_read_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        list(members(tmp_path / "none.tar"))
