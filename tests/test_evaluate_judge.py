"""The judge of ``evaluate images`` against a server in this process that speaks as OpenAI-compatible endpoints do."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bokeh_ops.errors import BokehError
from trainer.cli import main
from trainer.measure.judge import Judge, UnreadableAnswer, read_numbers

Answer = Callable[[dict[str, Any], int], "str | tuple[int, str]"]


class Endpoint:
    """A server; ``answer`` gets each request and its number and returns the model's text, or a status and a body."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answer: Answer = lambda request, number: "50"
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append(body)
                endpoint.headers.append(dict(self.headers))
                endpoint.paths.append(self.path)
                said = endpoint.answer(body, len(endpoint.requests) - 1)
                status, text = said if isinstance(said, tuple) else (200, chat(said))
                self.send_response(status)
                if status in (302, 307):
                    self.send_header("Location", f"{endpoint.url}/elsewhere")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()


def chat(text: str) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


def levels(request: dict[str, Any]) -> list[int]:
    """The grey level of each picture in a request, in the order shown."""
    found = []
    for part in request["messages"][0]["content"][1:]:
        head, data = part["image_url"]["url"].split(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            found.append(picture.getpixel((0, 0))[0])
    return found


def question(request: dict[str, Any]) -> str:
    return request["messages"][0]["content"][0]["text"]


def flat(*greys: int, side: int = 8) -> list[torch.Tensor]:
    return [torch.full((3, side, side), grey / 255) for grey in greys]


def judge(endpoint: Endpoint, **options: Any) -> Judge:
    return Judge(endpoint.url, "some-model", wait=lambda seconds: None, **options)


def scores_are_levels(request: dict[str, Any], number: int) -> str:
    return ", ".join(str(level / 10) for level in levels(request))


# ---- questions and answers ----


def test_strengths_come_back_in_the_order_of_the_pictures(endpoint: Endpoint) -> None:
    endpoint.answer = scores_are_levels
    greys = list(range(0, 250, 25))
    found = judge(endpoint, key="secret").strengths(flat(*greys), seed="scene")
    assert found == [grey / 10 for grey in greys]
    (request,) = endpoint.requests
    assert request["model"] == "some-model"
    assert request["temperature"] == 0
    assert sorted(levels(request)) == greys
    assert levels(request) != greys  # shuffled, so that counting does not help
    assert question(request).startswith("We have several images below, each with a different bokeh strength.")
    assert "between 0 and 30." in question(request)
    assert endpoint.paths == ["/v1/chat/completions"]
    assert endpoint.headers[0]["Authorization"] == "Bearer secret"


def test_the_order_is_the_same_at_every_run_and_another_for_another_scene(endpoint: Endpoint) -> None:
    endpoint.answer = scores_are_levels
    for seed in ("a", "a", "b"):
        judge(endpoint).strengths(flat(*range(0, 250, 25)), seed=seed)
    first, again, other = (levels(request) for request in endpoint.requests)
    assert first == again != other


def test_consistency_is_one_number(endpoint: Endpoint) -> None:
    endpoint.answer = lambda request, number: " 87.5\n"
    assert judge(endpoint).consistency(flat(0, 128)) == 87.5
    assert question(endpoint.requests[0]).endswith(
        "The only numeric score you should return is the scene consistency score."
    )
    assert "Authorization" not in endpoint.headers[0]


def test_pictures_are_sent_no_larger_than_told(endpoint: Endpoint) -> None:
    judge(endpoint, side=20).consistency([torch.rand(3, 30, 60)])
    part = endpoint.requests[0]["messages"][0]["content"][1]
    data = base64.b64decode(part["image_url"]["url"].split(",")[1])
    assert Image.open(io.BytesIO(data)).size == (20, 10)


def test_numbers_of_an_answer() -> None:
    assert read_numbers("0, 12.5,30", 3, 30) == [0, 12.5, 30]
    assert read_numbers("<think>3 images, about 10</think>\n7", 1, 30) == [7]
    for text, count in (("1, 2", 3), ("1, 2, 3, 4", 3), ("", 1), ("I cannot say", 1), ("31", 1), ("-1", 1)):
        with pytest.raises(UnreadableAnswer, match="expected"):
            read_numbers(text, count, 30)


def test_an_answer_that_cannot_be_read_is_asked_for_again(endpoint: Endpoint) -> None:
    endpoint.answer = lambda request, number: "sorry" if number < 2 else "70"
    assert judge(endpoint).consistency(flat(0, 9)) == 70
    assert len(endpoint.requests) == 3
    endpoint.answer = lambda request, number: "sorry"
    with pytest.raises(UnreadableAnswer, match="'sorry'; expected 1 number from 0 to 100"):
        judge(endpoint).consistency(flat(0, 9))
    assert len(endpoint.requests) == 6


# ---- a server that does not do as it should ----


def test_a_busy_server_is_tried_again(endpoint: Endpoint) -> None:
    waited: list[float] = []
    endpoint.answer = lambda request, number: (429, "slow down") if number < 3 else "5"
    judge = Judge(endpoint.url + "/chat/completions", "m", wait=waited.append)
    assert judge.consistency(flat(1)) == 5
    assert waited == [1, 2, 4]
    assert set(endpoint.paths) == {"/v1/chat/completions"}


@pytest.mark.parametrize(
    ("status", "body", "message", "requests"),
    [
        (401, "no such key", "HTTP 401: no such key", 1),
        (503, "busy", "HTTP 503: busy", 4),
        (307, "", "HTTP 307", 1),  # the key does not go elsewhere
        (302, "", "HTTP 302", 1),
        (200, "<html>", "did not answer as an OpenAI-compatible endpoint does: '<html>'", 1),
        (200, '{"choices": []}', "did not answer as", 1),
        (200, '{"choices": [{"message": {"content": null}}]}', "did not answer as", 1),
        (200, chat("50") + " " * (1 << 20), "did not answer as", 1),
    ],
)
def test_a_server_that_refuses(
    endpoint: Endpoint, status: int, body: str, message: str, requests: int
) -> None:
    endpoint.answer = lambda request, number: (status, body)
    with pytest.raises(BokehError, match=message) as caught:
        judge(endpoint, key="secret").consistency(flat(1))
    assert not isinstance(caught.value, UnreadableAnswer)
    assert "secret" not in str(caught.value)
    assert len(endpoint.requests) == requests


def test_no_server(endpoint: Endpoint) -> None:
    endpoint.server.shutdown()
    endpoint.server.server_close()
    with pytest.raises(BokehError, match="did not answer"):
        judge(endpoint).consistency(flat(1))


@pytest.mark.parametrize("url", ["localhost:8000/v1", "file:///etc/passwd", "ftp://host/v1", "", "http://"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(BokehError, match=r"expected one like https://host/v1"):
        Judge(url, "m")


def test_keys_that_cannot_be_sent() -> None:
    with pytest.raises(BokehError, match="key has spaces") as caught:
        Judge("http://localhost", "m", key="se\ncret")
    assert "cret" not in str(caught.value)
    assert "secret" not in repr(Judge("http://localhost", "m", key="secret"))


# ---- answers are kept ----


def test_answers_are_not_asked_for_twice(endpoint: Endpoint, tmp_path: Path) -> None:
    log = tmp_path / "answers.jsonl"
    endpoint.answer = lambda request, number: "sorry" if number == 0 else "70"
    assert judge(endpoint, log=log).consistency(flat(0, 9)) == 70
    assert judge(endpoint, log=log).consistency(flat(0, 9)) == 70
    assert len(endpoint.requests) == 2  # the unreadable one, and one more
    judge(endpoint, log=log).consistency(flat(0, 10))
    judge(endpoint, log=log, extra={"temperature": 1}).consistency(flat(0, 9))
    assert len(endpoint.requests) == 4
    # Killed while it wrote: what was whole stays, the rest is asked for again.
    text = log.read_text()
    log.write_text(text[:-20])
    judge(endpoint, log=log, extra={"temperature": 1}).consistency(flat(0, 9))
    judge(endpoint, log=log).consistency(flat(0, 9))
    assert len(endpoint.requests) == 5
    assert log.read_text() == text
    log.write_text('{"a": 1}\n')
    with pytest.raises(BokehError, match="not a file of a judge's answers"):
        judge(endpoint, log=log)


# ---- in the command ----


@pytest.fixture
def sweeps(tmp_path: Path) -> Path:
    for scene in ("one", "two"):
        for k in (0, 10, 20, 30):
            path = tmp_path / "sweeps" / scene / f"k{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((40, 40, 3), 8 * k, np.uint8)).save(path)
    return tmp_path / "sweeps"


def evaluate(*words: object) -> int:
    return main(["evaluate", "images", *map(str, words)])


def test_the_judge_in_the_evaluation(
    endpoint: Endpoint, sweeps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: dict[str, Any], number: int) -> str:
        if "consistency" in question(request):
            return "90" if number < 2 else "80"
        return ",".join(str(level / 8) for level in levels(request)) if number < 2 else "none"

    endpoint.answer = answer
    monkeypatch.setenv("MY_KEY", "secret")
    file = tmp_path / "out.json"
    words = ["--judge-url", endpoint.url, "--judge-model", "m", "--judge-key-variable", "MY_KEY"]
    words += ["--judge-extra", '{"max_tokens": 9}', "--judge-most", "40", "--json", file]
    assert evaluate(sweeps, *words) == 0
    assert "between 0 and 40." in question(endpoint.requests[0])
    assert endpoint.requests[0]["max_tokens"] == 9
    assert "temperature" not in endpoint.requests[0]
    assert endpoint.headers[0]["Authorization"] == "Bearer secret"
    text = file.read_text()
    assert "secret" not in text
    (run,) = json.loads(text)["runs"]
    one, two = run["scenes"]
    assert one["judge_scores"] == [0, 10, 20, 30]
    assert one["judge_corr"] == pytest.approx(1)
    assert (one["judge_same"], two["judge_same"]) == (90, 80)
    assert "expected 4 numbers" in two["judge_error"]
    assert "judge_corr" not in two
    assert run["summary"]["judge_corr"]["mean"] == pytest.approx(1)
    assert run["summary"]["judge_same"]["mean"] == 85


def test_wider_apertures_are_stronger(endpoint: Endpoint, tmp_path: Path) -> None:
    """The judge's scores are held against one over the f-number, which the blur's radius goes with."""
    for f, grey in ((2, 200), (4, 100), (16, 25)):
        Image.fromarray(np.full((40, 40, 3), grey, np.uint8)).save(tmp_path / f"f{f}.png")
    endpoint.answer = lambda request, number: (
        "9" if "consistency" in question(request) else scores_are_levels(request, number)
    )
    file = tmp_path / "out.json"
    assert evaluate(tmp_path, "--judge-url", endpoint.url, "--judge-model", "m", "--json", file) == 0
    assert json.loads(file.read_text())["runs"][0]["scenes"][0]["judge_corr"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--judge-model", "m"], "needs --judge-url"),
        (["--judge-url", "http://localhost"], "needs --judge-model"),
        (["--judge-url", "nowhere", "--judge-model", "m"], "expected one like https://host/v1"),
        (
            ["--judge-url", "http://localhost", "--judge-model", "m", "--judge-extra", "[]"],
            "not a JSON object",
        ),
    ],
)
def test_a_judge_half_named(
    sweeps: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(sweeps, *words) == 2
    assert message in capsys.readouterr().err
