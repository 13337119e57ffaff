"""The package llama-cpp-python without a library: its functions compute nothing, and keep what they were called with.

``install(folder)`` puts a package ``llama_cpp`` into ``folder``. What was called is kept in ``calls.jsonl``, with the
positions and sequences of tokens. Names and types are those of llama_cpp/llama_cpp.py in version 0.3.16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VERSION = "0.3.16"
PACKAGE = f'__version__ = "{VERSION}"\nraise SystemExit("nobody imports the whole package")\n'
BINDING = """
import ctypes, json, os, sys, time
from types import SimpleNamespace as Params

here = os.path.dirname(os.path.abspath(__file__))
script = json.load(open(os.path.join(here, "script.json")))
GGML_TYPE_F16, GGML_TYPE_Q8_0 = 1, 8
llama_log_callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
contexts = {}


def keep(**what):
    with open(os.path.join(here, "calls.jsonl"), "a") as calls:
        calls.write(json.dumps(what) + "\\n")


def llama_log_set(callback, data):
    global said
    said = lambda text: callback(2, text.encode(), data)


def llama_backend_init():
    pass


def llama_model_default_params():
    return Params(n_gpu_layers=0, tensor_split=None)


def llama_context_default_params():
    return Params(n_ctx=512, flash_attn_type=-1, swa_full=True, type_k=1, type_v=1)


def llama_max_devices():
    return 16


def llama_model_load_from_file(path, params):
    if "refused" in script:
        said(script["refused"] + "\\n")
        return None
    said("load_tensors:   CPU_Mapped model buffer size =   235.16 MiB\\n")
    return 1


def llama_init_from_model(model, params):
    keep(context=vars(params))
    said("llama_kv_cache:        CPU KV buffer size =     4.50 MiB\\nsched_reserve: graph splits = 1\\n")
    contexts[len(contexts) + 1] = params
    return len(contexts)


def llama_free(context):
    pass


def llama_model_get_vocab(model):
    return 1


def llama_vocab_n_tokens(vocab):
    return 1000


def llama_get_memory(context):
    return 1


def llama_memory_clear(memory, data):
    keep(cleared=True)


def llama_batch_get_one(tokens, count):
    assert count <= len(tokens)
    return Params(n_tokens=count, token=tokens, pos=None)


def llama_batch_init(count, embeddings, sequences):
    integers = lambda: (ctypes.c_int32 * count)()
    seq_id = [(ctypes.c_int32 * sequences)() for _ in range(count)]
    arrays = {name: integers() for name in ("token", "pos", "n_seq_id")}
    return Params(**arrays, seq_id=seq_id, logits=(ctypes.c_int8 * count)())


def llama_batch_free(batch):
    keep(freed=True)


def llama_decode(context, batch):
    assert all(0 <= batch.token[index] < 1000 for index in range(batch.n_tokens))
    if batch.pos is None:
        keep(tokens=batch.n_tokens)
    else:
        sequences = [list(each) for each in batch.seq_id]
        keep(pos=list(batch.pos), sequences=sequences, logits=list(batch.logits))
    time.sleep(script["token_s"] * batch.n_tokens)
    return 0


def llama_synchronize(context):
    pass


def llama_state_seq_get_size(context, sequence):
    return 10


def llama_state_seq_get_data(context, buffer, size, sequence):
    keep(saved=size)
    return size


def llama_state_seq_set_data(context, buffer, size, sequence):
    keep(restored=size)
    return size
"""


def install(folder: Path, without: str = "", token_s: float = 1e-5, **script: Any) -> Path:
    """Put the package into ``folder`` and return its own folder. ``without``: a function that it lacks. ``refused``:
    the line with which it refuses to load a model.
    """
    package = folder / "llama_cpp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE)
    (package / "llama_cpp.py").write_text(BINDING + (f"\ndel {without}\n" if without else ""))
    (package / "lib").mkdir()
    (package / "lib" / "libllama.so").write_bytes(b"library")
    (package / "lib" / "libggml-cuda.so").write_bytes(b"backend")
    (package / "script.json").write_text(json.dumps({"token_s": token_s, **script}))
    return package


def calls(package: Path) -> list[dict[str, Any]]:
    """What was called, in order."""
    file = package / "calls.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
