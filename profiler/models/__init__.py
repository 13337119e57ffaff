"""What a model is, read from its raw ``config.json``: names, geometry, and where its weights are."""
