"""llama-bench and llama-batched-bench for llama-cpp-python, which has llama.cpp's library and none of its programs.

    python llama_cpp_python.py FOLDER llama-bench|llama-batched-bench -m FILE.gguf …

``FOLDER`` is that of the package ``llama_cpp``. Options, what is measured and the lines that are printed are those of
the program that is named (tools/llama-bench and tools/batched-bench of llama.cpp), as far as ``build.Build`` uses
them. Between two calls of ``llama_decode`` there are a few microseconds of Python. Inputs are made before the clock
starts. This file runs by itself, so it imports nothing of ``profiler``.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import random
import re
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

N_BATCH = 2048  # tokens of one call of llama_decode, in both programs
ALL_LAYERS = 999
WARM_UP = 16  # tokens of llama-batched-bench's warm-up
NEEDED = ("llama_init_from_model", "llama_memory_clear", "llama_vocab_n_tokens")  # since 0.3.10 (2025-07)
FLASH = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type
CPUS = Path("/sys/devices/system/cpu")


def main() -> None:
    api = library(Path(sys.argv[1]))
    given = options(api, *sys.argv[2:])
    log = api.llama_log_callback(_printed if given.verbose else _unseen)
    api.llama_log_set(log, None)
    api.llama_backend_init()
    loaded = LoadedLibrary(api, given)
    if given.program == "llama-bench":
        for sizes in product(given.prompts, given.generated, given.depths):
            bench(loaded, given, *sizes)
        return
    loaded.open(given.cells, max(given.sequences))
    loaded.prompt(loaded.random_tokens(WARM_UP))
    for sizes in product(given.prompts, given.generated, given.sequences):
        batched_bench(loaded, given, *sizes)


def library(folder: Path) -> Any:
    """The functions of llama.h. Without the rest of the package, which would import NumPy and take memory."""
    package = ModuleType("llama_cpp")
    package.__path__ = [str(folder)]
    sys.modules["llama_cpp"] = package
    try:
        api = importlib.import_module("llama_cpp.llama_cpp")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # its library is missing, or another one
        fail(f"llama-cpp-python cannot be loaded: {error}")
    missing = [name for name in NEEDED if not hasattr(api, name)]
    if missing:
        fail(f"this llama-cpp-python is too old: it has no {missing[0]}")
    return api


def options(api: Any, program: str, *words: str) -> argparse.Namespace:
    """The options of a program, each described in the way that ``build`` reads a ``--help``."""
    automatic = hasattr(api.llama_context_default_params(), "flash_attn_type")
    parser = argparse.ArgumentParser(prog=program, allow_abbrev=False)
    parser.set_defaults(program=program)
    add = parser.add_argument
    add("-m", dest="model", metavar="<filename>", required=True)
    add("-t", dest="threads", metavar="<n>", type=int, default=physical_cores())
    add("-ub", dest="ubatch", metavar="<n>", type=int, default=512)
    add("-ctk", dest="type_k", metavar="<t>", default="f16")
    add("-ctv", dest="type_v", metavar="<t>", default="f16")
    switches = ("on", "off", "auto") if automatic else ("0", "1")
    add("-fa", dest="flash", metavar=f"<{'|'.join(switches)}>", choices=switches)
    add("-ngl", dest="layers", metavar="<n>", type=int, default=ALL_LAYERS)
    add("-ts", dest="shares", metavar="<ts0/ts1/..>", default="")
    add("-v", dest="verbose", action="store_true")
    if program == "llama-bench":
        add("-p", dest="prompts", metavar="<n>", type=sizes_of, default=[0])
        add("-n", dest="generated", metavar="<n>", type=sizes_of, default=[0])
        add("-d", dest="depths", metavar="<n>", type=sizes_of, default=[0])
        add("-r", dest="repetitions", metavar="<n>", type=int, default=5)
        add("-o", metavar="<jsonl>", choices=("jsonl",))
        add("--progress", action="store_true")
        add("--no-warmup", action="store_true")
    else:
        add("-npp", dest="prompts", metavar="<n>", type=sizes_of, required=True)
        add("-ntg", dest="generated", metavar="<n>", type=sizes_of, required=True)
        add("-npl", dest="sequences", metavar="<n>", type=sizes_of, required=True)
        add("-c", dest="cells", metavar="<n>", type=int, required=True)
        add("--output-format", metavar="<jsonl>", choices=("jsonl",))
    return parser.parse_args(words)


def sizes_of(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def physical_cores() -> int:
    """As both programs choose their threads by default (cpu_get_num_physical_cores of llama.cpp's common.cpp)."""
    siblings = {file.read_text() for file in CPUS.glob("cpu[0-9]*/topology/thread_siblings")}
    return len(siblings) or os.cpu_count() or 1


class LoadedLibrary:
    """A model, and a context after ``open``."""

    def __init__(self, api: Any, given: argparse.Namespace) -> None:
        self.api, self._given = api, given
        self.state: tuple[int, Any] | None = None  # a depth and the state of a sequence with as many tokens
        how = api.llama_model_default_params()
        how.n_gpu_layers = given.layers
        if given.shares:
            shares = [float(each) for each in re.split("[/,]", given.shares)]
            self._shares = (ctypes.c_float * api.llama_max_devices())(*shares)  # must live as long as the model
            how.tensor_split = self._shares
        self._model = api.llama_model_load_from_file(os.fsencode(given.model), how)
        if not self._model:
            fail(f"failed to load model '{given.model}'")
        self._words = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self.context: Any = None

    def open(self, cells: int, sequences: int = 1) -> None:
        """Make a new context for sequences that together have ``cells`` tokens."""
        api, given = self.api, self._given
        if self.context is not None:
            api.llama_free(self.context)
        how = api.llama_context_default_params()
        how.n_ctx, how.n_seq_max, how.n_batch, how.n_ubatch = cells, sequences, N_BATCH, given.ubatch
        how.n_threads = how.n_threads_batch = given.threads
        how.type_k, how.type_v = (_type(api, kind) for kind in (given.type_k, given.type_v))
        how.swa_full = False  # sliding layers hold their window only, as in the programs
        if given.flash in FLASH:
            how.flash_attn_type = FLASH[given.flash]
        elif given.flash is not None:
            how.flash_attn = given.flash == "1"
        self.context = api.llama_init_from_model(self._model, how)
        if not self.context:
            fail(f"failed to create context with model '{given.model}'")
        self._memory = api.llama_get_memory(self.context)

    def clear(self) -> None:
        """Forget all tokens."""
        self.api.llama_memory_clear(self._memory, False)

    def random_tokens(self, count: int) -> list[Any]:
        """Arrays of at most ``N_BATCH`` tokens, ``count`` in total."""
        sizes = [min(N_BATCH, count - start) for start in range(0, count, N_BATCH)]
        return [(ctypes.c_int32 * size)(*(self.random_token() for _ in range(size))) for size in sizes]

    def random_token(self) -> int:
        """Any token of the vocabulary."""
        return random.randrange(self._words)

    def decode(self, batch: Any) -> None:
        """One call of llama_decode."""
        failed = self.api.llama_decode(self.context, batch)
        if failed:
            fail(f"failed to decode a batch, res = {failed}")

    def wait(self) -> None:
        """Until everything is computed."""
        self.api.llama_synchronize(self.context)

    def reach(self, depth: int) -> None:
        """Fill the cache of a sequence with ``depth`` tokens, which are computed only once."""
        api = self.api
        if self.state is None or self.state[0] != depth:
            self.prompt(self.random_tokens(depth))
            kept = (ctypes.c_uint8 * api.llama_state_seq_get_size(self.context, 0))()
            api.llama_state_seq_get_data(self.context, kept, len(kept), 0)
            self.state = depth, kept
        elif not api.llama_state_seq_set_data(self.context, self.state[1], len(self.state[1]), 0):
            fail("failed to restore the state of a sequence")

    def prompt(self, arrays: Sequence[Any]) -> None:
        """Process tokens as a prompt of one sequence."""
        for array in arrays:
            self.decode(self.api.llama_batch_get_one(array, len(array)))
        self.wait()

    def generate(self, arrays: Sequence[Any]) -> None:
        """Process tokens one by one."""
        for array in arrays:
            self.decode(self.api.llama_batch_get_one(array, 1))
            self.wait()


# llama-bench


def bench(loaded: LoadedLibrary, given: argparse.Namespace, prompt: int, generated: int, depth: int) -> None:
    """Print one line, of all repetitions."""

    def say(what: str) -> None:
        if given.progress:
            print(f"llama-bench: benchmark 1/1: {what}", file=sys.stderr, flush=True)

    phase = "prompt" if prompt else "generation"
    loaded.open(prompt + generated + depth)
    if not given.no_warmup:
        say(f"warmup {phase} run")
        loaded.prompt(loaded.random_tokens(prompt or 1))
    samples = []
    for number in range(1, given.repetitions + 1):
        loaded.clear()
        if depth:
            known = loaded.state is not None and loaded.state[0] == depth
            say(f"depth run {number}/{given.repetitions}{' (cached)' if known else ''}")
            loaded.reach(depth)
        whole = loaded.random_tokens(prompt)
        single = [loaded.random_tokens(1)[0] for _ in range(generated)]
        say(f"{phase} run {number}/{given.repetitions}")
        start = time.perf_counter_ns()
        loaded.prompt(whole)
        loaded.generate(single)
        samples.append(time.perf_counter_ns() - start)
    line = {"n_prompt": prompt, "n_gen": generated, "n_depth": depth, "n_threads": given.threads}
    print(json.dumps(line | {"samples_ns": samples}), flush=True)


# llama-batched-bench


def batched_bench(loaded: LoadedLibrary, given: argparse.Namespace, prompt: int, generated: int, count: int) -> None:
    """Print a line for a prefill and the decode of ``count`` sequences."""
    places = [(place, sequence) for sequence in range(count) for place in range(prompt)]
    parts = [places[start : start + N_BATCH] for start in range(0, len(places), N_BATCH)]
    batches = [_batch(loaded, part, prompt - 1) for part in parts]
    step = _batch(loaded, [(prompt, sequence) for sequence in range(count)], prompt)
    loaded.clear()
    start = time.perf_counter()
    for batch in batches:
        loaded.decode(batch)
    loaded.wait()
    middle = time.perf_counter()
    for number in range(generated):
        for index in range(count):
            step.token[index], step.pos[index] = loaded.random_token(), prompt + number
        loaded.decode(step)
        loaded.wait()
    end = time.perf_counter()
    for batch in (*batches, step):
        loaded.api.llama_batch_free(batch)
    line = {"pp": prompt, "tg": generated, "pl": count, "n_threads": given.threads}
    print(json.dumps(line | {"t_pp": middle - start, "t_tg": end - middle}), flush=True)


def _batch(loaded: LoadedLibrary, tokens: Sequence[tuple[int, int]], last: int) -> Any:
    """A batch of random tokens with these positions and sequences. Those at the position ``last`` have logits."""
    batch = loaded.api.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for index, (place, sequence) in enumerate(tokens):
        batch.token[index], batch.pos[index] = loaded.random_token(), place
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
        batch.logits[index] = place == last
    return batch


def _type(api: Any, name: str) -> int:
    """ggml's number of a type."""
    found = getattr(api, f"GGML_TYPE_{name.upper()}", None)
    if found is None:
        fail(f"this llama-cpp-python has no cache type {name}")
    return int(found)


def _printed(level: int, text: bytes, user_data: object) -> None:
    sys.stderr.buffer.write(text)
    sys.stderr.buffer.flush()


def _unseen(level: int, text: bytes, user_data: object) -> None:
    pass


def fail(what: str) -> NoReturn:
    """End with a line that says why."""
    sys.exit(f"error: {what}")


if __name__ == "__main__":
    main()
