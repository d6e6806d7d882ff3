"""Files that are there whole or not at all.

Not here: what runs write (`robench.runs`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """A path beside `path` to write to; at the end it is flushed to the disk and renamed, after an error removed.

    Without `flush` a crash of the machine, not of the process, may leave an empty file.
    """
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}.tmp")  # a file name has at most 255 bytes
    try:
        yield temporary
        if flush:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
