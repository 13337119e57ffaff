"""Data shipped with the profiler: model configs, devices, named grids. Installed as ``profiler.scenarios``."""
