"""What was measured, how it is stored, and what is derived from it."""
