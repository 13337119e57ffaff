"""Models as their raw configs and weight files describe them: names, geometry, and where the weights are."""
