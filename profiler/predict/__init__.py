"""Memory and time from geometry, quantization and device, without weights and without torch."""
