"""Whether a change made things slower or larger: PASS, FAIL, or in words why that cannot be said."""
