"""matplotlib without a screen, whatever the environment says of one; whatever draws imports this first.

Figures are saved and never shown, so no backend is needed, and matplotlib can't be imported where ``MPLBACKEND`` names
one that it doesn't know. Nor is a reader told of folders that may not be written to, or of lines of a matplotlibrc:
figures are drawn with matplotlib's own defaults (``drawing.plain``).
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
