"""Collects what slmkit needs on a machine without a network that has Python 3.12, torch, transformers and their like.

Wheels of the requirements in CARRIED go to a folder, with what those need; DeepSpeed, of which there is no wheel, is
built without its operators. What such a machine has itself (PRESENT) is not carried.

Invariant: it ends with 0 only when every requirement of slmkit, and of what is carried, is in the folder or PRESENT,
every wheel fits Python 3.12 on Linux with x86-64, there is one of each, and all together are small enough to travel.

Example:
    python tests/gpu/wheels.py --out .whl
    python3 -m pip install --no-index --no-deps --target /tmp/site .whl/*.whl        # there; run.sh does it
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent.parent
CARRIED = ("deepspeed", "pydantic", "webdataset", "soundfile", "soxr", "sentencex")
EXTRAS = ("liger",)  # of setup.py, carried too
FOR_DEEPSPEED = ("hjson", "msgpack", "py-cpuinfo")  # what it needs beside PRESENT
LEFT_OUT = {"av": "it is imported only for audio that libsndfile does not read, and takes 35 MiB"}
PRESENT = (
    "einops",
    "filelock",
    "fsspec",
    "huggingface-hub",
    "hypothesis",
    "jinja2",
    "matplotlib",
    "ninja",
    "numpy",
    "packaging",
    "pillow",
    "psutil",
    "pyarrow",
    "pytest",
    "pyyaml",
    "safetensors",
    "scipy",
    "tensorboard",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers",
    "triton",
)
PYTHON = (3, 12)
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)] + [
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
    "linux_x86_64",
]
ENVIRONMENT = {  # of markers, there
    "python_version": "3.12",
    "python_full_version": "3.12.3",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "sys_platform": "linux",
    "os_name": "posix",
    "extra": "",
}
MAX_MIB = 45.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Collect wheels for a machine without a network.")
    parser.add_argument("--out", type=Path, default=ROOT / ".whl", help="folder, which is emptied (default: .whl)")
    parser.add_argument("--check", action="store_true", help="only look at what is there")
    args = parser.parse_args(argv)
    if not args.check:
        collect(args.out)
    wheels = sorted(args.out.glob("*.whl"))
    size_mib = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:7.2f} MiB  {wheel.name}")
    print(f"{size_mib:7.2f} MiB in {len(wheels)} wheels")
    problems = [*problems_of(wheels), *([f"more than {MAX_MIB} MiB"] if size_mib > MAX_MIB else [])]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def collect(out: Path) -> None:
    """Download and build into a new folder, which then takes the place of `out`."""
    wanted = [str(each) for each in required() if canonicalize_name(each.name) in CARRIED]
    built = [words for words in wanted if Requirement(words).name == "deepspeed"]
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        place = Path(name) / "wheels"
        there = ("--only-binary=:all:", "--python-version", ".".join(map(str, PYTHON)), "--implementation", "cp")
        download = ("download", *there, *(f"--platform={platform}" for platform in PLATFORMS), "--dest", str(place))
        pip(*download, *(words for words in wanted if words not in built), *FOR_DEEPSPEED)
        pip(*download, "--no-deps", *map(str, optional()))  # they need torch, which is there
        pip("wheel", "--no-deps", "--wheel-dir", str(place), *built, DS_BUILD_OPS="0")
        for wheel in place.glob("*.whl"):
            if canonicalize_name(parse_wheel_filename(wheel.name)[0]) in PRESENT:
                wheel.unlink()
        shutil.rmtree(out, ignore_errors=True)
        place.rename(out)


def pip(*words: str, **variables: str) -> None:
    """Run pip, and end with it where it fails."""
    command = [sys.executable, "-m", "pip", "--quiet", *words]
    done = subprocess.run(command, env={**os.environ, **variables}, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def required() -> list[Requirement]:
    """What slmkit itself requires: the list in setup.py."""
    return [Requirement(text) for text in ast.literal_eval(_assigned("REQUIRED"))]


def optional() -> list[Requirement]:
    """What the extras in EXTRAS require."""
    extras: Any = _assigned("EXTRAS")
    lists = {ast.literal_eval(key): value for key, value in zip(extras.keys, extras.values, strict=True)}
    return [Requirement(text) for extra in EXTRAS for text in ast.literal_eval(lists[extra])]


def _assigned(name: str) -> ast.expr:
    """What setup.py assigns to a name."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    return next(node.value for node in assigned if ast.unparse(node.targets[0]) == name)


def problems_of(wheels: Sequence[Path]) -> Iterator[str]:
    """What is wrong with the wheels together, a line each."""
    fitting, versions = fitting_tags(), {}
    for wheel in wheels:
        name, version, _, tags = parse_wheel_filename(wheel.name)
        if name in versions:
            yield f"{name} is there twice"
        if not tags & fitting:
            yield f"{wheel.name} does not fit Python 3.12 on Linux with x86-64"
        versions[name] = version
    asked = [("slmkit", requirement) for requirement in (*required(), *optional())]
    asked += [(parse_wheel_filename(wheel.name)[0], each) for wheel in wheels for each in requirements_of(wheel)]
    for who, requirement in asked:
        name = canonicalize_name(requirement.name)
        if name in versions and not requirement.specifier.contains(versions[name], prereleases=True):
            yield f"{who} requires {requirement}, and {versions[name]} is there"
        elif name not in versions and name not in PRESENT and name not in LEFT_OUT:
            yield f"{who} requires {requirement}, which is not there"


def fitting_tags() -> set[Tag]:
    return {
        *cpython_tags(PYTHON, platforms=PLATFORMS),
        *compatible_tags(PYTHON, interpreter="cp312", platforms=PLATFORMS),
    }


def requirements_of(wheel: Path) -> list[Requirement]:
    """What a wheel requires there."""
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [
            name for name in archive.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1
        ]
        headers = HeaderParser().parsestr(archive.read(member).decode())
    found = [Requirement(text) for text in headers.get_all("Requires-Dist") or []]
    return [each for each in found if each.marker is None or each.marker.evaluate(ENVIRONMENT)]


if __name__ == "__main__":
    sys.exit(main())
