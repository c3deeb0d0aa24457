"""What the script `diffseg` imports: a name that no user has, so that it is found whatever theirs are called.

From here on our own packages, and those they need, are found before a user's: see `pipeline.searchpath`.
"""

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line."""
    sys.path.insert(0, _root())
    from pipeline.searchpath import own_first

    del sys.path[0]
    sys.path[:] = own_first()
    try:
        from jobs.shared.cli import main
    except KeyboardInterrupt:
        os._exit(130)  # nothing was begun

    main()


def _root() -> str:
    """The folder of our packages: the one that this package is installed in, or the checkout it is in."""
    installed = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found = os.path.isfile(os.path.join(installed, "pipeline", "searchpath.py"))
    return installed if found else os.path.dirname(os.path.dirname(installed))
