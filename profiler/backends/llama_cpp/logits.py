"""Reads the logits of a GGUF file, as the user's own build of llama.cpp computes them (``libllama.py``)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import torch

from profiler import devices, folders
from profiler.backends.base import Beat, OutOfMemory
from profiler.backends.hf.comparison import LOGITS_BYTES, Rows
from profiler.backends.llama_cpp import build as builds
from profiler.backends.llama_cpp.libllama import CHUNK
from profiler.backends.llama_cpp.program import MAX_REASON, OUT_OF_MEMORY, STAMP, ProgramFailed, cause_of
from profiler.case import Case, options_of
from profiler.devices import allowance
from profiler.foreign import BadContent, json_value
from profiler.units import printable

LOG_BYTES = 256 * 1024  # of the log, in which the cause of a failure is looked for
# What the log must say of an option, since the library cannot be asked which it took.
KV = re.compile(r"\bK \((?P<type>\w+)\)")
FLASH = re.compile(r"flash_attn\s*=\s*(?P<state>\w+)")
STATES = {"on": ("enabled", "1"), "off": ("disabled", "0")}


class LogitsReader:
    """A model in a process of its own, with a cache of ``context`` tokens. Leaving the block ends the process.

    Raises ProgramFailed and OutOfMemory, here and in its methods, and ProfileError if the build has no library.
    """

    def __init__(self, case: Case, file: Path, context: int, beat: Beat) -> None:
        build = builds.find()
        library = build.library
        self._case, self._beat = case, beat
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "profiler.backends.llama_cpp.libllama", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(build, case),
        )
        beat("quality: loading")
        try:
            header = self._ask(
                library=str(library),
                folder=str(build.folder),
                model=str(file),
                context=max(context, CHUNK),
                threads=case.threads or allowance.at_start().threads,
                device=case.device,
                options=options_of(case.options),
            )
            self.vocabulary: int = header["vocabulary"]
            self.start: list[int] = header["start"]  # the tokens before any text
            self._confirm()
        except BaseException:
            self.close()
            raise

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, without ``start``."""
        count = self._ask(text=text)["tokens"]
        data = bytearray(4 * count)
        self._fill(memoryview(data))
        return memoryview(data).cast("i").tolist()

    def read(self, tokens: Sequence[int], first: int, take: Rows, steps_from: int | None = None) -> None:
        """Read a window, and give ``take`` the logits after each token from ``first`` on, in order.

        Tokens from ``steps_from`` on are read one at a time, as decode steps do. A tensor is valid during the call.
        """
        steps = len(tokens) if steps_from is None else steps_from
        most = max(1, LOGITS_BYTES // (4 * self.vocabulary))
        buffer = bytearray(4 * self.vocabulary * min(most, CHUNK, len(tokens)))
        header = self._ask(tokens=list(tokens), first=first, steps_from=steps)
        while left := header["rows"]:
            at = header["at"]
            while left:
                count = min(left, most)
                part = memoryview(buffer)[: 4 * self.vocabulary * count]
                self._fill(part)
                take(at, torch.frombuffer(part, dtype=torch.float32).view(count, self.vocabulary))
                at, left = at + count, left - count
            self._beat("")
            header = self._header()

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._log):
            if file is not None:
                with suppress(OSError):
                    file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, **wanted: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._failure() from None
        return self._header()

    def _header(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._failure()
        try:
            return dict(json_value(line))
        except BadContent as error:
            raise ProgramFailed(f"the reader of logits sent {printable(error)}") from None

    def _fill(self, part: memoryview) -> None:
        assert self._process.stdout is not None
        while part:
            count = self._process.stdout.readinto(part)  # type: ignore[attr-defined]
            if not count:
                raise self._failure()
            part = part[count:]

    def _failure(self) -> Exception:
        """Why the process ended."""
        status = self._process.wait()
        lines = [STAMP.sub("", line).strip() for line in self._said().splitlines()]
        refused = next((line for line in lines if OUT_OF_MEMORY.search(line)), None)
        if refused is not None:
            return OutOfMemory(printable(refused, MAX_REASON))
        own = next((line for line in reversed(lines) if line.startswith("error: ")), None)
        cause = own or cause_of(lines) or "it printed no reason"
        return ProgramFailed(printable(f"libllama gave no logits (exit {status}): {cause}", MAX_REASON))

    def _said(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - LOG_BYTES))
        return self._log.read().decode("utf-8", "replace")

    def _confirm(self) -> None:
        """Raise ProgramFailed unless the log says that the library took the case's options."""
        settings, said = options_of(self._case.options), self._said()
        kv, flash = settings.get("kv"), settings.get("flash-attn", "auto")
        if kv is not None and ((match := KV.search(said)) is None or match["type"].casefold() != kv):
            raise ProgramFailed(f"this build of llama.cpp did not confirm --kv {kv}")
        if flash in STATES and ((match := FLASH.search(said)) is None or match["state"] not in STATES[flash]):
            raise ProgramFailed(f"this build of llama.cpp did not confirm --flash-attn {flash}")


def _environment(build: builds.Build, case: Case) -> dict[str, str]:
    own = build.environment(case.device)
    uuid = devices.find(case.device).uuid
    if uuid is not None and "tensor-split" not in options_of(case.options):
        own["CUDA_VISIBLE_DEVICES"] = uuid
    return {**own, **folders.child_environ(own)}
