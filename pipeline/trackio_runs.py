"""The only importer of trackio: runs in a database on this machine, without a server and without an account.

It knows no kinds of runs, no tags, no axes and no summary: the first two become configuration, the last the last row.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trackio
from trackio.utils import TRACKIO_DIR

from pipeline.metrics import Row


@contextmanager
def started(project: str, *, job_type: str, tags: list[str], config: dict[str, Any], **named: Any) -> Iterator[Run]:
    """Nothing of the machine is collected. `TRACKIO_DIR` and `TRACKIO_SERVER_URL` work as usual."""
    told = config | {"job_type": job_type, "tags": tags}
    with redirect_stdout(io.StringIO()):  # it says how to look at runs, each time
        run = Run(trackio.init(project, config=told, embed=False, auto_log_cpu=False, auto_log_gpu=False, **named))
    try:
        yield run
    finally:
        with redirect_stdout(io.StringIO()):
            run.finish()


@dataclass(frozen=True)
class Run:
    run: trackio.Run
    summary: Row = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.run.name)

    @property
    def path(self) -> Path:
        return Path(TRACKIO_DIR) / f"{self.run.project}.db"

    def log(self, row: Row) -> None:
        self.run.log(row)

    def summarise(self, values: Row) -> None:
        self.summary.update(values)

    def attach(self, kind: str, name: str, files: Mapping[str, bytes]) -> None:
        """What is added is copied into the store of trackio."""
        artifact = trackio.Artifact(name, type=kind)
        with TemporaryDirectory() as folder:
            for file, content in files.items():
                path = Path(folder) / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                artifact.add_file(path, file)
            self.run.log_artifact(artifact)

    def finish(self) -> None:
        self.run.log(self.summary)
        trackio.finish()  # and forgets the run, which it would finish once more at the end of the process
