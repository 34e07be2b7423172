"""``python -m tests.fit_cli COMMAND ...``: the trainer's command line, where torchvision needs help to be imported.

See :func:`tests.host.launch.make_torchvision_importable`; `accelerate launch -m tests.fit_cli` works too.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from tests.host.launch import make_torchvision_importable
    from trainer.cli import main

    make_torchvision_importable()
    sys.exit(main())
