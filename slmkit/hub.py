"""Models and codecs by name: a local directory, or an id of the Hugging Face hub.

    ORG/NAME                    the newest state of a repository
    ORG/NAME@REVISION           a branch, a tag or a commit of it
    ORG/NAME@REVISION:PATH      one folder or file inside it

What exists on this disk is never looked up on the hub, nor is a name that can only be a path (`./x`, `/x`, `x`,
`x/y/z`). Of a repository the settings and one set of weights are fetched, safetensors where there are any; never code.
The files lie in the cache of `huggingface_hub`; its variables HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE count.
Processes that fetch the same files wait for each other by its locks, and a download that was killed keeps the files
that were whole.

Invariant: a commit has one content, so a cache that has all of it answers without the network.

Example:
    directory = local_path("Qwen/Qwen2.5-0.5B", what="the base model")
    source_of(directory)                # "Qwen/Qwen2.5-0.5B@060db6499f32faf8b98477b0a26969ef7d8b9987"
"""

import errno
import glob
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from slmkit.audio import AUDIO_SUFFIXES
from slmkit.errors import UserError
from slmkit.files import disk_error
from slmkit.log import get_logger
from slmkit.texts import counted

PART = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
ID = re.compile(rf"(?P<repo>{PART}/{PART})(@(?P<revision>[A-Za-z0-9._/-]+))?(:(?P<inside>[^:\0]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
SNAPSHOT = re.compile(r"models--(?P<org>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})(/(?P<inside>.+))?$")
MAIN = "main"
SETTINGS = (".json", ".txt", ".model", ".jinja", ".yaml", ".yml", "README.md")  # the last names the licence
WEIGHTS = ((".safetensors",), (".bin",), (".pt", ".pth", ".ckpt", ".th"))  # the first kind that is there is fetched
USUAL_NAMES = ("model", "pytorch_model")  # of weights; beside them may lie copies of other float types
OF_TRAINERS = ("training_args.bin", "optimizer.bin", "scheduler.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")
VOICES = "voices"
# Folders beside the weights of an exported model, or of a codec.
PARTS = ("codec", "codec/voice", "voice", VOICES, "trained_on")
SHORT = 12  # characters of a commit, in messages
DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR)
logger = get_logger(__name__)
_fetched: dict[str, Path] = {}  # what this process has asked for


class HubName(NamedTuple):
    """An id of the hub."""

    repo: str  # ORG/NAME
    revision: str = MAIN
    inside: str = ""  # path of a folder or file in the repository; "": the whole

    def at(self, commit: str) -> str:
        """The id of one commit."""
        return f"{self.repo}@{commit}{f':{self.inside}' if self.inside else ''}"


def parse(name: str | Path) -> HubName | None:
    """The parts of an id; None for what is a path, or exists on this disk."""
    found = ID.fullmatch(str(name))
    if found is None or os.path.exists(name):
        return None
    inside = PurePosixPath(found["inside"] or "")
    if ".." in inside.parts or inside.is_absolute():
        return None
    return HubName(found["repo"], found["revision"] or MAIN, "" if str(inside) == "." else str(inside))


def local_path(name: str | Path, *, what: str, commit: str | None = None) -> Path:
    """The directory (or file) of this name on this disk, fetched from the hub where it is an id.

    `what` it holds is named in errors: "the model". With a `commit` the id is taken at that one, whatever revision it
    names. Raises UserError where there is neither such a path nor such a repository, or it cannot be fetched.
    """
    wanted = parse(name)
    if wanted is None:
        if not os.path.exists(name):
            form = "a path, or ORG/NAME, ORG/NAME@REVISION of a repository on the Hugging Face hub"
            raise UserError(f"{what} does not exist", got=f"{name!s:.300}", expected=form, next_step="check the name")
        return Path(name)
    if commit is not None:
        wanted = wanted._replace(revision=commit)
    key = wanted.at(wanted.revision)
    if key not in _fetched:
        _fetched[key] = _Download(wanted, str(name), what).path()
    return _fetched[key]


def local_file(name: str | Path, *, what: str) -> Path:
    """As `local_path`, of what is one file of weights: of a directory or repository its only one."""
    path = local_path(name, what=what)
    if not path.is_dir():
        return path
    weights = [file for file in chosen(os.listdir(path)) if _kind(file) is not None]
    if len(weights) != 1:
        form = "one, or ORG/NAME:FILE"
        raise UserError(f"{name} does not hold one file with {what}", got=", ".join(weights[:8]), expected=form)
    return path / weights[0]


def source_of(path: str | Path) -> str:
    """Where a local path is from, for the record: an id with its commit, or else the absolute path."""
    absolute = os.path.abspath(path)
    found = SNAPSHOT.search(absolute)
    if found is None:
        return absolute
    return HubName(f"{found['org']}/{found['name']}", found["commit"], found["inside"] or "").at(found["commit"])


def shown(name: str | Path, path: str | Path) -> str:
    """A name for the record: as it was given, and of a hub id the commit that `path` is of."""
    return source_of(path) if commit_of(path) is not None else str(name)


def commit_of(path: str | Path) -> str | None:
    """The commit of a path in the hub's cache."""
    found = SNAPSHOT.search(os.path.abspath(path))
    return found["commit"] if found else None


def chosen(files: Iterable[str], inside: str = "") -> list[str]:
    """Those files of a repository that are fetched, by their paths: settings, and one set of weights.

    `inside` names a folder, or a file whose settings lie beside it.
    """
    listed = sorted(files)
    if inside in listed:
        folder = _parent(inside)
        return [file for file in listed if file == inside or (_parent(file) == folder and file.endswith(SETTINGS))]
    found = _of_folder(listed, inside)
    for part in PARTS:
        below = f"{inside}/{part}".strip("/")
        found += _of_folder(listed, below)
        arrays = (".npy", *AUDIO_SUFFIXES) if part == VOICES else (".npy",)
        found += [file for file in listed if _parent(file) == below and file.lower().endswith(arrays)]
    return found


def _of_folder(listed: Sequence[str], folder: str) -> list[str]:
    names = [file for file in listed if _parent(file) == folder]
    weights = [file for file in names if _kind(file) is not None and PurePosixPath(file).name not in OF_TRAINERS]
    best = min((_kind(file) or 0 for file in weights), default=0)
    weights = [file for file in weights if _kind(file) == best]
    stems = {PurePosixPath(file).stem for file in weights}
    weights = [file for file in weights if f"{PurePosixPath(file).stem}_v2" not in stems]  # as FACodec's are named
    for usual in USUAL_NAMES:
        whole = [file for file in weights if PurePosixPath(file).stem == usual]
        parts = [file for file in weights if re.fullmatch(rf"{usual}-\d+-of-\d+", PurePosixPath(file).stem)]
        if whole or parts:
            weights = whole or parts
            break
    return [file for file in names if file.endswith(SETTINGS)] + weights


def _parent(file: str) -> str:
    return str(PurePosixPath(file).parent) if "/" in file else ""


def _kind(file: str) -> int | None:
    """Which of `WEIGHTS` a file is of."""
    return next((kind for kind, suffixes in enumerate(WEIGHTS) if file.endswith(suffixes)), None)


class _Download:
    """One id, looked up and fetched."""

    def __init__(self, wanted: HubName, name: str, what: str) -> None:
        self.wanted, self.name, self.what = wanted, name, what

    def path(self) -> Path:
        """Where its files are, all of them. Raises UserError."""
        is_commit = COMMIT.fullmatch(self.wanted.revision) is not None
        folder = self._cached() if is_commit and self._listed() else None  # or nobody knows whether all is there
        if folder is None:
            folder = self._fetched()
        path = folder / self.wanted.inside
        if not path.exists():
            raise UserError(f"{self.wanted.repo} holds no {self.wanted.inside}", got=self.name)
        return path

    def _fetched(self) -> Path:
        from huggingface_hub import HfApi, constants, snapshot_download
        from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled, RevisionNotFoundError
        from tqdm.auto import tqdm

        repo, revision = self.wanted.repo, self.wanted.revision
        try:
            about = HfApi().model_info(
                repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
            commit, sizes = str(about.sha), {file.rfilename: file.size or 0 for file in about.siblings or ()}
            names = chosen(sizes, self.wanted.inside)
            if not names:
                raise UserError(
                    f"{self.wanted.at(commit)} holds no files that can be used for {self.what}",
                    got=", ".join(sorted(sizes)[:8]) or "no files",
                    expected="settings (.json, .yaml) and weights (.safetensors, .bin, .pt, .ckpt)",
                )
            missing = [name for name in names if not self._is_cached(commit, name)]
            began = time.monotonic()
            if missing:
                size = _megabytes(sum(sizes[name] for name in missing))
                logger.info("fetching %s@%s: %s, %s", repo, commit[:SHORT], counted(len(missing), "file"), size)
            patterns = [glob.escape(name) for name in names]
            bars = tqdm if missing and sys.stderr.isatty() else None
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, tqdm_class=bars))
            if missing:
                logger.info("fetched %s in %.0f s: %s", repo, time.monotonic() - began, folder)
            return folder
        except RevisionNotFoundError as error:
            form = "a branch, a tag or a commit"
            raise UserError(f"{repo} has no revision {revision}", got=self.name, expected=form) from error
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in DISK_REFUSES:
                raise disk_error(constants.HF_HUB_CACHE, error) from error
            cached = self._cached()
            if cached is None:
                raise self._refused(error) from error
            if isinstance(error, OfflineModeIsEnabled):
                return cached
            logger.warning("the hub gives no answer about %s (%s); its copy in the cache is used", repo, _short(error))
            return cached

    def _is_cached(self, commit: str, name: str) -> bool:
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(self.wanted.repo, name, revision=commit), str)

    def _listed(self) -> list[str]:
        """All files of the repository, as the cache knows them; none where it was fetched by an older program."""
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        try:
            return [file.path for file in get_cached_repo_tree(self.wanted.repo, revision=self.wanted.revision)]
        except CachedRepoTreeNotFoundError:
            return []

    def _cached(self) -> Path | None:
        """The folder in the cache where all wanted files are in it. Without a list, what is there is taken for all."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        repo, revision = self.wanted.repo, self.wanted.revision
        patterns = [glob.escape(name) for name in chosen(self._listed(), self.wanted.inside)] or None
        try:
            folder = snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True)
        except LocalEntryNotFoundError:
            return None
        return Path(folder)

    def _refused(self, error: Exception) -> UserError:
        """What the hub's answer means, in words."""
        from huggingface_hub import constants
        from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

        repo, where = self.wanted.repo, constants.ENDPOINT
        missing = f"{self.what} {self.name} is no directory here"
        status = getattr(getattr(error, "response", None), "status_code", None)
        login = "set HF_TOKEN, or run `hf auth login`"
        if isinstance(error, OfflineModeIsEnabled):
            got = f"HF_HUB_OFFLINE is set, and no whole copy is in {constants.HF_HUB_CACHE}"
            step = f"unset HF_HUB_OFFLINE, or run `hf download {repo}` where there is a network"
            return UserError(f"{missing}, and the hub may not be asked", got=got, next_step=step)
        if isinstance(error, GatedRepoError) or status == 403:
            got = f"HTTP {status} from {where}"
            step = f"accept the terms at {where}/{repo}, then {login}"
            return UserError(f"access to {repo} is not granted", got=got, next_step=step)
        if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
            step = f"check the name; where the repository is private, {login}"
            what = f"{missing}, and {where} shows no such repository"
            return UserError(what, got=f"HTTP {status}", expected="a directory, or ORG/NAME on the hub", next_step=step)
        if status is not None:
            return UserError(f"{where} refuses {repo}", got=f"HTTP {status}", next_step="try again later")
        step = "check the network and HF_ENDPOINT; where there is no network, give a directory"
        return UserError(f"{missing}, and {repo} cannot be fetched from {where}", got=_short(error), next_step=step)


def _short(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _megabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
