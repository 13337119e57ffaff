"""``python -m profiler`` is the command ``profile``."""

from profiler.cli import main

main()
