"""A running ComfyUI server, driven the way its own web page drives it.

    with ComfyServer() as server:
        run = server.wait(server.queue(prompt))
        picture = server.view(**run.images()[0])

The server gets a folder of its own for models, inputs, outputs and its database, and this repository (or a copy of
what its users get) in its ``custom_nodes``. Nothing is written into the ComfyUI folder it is started from.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from .setup import HERE, ROOT, host_folder

NAME = "comfyui-bokeh"  # the folder's name in custom_nodes
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "output", "node_modules")
PREVIEW, TEXT, PREVIEW_WITH_METADATA = 1, 3, 4  # kinds of binary message
ENDINGS = {"execution_success", "execution_error", "execution_interrupted"}


class ServerError(RuntimeError):
    """The server did not start, died, or took too long. The message ends with the last lines of its log."""


class PromptError(RuntimeError):
    """The server refused a prompt, or a node raised. ``details`` is what the server said, as it said it."""

    def __init__(self, message: str, details: dict[str, Any]) -> None:
        super().__init__(message)
        self.details = details


@dataclass
class Run:
    """What the websocket told of one prompt. Node ids are the prompt's."""

    prompt_id: str
    executed: list[str] = field(default_factory=list)  # nodes that ran, in order
    cached: list[str] = field(default_factory=list)  # nodes whose result was kept from before
    progress: list[tuple[str, int, int]] = field(default_factory=list)  # node, step, steps
    previews: list[bytes] = field(default_factory=list)  # JPEG or PNG files
    texts: list[tuple[str, str]] = field(default_factory=list)  # node, text shown on it
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)  # node -> what it gave the page
    error: dict[str, Any] | None = None
    interrupted: bool = False
    seconds: float = 0.0

    def images(self, node: str | None = None) -> list[dict[str, str]]:
        """Pictures written or shown, as ``view`` takes them: of one node, or of all."""
        outputs = self.outputs.values() if node is None else [self.outputs.get(node, {})]
        return [image for output in outputs for image in output.get("images", [])]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ComfyServer:
    """One server process. Entering the context starts it and waits until it answers; leaving it stops it.

    Args:
        base: folder for models, inputs, outputs and the database; None makes one and removes it at the end.
        python: interpreter to run the host with; None for the current one.
        arguments: further arguments of the host's ``main.py``.
        extension: the folder of the extension, as ``installed`` of ``tests/conftest.py`` makes it.
        custom_nodes: further files or folders for its ``custom_nodes``.
        cpu: keep the host on the CPU; None asks ``BOKEH_DEVICE`` (the CPU unless it says otherwise).
        startup_seconds: how long to wait for the server to answer.
    """

    def __init__(
        self,
        base: Path | None = None,
        python: Path | None = None,
        arguments: tuple[str, ...] = (),
        extension: Path = ROOT,
        custom_nodes: tuple[Path, ...] = (),
        cpu: bool | None = None,
        startup_seconds: float = 180,
    ) -> None:
        self._own_base = base is None
        self.base = Path(tempfile.mkdtemp(prefix="bokeh-server-")) if base is None else base
        self.python = Path(sys.executable) if python is None else python
        self.arguments = arguments
        self.custom_nodes = {NAME: extension, **{path.name: path for path in custom_nodes}}
        self.cpu = os.environ.get("BOKEH_DEVICE", "cpu") in ("cpu", "card") if cpu is None else cpu
        self.startup_seconds = startup_seconds
        self.port = 0
        self.log = self.base / "server.log"
        self.client_id = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()

    # Life of the process

    def __enter__(self) -> ComfyServer:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> ComfyServer:
        host = host_folder()
        for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        for name, source in self.custom_nodes.items():
            _link(source, self.base / "custom_nodes" / name)
        self.port = free_port()
        database = (self.base / "user" / "comfyui.db").as_posix()
        command = [str(self.python), str(HERE / "launch.py"), str(host), *(["--cpu"] if self.cpu else [])]
        command += ["--base-directory", str(self.base), "--database-url", f"sqlite:///{database}"]
        command += ["--port", str(self.port), "--disable-auto-launch", "--disable-api-nodes"]
        command += ["--preview-method", "latent2rgb", *self.arguments]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self.base, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        self._wait_until_up()
        if any(NAME in line and "IMPORT FAILED" in line for line in self.log.read_text().splitlines()):
            raise ServerError(f"The host could not import the extension.\n{self.log_tail(60)}")
        connected = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._listen(connected)), daemon=True).start()
        if not connected.wait(30):
            raise ServerError(f"The server answers, but not on its websocket.\n{self.log_tail()}")
        return self

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._own_base:
            shutil.rmtree(self.base, ignore_errors=True)

    def log_tail(self, lines: int = 30) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "The last lines of its log:\n  " + "\n  ".join(text.splitlines()[-lines:])

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + self.startup_seconds
        while time.monotonic() < deadline:
            self._check_alive()
            try:
                self.get("/system_stats", timeout=5)
            except OSError:  # refused, or not answering yet
                time.sleep(0.2)
            else:
                return
        raise ServerError(
            f"The server did not answer within {self.startup_seconds:.0f} s.\n{self.log_tail()}"
        )

    def _check_alive(self) -> None:
        if self._process is None or self._process.poll() is not None:
            status = "was not started" if self._process is None else f"ended ({self._process.returncode})"
            hint = ""
            if os.environ.get("BOKEH_COMFYUI") and not os.environ.get("BOKEH_PYTHON"):
                hint = "\nSet BOKEH_PYTHON to the Python that this ComfyUI is used with; it ran with ours."
            raise ServerError(f"The ComfyUI server {status}.\n{self.log_tail()}{hint}")

    # Talking to it

    def get(self, path: str, timeout: float = 60, **query: str) -> Any:
        """The JSON that the server answers to a GET."""
        return json.loads(self._open(path, query=query, timeout=timeout))

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        return self.get("/object_info" + (f"/{node}" if node else ""), timeout=120)

    def history(self, prompt_id: str | None = None) -> dict[str, Any]:
        return self.get("/history" + (f"/{prompt_id}" if prompt_id else ""))

    def queue(self, prompt: dict[str, Any], extra_data: dict[str, Any] | None = None) -> str:
        """Queue a prompt in API format; its id. Raises PromptError where the server refuses it."""
        body = {"prompt": prompt, "client_id": self.client_id, "extra_data": extra_data or {}}
        try:
            answer = json.loads(self._open("/prompt", json.dumps(body).encode(), "application/json"))
        except urllib.error.HTTPError as error:
            raw = error.read().decode(errors="replace")
            try:
                details = json.loads(raw)
            except json.JSONDecodeError:
                details = {"error": {"message": raw}}
            raise PromptError(_refusal(details), details) from error
        return answer["prompt_id"]

    def wait(
        self,
        prompt_id: str,
        timeout: float = 600,
        check: bool = True,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> Run:
        """Follow a queued prompt to its end. Prompts are waited for in the order they were queued.

        Args:
            check: raise PromptError where a node raised, instead of leaving that in ``Run.error``.
            on_event: called with the kind and data of every message, while the prompt runs.
        """
        run, start, started = Run(prompt_id), time.monotonic(), False
        while True:
            self._check_alive()
            if time.monotonic() - start > timeout:
                raise ServerError(f"The prompt is not done after {timeout:.0f} s.\n{self.log_tail()}")
            try:
                kind, data = self._messages.get(timeout=1)
            except queue.Empty:
                continue
            if data.get("prompt_id", prompt_id) != prompt_id:
                continue
            # What names no prompt (pictures and texts of nodes) may still be of another client's, such as a browser's.
            started = started or "prompt_id" in data
            if not started:
                continue
            _note(run, kind, data)
            if on_event is not None:
                on_event(kind, data)
            if kind in ENDINGS:
                break
        run.seconds = time.monotonic() - start
        if check and run.error is not None:
            said = "{node_id} ({node_type}): {exception_message}".format(**run.error).strip()
            raise PromptError(f"node {said}", run.error)
        return run

    def run(self, prompt: dict[str, Any], **options: Any) -> Run:
        """Queue and wait."""
        return self.wait(self.queue(prompt), **options)

    def interrupt(self) -> None:
        self._open("/interrupt", b"{}", "application/json")

    def free(self) -> None:
        """Unload models and forget cached results, as the page's button does."""
        self._open(
            "/free", json.dumps({"unload_models": True, "free_memory": True}).encode(), "application/json"
        )

    def view(self, filename: str, subfolder: str = "", type: str = "output") -> bytes:
        """The bytes of a picture the server has."""
        return self._open("/view", query={"filename": filename, "subfolder": subfolder, "type": type})

    def upload_image(self, path: Path, name: str | None = None) -> str:
        """Put a picture into the server's input folder; the name LoadImage takes."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name or path.name}"'
        parts = [head.encode(), b"\r\n\r\n", path.read_bytes()]
        parts += [
            f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue'.encode()
        ]
        parts += [f"\r\n--{boundary}--\r\n".encode()]
        answer = self._open("/upload/image", b"".join(parts), f"multipart/form-data; boundary={boundary}")
        return json.loads(answer)["name"]

    def _open(
        self,
        path: str,
        body: bytes | None = None,
        content: str = "",
        query: dict[str, str] | None = None,
        timeout: float = 60,
    ) -> bytes:
        url = self.url + path + ("?" + urllib.parse.urlencode(query) if query else "")
        request = urllib.request.Request(url, data=body, headers={"Content-Type": content} if body else {})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never by way of a proxy
        with opener.open(request, timeout=timeout) as answer:
            return answer.read()

    async def _listen(self, connected: threading.Event) -> None:
        address = f"{self.url}/ws?clientId={self.client_id}"
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(address, max_msg_size=0) as socket,
        ):
            connected.set()
            async for message in socket:
                if message.type == aiohttp.WSMsgType.TEXT:
                    content = json.loads(message.data)
                    self._messages.put((content["type"], content.get("data") or {}))
                elif message.type == aiohttp.WSMsgType.BINARY:
                    self._messages.put(_binary(message.data))


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:  # Windows without the right to make links
        if source.is_dir():
            shutil.copytree(source, target, ignore=NOT_COPIED)
        else:
            shutil.copy(source, target)


def _binary(data: bytes) -> tuple[str, dict[str, Any]]:
    """A binary message as kind and data, in the form of the others."""
    (kind,) = struct.unpack_from(">I", data)
    if kind == PREVIEW:
        return "preview", {"image": data[8:]}
    if kind == PREVIEW_WITH_METADATA:
        (length,) = struct.unpack_from(">I", data, 4)
        return "preview", {"image": data[8 + length :], **json.loads(data[8 : 8 + length])}
    if kind == TEXT:
        (length,) = struct.unpack_from(">I", data, 4)
        return "text", {"node": data[8 : 8 + length].decode(), "text": data[8 + length :].decode()}
    return f"binary {kind}", {}


def _note(run: Run, kind: str, data: dict[str, Any]) -> None:
    """Write one message down in the run it belongs to."""
    if kind == "executing" and data.get("node"):
        run.executed.append(data["node"])
    elif kind == "execution_cached":
        run.cached += data.get("nodes", [])
    elif kind == "progress":
        run.progress.append((data["node"], data["value"], data["max"]))
    elif kind == "preview":
        run.previews.append(data["image"])
    elif kind == "text":
        run.texts.append((data["node"], data["text"]))
    elif kind == "executed":
        run.outputs[data["node"]] = data.get("output") or {}
    elif kind == "execution_error":
        run.error = data
    elif kind == "execution_interrupted":
        run.interrupted = True


def _refusal(details: dict[str, Any]) -> str:
    """The server's refusal of a prompt in one line for each thing it found."""
    lines = [str(details.get("error", {}).get("message", "the prompt was refused"))]
    for node, found in details.get("node_errors", {}).items():
        where = f"node {node} ({found.get('class_type')})"
        lines += [f"{where}: {error['message']}: {error['details']}" for error in found.get("errors", [])]
    return "; ".join(lines)
