"""A worker in a process of its own: a JSON line there, a JSON line back, in time or not at all."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

N_LAST_LINES = 8
GRACE_S = 5.0
_NOT_HERE = f"{NotImplementedError.__name__}: "


class WorkerFailed(RuntimeError):
    """The worker died, said that it failed, or did not answer; with its last lines."""


class Worker:
    """Ends with everything it started when it fails, when it is closed, and when this process ends."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 — it lives as long as the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **environment},
            start_new_session=True,  # so that its children end with it
        )
        self._answered = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Raises NotImplementedError where the worker said that, WorkerFailed for all else; then the worker is gone."""
        try:
            self._send(json.dumps({"do": do, **arguments}).encode() + b"\n")
            answer: dict[str, Any] = json.loads(self._line(do))
        except (OSError, ValueError) as error:
            raise self._failed(f"{do}: no answer ({type(error).__name__})") from None
        if answer.get("error", "").startswith(_NOT_HERE):
            self.close()
            raise NotImplementedError(answer["error"].removeprefix(_NOT_HERE))
        if "error" in answer:
            raise self._failed(f"{do}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ask it to end by the end of its input, then make it and its children end."""
        if self._process.poll() is None and self._process.stdin:
            self._process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
        self._kill()
        self._log.close()

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def _line(self, do: str) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + self.timeout_s
        while b"\n" not in self._answered:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise self._failed(f"{do}: no answer within {self.timeout_s:g} s")
            more = os.read(self._process.stdout.fileno(), 1 << 20)
            if not more:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(GRACE_S)
                raise self._failed(f"{do}: ended with exit code {self._process.poll()}")
            self._answered += more
        line, _, self._answered = self._answered.partition(b"\n")
        return line

    def _failed(self, what: str) -> WorkerFailed:
        self._kill()
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        self._log.close()
        return WorkerFailed(" | ".join([what, *lines[-N_LAST_LINES:]]))

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
