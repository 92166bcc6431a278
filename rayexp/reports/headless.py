"""matplotlib without a screen; every module that draws imports this first.

Figures are saved and never shown, so no backend is needed; yet matplotlib can't be imported if ``MPLBACKEND`` names an
unknown one. Its warnings about folders and lines of a matplotlibrc are silenced, because figures are drawn with its own
defaults (``drawing.plain``).
"""

import contextlib
import logging
import os

logging.getLogger("matplotlib").setLevel(logging.ERROR)
_backend = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib as matplotlib
finally:
    if _backend is not None:
        os.environ["MPLBACKEND"] = _backend
        with contextlib.suppress(ValueError):  # it knows none of that name
            matplotlib.rcParams["backend"] = _backend  # a notebook's own figures go on being shown
