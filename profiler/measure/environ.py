"""The environment of a worker: what libraries need to run, and nothing that could open somebody's account.

A worker parses files from strangers; it does no downloads, so it needs no token and no network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

NAMES = re.compile(
    "GLIBC_TUNABLES|HF_HOME|HF_HUB_CACHE|HOME|HOSTNAME|HUGGINGFACE_HUB_CACHE|LANG|LANGUAGE|LD_LIBRARY_PATH|LD_PRELOAD"
    "|LOGNAME|PATH|SHELL|TERM|TMPDIR|TZ|USER|VIRTUAL_ENV"
    "|(ATEN|BITSANDBYTES|BNB|CUBLAS|CUDA|CUDNN|DNNL|GOMP|HIP|HSA|KMP|LC|MALLOC|MKL|NCCL|NVIDIA|OMP|ONEDNN|OPENBLAS"
    "|PYTORCH|ROCM|ROCR|TORCH|TRANSFORMERS|TRITON|XDG)_.*"
    "|(PYTHON|TORCHINDUCTOR).*"
)
SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of ``environ`` a worker gets, by an allow-list; the hub's libraries are told to stay offline."""
    allowed = {
        name: value
        for name, value in environ.items()
        if NAMES.fullmatch(name) and not any(word in name.upper() for word in SECRET)
    }
    return allowed | OFFLINE
