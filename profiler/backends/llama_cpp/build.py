"""The user's own build of llama.cpp: where its programs are, which version, which options, and their command lines.

    llama-bench           one sequence: repetitions of a prefill, or of decode at a depth, by its own timer
    llama-batched-bench   several sequences: one prefill and one decode at its depth per line, by its own timer
    llama-server          greedy completions, which a gate compares

Where none is found, llama-cpp-python takes their place: ``llama_cpp_python.py`` drives its library as the first two
drive theirs.

What a build can do is read from its ``--help`` and not from its version, since distributions build any commit.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import ClassVar

from profiler import files
from profiler.backends.base import InstalledBuild
from profiler.backends.llama_cpp.program import ProgramFailed, answer
from profiler.case import Case, options_of
from profiler.errors import ProfileError
from profiler.files import FileSpan
from profiler.folders import expanded
from profiler.results.environment import HEAP
from profiler.units import printable

VARIABLE = "LLAMA_CPP_DIR"
PYTHON = "llama_cpp"  # the module of llama-cpp-python, which has the library and none of the programs
BINDING, DRIVER = "llama_cpp.py", Path(__file__).with_name("llama_cpp_python.py")
PYTHON_VERSION = re.compile(r"""^__version__ = ["'](?P<version>[^"']+)""", re.MULTILINE)
BENCH, BATCHED, SERVER = "llama-bench", "llama-batched-bench", "llama-server"
TELLING = ("llama-batched-bench", "llama-server", "llama-cli")  # programs with --version, which llama-bench lacks
BUILD_COMMAND = f"cmake -B build && cmake --build build -j --target {BENCH} {BATCHED} {SERVER}"
SEARCHED = "LD_LIBRARY_PATH"
TRACE = {"LD_TRACE_LOADED_OBJECTS": "1"}  # ld.so(8): list the libraries instead of running the program
LINKED = re.compile(r"lib(?:llama|ggml)[^ ]* => (?P<path>/[^\n]+) \(0x")
INSIDE = ("", "bin", "build/bin")  # of an installation, a build folder or a source tree
LIBRARIES = ("libllama*.so*", "libggml*.so*", "libllama*.dylib", "libggml*.dylib")
BACKEND_FILE = re.compile(r"libggml-(?P<name>[a-z0-9]+)[.-]")  # libggml-cuda.so, libggml-cpu-haswell.so
PARTS_OF_EVERY_BUILD = {"base"}
VERSION = re.compile(r"^version: (?P<number>\d+) \((?P<commit>[^)]+)\)", re.MULTILINE)
DEVICE = re.compile(r"^\s+(?P<backend>[A-Za-z]+)\d*: ", re.MULTILINE)  # "  CUDA0: NVIDIA H200 (143167 MiB, …)"
OPTION = re.compile(r"^\s*(?P<names>-[^\s,]+(?:,\s+-[^\s,]+)*)(?P<value>[^\n]*)", re.MULTILINE)
ANSWER_S = 20.0  # a program that loads the libraries of several GPU vendors takes seconds for its --help

PAD = 256  # tokens to which llama.cpp rounds the cache of a sequence
UBATCH = 512  # tokens per prefill pass by default
# Variables that hide every GPU from a process, by vendor. An empty list of devices would still create a context.
HIDDEN = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES"), "")
QUIET = {"GGML_NO_BACKTRACE": "1"}  # an abort would otherwise start a debugger

# Options of a case → the option of both programs.
SWITCHES = {"gpu-layers": "-ngl", "n-cpu-moe": "-ncmoe", "tensor-split": "-ts"}


@dataclass(frozen=True)
class Build:
    """The programs in one folder."""

    folder: Path
    title: ClassVar[str] = "llama.cpp"

    @property
    def bench(self) -> Path:
        """llama-bench."""
        return self.folder / BENCH

    @property
    def batched(self) -> Path:
        """llama-batched-bench."""
        return self.folder / BATCHED

    def command(self, program: str) -> list[str]:
        """What starts one of the programs."""
        return [str(self.folder / program)]

    def refusal(self, program: str, option: str) -> ProfileError:
        """An error about an option that a program does not have."""
        return ProfileError(f"the {program} of this build of llama.cpp has no option {option}", "Use a newer build.")

    def unknown(self, program: str, needed: str, said: str) -> ProfileError:
        """An error about a program whose ``--help`` has no option ``needed``. ``said`` is what it printed."""
        path = printable(self.folder / program)
        return ProfileError(f"{path} is not a program of llama.cpp: its --help has no {needed}")

    def environment(self, device: str) -> dict[str, str]:
        """``environment``, in which the programs load the libraries beside them. A copied build would otherwise load
        those of the original, whose folder is in its RUNPATH.
        """
        own = environment(device)
        if not any(path.parent == self.folder for path in self._libraries()):
            return own
        return own | {SEARCHED: os.pathsep.join(filter(None, (str(self.folder), own.get(SEARCHED))))}

    def versions(self) -> dict[str, str]:
        """Version and compiled backends, as rows record them. The hash tells apart builds of the same commit."""
        try:
            said = answer([*self.command(BENCH), "--list-devices"], self.environment("cuda"), ANSWER_S)
            devices = DEVICE.findall(said)
        except ProgramFailed:
            devices = []
        names = (match["name"] for path in self._libraries() if (match := BACKEND_FILE.match(path.name)))
        backends = {"CPU"} | {name.upper() for name in names if name not in PARTS_OF_EVERY_BUILD}
        backends |= {name.upper() for name in devices}
        return {
            "llama.cpp": f"{self._version()}, files {self._identity()}",
            "llama.cpp backends": " ".join(sorted(backends)),
        }

    def _version(self) -> str:
        for name in TELLING:
            if not os.access(self.folder / name, os.X_OK):
                continue
            try:
                found = VERSION.search(
                    answer([str(self.folder / name), "--version"], self.environment("cpu"), ANSWER_S)
                )
            except ProgramFailed:
                continue
            if found and found["commit"] != "unknown":
                return printable(f"b{found['number']} ({found['commit']})", 60)
        return "of unknown commit"

    def _libraries(self) -> list[Path]:
        """The shared libraries of the build; none if it is linked statically."""
        places = (self.folder, self.folder / "lib", self.folder.parent / "lib")
        return sorted({path for place in places for pattern in LIBRARIES for path in place.glob(pattern)})

    @cached_property
    def linked(self) -> tuple[Path, ...]:
        """The libraries of llama.cpp that the dynamic linker would load, which may be those of another build."""
        try:
            said = answer([str(self.bench), "--help"], self.environment("cpu") | TRACE, ANSWER_S)
        except ProgramFailed:
            return ()
        return tuple(sorted({Path(match["path"]).resolve() for match in LINKED.finditer(said)}))

    @property
    def library(self) -> Path:
        """libllama, as its programs load it. Raises ProfileError for a build that is linked statically."""
        found = (path for path in self.linked or self._libraries() if path.name.startswith("libllama."))
        path = next(found, None)
        if path is None:
            raise ProfileError(
                f"logits are read from libllama, which is no file of its own in {printable(self.folder)}",
                "Build it with shared libraries: cmake -B build -DBUILD_SHARED_LIBS=ON",
            )
        return path

    def _identity(self) -> str:
        """A hash of the files that compute."""
        paths = dict.fromkeys(
            path.resolve() for path in (self.bench, self.batched, *self._libraries(), *self.linked) if path.is_file()
        )
        return files.content_id(FileSpan(path.name, path, 0, path.stat().st_size) for path in paths)[:8]

    @cached_property
    def options(self) -> Mapping[str, str]:
        """The options of llama-bench, each with how ``--help`` describes its value. Raises ProfileError."""
        return _options(self, BENCH, "--n-prompt")

    @cached_property
    def batched_options(self) -> Mapping[str, str]:
        """The options of llama-batched-bench, as ``options``. Raises ProfileError also if this build has none."""
        if not self.batched.exists():
            raise ProfileError(
                f"several sequences need {BATCHED}, which is not in {printable(self.folder)}",
                f"Build it: cmake --build build --target {BATCHED}",
            )
        return _options(self, BATCHED, "-npl")

    def alone(self, case: Case) -> bool:
        """Whether llama-bench can measure the case: one sequence, and decode at a depth (since 2025-04)."""
        return case.batch == 1 and "-d" in self.options

    def phase(
        self, case: Case, file: Path, phase: str, repetitions: int, rounds: int, cold: bool = False
    ) -> list[str]:
        """llama-bench: ``rounds`` lines of ``repetitions`` repetitions of one phase of ``case`` after a warm-up
        (unless ``cold``).
        """
        if "," in str(file):
            raise ProfileError(
                f"{printable(file)}: {BENCH} takes a comma in a path for a list", "Rename the file or its folder."
            )
        sizes = {"-p": [case.context] * rounds, "-n": [0], "-d": [0]}
        if phase == "decode":
            sizes = {"-p": [0], "-n": [case.steps] * rounds, "-d": [case.context]}
        lists = chain.from_iterable((name, ",".join(map(str, values))) for name, values in sizes.items())
        flags = ["--progress", *(["--no-warmup"] if cold else [])]
        progress = [flag for flag in flags if flag in self.options]
        common = self._common(case, BENCH, self.options)
        head = [*self.command(BENCH), "-m", str(file)]
        return [*head, "-r", str(repetitions), "-o", "jsonl", *progress, *lists, *common]

    def both_phases(self, case: Case, file: Path, rounds: int) -> list[str]:
        """llama-batched-bench: ``rounds`` lines, each of one prefill and one decode of all sequences of ``case``."""
        options = self.batched_options
        cells = case.batch * -(-(case.context + case.steps) // PAD) * PAD
        lists = ["-npp", ",".join([str(case.context)] * rounds), "-ntg", str(case.steps), "-npl", str(case.batch)]
        output = ["--output-format", "jsonl"] if "--output-format" in options else []
        common = self._common(case, BATCHED, options)
        return [*self.command(BATCHED), "-m", str(file), "-c", str(cells), *lists, *output, *common]

    def server(self, case: Case, file: Path, context: int) -> list[str]:
        """llama-server with one sequence of ``context`` tokens. Raises ProfileError if this build has none."""
        program = self.folder / SERVER
        if not program.exists():
            raise ProfileError(
                f"there is no {SERVER} in {printable(self.folder)}",
                f"Build it: cmake --build build --target {SERVER}",
            )
        options = _options(self, SERVER, "--port")
        common = self._common(replace(case, context=UBATCH, ubatch=UBATCH), SERVER, options)
        return [str(program), "-m", str(file), "-c", str(context), "-np", "1", *common]

    def _common(self, case: Case, program: str, options: Mapping[str, str]) -> list[str]:
        """The options that all programs have. Raises ProfileError for one that this build does not know."""
        settings = options_of(case.options)
        words: list[str] = []

        def add(name: str, *values: str) -> None:
            if name not in options:
                raise self.refusal(program, name)
            words.extend((name, *values))

        if case.threads is not None:
            add("-t", str(case.threads))
        if case.ubatch != min(UBATCH, case.context):
            add("-ub", str(case.ubatch))
        if "kv" in settings:
            add("-ctk", settings["kv"])
            add("-ctv", settings["kv"])
        if "flash-attn" in settings:
            words += _flash_attention(settings["flash-attn"], program, options)
        for name, switch in SWITCHES.items():
            if name in settings:
                value = settings[name]
                add(switch, value.replace("/", ",") if program != BENCH and name == "tensor-split" else value)
        if case.device == "cpu" and "-dev" in options:
            words += ["-dev", "none"]
        return words


class PythonBuild(Build):
    """The package llama-cpp-python in a folder. Its library is driven by a script, in the way of the programs."""

    title = "llama-cpp-python"

    @property
    def bench(self) -> Path:
        """The module that loads the library."""
        return self.folder / BINDING

    batched = bench

    def command(self, program: str) -> list[str]:
        return [sys.executable, "-P", str(DRIVER), str(self.folder), program]

    def refusal(self, program: str, option: str) -> ProfileError:
        return ProfileError(
            f"llama-cpp-python cannot be measured with {option}", f"{program} can: {_how_to_get_it()}"
        )

    def unknown(self, program: str, needed: str, said: str) -> ProfileError:
        why = next((line for line in said.splitlines() if line.startswith("error: ")), "error: it printed nothing")
        return ProfileError(printable(why.removeprefix("error: "), 300), f"Update it, or build {BENCH}.")

    def _version(self) -> str:
        found = PYTHON_VERSION.search((self.folder / "__init__.py").read_text(encoding="utf-8", errors="replace"))
        return printable(f"llama-cpp-python {found['version'] if found else 'of unknown version'}", 60)

    @cached_property
    def linked(self) -> tuple[Path, ...]:
        return tuple(path.resolve() for path in self._libraries())

    @cached_property
    def options(self) -> Mapping[str, str]:
        return _options(self, BENCH, "-p")

    def server(self, case: Case, file: Path, context: int) -> list[str]:
        raise ProfileError(f"llama-cpp-python has no {SERVER}", _how_to_get_it())


def environment(device: str) -> dict[str, str]:
    """The variables for a program that computes on ``device``; a GPU is named by the caller, by its UUID.

    Without the settings of the heap that a worker gets, since a user's shell does not have them.
    """
    own = {name: value for name, value in os.environ.items() if HEAP.get(name) != value}
    return own | QUIET | (HIDDEN if device == "cpu" else {})


@contextmanager
def using(folder: str | None) -> Iterator[None]:
    """Within, ``find`` returns the build in ``folder``, here and in workers. None changes nothing."""
    if folder is None:
        yield
        return
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = os.path.abspath(expanded(folder))
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def named(folder: str) -> Build:
    """The build in a folder, which may also be the folder above its programs. Raises ProfileError."""
    return _in(Path(os.path.abspath(expanded(folder))))


def is_in(folder: Path) -> bool:
    """Whether there are programs of llama.cpp in a folder, an installation, or a source tree that was built."""
    return any((folder / inside / BENCH).is_file() for inside in INSIDE)


def installed(folder: str | None) -> InstalledBuild:
    """The build in ``folder``, or that of ``find``, once it has answered. Raises ProfileError."""
    found = find() if folder is None else named(folder)
    found.options  # noqa: B018 - asks the program
    where = str(found.folder)
    return InstalledBuild(where, str(found.bench), {VARIABLE: where}, found.versions(), tuple(map(str, found.linked)))


def find() -> Build:
    """The build that ``VARIABLE`` names, else the one on the PATH. Raises ProfileError with how to get one."""
    folder = os.environ.get(VARIABLE)
    if folder:
        return named(folder)
    found = shutil.which(BENCH)
    if found is not None:
        return _build(Path(found).parent)
    package = find_spec(PYTHON)
    for place in (package and package.submodule_search_locations) or ():
        if _is_package(Path(place)):
            return _python_build(Path(place))
    raise ProfileError(
        f"llama.cpp is not found: neither {VARIABLE} nor the PATH has {BENCH}, and llama-cpp-python is not installed",
        _how_to_get_it(),
    )


def _is_package(folder: Path) -> bool:
    """Whether this is the folder of llama-cpp-python, and not any module of its name."""
    return (folder / BINDING).is_file() and (folder / "__init__.py").is_file()


def _in(named: Path) -> Build:
    if _is_package(named):
        return _python_build(named)
    for inside in INSIDE:
        folder = named / inside if named.is_dir() else named.parent
        program = folder / BENCH
        if program.is_file():
            if not os.access(program, os.X_OK):
                raise ProfileError(f"{printable(program)} is not executable", f"chmod +x {printable(program)}")
            return _build(folder)
    where = printable(named)
    raise ProfileError(
        f"there is no {BENCH} in {where}, {where}/bin or {where}/build/bin",
        f"Build it there: cmake -B build && cmake --build build -j --target {BENCH} {BATCHED}",
    )


@cache
def _build(folder: Path) -> Build:
    return Build(folder)


@cache
def _python_build(folder: Path) -> Build:
    return PythonBuild(folder)


def _how_to_get_it() -> str:
    if sys.platform == "darwin" or shutil.which("brew"):
        return "brew install llama.cpp, or name the folder of your own build with --llama-cpp DIR."
    cuda = " -DGGML_CUDA=ON" if shutil.which("nvidia-smi") else ""
    return (
        f"In a checkout of github.com/ggml-org/llama.cpp: cmake -B build{cuda} && cmake --build build -j --target "
        f"{BENCH} {BATCHED}; then --llama-cpp DIR, the checkout's folder."
    )


def _options(build: Build, program: str, needed: str) -> Mapping[str, str]:
    """Every option in the ``--help`` of a program, with the rest of its line. ProfileError if ``needed`` is none."""
    found: dict[str, str] = {}
    said = answer([*build.command(program), "--help"], build.environment("cpu"), ANSWER_S)
    for match in OPTION.finditer(said):
        for name in re.split(r",\s+", match["names"]):
            found.setdefault(name, match["value"].strip())
    if needed not in found:
        raise build.unknown(program, needed, said)
    return found


def _flash_attention(value: str, program: str, options: Mapping[str, str]) -> Sequence[str]:
    """``-fa`` in the words of this build: on, off or auto; 1 or 0; or an option without a value."""
    described = options.get("-fa", "")
    if "auto" in described:
        return ("-fa", value)
    if value == "auto":
        raise ProfileError(
            f"the {program} of this build of llama.cpp has no automatic flash attention", "Use on or off."
        )
    if described.startswith("<"):
        return ("-fa", "1" if value == "on" else "0")
    return ("-fa",) if value == "on" else ()
