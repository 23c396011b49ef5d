"""Show a run: settings, progress, losses, speed, starts, checkpoints and faults.

It only reads the files of the run, so it works while the run trains, and on any machine that can read them. --plot also
draws losses, accuracies and throughput over the steps, with restarts marked.
"""

import argparse

from slmkit.log import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN", help="directory of the run")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    parser.add_argument("--plot", metavar="PNG", help="also write a picture of the curves to this file")
    parser.add_argument("--force", action="store_true", help="with --plot: replace the file if it exists")


def run(args: argparse.Namespace) -> int:
    import json
    import time

    from slmkit.files import atomic_write
    from slmkit.train.inspect import RunView, run_json, run_picture, run_rows

    view, now = RunView.read(args.run_dir), time.time()
    print(json.dumps(run_json(view, now=now), indent=2) if args.json else "\n".join(table(run_rows(view, now=now))))
    if args.plot:
        drawn = run_picture(view)
        with atomic_write(args.plot, replace=args.force) as file:
            file.write(drawn)
    return 0
