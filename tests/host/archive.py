"""What the registry hands out: an archive of the files that git knows, less those that ``.comfyignore`` names.

Files that git does not know yet, and would not ignore, count too: they will be known once they are committed.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from .setup import ROOT

LEFT_OUT = f"--exclude-from={ROOT / '.comfyignore'}"


def listed(*options: str) -> set[str]:
    """Paths of the files that ``git ls-files`` lists with these options. Raises where there is no git or no index."""
    done = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, check=True)
    return {name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()}


def files() -> list[str]:
    """Paths of the archive, from the root of this repository. Empty where git is absent or knows nothing of it."""
    try:
        known = listed("--cached") - listed("--cached", "--ignored", LEFT_OUT)
        return sorted(known | listed("--others", "--exclude-standard", LEFT_OUT))
    except (OSError, subprocess.CalledProcessError):
        return []


def unpack(folder: Path) -> Path:
    """Copy the files of the archive into ``folder``, which is made; that folder."""
    for name in files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder
