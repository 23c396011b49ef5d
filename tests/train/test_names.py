"""Runs whose base model is named by an id of the hub."""

from pathlib import Path

import pytest
import yaml
from hub_server import HubServer
from synthetic import WORDS
from train.ranks import finish_ranks, run_ranks, start_ranks
from train.tiny_run import make_tiny, tiny_config

from slmkit.config.load import read_yaml, to_yaml
from slmkit.config.run_dir import MODEL, newest
from slmkit.errors import UserError
from slmkit.files import read_json
from slmkit.model.companions import SOURCE_FILE, voices_beside
from slmkit.model.init_base import init_base
from slmkit.train.names import with_commits
from slmkit.train.run import prepare_run
from slmkit.world import World

WORKER = str(Path(__file__).with_name("hub_train.py"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = make_tiny(tmp_path_factory.mktemp("names"))
    init_base(WORDS, place / "other", hidden_size=16, num_layers=2, vocab_size=280)
    return place


@pytest.mark.full
def test_a_run_goes_on_with_the_commit_it_began_with(place: Path) -> None:
    """Two processes fetch once. Then the branch moves on to another model, and the run does not."""
    with HubServer() as hub:
        first = hub.publish("org/base", place / "base")
        config = tiny_config(place, base="org/base", steps=2, save_every_steps=1, micro_rows=1)
        (place / "run.yaml").write_text(to_yaml(config))
        words = [WORKER, hub.endpoint, str(place / "home"), "--config", str(place / "run.yaml")]
        run_ranks(2, words)
        assert hub.asked("GET", "/model.safetensors") == 1
        assert hub.asked("GET", "/revision/main") == 2  # for the commit, and to fetch it: by one process
        assert read_yaml(place / "run" / "config.yaml")["base"] == "org/base"
        assert read_yaml(place / "run" / "config.yaml")["revisions"] == {"org/base": first}
        assert read_json(place / "run" / "provenance.json")["config"]["revisions"] == {"org/base": first}
        assert [*voices_beside(place / "run" / MODEL)] == ["s"]
        assert not (place / "run" / MODEL / SOURCE_FILE).exists()  # the corpus does not know its codec
        second = hub.publish("org/base", place / "other")
        hub.requests.clear()
        run_ranks(2, [*words, "steps=3"])
        assert hub.requests == []
        found = newest(place / "run")
        assert found is not None
        assert found.step == 3
        assert found.state["config"]["revisions"] == {"org/base": first}
        (code, _, said), _ = finish_ranks(start_ranks(2, [*words, "steps=4", f"base=org/base@{second}"]))
        assert code != 0, said
        (code, _, said), (_, _, silent) = finish_ranks(start_ranks(2, [*words, f"run_dir={place}/x", "base=org/none"]))
        assert code == 2
        assert "base org/none is no directory here" in said + silent


def test_an_earlier_start_says_which_commit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer() as hub:
        commit = hub.publish("org/base", place / "base", "v1")
        hub.connect(monkeypatch, place / "here")
        config = with_commits(tiny_config(place, place / "third", base="org/base@v1"), World())
        assert config.revisions == {"org/base@v1": commit}
        assert prepare_run(config, World()).model.backbone is not None
        (place / "third").mkdir(exist_ok=True)
        (place / "third" / "config.yaml").write_text(yaml.safe_dump({"revisions": {"org/base@v1": "0" * 40}}))
        with pytest.raises(UserError, match="has no revision 0000"):
            with_commits(tiny_config(place, place / "third", base="org/base@v1"), World())
    assert with_commits(tiny_config(place), World()).revisions == {}
