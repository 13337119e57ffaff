"""Static-shape decode step and its CUDA graph, installed as ``profiler.kernels``.

``__version__`` guards a name clash: transformers probes for the Hugging Face package ``kernels`` and reads its
version. From a checkout that probe finds this folder, and 0.0.0 tells it "not the one you want".
"""

__version__ = "0.0.0"
