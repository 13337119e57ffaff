"""The measuring: one loop, one worker process per loaded model, cautions as data."""
