"""The figures of a report, each with the exact table that it draws. One row of panels for each arm of the study.

A function of a module of this package that is decorated by ``drawing.on_page`` is one; nothing lists them.
"""

from importlib import import_module
from pkgutil import iter_modules

from rayexp.reports import headless as headless  # before anything else that imports matplotlib
from rayexp.reports.drawing import DRAWN, OnPage

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


#: Figures by the table that they are drawn from (``drawing.on_page``) and by title, in the order of the page.
FIGURES: dict[str, dict[str, OnPage]] = {
    of: {title: drawn[place, title] for place, title in sorted(drawn)} for of, drawn in DRAWN.items()
}
