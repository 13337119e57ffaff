"""Decide whether a change made inference slower or larger: PASS, FAIL, or the reason why neither can be said."""
