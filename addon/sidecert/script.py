"""sidecert in mitmproxy's own tools: `mitmdump -n -s addon/sidecert/script.py --set sidecert=FILE`.

mitmproxy loads this file as a script of its own and leaves its folder on the module search path, where our
module names would stand in the way of other people's. So the folder is taken off again.
"""

from __future__ import annotations

import logging
import os
import sys

sys.path[:] = [
    path for path in sys.path if os.path.abspath(path) != os.path.dirname(os.path.abspath(__file__))
]

try:
    from sidecert.addon import Sidecert
except ImportError as exc:
    # mitmproxy ends the process for an error that is logged while it starts.
    logging.getLogger("sidecert").error(
        "sidecert cannot be imported (%s): install it into the Python environment of this mitmproxy (%s), "
        "or run the mitmdump or mitmweb of the environment where it is installed",
        exc,
        sys.prefix,
    )
    addons = []
else:
    addons = [Sidecert()]
