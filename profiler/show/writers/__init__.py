"""One file per output format: ``render(run, measurements) -> str``, and optional functions (``show/output.py``)."""
