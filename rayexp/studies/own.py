"""A user's own study, by the import path of its function, such as ``my_studies:lengths``."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError

from rayexp.config import explain
from rayexp.errors import defined_at, located
from rayexp.parts import imported
from rayexp.stages import Stage
from rayexp.studies.conditions import Condition, Wanted


def own_study(path: str) -> Callable[..., list[Wanted]]:
    """Return the study at an import path. Raises ValueError if it can't be imported or called.

    The returned study raises ValueError, with file and line, if the user's function raises or returns something other
    than stages and conditions.
    """
    function = imported(path, "study")
    if not callable(function):
        raise ValueError(f"study={path!r} cannot be called; give a function of (budget, grid)")

    @functools.wraps(function)  # which keeps the parameters that is_adaptive inspects
    def study(*given: Any) -> list[Wanted]:
        try:
            found = function(*given)
            stages: list[Any] = list(found) if isinstance(found, Iterable) else [found]
        except ValidationError as error:
            raise ValueError(f"study {path!r}: {explain(error)} ({defined_at(function)})") from error
        except Exception as error:
            raise ValueError(f"study {path!r} raised {located(error)}") from error
        others = [type(each).__name__ for each in stages if not isinstance(each, Stage | Condition)]
        if others or not stages:
            got = f"returned {others[0]} among its stages" if others and len(stages) > 1 else f"returned {found!r}"
            raise ValueError(f"study {path!r} {got}; return a list of stages or conditions ({defined_at(function)})")
        return stages

    return study
