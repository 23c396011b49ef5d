"""`slmkit tokenize` and `slmkit import` as a user runs them: exit codes, messages, recipes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer
from raw_corpora import read_source

from slmkit.cli.main import main
from slmkit.config.load import load_config
from slmkit.config.tokenize import TokenizeConfig
from slmkit.corpora.base import Audio, Utterance
from slmkit.corpora.layouts import LAYOUTS, layout
from slmkit.data.index import Corpus
from slmkit.data.shards import ShardReader

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "tokenize_jobs").glob("*.yaml"))
MANIFEST, ROLETRIVIAQA, LIBRITTS_PARQUET = (
    ROOT / "tokenize_jobs" / f"{name}.yaml" for name in ("manifest", "roletriviaqa", "libritts_parquet")
)
SAMPLES = ROOT / "tokenize_jobs" / "sample_corpus"  # 32 sentences


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    directory = tmp_path_factory.mktemp("codec") / "melvq"
    assert main(["codec", "fit", str(SAMPLES), str(directory)]) == 0
    return directory


def tokenize(source, codec, out, *words):
    recipe = ["--config", str(ROOT / "tokenize_jobs/libritts.yaml"), "--num-workers", "0"]
    return main(["tokenize", "run", *recipe, str(source), str(codec), str(out), "--set", "shard_samples=10", *words])


def contents(out):
    """File name -> bytes, without the files that name the commit or the time."""
    paths = [path for path in Path(out).iterdir() if path.is_file()]
    return {path.name: path.read_bytes() for path in paths if path.name not in ("manifest.json", "job.json")}


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_a_folder_becomes_a_corpus(codec, tmp_path):
    assert tokenize(SAMPLES, codec, tmp_path / "3") == 0
    corpus = Corpus.open(tmp_path / "3")
    assert (len(corpus), len(corpus.shards)) == (32, 4)
    assert (corpus.codec.name, corpus.codec_source) == ("melvq", str(codec))
    assert json.loads((tmp_path / "3/manifest.json").read_text())["made_by"]["config"]["language"] == "en"


def test_a_codec_of_the_hub_is_noted_with_its_commit(codec, tmp_path, monkeypatch):
    with HubServer() as hub:
        hub.connect(monkeypatch, tmp_path / "home")
        commit = hub.publish("org/melvq", codec)
        assert tokenize(SAMPLES / "11", "org/melvq", tmp_path / "out") == 0
        assert tokenize(SAMPLES / "11", codec, tmp_path / "out") == 0  # the same job
    assert Corpus.open(tmp_path / "out").codec_source == f"org/melvq@{commit}"
    assert main(["tokenize", "verify", str(tmp_path / "out"), "--codec", "org/melvq", "--samples", "1"]) == 0


@pytest.mark.full
def test_a_killed_command_started_again_gives_the_same_bytes(codec, tmp_path):
    assert tokenize(SAMPLES, codec, tmp_path / "whole", "--set", "shard_samples=1") == 0
    words = [str(SAMPLES), str(codec), str(tmp_path / "cut"), "--num-workers", "2", "--set", "shard_samples=1"]
    recipe = str(ROOT / "tokenize_jobs/libritts.yaml")
    command = [sys.executable, "-m", "slmkit", "tokenize", "run", "--config", recipe, *words, "--set", "window=1"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    end = time.monotonic() + 100
    while not (tmp_path / "cut/libritts-000001.index.json").exists() and process.poll() is None:
        assert time.monotonic() < end, "no shard appeared"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(list((tmp_path / "cut").glob("*.index.json"))) < 32
    assert tokenize(SAMPLES, codec, tmp_path / "cut", "--set", "shard_samples=1", "--set", "batch_sec=1") == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_the_steps_one_by_one_give_what_one_run_gives(codec, tmp_path, capsys):
    assert tokenize(SAMPLES, codec, tmp_path / "whole") == 0
    out = tmp_path / "steps"
    recipe = ["--config", str(ROOT / "tokenize_jobs/libritts.yaml"), "--num-workers", "0", "--set", "shard_samples=10"]
    assert main(["tokenize", "plan", *recipe, str(SAMPLES), str(codec), str(out)]) == 0
    assert tokenize(SAMPLES, codec, out, "--task", "1", "--num-tasks", "3") == 0
    capsys.readouterr()
    assert main(["tokenize", "status", str(out)]) == 0
    assert main(["tokenize", "--status", str(out)]) == 0
    once, again = capsys.readouterr().out.split("finalized ")[:2]
    assert once in again
    assert "shards     1 of 4 done" in once
    assert "missing    shard 0, 2 to 3" in once
    assert main(["tokenize", "status", str(out), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["num_shards"], status["missing"], status["is_finalized"]) == (4, [0, 2, 3], False)
    assert main(["tokenize", "finalize", str(out)]) == 2
    assert "3 of 4 shards are missing\n  got:      no shard 0, 2 to 3" in capsys.readouterr().err
    for task in (0, 2):
        assert tokenize(SAMPLES, codec, out, "--task", str(task), "--num-tasks", "3") == 0
    assert main(["tokenize", "finalize", str(out)]) == 0
    assert contents(out) == contents(tmp_path / "whole")
    capsys.readouterr()
    assert main(["tokenize", "status", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "finalized  yes"
    assert main(["tokenize", "verify", str(out), "--codec", str(codec), "--samples", "2"]) == 0
    assert capsys.readouterr().out.startswith(f"{out} is whole")
    assert (tmp_path / "steps-verify/index.html").is_file()


@pytest.mark.full
def test_two_devices_share_a_task_and_another_codec_is_refused(codec, tmp_path, capfd):
    assert tokenize(SAMPLES, codec, tmp_path / "whole") == 0
    assert tokenize(SAMPLES, codec, tmp_path / "two", "--devices", "cpu,cpu") == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "whole")
    tasks = sorted(path.name for path in (tmp_path / "two/tasks").iterdir())
    assert tasks == ["0-of-2.json", "1-of-2.json"]
    assert main(["codec", "fit", str(SAMPLES), str(tmp_path / "other"), "--seed", "5"]) == 0
    assert tokenize(SAMPLES, tmp_path / "other", tmp_path / "two") == 2
    assert "holds another job: codec.weights_sha256 differs" in capfd.readouterr().err
    assert tokenize(SAMPLES, codec, tmp_path / "bad", "--devices", "cpu,xpu:9") == 2


@pytest.mark.full
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.full) for number in (signal.SIGINT, signal.SIGUSR1))],
    ids=lambda number: number.name,
)
def test_a_run_that_is_told_to_stop_says_so_and_goes_on_later(codec, tmp_path, number):
    out = tmp_path / "out"
    words = [*map(str, (SAMPLES, codec, out)), "--set", "shard_samples=1", "--set", "window=1", "--devices", "cpu,cpu"]
    command = [sys.executable, "-m", "slmkit", "tokenize", "run", *words, "--num-workers", "1"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 100
    while not list(out.glob("*.index.json")) and process.poll() is None:
        assert time.monotonic() < end, "no shard appeared"
        time.sleep(0.002)
    process.send_signal(number)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 75, message
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < end:  # the decoding processes end too
            os.killpg(process.pid, 0)
            time.sleep(0.05)
    states = {json.loads(path.read_text())["state"] for path in (out / "tasks").iterdir()}
    assert states <= {"stopped", "done"}
    assert "stopped" in states
    assert main(["tokenize", "run", *words[:5], "--num-workers", "0"]) == 0
    assert len(Corpus.open(out)) == 32


def test_no_action_is_an_error(capsys):
    assert main(["tokenize"]) == 2
    assert "expected: plan, run, submit, status, finalize or verify" in capsys.readouterr().err


def test_a_source_that_is_not_there_is_a_user_error(codec, tmp_path, capsys):
    assert tokenize(tmp_path / "missing", codec, tmp_path / "out") == 2
    assert "missing does not exist" in capsys.readouterr().err


def test_what_can_be_refused_at_once_is_refused_before_torch_is_imported(codec, tmp_path):
    assert tokenize(SAMPLES, codec, tmp_path / "other") == 0
    for words, message in (
        ([tmp_path / "missing", codec, tmp_path / "out"], "missing does not exist"),
        ([SAMPLES, codec, tmp_path / "out", "kind=libritss"], "did you mean libritts?"),
        ([SAMPLES, codec, tmp_path / "other"], "holds another job: settings.corpus differs"),
    ):
        code = "import sys\nfrom slmkit.cli.main import main\nprint(main(sys.argv[1:]), 'torch' in sys.modules)"
        command = [sys.executable, "-c", code, "tokenize", "run", *map(str, words)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
        assert done.stdout == "2 False\n"
        assert message in done.stderr


@pytest.fixture
def pairs():
    """A layout that slmkit does not know, added by who uses it."""

    @layout("pairs", files="DIR/a.flac beside DIR/a.trans")
    def read_pairs(source, options):
        def part():
            for path in sorted(Path(source).glob("*.flac")):
                yield Utterance(path.stem, Audio(str(path)), path.with_suffix(".trans"), path.name)

        return [part]

    yield
    del LAYOUTS["pairs"]


def test_a_layout_added_from_outside_is_tokenized(pairs, codec, tmp_path, capsys):
    for i, path in enumerate(sorted(SAMPLES.rglob("*.flac"))[:3]):
        (tmp_path / f"{i}.flac").write_bytes(path.read_bytes())
        (tmp_path / f"{i}.trans").write_text(f"Number {i}.")
    assert tokenize(tmp_path, codec, tmp_path / "out", "kind=pairs") == 0
    corpus = Corpus.open(tmp_path / "out")
    assert [ShardReader(corpus).read(i).meta["text"] for i in range(3)] == ["Number 0.", "Number 1.", "Number 2."]
    with pytest.raises(SystemExit):
        main(["tokenize", "run", "--help"])
    assert "DIR/a.flac beside DIR/a.trans" in capsys.readouterr().out


def test_codec_fit_and_tokenize_find_the_same_files(codec, tmp_path, capsys):
    """Speakers are links to folders elsewhere, with a loop in them; a Mac has left its files."""
    store, source = tmp_path / "store/60", tmp_path / "source/6"
    for path in sorted(SAMPLES.rglob("*.flac"))[:10]:
        for folder in (store, store / ".hidden", store / "__MACOSX"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / path.name).write_bytes(path.read_bytes())
            (folder / f"._{path.name}").write_bytes(b"\0\5\x16\7")
        (store / f"{path.stem}.normalized.txt").write_text("Words.")
    (store / "loop").symlink_to(store)
    source.mkdir(parents=True)
    (source / "60").symlink_to(store)
    assert tokenize(source.parent, codec, tmp_path / "out") == 0
    assert len(Corpus.open(tmp_path / "out")) == 10
    capsys.readouterr()
    assert main(["codec", "fit", str(source.parent), str(tmp_path / "fitted")]) == 0
    assert "fitted to 10 files" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["", "devices: [cpu]\n", "devices: ['cuda:0', 'cuda:1']\n"])
def test_the_tasks_of_an_array_run_on_the_devices_of_the_recipe(codec, tmp_path, capsys, line):
    """The script of the array knows where, as long as nobody says it."""
    (tmp_path / "recipe.yaml").write_text(f"corpus: c\n{line}")
    words = [str(SAMPLES), str(codec), str(tmp_path / "out"), "--config", str(tmp_path / "recipe.yaml")]
    assert main(["tokenize", "submit", "--dry-run", *words, "num_workers=0"]) == 0
    (array,) = [text for text in capsys.readouterr().out.splitlines() if "sbatch --array" in text]
    devices = {"": "", "devices: [cpu]\n": " --devices cpu"}.get(line, " --devices cuda:0,cuda:1")
    assert array.endswith(f"num_workers=0{devices}")


def test_missing_options_are_listed(capsys):
    assert main(["tokenize", "run"]) == 2
    message = capsys.readouterr().err
    for name in ("source", "codec", "out"):
        assert f"{name}: missing" in message


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipes_are_complete_but_for_the_paths(recipe):
    config = load_config(TokenizeConfig, recipe, ["source=a", "codec=b", "out=c"])
    assert config.kind == {"roletriviaqa": "parquet", "libritts_parquet": "parquet"}.get(recipe.stem, recipe.stem)
    assert config.corpus == recipe.stem
    assert f"slmkit tokenize run --config tokenize_jobs/{recipe.name} " in recipe.read_text()


def test_there_are_recipes():
    names = ["emilia", "kaldi", "librispeech", "libritts", "libritts_parquet", "manifest", "roletriviaqa"]
    assert [path.stem for path in RECIPES] == names


def test_the_columns_of_a_recipe_are_those_of_its_reader(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    columns = load_config(TokenizeConfig, MANIFEST, ["source=a", "codec=b", "out=c"]).columns
    assert read_source("manifest", tmp_path / "empty.jsonl", columns=columns, language="", max_sec=60.0) == []
    row = {"speech_answer": {"bytes": b"x", "path": "x"}, "text_answer": "A.", "text_question": "Q?", "role": "r"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train.parquet")
    columns = load_config(TokenizeConfig, ROLETRIVIAQA, ["source=a", "codec=b", "out=c"]).columns
    (item,) = read_source("parquet", tmp_path, columns=columns, language="", max_sec=60.0)
    assert (item.text, item.speaker, item.extra) == ("A.", "r", {"question": "Q?"})
    (tmp_path / "train.jsonl").write_text(json.dumps({**row, "speech_answer": "x.wav"}))
    (same,) = read_source("manifest", tmp_path / "train.jsonl", columns=columns, language="", max_sec=60.0)
    assert (same.text, same.speaker, same.extra) == ("A.", "r", {"question": "Q?"})


def test_libritts_of_hugging_face_is_read_by_its_recipe(tmp_path):
    row = {"audio": {"bytes": b"x", "path": "84_1.wav"}, "text_original": "Mr. A.", "text_normalized": "Mister A."}
    row |= {"speaker_id": "84", "path": "/x/84_1.wav", "chapter_id": "1", "id": "84_1"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "dev.clean-00000-of-00001.parquet")
    config = load_config(TokenizeConfig, LIBRITTS_PARQUET, ["source=a", "codec=b", "out=c"])
    (item,) = read_source(config.kind, tmp_path, columns=config.columns, language=config.language)
    assert (item.key, item.text, item.speaker, item.language) == ("84_1", "Mister A.", "84", "en")
    assert item.extra == {"text_original": "Mr. A.", "path": "/x/84_1.wav", "chapter_id": "1"}


def test_every_layout_shows_its_files(capsys):
    with pytest.raises(SystemExit):
        main(["tokenize", "run", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for entry in LAYOUTS.values():
        assert " ".join(f"{entry.name} {entry.files}".split()) in shown
    for form in ("FILE.csv", "metadata.csv", "audio_filepath", "-1: to the end", "json.text", "{bytes, path}"):
        assert form in shown


def test_published_codes_are_imported(tmp_path, capsys):
    lines = [{"uttid": f"u{i}", "text": "Hi.", "tokens": f"<a{i}><b2><c3>"} for i in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "b.jsonl").write_text(json.dumps({"uttid": "v", "text": "Hi.", "tokens": "<a1>"}))
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    out = tmp_path / "out"
    assert main(["import", *files, str(out), "--corpus", "demo", "--shard-samples", "2"]) == 2
    assert "1 of 6 items of the source failed" in capsys.readouterr().err
    again = ["import", *files, str(out), "--corpus", "demo", "--shard-samples", "2", "--max-failure-share", "0.2"]
    assert main(again) == 0
    corpus = Corpus.open(out)
    assert [corpus.key(i) for i in range(len(corpus))] == [f"u{i}" for i in range(5)]
    assert main(["import", *files, str(out), "--corpus", "de mo"]) == 2
    assert "letters, digits, _ and -" in capsys.readouterr().err


def test_the_demo_data_is_imported(demo_dir, tmp_path):
    files = [str(demo_dir / f"{name}.jsonl") for name in ("ntp", "mtp_h12")]
    assert main(["import", *files, str(tmp_path / "out")]) == 0
    corpus = Corpus.open(tmp_path / "out")
    assert len(corpus) == 20
    assert corpus.shards[0].frames[0] == 177
    assert corpus.codec.lm_streams == corpus.codec.streams
