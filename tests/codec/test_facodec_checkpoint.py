"""Loading FACodec's files: what is folded, what is skipped, and every refusal by name."""

import pickle

import pytest
import torch
from seeded_facodec import states, write_files

from slmkit.codec.facodec.checkpoint import FILES, check_state, hash_files, load_weights, published_layout
from slmkit.codec.facodec.codec import FACodec
from slmkit.codec.weights import fold
from slmkit.errors import UserError
from slmkit.files import sha256_file

ENCODER = FILES["encoder"]
BIAS = "block.0.bias"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("facodec")
    write_files(path)
    return path


def test_from_directory_builds_a_codec_that_names_its_weights(directory):
    codec = FACodec.from_directory(directory)
    assert len(codec.spec.streams) == 3
    assert codec.spec.weights_sha256 == hash_files(directory)


def test_the_hash_covers_both_files(tmp_path):
    for name, content in zip(FILES.values(), (b"one", b"two"), strict=True):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "both").write_bytes(b"onetwo")
    assert hash_files(tmp_path) == sha256_file(tmp_path / "both")


def test_loading_leaves_the_random_numbers_alone(directory):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_weights(directory)
    assert torch.equal(torch.rand(2), expected)


def test_folding_makes_one_weight_of_length_g():
    v, g = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[10.0], [1.0]])
    folded = fold({"a.bias": v[0], "a.weight_g": g, "a.weight_v": v})
    assert set(folded) == {"a.bias", "a.weight"}
    torch.testing.assert_close(folded["a.weight"], torch.tensor([[6.0, 8.0], [0.0, 1.0]]))


def test_keys_of_training_losses_are_skipped(tmp_path):
    extra = {f"{name}_predictor.x": torch.zeros(1) for name in ("f0", "phone", "res_f0", "res_phone", "x_timbre")}
    layout = published_layout()["encoder"]
    assert set(check_state(states()["encoder"] | extra, layout, tmp_path)) == set(layout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({BIAS: None}, "missing: block.0.bias"),
        ({"block.9.bias": torch.zeros(1)}, "unknown: block.9.bias"),
        ({"my_f0_predictor.x": torch.zeros(1)}, "unknown: my_f0_predictor.x"),
        ({"f0_predictor_x": torch.zeros(1)}, "unknown: f0_predictor_x"),
        ({BIAS: torch.zeros(31)}, r"wrong shape: block.0.bias is \[31\], expected \[32\]"),
        ({BIAS: torch.full((32,), float("nan"))}, "not finite: block.0.bias"),
        ({BIAS: torch.zeros(32, dtype=torch.int64)}, "not a tensor of real numbers: block.0.bias"),
        ({BIAS: torch.zeros(32).to_sparse()}, "not a tensor of real numbers: block.0.bias"),
        ({BIAS: "text"}, "not a tensor of real numbers: block.0.bias"),
    ],
)
def test_a_wrong_key_is_named(tmp_path, change, message):
    state = {key: value for key, value in (states()["encoder"] | change).items() if value is not None}
    torch.save(state, tmp_path / ENCODER)
    with pytest.raises(UserError, match=message) as caught:
        load_weights(tmp_path)
    assert ENCODER in caught.value.what
    assert "download" in caught.value.next_step


def test_the_other_file_is_refused_by_its_keys(tmp_path):
    torch.save(states()["encoder"], tmp_path / ENCODER)
    torch.save(states()["encoder"], tmp_path / FILES["decoder"])
    with pytest.raises(UserError, match=r"decoder_v2.bin does not hold FACodec V2:\n  - missing: .*\n(.*\n)*.* more"):
        load_weights(tmp_path)


@pytest.mark.parametrize("found", [[torch.zeros(1)], {1: torch.zeros(1)}, torch.zeros(1)])
def test_something_else_than_a_state_dict_is_refused(tmp_path, found):
    torch.save(found, tmp_path / ENCODER)
    with pytest.raises(UserError, match=r"does not hold (weights by name|FACodec V2)"):
        load_weights(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=f"cannot read .*{ENCODER}: .*No such file"):
        FACodec.from_directory(tmp_path)


class Payload:
    """Pickles to a call."""

    def __reduce__(self):
        return print, ("this must never be printed",)


@pytest.mark.parametrize("dump", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, capsys, dump):
    dump({BIAS: Payload()}, tmp_path / ENCODER)
    with pytest.raises(UserError, match=r"cannot read|does not hold FACodec V2"):
        load_weights(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("keep", [0, 1, 10, 1000, 0.5, -1, -100, -5000])
def test_a_file_cut_short_is_refused(tmp_path, directory, keep):
    whole = (directory / ENCODER).read_bytes()
    size = int(keep * len(whole)) if isinstance(keep, float) else keep % len(whole)
    (tmp_path / ENCODER).write_bytes(whole[:size])
    with pytest.raises(UserError, match=rf"cannot read .*{ENCODER}(.*\n)*.*download"):
        load_weights(tmp_path)


@pytest.mark.parametrize(
    "content", [b"<html>not found</html>", b"\x80\x02.", b"\x80\x02N.", b"\0" * 4096, b"RIFF    WAVE"]
)
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / ENCODER).write_bytes(content)
    with pytest.raises(UserError, match=ENCODER):
        load_weights(tmp_path)
