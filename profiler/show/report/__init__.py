"""The hardware-fit report, one file per section, in the order of a person's questions.

    selection → machines (the rows of each) → sections → Page → a writer (HTML, Markdown, terminal)

A section chooses data and says what it found; a writer decides how that looks. A section without data says why.
"""
