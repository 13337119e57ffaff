"""Stand-ins for what a test machine lacks: checkpoints, a model hub."""
