"""A worker that dies, fails, hangs or has children of its own ends, and says why; none of them is an engine."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.engines.worker import Worker, WorkerFailed

ECHO = "import sys, json\nfor line in sys.stdin: print(json.dumps({'got': json.loads(line)}), flush=True)"
DIES = "import sys\nsys.stdin.readline()\nprint('out of memory', file=sys.stderr)\nsys.exit(3)"
SAYS_SO = 'import sys\nsys.stdin.readline()\nprint(\'{"error": "ValueError: no such block size"}\', flush=True)'
NOT_HERE = 'import sys\nsys.stdin.readline()\nprint(\'{"error": "NotImplementedError: no AVX"}\', flush=True)'
CHATTERS = "import sys\nsys.stdin.readline()\nprint('loading the model', flush=True)"
HANGS = (
    "import subprocess, sys, time\nchild = subprocess.Popen(['sleep', '600'])\n"
    "print(child.pid, file=sys.stderr, flush=True)\ntime.sleep(600)"
)


def worker(script: str, timeout_s: float = 20.0) -> Worker:
    return Worker([sys.executable, "-c", script], {}, timeout_s)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_lines_go_there_and_back_until_it_is_closed() -> None:
    echo = worker(ECHO)
    for number in range(3):
        assert echo.ask("count", number=number) == {"got": {"do": "count", "number": number}}
    large = list(range(200_000))  # more than a pipe holds
    assert echo.ask("count", number=large)["got"]["number"] == large
    echo.close()
    assert is_gone(echo.pid)


@pytest.mark.parametrize(
    ("script", "why"),
    [(DIES, r"start: ended with exit code 3 \| out of memory"), (SAYS_SO, "start: ValueError: no such block size"),
     (CHATTERS, "start: no answer")],
    ids=["dies", "says so", "chatters"],
)  # fmt: skip
def test_a_failure_says_why_and_leaves_no_process(script: str, why: str) -> None:
    failing = worker(script)
    with pytest.raises(WorkerFailed, match=why):
        failing.ask("start")
    assert is_gone(failing.pid)


def test_what_cannot_run_here_is_no_failure() -> None:
    with pytest.raises(NotImplementedError, match=r"^no AVX$"):
        worker(NOT_HERE).ask("start")


def test_a_worker_that_hangs_is_ended_with_its_children() -> None:
    hanging = worker(HANGS, timeout_s=2.0)
    started = time.monotonic()
    with pytest.raises(WorkerFailed, match=r"start: no answer within 2 s \| \d+") as failure:
        hanging.ask("start")
    assert time.monotonic() - started < 10
    child = int(str(failure.value).rpartition("| ")[2])
    assert is_gone(hanging.pid)
    for _ in range(50):
        if is_gone(child):
            return
        time.sleep(0.1)
    raise AssertionError(f"{child} is still there")


def test_a_worker_ends_with_the_process_that_asked(tmp_path: Path) -> None:
    """Whatever kills it: the end of its input ends the worker."""
    import subprocess

    script = (
        "import os, signal, sys\nfrom pipeline.engines.worker import Worker\n"
        f"worker = Worker([sys.executable, '-c', {ECHO!r}], {{}}, 20.0)\nworker.ask('x')\n"
        "print(worker.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    pid = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False).stdout)
    for _ in range(100):
        if is_gone(pid):
            return
        time.sleep(0.1)
    raise AssertionError(f"{pid} is still there")
