"""Names of the hub, through the real client against a small hub on loopback."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import TOKEN, HubServer

from slmkit.errors import UserError
from slmkit.hub import HubName, chosen, local_file, local_path, parse, shown, source_of

FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": b"s" * 300_000,
    "pytorch_model.bin": b"b",
    "modeling.py": b"raise SystemExit",
    "original/weights.pth": b"p",
}
FETCHED = ["config.json", "model.safetensors", "tokenizer.json"]
NOWHERE = "http://127.0.0.1:9"
FETCH = """
import sys
from slmkit import hub, log
from slmkit.errors import UserError
log.set_up()
try:
    print(hub.source_of(hub.local_path(sys.argv[1], what="the model")))
except UserError as error:
    print(error)
    sys.exit(2)
assert "torch" not in sys.modules
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with HubServer() as server:
        server.connect(monkeypatch, tmp_path / "home")
        yield server


def listed(path: Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def fetch(name: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A process that fetches `name` and says what it is, or why not."""
    words = [sys.executable, "-c", FETCH, name]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_settings_and_the_best_weights_are_fetched_and_no_code(hub: HubServer) -> None:
    commit = hub.publish("org/base", FILES)
    path = local_path("org/base", what="the base model")
    assert listed(path) == FETCHED
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert source_of(path) == shown("org/base", path) == f"org/base@{commit}"
    assert hub.asked("GET", ".py") == hub.asked("GET", ".bin") == hub.asked("GET", ".pth") == 0


@pytest.mark.parametrize(
    ("files", "inside", "expected"),
    [
        (["a.json", "pytorch_model.bin", "x.ckpt"], "", ["a.json", "pytorch_model.bin"]),
        (["a.yaml", "big.ckpt", "small.ckpt"], "", ["a.yaml", "big.ckpt", "small.ckpt"]),
        (["a.yaml", "big.ckpt", "small.ckpt"], "small.ckpt", ["a.yaml", "small.ckpt"]),
        (["model.safetensors", "model.fp32-00001-of-00002.safetensors"], "", ["model.safetensors"]),
        (["model-00001-of-00002.safetensors", "other.safetensors"], "", ["model-00001-of-00002.safetensors"]),
        (["training_args.bin", "encoder.bin", "decoder.bin"], "", ["decoder.bin", "encoder.bin"]),
        (["enc.bin", "enc_v2.bin", "dec.bin", "dec_v2.bin", "re.bin"], "", ["dec_v2.bin", "enc_v2.bin", "re.bin"]),
        (["avg/config.json", "avg/x.pt", "other/y.pt"], "avg", ["avg/config.json", "avg/x.pt"]),
        (
            ["model.safetensors", "voices/a.npy", "voices/a.py", "codec/codec.json", "codec/model.safetensors"],
            "",
            ["model.safetensors", "codec/codec.json", "codec/model.safetensors", "voices/a.npy"],
        ),
        (["codec.json", "voice/config.json", "voice/x.py"], "", ["codec.json", "voice/config.json"]),
        (
            ["e/codec/codec.json", "e/codec/voice/config.json", "e/codec/voice/pretrained.pt"],
            "e",
            ["e/codec/codec.json", "e/codec/voice/config.json", "e/codec/voice/pretrained.pt"],
        ),
        (["voices/anna.WAV", "voices/b.flac", "voices/b.exe"], "", ["voices/anna.WAV", "voices/b.flac"]),
        (
            ["model.safetensors", "trained_on/sources.json", "trained_on/keys.npy", "trained_on/x.pkl"],
            "",
            ["model.safetensors", "trained_on/sources.json", "trained_on/keys.npy"],
        ),
        (["model.onnx", "model.gguf", "a.pkl", "a.py", "notes.md", "README.md"], "", ["README.md"]),
    ],
)
def test_which_files_of_a_repository_are_fetched(files: list[str], inside: str, expected: list[str]) -> None:
    assert chosen(files, inside) == expected


def test_what_is_an_id_and_what_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse("org/name") == HubName("org/name")
    assert parse("org/name@v1.0") == HubName("org/name", "v1.0")
    assert parse("org/name@refs/pr/1:a/b.ckpt") == HubName("org/name", "refs/pr/1", "a/b.ckpt")
    for path in ("name", "./org/name", "/org/name", "../name", "a/b/c", "org/name:../../x", "~/name", "x" * 5000):
        assert parse(path) is None, path
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse("org/name") is None


def test_a_directory_goes_before_the_hub_and_paths_are_never_looked_up(hub: HubServer, tmp_path: Path) -> None:
    hub.publish("org/base", FILES)
    (tmp_path / "org" / "base").mkdir(parents=True)
    assert local_path("org/base", what="the model") == Path("org/base")
    assert source_of("org/base") == str(tmp_path / "org" / "base")
    assert shown("org/base", "org/base") == "org/base"
    for path in ("nowhere", "./org/other", str(tmp_path / "none")):
        with pytest.raises(UserError, match="the model does not exist"):
            local_path(path, what="the model")
    assert hub.requests == []


def test_a_revision_is_a_commit_that_stays(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hub.publish("org/base", FILES, "v1")
    second = hub.publish("org/base", {**FILES, "config.json": b'{"a": 1}'})
    assert source_of(local_path("org/base@v1", what="the model")) == f"org/base@{first}"
    assert source_of(local_path("org/base", what="the model")) == f"org/base@{second}"
    assert source_of(local_path("org/base", what="the model", commit=first)) == f"org/base@{first}"
    assert hub.asked("GET", "model.safetensors") == 1  # the same content twice
    hub.connect(monkeypatch, tmp_path / "home")
    hub.requests.clear()
    assert listed(local_path(f"org/base@{first}", what="the model")) == FETCHED
    assert hub.requests == []
    with pytest.raises(UserError, match=r"org/base has no revision v9\n.*got: +org/base@v9"):
        local_path("org/base@v9", what="the model")


def test_a_part_of_a_commit_in_the_cache_is_not_taken_for_all(hub: HubServer) -> None:
    from huggingface_hub import hf_hub_download

    commit = hub.publish("org/base", FILES)
    hf_hub_download("org/base", "tokenizer.json", revision=commit)  # as a tokenizer is loaded by its id
    assert listed(local_path(f"org/base@{commit}", what="the model")) == FETCHED


def test_one_file_or_folder_of_a_repository(hub: HubServer) -> None:
    files = {"a.ckpt": b"a", "b.ckpt": b"b", "b.yaml": b"x: 1", "sub/c.pt": b"c", "sub/config.json": b"{}"}
    commit = hub.publish("org/codec", files)
    path = local_path("org/codec:b.ckpt", what="the codec")
    assert path.read_bytes() == b"b"
    assert source_of(path) == f"org/codec@{commit}:b.ckpt"
    assert listed(path.parent) == ["b.ckpt", "b.yaml"]
    assert listed(local_path("org/codec:sub", what="the codec")) == ["c.pt", "config.json"]
    assert local_file("org/codec:sub", what="weights").name == "c.pt"
    with pytest.raises(UserError, match=r"does not hold one file with weights\n.*a.ckpt, b.ckpt"):
        local_file("org/codec", what="weights")
    with pytest.raises(UserError, match="holds no files that can be used for the codec"):
        local_path("org/codec:none", what="the codec")


def test_without_network_the_cache_answers(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish("org/base", FILES)
    path = local_path("org/base", what="the model")
    for options in ({"offline": True}, {"endpoint": NOWHERE}):
        hub.connect(monkeypatch, tmp_path / "home", **options)
        assert local_path("org/base", what="the model") == path
    hub.connect(monkeypatch, tmp_path / "home", offline=True)
    with pytest.raises(
        UserError, match=r"org/other is no directory here.*\n.*HF_HUB_OFFLINE is set, and no whole copy"
    ):
        local_path("org/other", what="the model")
    with pytest.raises(UserError, match="no whole copy"):
        local_path("org/base@v1", what="the model")
    (path / "tokenizer.json").unlink()  # as a download that was killed leaves it
    hub.connect(monkeypatch, tmp_path / "home", offline=True)
    with pytest.raises(UserError, match="no whole copy"):
        local_path("org/base", what="the model")
    hub.connect(monkeypatch, tmp_path / "home", endpoint=NOWHERE)
    with pytest.raises(UserError, match=r"no directory here, and org/base cannot be fetched from http://127.0.0.1:9"):
        local_path("org/base", what="the model")


def test_what_the_hub_refuses_is_named(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("gated", "private"):
        hub.publish(f"org/{name}", FILES)
    hub.gated.add("org/gated")
    hub.private.add("org/private")
    with pytest.raises(UserError, match=r"(?s)access to org/gated is not granted.*HTTP 403.*accept the terms at"):
        local_path("org/gated", what="the model")
    for name, status in (("none", 404), ("private", 401)):
        message = rf"(?s)the codec org/{name} is no directory here, and \S+ shows no such repository.*HTTP {status}"
        with pytest.raises(UserError, match=message):
            local_path(f"org/{name}", what="the codec")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="HTTP 401") as refused:
        local_path("org/private", what="the codec")
    assert "hf_wrong" not in str(refused.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert listed(local_path("org/private", what="the codec")) == FETCHED
    monkeypatch.delenv("HF_TOKEN")
    hub.connect(monkeypatch, tmp_path / "home")
    assert listed(local_path("org/private", what="the codec")) == FETCHED  # of the cache


def test_what_cannot_be_used_or_written_is_named(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.publish("org/code", {"run.py": b"", "data.pkl": b""})
    with pytest.raises(UserError, match=r"holds no files that can be used for the model\n.*data.pkl, run.py"):
        local_path("org/code", what="the model")
    hub.publish("org/base", FILES)
    (tmp_path / "file").touch()
    hub.connect(monkeypatch, tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot write .*file/hub: Not a directory"):
        local_path("org/base", what="the model")


def test_a_killed_download_goes_on_and_three_processes_fetch_once(tmp_path: Path) -> None:
    with HubServer() as hub:
        commit = hub.publish("org/base", FILES)
        environment = hub.environment(tmp_path)
        hub.stopped_at = "model.safetensors"
        killed = fetch("org/base", {**environment, "HF_HUB_DOWNLOAD_TIMEOUT": "300"})
        assert hub.is_stopped.wait(60)
        while len(list(tmp_path.glob("hub/*/snapshots/*/*.json"))) < 2:
            assert killed.poll() is None, killed.communicate()
            time.sleep(0.05)
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
        offline = fetch("org/base", {**environment, "HF_HUB_OFFLINE": "1"})
        assert "no whole copy" in offline.communicate()[0]
        hub.stopped_at = None
        hub.goes_on.set()
        hub.requests.clear()
        told = ""
        for process in [fetch("org/base", environment) for _ in range(3)]:
            out, said = process.communicate()
            assert (process.returncode, out) == (0, f"org/base@{commit}\n"), said
            told += said
        assert "fetching org/base@" in told
        assert "1 file, 0.3 MB" in told
        assert hub.asked("GET", "model.safetensors") == 1
        assert hub.asked("GET", ".json") == 0
