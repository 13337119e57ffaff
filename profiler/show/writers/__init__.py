"""One file per output format: ``render(run, measurements) -> str``, and more (``show/output.py``)."""
