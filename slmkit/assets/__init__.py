"""Files that come with slmkit: recipes, DeepSpeed settings and Slurm scripts, found by name wherever slmkit is.

They have one source, the top-level folders `launch/`, `ds_configs/` and `tokenize_jobs/`. A checkout (also one that is
installed with --editable) uses them where they are; `setup.py` copies them into this folder of an installed package.

Example:
    deepspeed_file("zero2_bf16")        # .../ds_configs/zero2_bf16.json
    config_file("quick", "study")       # .../launch/studies/quick.yaml
    config_file("libritts_mtp12")       # .../launch/recipes/libritts_mtp12.yaml
"""

import difflib
import json
import os
from pathlib import Path
from typing import NamedTuple

from slmkit.errors import UserError

MAX_SHOWN = 200  # characters of a name that is not known
HERE = Path(__file__).resolve().parent
# Where each kind is: (folder, pattern). Names are file names without .yaml and .json, and differ from one another.
KINDS = {
    "train": (("launch", "recipes/*.yaml"), ("launch", "*.yaml")),
    "study": (("launch", "studies/*.yaml"),),
    "tokenize": (("tokenize_jobs", "*.yaml"),),
    "deepspeed": (("ds_configs", "*.json"),),
    "slurm": (("launch", "*.sbatch"), ("tokenize_jobs", "*.sbatch")),
}


class Asset(NamedTuple):
    """A file that comes with slmkit."""

    name: str
    kind: str  # train | study | tokenize | deepspeed | slurm
    path: Path

    @property
    def summary(self) -> str:
        """What it is: the file's first comment up to a colon or full stop, or what a DeepSpeed file sets."""
        text = self.path.read_text(encoding="utf-8")
        if self.kind == "deepspeed":
            settings = json.loads(text)
            zero = settings["zero_optimization"]
            offload = ", optimizer in host memory" if "offload_optimizer" in zero else ""
            precision = "bf16" if settings.get("bf16", {}).get("enabled") else "float32"
            return f"ZeRO-{zero['stage']} in {precision}{offload}"
        lines = [line for line in text.splitlines() if not line.startswith("#!")]
        comments = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
        return " ".join(comments).split(". ")[0].split(": ")[0].rstrip(".:")


def folder(name: str) -> Path:
    """The folder `launch`, `ds_configs` or `tokenize_jobs`."""
    installed = HERE / name
    return installed if installed.is_dir() else HERE.parent.parent / name


def assets() -> list[Asset]:
    """Every file that comes with slmkit, kind by kind."""
    return [
        Asset(path.stem if path.suffix in (".yaml", ".json") else path.name, kind, path)
        for kind, places in KINDS.items()
        for place, pattern in places
        for path in sorted(folder(place).glob(pattern))
    ]


def find(name: str, *kinds: str) -> Asset:
    """The asset of this name. Raises UserError with the nearest name when there is none."""
    known = {asset.name: asset for asset in assets() if asset.kind in (kinds or KINDS)}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name[:MAX_SHOWN], known, 1)
    raise UserError(
        "no file of this name comes with slmkit",
        got=name[:MAX_SHOWN],
        expected=f"{near[0]}?" if near else ", ".join(known),
        next_step="see `slmkit recipe list`",
    )


def config_file(given: str, *kinds: str) -> str:
    """The path of a YAML file, given as a path or as the name of a recipe (or of an asset of other `kinds`).

    Raises UserError when there is none.
    """
    if _is_file(given):
        return given
    if Path(given).suffix or "/" in given:
        expected = "a YAML file, or the name of a recipe (see `slmkit recipe list`)"
        what = "a directory is no config file" if os.path.isdir(given) else "there is no such config file"
        raise UserError(what, got=given[:MAX_SHOWN], expected=expected)
    return str(find(given, *(kinds or ("train", "tokenize"))).path)


def deepspeed_file(given: str) -> Path:
    """DeepSpeed's JSON file, given as a path or by name. Raises UserError when there is none."""
    if _is_file(given):
        return Path(given)
    if Path(given).suffix or "/" in given:
        known = ", ".join(asset.name for asset in assets() if asset.kind == "deepspeed")
        raise UserError(
            "there is no such DeepSpeed file", got=given[:MAX_SHOWN], expected=f"a JSON file, or one of {known}"
        )
    return find(given, "deepspeed").path


def _is_file(given: str) -> bool:
    """Whether a path is there, as a file or pipe. Directories do not count: they may be called like a recipe."""
    return os.path.exists(given) and not os.path.isdir(given)
