"""One file a ``model_type``: ``geometry(config) -> Geometry``, written like the paper's equations."""
