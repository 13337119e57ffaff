"""One file a device kind: what it is, whether it is here, its clock and its peak memory."""
