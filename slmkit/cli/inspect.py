"""Look at a run: what it is, how far, how well and how fast, its starts, checkpoints and faults.

It only reads the files of the run, so it can look at one that is going on, from any machine that sees them. With
--plot it also draws losses, accuracies and throughput over the steps, with restarts marked.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN", help="directory of the run")
    parser.add_argument("--plot", metavar="PNG", help="also draw the curves into this new file")
    parser.add_argument("--force", action="store_true", help="let --plot replace a file")


def run(args: argparse.Namespace) -> int:
    import time

    from slmkit.files import atomic_write
    from slmkit.train.inspect import RunView, picture, summary

    view = RunView.read(args.run_dir)
    print("\n".join(summary(view, now=time.time())))
    if args.plot:
        drawn = picture(view)
        with atomic_write(args.plot, replace=args.force) as file:
            file.write(drawn)
    return 0
