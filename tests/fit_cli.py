"""``python -m tests.fit_cli COMMAND ...``: the trainer's command line, where torchvision needs help to be imported.

See :func:`tests.host.launch.make_torchvision_importable`; ``accelerate launch -m tests.fit_cli`` works too, and
``python -m tests.fit_cli demo FOLDER`` is ``python -m trainer.fit.demo FOLDER``, and ``world`` in place of ``demo``
``python -m trainer.world``.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from tests.host.launch import make_torchvision_importable

    make_torchvision_importable()
    if sys.argv[1:2] == ["demo"]:
        from trainer.fit.demo import main as demo

        sys.exit(demo(sys.argv[2:]))
    if sys.argv[1:2] == ["world"]:
        from trainer.world.__main__ import main as world

        sys.exit(world(sys.argv[2:]))
    from trainer.cli import main

    sys.exit(main())
