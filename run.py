"""The commands of this repository, on a machine that has only Python 3.10 to 3.14 and a package index.

    python run.py demo                   a photograph and a generated scene at six strengths of blur, in a real ComfyUI
    python run.py test                   lint, and all tests but the slow ones, on all cores
    python run.py test -m slow           the slow ones; any other arguments of pytest may take their place
    python run.py browser-test           the tests that drive the real front end in headless Chromium
    python run.py proof                  the whole method on a small model: slow, to be run before each release
    python run.py lint                   ruff and pyright

Each does its own set-up first (into .venv and .cache) and works offline once that is done.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from tests.host import setup  # noqa: E402

HOST = ("torch", "aiohttp", "PIL")
LINT = ("ruff", "pyright")
NEEDS = {
    "demo": HOST,
    "test": (*HOST, "pytest", "pytest_timeout", "hypothesis"),
    "proof": (*HOST, "pytest", "pytest_timeout", "skimage"),
    "browser-test": (*HOST, "pytest", "pytest_timeout", "websocket"),
    "lint": LINT,
}
WHOLE = (*LINT, "xdist")
"""What `test` needs too where it is not told which."""


def run(python: Path, *arguments: str) -> int:
    """Run a module of this repository or of ``.venv`` from the repository's root; its exit status."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return subprocess.run([str(python), "-m", *arguments], cwd=ROOT, env=environment).returncode


def demo(python: Path) -> int:
    return run(python, "tests.host.demo")


def lint(python: Path) -> int:
    steps = [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("pyright", "--level", "error", "--pythonpath", str(python)),
    ]
    failed = 0
    for step in steps:
        setup.say("Lint: " + " ".join(step[:2]))
        failed |= run(python, *step)
    return failed


def test(python: Path, arguments: list[str]) -> int:
    if arguments:
        return run(python, "pytest", *arguments)
    left_out = "slow" if setup.chromium() else "slow or browser"
    if not setup.chromium():
        setup.say("No Chromium found, so the browser tests are left out (see `python run.py browser-test`).")
    # Lint meanwhile, heard at the end. Each file of tests stays together, in the order they were collected in.
    linting = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), "lint"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    spread = (
        "-n",
        "auto",
        "--maxprocesses",
        "4",
        "--dist",
        "loadfile",
        "--no-loadscope-reorder",
        "--durations",
        "10",
    )
    failed = run(python, "pytest", "-m", f"not ({left_out})", *spread)
    setup.say(linting.communicate()[0].decode(errors="replace"))
    return failed or linting.returncode


def proof(python: Path) -> int:
    return run(python, "pytest", "-m", "slow", "-s", "tests/test_world_proof.py")


def browser_test(python: Path) -> int:
    found = setup.chromium()
    if found is None:
        raise setup.SetupError(
            "No Chromium found. Install one (on Debian: apt install chromium) or name it in BOKEH_CHROMIUM."
        )
    setup.say(f"Chromium: {found}")
    return run(python, "pytest", "-m", "browser")


def main(words: list[str]) -> int:
    command, arguments = (words[0] if words else ""), words[1:]
    if command not in NEEDS or (arguments and command != "test"):
        setup.say(str(__doc__).strip())
        return 2
    try:
        whole = command == "test" and not arguments
        python = setup.prepare((*NEEDS[command], *(WHOLE if whole else ())))
        if command == "test":
            return test(python, arguments)
        return {"demo": demo, "lint": lint, "proof": proof, "browser-test": browser_test}[command](python)
    except setup.SetupError as error:
        setup.say(f"\n{error}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
