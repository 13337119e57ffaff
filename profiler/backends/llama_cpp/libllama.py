"""Logits of a GGUF file by the library of the user's own build of llama.cpp.

``python -m profiler.backends.llama_cpp.libllama PARENT`` is the process of a reader (``logits.py``).

None of llama.cpp's programs gives the logits of every position: llama-perplexity scores the second half of a chunk
and rounds log-probabilities to 16 bits, and llama-server has those of generated tokens. All of them take their
logits from libllama, so this process loads the same library and calls it as they do. It answers lines of JSON on
standard input, and is a process of its own because a library that fails ends the process.

**Versions.** The functions used here have been the same since January 2025. The two structs of parameters change with
nearly every release, but begin in the same way and are filled by the library itself with known defaults. So a
parameter is set only where its default, and those around it, are found; otherwise the build is refused.
The sizes are then compared with what the library says of the context that it made.

**Answers.** A line of JSON, followed by as many bytes as it announces: ``tokens`` int32, or ``rows`` of the logits of
consecutive positions from ``at`` on, each float32 ``[vocabulary]``. ``{"rows": 0}`` ends them.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from profiler.backends.llama_cpp.program import die_with
from profiler.models.gguf import TYPES

CHUNK = 512  # tokens of a pass, which is llama.cpp's own default
STRUCT_WORDS = 128  # of 32 bits: more than a struct of parameters has had; the library writes only its part
CONTEXT_BEGINS = (512, 2048, CHUNK, 1)  # n_ctx, n_batch, n_ubatch, n_seq_max of llama_context_default_params
SPLIT_BY_LAYER = 1  # LLAMA_SPLIT_MODE_LAYER, the default of the field after n_gpu_layers
UNSPECIFIED = -1  # of the enumerations for RoPE scaling, pooling and attention, and "auto" of flash attention
FLASH = {"off": 0, "on": 1, "auto": -1}  # enum llama_flash_attn_type
EXPERTS = r"blk\.{}\.ffn_(up|down|gate|gate_up)_(ch|)exps"  # as --n-cpu-moe names them (common.h)
CLEARING = ("llama_memory_clear", "llama_kv_self_clear", "llama_kv_cache_clear")  # the newest first
NEEDED = (
    "llama_model_load_from_file",
    "llama_init_from_model",
    "llama_model_get_vocab",
    "llama_vocab_n_tokens",
    "llama_vocab_bos",
    "llama_vocab_get_add_bos",
    "llama_tokenize",
    "llama_decode",
    "llama_get_logits_ith",
    "llama_set_n_threads",
)
POINTERS = ("llama_model_load_from_file", "llama_init_from_model", "llama_model_get_vocab", "llama_get_memory",
            "llama_get_logits_ith", "ggml_backend_cpu_buffer_type")  # fmt: skip


class OpaqueParams(ctypes.Structure):
    """Either struct of parameters, by its 32-bit words. Such large structs are passed in memory, so the library reads
    and writes its own part, whatever its size."""

    _fields_ = (("words", ctypes.c_int32 * STRUCT_WORDS),)


class TokenBatch(ctypes.Structure):
    """``struct llama_batch``."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


class BufferOverride(ctypes.Structure):
    """``struct llama_model_tensor_buft_override``."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))


class Refused(Exception):
    """The library cannot do what is asked. The message says why."""


class Library:
    """A model and its context in a loaded libllama."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self._lib = _loaded(asked["library"], asked["folder"])
        settings: Mapping[str, str] = asked["options"]
        self._kept: list[Any] = []  # what the library has pointers to
        model = self._lib.llama_model_load_from_file(asked["model"].encode(), self._model_params(asked, settings))
        if not model:
            raise Refused("the model cannot be loaded")
        context = self._context_params(asked["context"], settings)
        self._context = ctypes.c_void_p(self._lib.llama_init_from_model(ctypes.c_void_p(model), context))
        if not self._context:
            raise Refused("the context cannot be created")
        self._check_sizes(asked["context"])
        self._lib.llama_set_n_threads(self._context, asked["threads"], asked["threads"])
        self._vocab = ctypes.c_void_p(self._lib.llama_model_get_vocab(ctypes.c_void_p(model)))
        self.vocabulary = int(self._lib.llama_vocab_n_tokens(self._vocab))
        self._batch = self._new_batch()

    @property
    def start(self) -> list[int]:
        """The tokens that the model expects before any text."""
        begins = ctypes.c_bool(self._lib.llama_vocab_get_add_bos(self._vocab)).value
        return [self._lib.llama_vocab_bos(self._vocab)] if begins else []

    def tokens(self, text: str) -> Any:
        """The tokens of a text, without those before any text; what looks like a control token is text."""
        data = text.encode("utf-8", "surrogatepass")
        room = len(data) + 16
        found = (ctypes.c_int32 * room)()
        flags = ctypes.c_bool(False), ctypes.c_bool(False)  # add_special, parse_special
        count = self._lib.llama_tokenize(self._vocab, data, len(data), found, room, *flags)
        if count < 0:
            raise Refused(f"the text cannot be tokenized ({count})")
        return (ctypes.c_int32 * count).from_buffer(found)

    def read(self, tokens: Sequence[int], first: int, steps_from: int) -> Iterator[tuple[int, list[Any]]]:
        """Read tokens into an empty cache: those from ``steps_from`` on in steps of one, the others in chunks.

        Yields the logits after each token from ``first`` on, as the first position and a list of rows, which the
        next pass overwrites.
        """
        self._clear()
        at = 0
        while at < len(tokens):
            end = at + 1 if at >= steps_from else min(at + CHUNK, steps_from, len(tokens))
            self._pass(tokens[at:end], at, first)
            begin = max(at, first)
            rows = [self._row(place - at) for place in range(begin, end)]
            if rows:
                yield begin, rows
            at = end

    def _pass(self, tokens: Sequence[int], at: int, first: int) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, at + place
            batch.logits[place] = at + place >= first
        status = self._lib.llama_decode(self._context, batch)
        if status:
            raise Refused(f"llama_decode failed with {status} at position {at}")

    def _row(self, place: int) -> Any:
        address = self._lib.llama_get_logits_ith(self._context, place)
        if not address:
            raise Refused(f"there are no logits at {place} of a pass")
        return (ctypes.c_float * self.vocabulary).from_address(address)

    def _clear(self) -> None:
        if hasattr(self._lib, CLEARING[0]):
            memory = ctypes.c_void_p(self._lib.llama_get_memory(self._context))
            self._lib.llama_memory_clear(memory, ctypes.c_bool(True))
            return
        name = next((name for name in CLEARING if hasattr(self._lib, name)), None)
        if name is None:
            raise Refused("this build has no function that empties the cache")
        getattr(self._lib, name)(self._context)

    def _model_params(self, asked: Mapping[str, Any], settings: Mapping[str, str]) -> OpaqueParams:
        """Of the defaults only what the case places by hand, and no layer on a GPU for a case on the CPU."""
        params: OpaqueParams = self._lib.llama_model_default_params()
        words = params.words
        place = next((each for each in range(0, 12, 2) if words[each] or words[each + 1]), 0)
        if place < 2 or words[place + 1] != SPLIT_BY_LAYER or words[place + 2] != 0:
            raise Refused("this build has other parameters of a model")
        if asked["device"] == "cpu":
            words[place] = 0
        elif "gpu-layers" in settings:
            words[place] = int(settings["gpu-layers"])
        if "tensor-split" in settings:
            shares = [float(share) for share in settings["tensor-split"].split("/")]
            most = max(len(shares), self._lib.llama_max_devices())
            self._point(params, place + 4, (ctypes.c_float * most)(*shares))
        if int(settings.get("n-cpu-moe", "0")):
            if place != 4:  # after the pointers to devices and overrides
                raise Refused("this build has no overrides of buffers")
            host = self._lib.ggml_backend_cpu_buffer_type()
            layers = range(int(settings["n-cpu-moe"]))
            named = [BufferOverride(EXPERTS.format(layer).encode(), host) for layer in layers]
            self._point(params, 2, (BufferOverride * (len(named) + 1))(*named))
        return params

    def _context_params(self, context: int, settings: Mapping[str, str]) -> OpaqueParams:
        params: OpaqueParams = self._lib.llama_context_default_params()
        words = params.words
        if tuple(words[:4]) != CONTEXT_BEGINS:
            raise Refused("this build has other parameters of a context")
        words[0], words[1], words[2] = context, CHUNK, CHUNK
        enums = next((place for place in range(4, 16) if words[place] == UNSPECIFIED), 16)
        count = next((count for count in range(8) if words[enums + count] != UNSPECIFIED), 8)
        if "flash-attn" in settings:
            if count != 4 or words[enums + count] != 0:  # before RoPE's base of 0: "from the model"
                raise Refused("this build has no --flash-attn that can be set for the quality")
            words[enums + count - 1] = FLASH[settings["flash-attn"]]
        if "kv" in settings:
            both = (TYPES["f16"],) * 2
            place = next((each for each in range(16, 48, 2) if (words[each], words[each + 1]) == both), None)
            if place is None:
                raise Refused("this build has no --kv that can be set for the quality")
            words[place] = words[place + 1] = TYPES[settings["kv"]]
        return params

    def _point(self, params: OpaqueParams, place: int, at: Any) -> None:
        """Let the pointer at a word, which must be unset, point to an array."""
        pointer = ctypes.c_void_p.from_buffer(params.words, 4 * place)
        if pointer.value is not None:
            raise Refused("this build has other parameters of a model")
        self._kept.append(at)
        pointer.value = ctypes.addressof(at)

    def _check_sizes(self, context: int) -> None:
        sizes = [
            getattr(self._lib, name)(self._context) for name in ("llama_n_ctx", "llama_n_batch", "llama_n_ubatch")
        ]
        if sizes[0] < context or sizes[1:] != [CHUNK, CHUNK]:
            raise Refused(f"this build made a context of {sizes} tokens instead of {context}, {CHUNK} and {CHUNK}")

    def _new_batch(self) -> TokenBatch:
        """A batch of one sequence, once the library's own has shown to have the same fields."""
        own: TokenBatch = self._lib.llama_batch_init(1, 0, 1)
        if own.n_tokens or own.embd or not all((own.token, own.pos, own.n_seq_id, own.seq_id, own.logits)):
            raise Refused("this build has another form of batches")
        self._lib.llama_batch_free(own)
        integers = ctypes.c_int32 * CHUNK
        sequence = ctypes.pointer(ctypes.c_int32(0))
        sequences = (ctypes.POINTER(ctypes.c_int32) * CHUNK)(*[sequence] * CHUNK)
        arrays = integers(), integers(), integers(*[1] * CHUNK), sequences, (ctypes.c_int8 * CHUNK)()
        self._kept += [sequence, *arrays]
        token, pos, counts, ids, logits = arrays
        return TokenBatch(0, token, None, pos, counts, ids, logits)


def _loaded(library: str, folder: str) -> Any:
    """The library, with the backends that a build has as separate files. Raises Refused."""
    try:
        lib = ctypes.CDLL(library)
    except OSError as error:
        raise Refused(f"the library cannot be loaded: {error}") from None
    missing = [name for name in NEEDED if not hasattr(lib, name)]
    if missing:
        raise Refused(f"this build is too old: its library has no {missing[0]}")
    for name in POINTERS:
        if hasattr(lib, name):
            getattr(lib, name).restype = ctypes.c_void_p
    lib.llama_model_load_from_file.argtypes = ctypes.c_char_p, OpaqueParams
    lib.llama_init_from_model.argtypes = ctypes.c_void_p, OpaqueParams
    lib.llama_decode.argtypes = ctypes.c_void_p, TokenBatch
    lib.llama_model_default_params.restype = lib.llama_context_default_params.restype = OpaqueParams
    lib.llama_batch_init.restype = TokenBatch
    lib.llama_batch_free.argtypes = (TokenBatch,)
    lib.llama_batch_free.restype = None
    lib.llama_backend_init()
    for place in (None, os.path.dirname(library), folder):
        if not hasattr(lib, "ggml_backend_dev_count") or lib.ggml_backend_dev_count():
            break
        if place is None:
            lib.ggml_backend_load_all()
        else:
            lib.ggml_backend_load_all_from_path(place.encode())
    return lib


def _serve(answers: Any) -> None:
    """Load what the first line names, then answer one line after the other. Raises Refused."""
    made = Library(json.loads(sys.stdin.readline()))

    def say(**header: Any) -> None:
        answers.write(json.dumps(header).encode() + b"\n")

    say(vocabulary=made.vocabulary, start=made.start)
    answers.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        if "text" in asked:
            tokens = made.tokens(asked["text"])
            say(tokens=len(tokens))
            answers.write(tokens)
        else:
            for at, rows in made.read(asked["tokens"], asked["first"], asked["steps_from"]):
                say(at=at, rows=len(rows))
                for row in rows:
                    answers.write(row)
                answers.flush()
            say(at=0, rows=0)
        answers.flush()


def main(parent: int) -> None:
    """Serve ``parent`` until it closes standard input. What the library prints goes to standard error."""
    die_with(parent)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        _serve(answers)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # without the library's own end, which may fail too


if __name__ == "__main__":
    main(int(sys.argv[1]))
