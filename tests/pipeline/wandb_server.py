"""A W&B server as far as a run and `wandb sync` need one: it keeps what it is told, and tests look at that.

The client prints success also where its server refused something, so only this side can tell what arrived.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote


@dataclass
class ServerRun:
    """What was told of one run; `told` holds the variables of its first upsert, `artifacts` kind -> file -> content."""

    told: dict[str, Any]
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, dict[str, bytes]] = field(default_factory=dict)
    committed: set[str] = field(default_factory=set)
    is_complete: bool = False


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, ServerRun] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.bodies: list[bytes] = []
        self.answer_code = 200
        self.faults: list[str] = []  # what we do not know, or did wrong

    def handle_error(self, *_: object) -> None:
        """The client hangs up on its last requests; everything else is a fault of ours."""
        if not isinstance(error := sys.exc_info()[1], ConnectionError):
            self.faults.append(repr(error))

    def upsert(self, told: dict[str, Any]) -> Any:
        self.runs.setdefault(told["name"], ServerRun(told))
        project = {"id": "P", "name": told["project"], "entity": {"id": "E", "name": "somebody"}}
        bucket = {"id": told["name"], "name": told["name"], "displayName": told["displayName"], "project": project}
        return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}

    def create_files(self, told: dict[str, Any]) -> Any:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in told["files"]]
        return {"createRunFiles": {"runID": told["run"], "uploadHeaders": [], "files": files}}

    def create_artifact(self, told: dict[str, Any]) -> Any:
        run, kind = told["input"]["runName"], told["input"]["artifactTypeName"]
        self.runs[run].artifacts[kind] = {}
        artifact = {"id": f"{run}/{kind}", "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def create_manifest(self, told: dict[str, Any]) -> Any:
        file = {"id": "F", "uploadUrl": f"{self.url}/upload/manifest", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "M", "file": file}}}

    def create_artifact_files(self, told: dict[str, Any]) -> Any:
        nodes = [
            {"storagePath": "", "uploadHeaders": [], "artifact": {"id": asked["artifactID"]}}
            | {"uploadUrl": f"{self.url}/artifact/{asked['artifactID']}/{asked['name']}", "uploadMultipartUrls": None}
            for asked in told["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def commit(self, told: dict[str, Any]) -> Any:
        run, _, kind = told["artifactID"].partition("/")
        self.runs[run].committed.add(kind)
        return {"commitArtifact": {"artifact": {"id": told["artifactID"], "digest": ""}}}

    def stream(self, run: ServerRun, told: dict[str, Any]) -> None:
        for name, chunk in told.get("files", {}).items():
            for number, line in enumerate(chunk["content"], start=chunk["offset"]):
                if name == "wandb-history.jsonl":
                    run.history[number] = json.loads(line)
                elif name == "wandb-summary.json":
                    run.summary = json.loads(line)
        run.is_complete |= told.get("complete", False)


OPERATIONS = {
    "UpsertBucket": Server.upsert,
    "CreateRunFiles": Server.create_files,
    "CreateArtifact": Server.create_artifact,
    "CreateArtifactManifest": Server.create_manifest,
    "CreateArtifactFiles": Server.create_artifact_files,
    "CommitArtifact": Server.commit,
    "Viewer": lambda server, told: {"viewer": {"id": "U", "username": "somebody", "entity": "somebody"}},
    "ArtifactType": lambda server, told: {"project": {"artifact": None}},
    "ServerFeaturesQuery": lambda server, told: {"serverInfo": {"features": []}},
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        told = json.loads(self._body())
        if stream := re.fullmatch(r"/files/.*/(\w+)/file_stream", self.path):
            self.server.stream(self.server.runs[stream[1]], told)
            return self._answer({})
        if "query" not in told:
            return self._answer({}, 400 if self.server.answer_code == 200 else self.server.answer_code)
        operation = re.findall(r"(?:query|mutation) (\w+)", told["query"])[0]
        if operation not in OPERATIONS:
            self.server.faults.append(operation)
            return self._answer({"errors": [{"message": "unknown"}]}, 400)  # so that the client does not try again
        self._answer({"data": OPERATIONS[operation](self.server, told.get("variables") or {})})

    def do_PUT(self) -> None:
        content = self._body()
        if artifact := re.fullmatch(r"/artifact/(\w+)/(\w+)/(.*)", unquote(self.path)):
            self.server.runs[artifact[1]].artifacts[artifact[2]][artifact[3]] = content
        self._answer({})

    def _body(self) -> bytes:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        self.server.bodies.append(body)
        if len(body) < length:
            raise ConnectionResetError
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, content: dict[str, Any], code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
