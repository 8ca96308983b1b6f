"""Where a run's logs lie: in its folder, or in a copy of it while that is in a bucket.

Logs grow line by line, and files in a bucket do not. They are written to a local folder then, and
copied there whole: every minute that something is logged, and at the end.
"""

import pathlib
import shutil
import tempfile
import time

from ratjax.files import Folder, is_remote

EVERY = 60.0  # seconds between copies


class Logs:
    """The folder that logs are written to.

    Args:
      workdir: the run's.
      fetch: files of it that are gone on with.

    Attributes:
      folder: where to write.
    """

    def __init__(self, workdir: Folder, fetch: tuple[str, ...] = ()):
        self.remote = workdir if is_remote(workdir) else None
        self.copied = time.monotonic()
        if self.remote is None:
            self.folder = pathlib.Path(workdir)
            return
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ratjax-"))
        for name in fetch:
            if (self.remote / name).exists():
                (self.folder / name).write_bytes((self.remote / name).read_bytes())
        self.sizes: dict[pathlib.Path, int] = {}

    def copy(self, now: bool = False) -> None:
        """Copies what has changed, if it is time or `now`."""
        if self.remote is None or not (now or time.monotonic() - self.copied > EVERY):
            return
        self.copied = time.monotonic()
        for file in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            size = file.stat().st_size
            if self.sizes.get(file) != size:  # logs only grow
                target = self.remote / str(file.relative_to(self.folder))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
                self.sizes[file] = size

    def close(self) -> None:
        """Copies everything, and removes the local folder of a run in a bucket."""
        if self.remote is not None:
            try:
                self.copy(now=True)
            finally:
                shutil.rmtree(self.folder, ignore_errors=True)
