"""The hub ids of a run config: one commit for every process and every start of a run, and its files on every machine.

The first process asks the hub what a name stands for, unless an earlier start has noted it in RUN/config.yaml. Then one
process of each machine fetches the files of that commit, while the others wait.

Example:
    config = with_commits(config, world)
    config.revisions                    # {"Qwen/Qwen2.5-0.5B": "060db6499f32faf8b98477b0a26969ef7d8b9987"}
"""

from pathlib import Path

from slmkit.config import run_dir
from slmkit.config.load import read_yaml
from slmkit.config.train import TrainConfig
from slmkit.group import from_first, in_chosen, in_first, is_grouped
from slmkit.hub import commit_of
from slmkit.world import World


def with_commits(config: TrainConfig, world: World) -> TrainConfig:
    """`config` with the commits of its hub ids, whose files are in this machine's cache. All processes call it.

    Raises UserError, in every process, where an id cannot be found or fetched.
    """
    names = config.hub_names
    names = from_first(names) if is_grouped() else names  # another machine may have a directory of this name
    if not names:
        return config
    commits: dict[str, str | None] = {}

    def find() -> None:
        known = _with(config, {**_noted(config.run_dir), **config.revisions})
        commits.update({name: commit_of(known.place(option, name)) for option, name in names.items()})

    in_first(find)
    commits = from_first(commits) if is_grouped() else commits
    found = {name: commit for name, commit in commits.items() if commit is not None}
    pinned = _with(config, {**config.revisions, **found})

    def fetch() -> None:
        for option, name in names.items():
            pinned.place(option, name)

    in_chosen(fetch, is_chosen=world.local_rank == 0)
    return pinned


def _with(config: TrainConfig, revisions: dict[str, str]) -> TrainConfig:
    return config.model_copy(update={"revisions": dict(sorted(revisions.items()))})


def _noted(directory: str) -> dict[str, str]:
    """What an earlier start of the run has found."""
    path = Path(directory) / run_dir.CONFIG
    noted = read_yaml(path).get("revisions") if path.is_file() else None
    return {str(name): str(commit) for name, commit in noted.items()} if isinstance(noted, dict) else {}
