"""Every kind of damage to a corpus is found and named, whatever else is damaged, in bounded memory."""

import json
import os
import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from rewritten import rewrite
from tiny_codec import SPEC

from slmkit.data.index import Corpus, ShardIndex, index_path, write_manifest
from slmkit.data.ledger import Failure
from slmkit.data.shards import Sample, ShardWriter
from slmkit.errors import UserError
from slmkit.tokenization.integrity import check_shards

SHARDS, SAMPLES = 3, 4
PLAN = {shard: [f"utt {shard}.{i}" for i in range(SAMPLES)] for shard in range(SHARDS)}
PLAN[1].insert(2, "bad 1")  # planned, and then a line of the ledger


def write_shard(directory: Path, shard: int, largest_code: int = 255, **last_meta: object) -> ShardIndex:
    """A shard of four samples, as the plan has it. `last_meta` goes to its last sample."""
    writer, draw = ShardWriter(directory, "tiny", shard), np.random.default_rng(shard)
    for i in range(SAMPLES):
        codes = draw.integers(0, largest_code + 1, (2, 5 + i)).astype(np.uint16)
        codes[1, 0] = largest_code
        checks = {"dc": 0.1 * i, **({"silence": 0.5} if i else {})}
        meta = {"text": "x" * i, "seconds": 0.0625 * (5 + i), "checks": checks, **(last_meta if i == 3 else {})}
        writer.add(Sample(f"utt {shard}.{i}", codes, draw.standard_normal(2).astype(np.float32), meta))
    return writer.commit([Failure("bad 1", "empty", "nothing in it")] if shard == 1 else [])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus") / "sound"
    finish(directory, [write_shard(directory, shard) for shard in range(SHARDS)])
    return directory


@pytest.fixture
def corpus(sound: Path, tmp_path: Path) -> Path:
    """A corpus to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "corpus"))


def finish(directory: Path, indexes: list[ShardIndex]) -> None:
    write_manifest(directory, "tiny", SPEC, [index.summary for index in indexes], {"config": {}})


def found(directory: Path, num_planned: int | None = SHARDS) -> list[str]:
    return [str(problem) for problem in check_shards(Corpus.open(directory), PLAN.get, num_planned)]


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_index(directory: Path, shard: int, **changes: object) -> None:
    change(index_path(directory, f"tiny-{shard:06d}.tar"), **changes)


def tar(directory: Path, shard: int) -> Path:
    return directory / f"tiny-{shard:06d}.tar"


def test_a_sound_corpus_has_no_problems(sound: Path) -> None:
    assert found(sound) == []
    assert list(check_shards(Corpus.open(sound), lambda shard: None)) == []


@pytest.mark.parametrize("member", ["codes.npy", "speaker.npy", "json"])
def test_a_flipped_byte_names_the_tar_and_the_sample(corpus: Path, member: str) -> None:
    index = ShardIndex.read(index_path(corpus, "tiny-000001.tar"))
    content = bytearray(tar(corpus, 1).read_bytes())
    content[int(index.offsets[member][2] + index.sizes[member][2]) - 3] ^= 1
    tar(corpus, 1).write_bytes(content)
    changed, samples = found(corpus)
    assert changed.startswith("tiny-000001.tar: the tar has changed: sha256 ")
    assert changed.endswith(f", expected {index.sha256}")
    assert samples.startswith(
        "tiny-000001.tar: 1 of 4 samples cannot be read, the first 'utt 1.2': its bytes have changed"
    )


def test_a_byte_between_the_members_is_found_too(corpus: Path) -> None:
    content = bytearray(tar(corpus, 0).read_bytes())
    content[-1] = 1
    tar(corpus, 0).write_bytes(content)
    (changed,) = found(corpus)
    assert changed.startswith("tiny-000000.tar: the tar has changed: sha256 ")


def test_swapped_tars_are_recognised(corpus: Path) -> None:
    tar(corpus, 0).rename(corpus / "aside")
    tar(corpus, 2).rename(tar(corpus, 0))
    (corpus / "aside").rename(tar(corpus, 2))
    lines = found(corpus)
    assert "tiny-000000.tar: the tar has the content of tiny-000002.tar" in lines
    assert "tiny-000002.tar: the tar has the content of tiny-000000.tar" in lines
    assert "tiny-000000.tar: 4 of 4 samples cannot be read, the first 'utt 0.0': its bytes have changed" in str(lines)


def test_everything_damaged_is_named_at_once(corpus: Path) -> None:
    tar(corpus, 0).unlink()
    os.truncate(tar(corpus, 1), int(ShardIndex.read(index_path(corpus, "tiny-000001.tar")).offsets["json"][2]) + 1)
    index_path(corpus, "tiny-000002.tar").write_text("{")
    lines = found(corpus)
    assert lines[0] == "tiny-000000.tar: the tar is missing"
    assert lines[1].startswith("tiny-000001.tar: the tar has changed")
    assert lines[2].startswith("tiny-000001.tar: the tar cannot be read to its end: unexpected end of data")
    assert lines[3].startswith("tiny-000002.tar: cannot read")
    assert len(lines) == 4


def test_a_tar_that_is_none_and_one_that_is_a_directory(corpus: Path) -> None:
    tar(corpus, 0).write_bytes(b"not a tar " * 200)
    tar(corpus, 1).unlink()
    tar(corpus, 1).mkdir()
    changed, unread, missing = found(corpus)
    assert "tiny-000000.tar: the tar has changed" in changed
    assert unread == "tiny-000000.tar: the tar cannot be read to its end: invalid header"
    assert missing == "tiny-000001.tar: the tar is missing"


def test_a_tar_whose_disk_fails_is_named(corpus: Path) -> None:
    tar(corpus, 0).unlink()
    tar(corpus, 0).symlink_to("/proc/self/mem")  # a file whose first byte cannot be read
    first, second, *_ = found(corpus)
    assert first == "tiny-000000.tar: the tar cannot be read: Input/output error"
    assert second.startswith("tiny-000000.tar: the tar cannot be read to its end: ")


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"text_chars": [0, 1, 2, 4]}, ["1 of 4 samples are not as the index says, .* 'utt 0.3': its text has 3"]),
        ({"frames": [5, 6, 7, 9]}, ["1 of 4 samples cannot be read, the first 'utt 0.3': an array with header"]),
        ({"crc32": [1, 2, 3, 4]}, ["4 of 4 samples cannot be read, the first 'utt 0.0': its bytes have changed"]),
        ({"seconds": 9.0}, ["the index counts 9.0 s of speech, its samples have 1.625 s"]),
        ({"sha256": "0" * 64}, [r"is not the index that manifest\.json lists; got: .* expected: tiny-000000\.tar"]),
        ({"failures": [{"key": "new", "reason": "a", "detail": "b"}]}, ["1 utterances are not in the plan.*'new'"]),
        (
            {"keys": ["utt 0.1", "utt 0.0", "utt 0.2", "utt 0.3"]},
            ["2 of 4 samples cannot be read, .* its json belongs to", "the order is not the plan's from sample 0 on"],
        ),
        (
            {"keys": ["utt 0.0", "utt 0.1", "utt 0.2", "utt 9.9"]},
            ["1 of 4 samples cannot", "1 planned utterances are missing, .* 'utt 0.3'", "1 utterances .* 'utt 9.9'"],
        ),
        (
            {"checks": {"dc": [0, 0.1, 0.2, 0.4], "seconds": [0.312, 0.375, 0.438, 0.5]}},
            ["1 of 4 samples are not as the index says, the first 'utt 0.3': its check dc is 0\\.3, not 0\\.4$"],
        ),
        (
            {"checks": {"silence": [0.5, 0.5, 0.5, 0.5]}},
            ["1 of 4 samples are not as the index says, the first 'utt 0.0': its check silence is nan, not 0.5"],
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_changed_index_is_found(corpus: Path, changes: dict[str, object], problems: list[str]) -> None:
    change_index(corpus, 0, **changes)
    lines = [line for line in found(corpus) if not line.startswith("manifest.json: it counts")]
    assert len(lines) == len(problems)
    for line, expected in zip(lines, problems, strict=True):
        assert line.startswith("tiny-000000.tar: ")
        assert re.search(expected, line)


def test_places_that_are_not_the_tars_are_found_without_reading_there(corpus: Path) -> None:
    index = json.loads(index_path(corpus, "tiny-000000.tar").read_text())
    change_index(corpus, 0, sizes={**index["sizes"], "json": [10**15] * 4})
    assert found(corpus) == ["tiny-000000.tar: the files of the tar lie elsewhere than the index says"]
    change_index(corpus, 0, sizes={**index["sizes"], "json": [0] * 4})
    (line,) = found(corpus)
    assert line.startswith("tiny-000000.tar: ")
    assert "is not the index of a shard: ValueError('a member is too small for its text')" in line


def test_a_sample_left_out_of_index_and_manifest_is_missed(corpus: Path) -> None:
    whole = ShardIndex.read(index_path(corpus, "tiny-000002.tar"))
    values = whole.to_dict()
    for name in ("crc32", "frames", "keys", "text_chars"):
        values[name] = values[name][:3]
    for name in ("offsets", "sizes", "checks"):
        values[name] = {suffix: column[:3] for suffix, column in values[name].items()}
    values["seconds"] = sum(0.0625 * (5 + i) for i in range(3))
    index_path(corpus, "tiny-000002.tar").write_text(json.dumps(values))
    finish(corpus, [ShardIndex.read(path) for path in sorted(corpus.glob("*.index.json"))])
    assert found(corpus) == [
        "tiny-000002.tar: the tar holds 12 files, the index lists 9",
        "tiny-000002.tar: 1 planned utterances are missing, such as 'utt 2.3'",
    ]


def test_a_code_outside_its_codebook_is_found(corpus: Path) -> None:
    """In a shard whose index and manifest agree with it."""
    tar(corpus, 0).unlink()
    index_path(corpus, "tiny-000000.tar").unlink()
    write_shard(corpus, 0, largest_code=256)
    finish(corpus, [ShardIndex.read(path) for path in sorted(corpus.glob("*.index.json"))])
    (line,) = found(corpus)
    assert line.endswith("4 of 4 samples cannot be read, the first 'utt 0.0': a code lies outside its codebook")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b'"text": "xxx"', b'"text": 12345', "TypeError"),
        (b'"seconds": 0.5', b'"secunda": 0.5', "KeyError"),
        (b'"seconds": 0.5', b'"seconds": "?"', "ValueError"),
    ],
)
def test_json_that_is_no_samples_is_found(corpus: Path, old: bytes, new: bytes, match: str) -> None:
    """Though its checksums are right."""
    rewrite(tar(corpus, 0), old, new)
    finish(corpus, [ShardIndex.read(path) for path in sorted(corpus.glob("*.index.json"))])
    (line,) = found(corpus)
    assert f"the first 'utt 0.3': its json is not a sample's: {match}" in line


def test_a_manifest_that_counts_otherwise_is_found(corpus: Path) -> None:
    counts = json.loads((corpus / "manifest.json").read_text())["counts"]
    change(corpus / "manifest.json", counts={**counts, "frames": 7, "seconds": 1.0})
    assert found(corpus) == [
        "manifest.json: it counts 7 frames, the indexes 78",
        "manifest.json: it counts 1.0 seconds, the indexes 4.875",
    ]


def test_a_manifest_that_leaves_a_shard_out_is_found(corpus: Path) -> None:
    shards = json.loads((corpus / "manifest.json").read_text())["shards"]
    change(corpus / "manifest.json", shards=shards[:2])
    assert found(corpus)[:2] == [
        "manifest.json: it lists 2 shards, 3 were planned",
        "tiny-000002.index.json: manifest.json does not list its shard",
    ]
    change(corpus / "manifest.json", shards=[shards[1], {**shards[0], "tar": "other.tar"}, shards[2]])
    assert found(corpus)[:2] == [
        "tiny-000001.tar: manifest.json lists it where tiny-000000.tar belongs",
        "other.tar: manifest.json lists it where tiny-000001.tar belongs",
    ]
    change(corpus / "manifest.json", shards=[{**shards[0], "tar": "../../etc/passwd"}, *shards[1:]])
    with pytest.raises(UserError, match=r"'\.\./\.\./etc/passwd' is not the name of a tar"):
        found(corpus)


def test_a_manifest_without_a_name_is_refused(corpus: Path) -> None:
    change(corpus / "manifest.json", corpus="../*")
    with pytest.raises(UserError, match=r"manifest\.json does not name its corpus[\s\S]*\.\./\*"):
        found(corpus)


def test_a_plan_that_cannot_be_read_is_named(corpus: Path) -> None:
    def planned_keys(shard: int) -> list[str]:
        if shard == 1:
            raise UserError("items.jsonl has changed", got="x", next_step="plan again")
        return PLAN[shard]

    assert [str(p) for p in check_shards(Corpus.open(corpus), planned_keys)] == [
        "tiny-000001.tar: items.jsonl has changed; got:      x"
    ]


def test_a_large_tar_is_not_read_into_memory(corpus: Path) -> None:
    os.truncate(tar(corpus, 0), 2**26)
    tracemalloc.start()
    lines = found(corpus)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lines[0].startswith("tiny-000000.tar: the tar has changed")
    assert peak_bytes < 2**23
