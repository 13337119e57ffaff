"""The hardware-fit report before it has a format: sections in the order of a person's questions.

    selection → sides (rows of one machine each) → one file a section → Page → html/, markdown.py, terminal.py

A section chooses data and says what it found; how it looks is the writers' business. A section without data says why.
"""
