"""Measuring: which cases run and in which order, one worker process per loaded model, one measuring loop."""
