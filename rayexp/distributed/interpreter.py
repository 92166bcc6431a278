"""The path of this Python, as Ray's command lines can bear it."""

import atexit
import shlex
import shutil
import sys
from pathlib import Path
from tempfile import mkdtemp

import ray

from rayexp.errors import RefusedError

#: Ray (2.60) joins the command line of a worker with quotes that it takes apart again by other rules.
LOST = "'\"\\"


def use_plain_path() -> None:
    """Call this Python by a path without blanks for the rest of the process, because Ray hands it to bash unquoted.

    Raises RefusedError where even that would not help, and Ray would wait for its workers for ever.
    """
    place = str(Path(ray.__file__).parent)
    if set(LOST) & set(place):
        raise RefusedError(f"Ray is installed in {place}; allowed: a path without any of {' '.join(LOST)}")
    if shlex.quote(sys.executable) == sys.executable:
        return
    folder = Path(mkdtemp(prefix="rayexp-python-", dir="/tmp"))  # TMPDIR may have a blank itself
    atexit.register(shutil.rmtree, folder)
    python = Path(sys.executable)
    (folder / "python").symlink_to(python.parents[1])
    sys.executable = str(folder / "python" / python.parent.name / python.name)
