"""One file a quantization: the bytes it stores, what it leaves alone, and where it cannot run."""
