"""An experiment in a file: YAML or JSON with the names of the options."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from rayexp.config import RunConfig
from rayexp.errors import first_line
from rayexp.experiment import Experiment
from rayexp.formatting import shortened


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-4`` is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_config(path: str, usual: Experiment) -> tuple[Experiment, RunConfig]:
    """Return the experiment of a file, and how to run it. Settings that the file leaves out are those of ``usual``.

    Raises ValueError or ValidationError on a file that can't be read, or that has other settings.
    """
    try:
        loaded = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
        text: Any = json.loads(json.dumps(loaded))
    except OSError as error:
        raise ValueError(f"config={path!r} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"config={path!r} is neither YAML nor JSON ({first_line(error)})") from error
    if not isinstance(text, dict):
        raise ValueError(f"config={path!r} is not a mapping of settings; write lines such as `study: depth`")
    if not isinstance(how := text.pop("run_config", {}), dict):
        raise ValueError(f"run_config={shortened(how)} should be a mapping, with lines such as `device: cpu` below it")
    run_config = RunConfig.model_validate_json(json.dumps(how))
    return Experiment.model_validate_json(json.dumps(usual.model_dump(mode="json") | text)), run_config
