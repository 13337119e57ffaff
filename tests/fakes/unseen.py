"""Characters that change how text looks and are not seen themselves."""

from __future__ import annotations

import unicodedata


def unseen(text: str) -> list[str]:
    """Those of ``text``: control, format, direction, private use, surrogates; not its line ends."""
    hidden = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")
    return [f"U+{ord(char):04X}" for char in text if char != "\n" and unicodedata.category(char) in hidden]
