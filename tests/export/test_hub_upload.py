"""Uploads by the real client of the Hub, over HTTP, to a server of this machine."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("huggingface_hub")


class Hub(ThreadingHTTPServer):
    """What the client asks for when it uploads small files: a repository, how to send each file, and a commit."""

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.refuses = refuses
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(*self._refusal() if self.server.refuses else ({},))

    def do_POST(self) -> None:
        asked = self._body()  # read first: the connection is kept
        if self.server.refuses:
            return self._answer(*self._refusal())
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(asked))
            return self._answer({"url": f"{self.server.address}/me/small"})
        if self.path == "/api/models/me/small/preupload/main":
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(asked)["files"]]
            return self._answer({"files": files})
        if self.path == "/api/models/me/small/commit/main":
            for operation in map(json.loads, asked.splitlines()):
                if operation["key"] == "file":
                    self.server.files[operation["value"]["path"]] = base64.b64decode(operation["value"]["content"])
            oid = "0" * 40
            return self._answer({"success": True, "commitOid": oid, "commitUrl": f"{self.server.address}/me/small/commit/{oid}"})
        return self._answer({})  # for example, whether the card's metadata is valid

    def _refusal(self) -> tuple[dict[str, Any], int]:
        return {"error": "Invalid username or password."}, 401

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, data: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def serve() -> Iterator[Any]:
    started: list[Hub] = []

    def start(**options: Any) -> Hub:
        hub = Hub(**options)
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        started.append(hub)
        return hub

    yield start
    for hub in started:
        hub.shutdown()
        hub.server_close()


def push(run: Path, hub: Hub) -> subprocess.CompletedProcess[str]:
    """``export_student --push`` in a process of its own: the client reads the Hub's address when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_none", "HF_HOME": str(run.parent / "home")}
    code = "import sys; from policy_distill.commands.cli import main; sys.exit(main(sys.argv[1:]))"
    asked = ["export_student", "--student", str(run), "--format", "hub", "--push", "me/small", "--private", "true", "--workers", "0"]
    asked += ["--episodes", "3"]
    command = [sys.executable, "-c", code, *asked]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_every_file_arrives_in_a_private_repository(run: Path, serve: Any) -> None:
    hub = serve()
    done = push(run, hub)
    assert done.returncode == 0, done.stderr
    assert f"{hub.address}/me/small" in done.stdout
    assert [(made["name"], made["organization"], made["visibility"]) for made in hub.created] == [("small", "me", "private")]
    written = run / "exports" / "hub"
    assert hub.files == {str(path.relative_to(written)): path.read_bytes() for path in written.rglob("*") if path.is_file()}
    assert "README.md" in hub.files
    assert "student/student.safetensors" in hub.files


def test_a_refused_token_is_one_line_and_the_folder_is_kept(run: Path, serve: Any) -> None:
    done = push(run, serve(refuses=True))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "is written, but not uploaded (" in done.stderr
    assert "Invalid username or password" in done.stderr
    assert "check the network and hf auth login" in done.stderr
    assert (run / "exports" / "hub" / "README.md").is_file()
