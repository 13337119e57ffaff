"""``profile``: how fast a local LLM runs on this hardware, how much memory it takes, and how close it is to the
limit.

From Python: ``profiler.fit`` predicts, ``profiler.sweep`` measures, ``profiler.load`` reads stored results. Each
returns ``Rows``, which become a pandas DataFrame with ``Rows.to_pandas()``. See docs/python.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profiler.api import Rows, fit, load, sweep
    from profiler.errors import NotFound, ProfileError, StoreError

__version__ = "0.1.0"
__all__ = ["NotFound", "ProfileError", "Rows", "StoreError", "fit", "load", "sweep"]

_WHERE = dict.fromkeys(("Rows", "fit", "load", "sweep"), "profiler.api")
_WHERE |= dict.fromkeys(("NotFound", "ProfileError", "StoreError"), "profiler.errors")

if not TYPE_CHECKING:  # type checkers would otherwise accept misspelt names

    def __getattr__(name: str) -> Any:
        """Import a public name on first use, because workers and the command line also import this package."""
        if name not in _WHERE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_WHERE[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
