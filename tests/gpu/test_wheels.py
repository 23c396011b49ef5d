"""Wheels for a machine without a network: what is missing, double or for another Python is named."""

import zipfile
from pathlib import Path

import pytest
from gpu import wheels

CORE = (
    "deepspeed-0.19.8",
    "pydantic-2.14.4",
    "webdataset-1.0.2",
    "soundfile-0.14.0",
    "soxr-1.1.0",
    "sentencex-1.0.32",
    "liger_kernel-0.6.0",
)


def wheel(place: Path, name: str, requires: str = "", tag: str = "py3-none-any") -> None:
    with zipfile.ZipFile(place / f"{name}-{tag}.whl", "w") as archive:
        header = f"Metadata-Version: 2.1\nName: {name}\n{f'Requires-Dist: {requires}' if requires else ''}\n"
        archive.writestr(f"{name}.dist-info/METADATA", header)


def problems(place: Path) -> list[str]:
    return list(wheels.problems_of(sorted(place.glob("*.whl"))))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in CORE:
        wheel(tmp_path, name)
    return tmp_path


def test_the_core_of_slmkit_is_all_there_is_to_carry(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wheels.main(["--check", "--out", str(place)]) == 0
    assert "7 wheels" in capsys.readouterr().out
    (place / "soxr-1.1.0-py3-none-any.whl").unlink()
    assert wheels.main(["--check", "--out", str(place)]) == 1
    assert "slmkit requires soxr<1.2,>=1.0, which is not there" in capsys.readouterr().err


def test_what_a_wheel_requires_is_looked_at(place: Path) -> None:
    wheel(place, "one-1.0", "nowhere>=2")
    wheel(place, "two-1.0", "one>=3")
    wheel(place, "three-1.0", "numpy>=1")
    wheel(place, "four-1.0", "pywin32; sys_platform == 'win32'")
    wheel(place, "five-1.0", "nothing; extra == 'all'")
    assert problems(place) == [
        "one requires nowhere>=2, which is not there",
        "two requires one>=3, and 1.0 is there",
    ]


def test_a_wheel_for_another_python_or_a_second_one_is_named(place: Path) -> None:
    wheel(place, "cffi-2.1.1", tag="cp311-cp311-manylinux_2_17_x86_64")
    wheel(place, "msgpack-1.2.4", tag="cp312-cp312-manylinux_2_28_x86_64")
    wheel(place, "stable-1.0", tag="cp38-abi3-manylinux2014_x86_64")
    wheel(place, "soxr-1.1.1")
    assert problems(place) == [
        "cffi-2.1.1-cp311-cp311-manylinux_2_17_x86_64.whl does not fit Python 3.12 on Linux with x86-64",
        "soxr is there twice",
    ]


def test_too_much_to_travel_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wheels, "MAX_MIB", 0.0001)
    assert wheels.main(["--check", "--out", str(place)]) == 1
    assert "more than 0.0001 MiB" in capsys.readouterr().err
