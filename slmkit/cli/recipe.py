"""List the recipes, DeepSpeed settings and Slurm scripts that come with slmkit, or copy one to change it.

  slmkit recipe list
  slmkit recipe copy libritts_mtp12              writes libritts_mtp12.yaml here
  slmkit recipe copy zero2_bf16 settings.json

Recipes can also be used without a copy, by their names: `--config libritts_mtp12`, and `deepspeed: zero2_bf16` in a run
config.
"""

import argparse
import os
import shutil
import textwrap
from pathlib import Path

from slmkit.assets import assets, find
from slmkit.cli.arguments import Parser
from slmkit.files import atomic_write

NEXT = {
    "train": "slmkit train --config {path} --dry-run",
    "study": "slmkit study plan {path}",
    "tokenize": "slmkit tokenize run --config {path} SOURCE CODEC OUT",
    "deepspeed": "name it in a run config: `deepspeed: {path}`",
    "slurm": "slmkit launch --slurm --script {path}, or sbatch",
}


def add_arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="name, kind and purpose of each")
    copy = actions.add_parser("copy", help="copy one, to change it")
    copy.add_argument("name", metavar="NAME", help="as `slmkit recipe list` shows it")
    copy.add_argument("dest", metavar="DEST", nargs="?", help="file or directory (default: its own name, here)")


def run(args: argparse.Namespace) -> int:
    if args.action == "copy":
        asset = find(args.name)
        path = Path(args.dest or ".")
        path = path / asset.path.name if os.path.isdir(path) else path
        with atomic_write(path) as file:  # never replaces a file
            file.write(asset.path.read_bytes())
        print(f"copied to {path}\nnext: {NEXT[asset.kind].format(path=path)}")
        return 0
    found = assets()
    name_width, kind_width = (max(map(len, column)) for column in zip(*(asset[:2] for asset in found), strict=True))
    start = name_width + kind_width + 4
    for asset in found:
        lines = textwrap.wrap(asset.summary, max(30, shutil.get_terminal_size().columns - start))
        print(f"{asset.name:{name_width}}  {asset.kind:{kind_width}}  " + f"\n{' ' * start}".join(lines))
    return 0
