"""The hardware-fit report, with one file per section.

    selection → machines (the rows of each) → sections → Page → a writer (HTML, Markdown, terminal)

A section selects data and describes it; a writer decides how that looks. A section without data says why.
"""
