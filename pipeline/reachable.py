"""Whether a server answers at all, found out in bounded time."""

from __future__ import annotations

import queue
import ssl
import threading
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen


def no_answer(url: str, timeout_s: float) -> str:
    """Why there is none, in a thread: looking a name up knows no time limit."""
    answer: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: answer.put(_ask(url, timeout_s)), daemon=True).start()
    try:
        why = answer.get(timeout=timeout_s)
    except queue.Empty:
        why = f"no answer within {timeout_s:g} s"
    return f"{urlsplit(url).hostname}: {why}" if why else ""


def _ask(url: str, timeout_s: float) -> str:
    """Nothing is told here and nothing believed, so that certificates can be left to wandb."""
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    question = Request(f"{url}/graphql", data=b"{}", headers={"Content-Type": "application/json"})
    try:
        urlopen(question, timeout=timeout_s, context=unverified).close()
    except HTTPError as error:  # also an answer, unless it comes from what stands before the server
        return str(error) if error.code >= 500 else ""
    except (OSError, HTTPException, ValueError) as error:
        return str(getattr(error, "reason", error))
    return ""
