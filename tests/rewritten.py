"""A shard whose content was changed by someone who made its checksums fit."""

import hashlib
import json
import zlib
from pathlib import Path

from slmkit.data.index import ShardIndex, index_path


def rewrite(tar: Path, old: bytes, new: bytes) -> None:
    """Put `new` in place of `old`, of the same length and found once, and mend the checksums in the index."""
    content = tar.read_bytes()
    assert (len(new), content.count(old)) == (len(old), 1)
    content = content.replace(old, new)
    tar.write_bytes(content)
    path = index_path(tar.parent, tar.name)
    index = ShardIndex.read(path)
    crc32 = []
    for row in range(len(index)):
        value = 0
        for suffix in sorted(index.offsets):
            start = int(index.offsets[suffix][row])
            value = zlib.crc32(content[start : start + int(index.sizes[suffix][row])], value)
        crc32.append(value)
    changes = {"sha256": hashlib.sha256(content).hexdigest(), "crc32": crc32}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
