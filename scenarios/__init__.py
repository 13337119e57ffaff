"""Data shipped with the profiler: workloads, prompts, model configs, devices. Installed as ``profiler.scenarios``."""
