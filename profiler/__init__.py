"""``profile``: how fast, how large and how near the limit a local LLM runs on this hardware."""

__version__ = "0.1.0"
