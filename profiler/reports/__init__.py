"""One file a format: ``render(measurements) -> str``."""
