"""Output: tables, pages and files. ``writers/NAME.py`` is the output format ``NAME``."""
