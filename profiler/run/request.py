"""Resolves the options of a sweep into tasks. Models that cannot be used are refused with a reason.

One refused model does not stop the others in the list.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import PurePath
from typing import Any

from profiler import backends, decode_path, registry
from profiler.case import EAGER, FILES, SCENARIO, SYNTHETIC, THREADS, ModelNote, Task, options_text
from profiler.devices.base import DeviceInfo, kind_of
from profiler.errors import NotFound, ProfileError
from profiler.models import gguf_mix, scheme
from profiler.models.resolve import Model, resolve
from profiler.quants import checkpoint
from profiler.quants.base import Quant
from profiler.registry import unknown
from profiler.run import gguf_files, headline, quality
from profiler.run import grid as run_grid
from profiler.run.grid import Axes, Subject, SweepSettings, counts, model_names, tasks, words
from profiler.run.prompts import contexts_of
from profiler.run.quantization import dtype_notes, never_loaded
from profiler.run.refusal import Refusal, accepted
from profiler.run.repetitions import MAX_PHASE_S, PRECISION, QUICK_PRECISION, Effort
from profiler.units import bytes_text, counted, one_of, printable, some_bytes, some_seconds, some_share

MAX_THREADS = 4096  # the OpenMP runtime crashes at a million
MAX_SEED = 2**63 - 1  # limit of the random generators
WEIGHTS = ("auto", "real", "synthetic")
OF_BACKENDS = ("kv", "flash_attn", "gpu_layers", "n_cpu_moe", "tensor_split")  # options that only some backends have
CONTEXTS, BATCHES, STEPS = (512,), (1,), (32,)
GGUF_QUANT = "q4_k_m"  # of a GGUF file with synthetic weights, without -q
OF_CHECKPOINTS = re.compile(r"(awq|gptq|fp8|mxfp|nvfp|compressed|mlx|fp4-dq).{0,40}", re.IGNORECASE)
GGUF_FORMAT = re.compile(r"^(ud-)?(i?q\d|tq\d)_", re.IGNORECASE)  # q4_k_m, iq2_xs
Say = Callable[[str], None]


def _backend(text: str) -> str:
    backends.find(text)
    return registry.canonical(backends.FOLDER, text) or text


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_SEED:
        raise ValueError(f"{printable(text, 40)} is not a whole number from 0 to {MAX_SEED}")
    return int(text)


@dataclass(frozen=True, slots=True)
class SweepOption:
    """An option of ``profile sweep``, which ``profiler.sweep`` takes as an argument."""

    names: tuple[str, ...]  # on the command line
    parse: Callable[[str], Any] = str  # raises ValueError, and NotFound for the name of a plug-in
    default: str | None = None
    many: bool = False  # several texts, which ``resolve_request`` parses


OPTIONS = {  # by the argument of ``profiler.sweep``
    "models": SweepOption(("-m", "--model"), many=True),
    "quants": SweepOption(("-q", "--quant"), many=True),
    "contexts": SweepOption(("-c", "--context"), many=True),
    "batches": SweepOption(("-b", "--batch"), many=True),
    "steps": SweepOption(("-n", "--steps"), many=True),
    "paths": SweepOption(("--path",), many=True),
    **{name: SweepOption((f"--{name.replace('_', '-')}",), many=True) for name in OF_BACKENDS},
    "device": SweepOption(("--device",)),
    "backend": SweepOption(("--backend",), _backend, backends.DEFAULT),
    "llama_cpp": SweepOption(("--llama-cpp",), os.fspath),
    "scenario": SweepOption(("--scenario",), os.fspath),
    "weights": SweepOption(("--weights",), one_of(WEIGHTS), "auto"),
    "quality_text": SweepOption(("--quality-text",), os.fspath),
    "reference": SweepOption(("--reference",), os.fspath),
    "fill": SweepOption(("--fill",), one_of(run_grid.FILLS)),
    "seed": SweepOption(("--seed",), _seed, "0"),
    "ubatch": SweepOption(("--ubatch",), counted()),
    "threads": SweepOption(("--threads",), counted(MAX_THREADS)),
    "max_memory": SweepOption(("--max-memory",), some_bytes),
    "reps": SweepOption(("--reps", "-r"), counted()),
    "precision": SweepOption(("--precision",), some_share),
    "max_phase": SweepOption(("--max-phase",), some_seconds),
    "budget": SweepOption(("--budget",), some_seconds),
    "timeout": SweepOption(("--timeout",), some_seconds, "1h"),
}


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """The options of a sweep as typed; None or empty means that an option was not given."""

    models: tuple[str, ...] = ()
    quants: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    batches: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    reps: int | None = None
    energy: bool = False
    quality: bool = False
    quality_text: str | None = None  # a folder
    reference: str | None = None  # a model
    precision: float | None = None
    quick: bool = False
    max_phase_s: float | None = None
    budget_s: float | None = None
    scenario: str | None = None
    weights: str = "auto"
    fill: str | None = None
    backend: str = backends.DEFAULT
    paths: tuple[str, ...] = ()
    ubatch: int | None = None
    threads: int | None = None
    seed: int = 0
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by the names in ``OF_BACKENDS``
    llama_cpp: str | None = None  # the folder of a build


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """A request, resolved for one device."""

    tasks: tuple[Task, ...]
    effort: Effort
    budget_s: float | None
    subjects: tuple[Subject, ...]
    refused: tuple[Refusal, ...] = ()  # models of the list that are left out
    backend: str = backends.DEFAULT


def resolve_request(request: SweepRequest, device: DeviceInfo, available_bytes: int, say: Say) -> ResolvedRequest:
    """The grid of a request. ``say`` gets messages for the user.

    Raises ProfileError for invalid options, NotFound for unknown quantizations and scenarios, and the reason why a
    model cannot be measured if none of them can.
    """
    if (command := backends.find(request.backend).server_command) is not None:
        raise ProfileError(
            f"profile sweep cannot use backend {request.backend}, which measures a running server", f"Use {command}."
        )
    counted = request.scenario if not request.contexts else None
    typed, request = request.quants, _with_scenario(request)
    options = backend_options(request)
    names = model_names(request.models)
    effort = _effort(request)
    if backends.find(request.backend).gguf:
        return _of_files(replace(request, quants=typed), names, options, device, say)
    quants, own = _requested_quants(words(request.quants))
    if request.quants and not (quants or own):
        raise ProfileError("-q: the list is empty", "Leave it out for the default of each model.")
    if request.models and not names:
        raise ProfileError("-m: the list is empty", "Name a model: profile models lists the catalog.")
    if not names:
        for error in own.values():
            raise error
        return _headline(request, quants, device, available_bytes, say)
    found, refused = accepted(
        names,
        lambda name: _noted(
            quality.checked(subject(name, request.weights, say, device), effort.quality, request.backend),
            request,
            device,
        ),
    )
    subjects = _distinct(found, say)
    quants += tuple(_stored_in(name, subjects, error) for name, error in own.items())
    axes = [_axes((subject,), quants, request, device) for subject in subjects]
    if counted is not None:
        axes = [_as_counted(each, counted) for each in axes]
        subjects = tuple(subject for each in axes for subject in each.subjects)
    return ResolvedRequest(
        tasks=tuple(task for each in axes for task in tasks(each, _settings(request, device), device)),
        effort=effort,
        budget_s=request.budget_s,
        subjects=subjects,
        refused=refused,
        backend=request.backend,
    )


def _of_files(
    request: SweepRequest, names: Sequence[str], options: tuple[str, ...], device: DeviceInfo, say: Say
) -> ResolvedRequest:
    """The grid of a backend that runs GGUF files. Raises ProfileError.

    -q chooses among files that exist, and says how those with synthetic weights are written.
    """
    if not names:
        raise ProfileError(
            f"--backend {request.backend} needs -m", "Name a .gguf file, a folder of them, or a model of the catalog."
        )
    gguf_files.check_options(request.paths, request.options, device)
    effort, requested = _effort(request), words(request.quants)
    found, refused = accepted(
        [file for name in names for file in gguf_files.of_folder(name, request.weights)],
        lambda name: _gguf_subject(name, request, say, device),
    )
    subjects = _distinct(found, say)
    written = any(each.weights == "synthetic" for each in subjects)
    if requested and any(each.weights == "real" for each in subjects):
        subjects = gguf_files.in_quants(subjects, requested, written)
    subjects, unscored = quality.checked_files(subjects, effort.quality, request.backend)
    mixes = dict.fromkeys(map(gguf_mix.mix, requested or [GGUF_QUANT])) if written else ()
    axes = replace(_axes(subjects, tuple(map(checkpoint.of_gguf, mixes)), request, device), options=options)
    effort = replace(effort, quality=quality.with_references(effort.quality, subjects))
    return ResolvedRequest(
        tasks=tuple(gguf_files.announced(tasks(axes, _settings(request, device), device), say)),
        effort=effort,
        budget_s=request.budget_s,
        subjects=subjects,
        refused=refused + unscored,
        backend=request.backend,
    )


def _gguf_subject(name: str, request: SweepRequest, say: Say, device: DeviceInfo) -> Subject:
    """A GGUF file, or a model whose GGUF file is written with random weights."""
    model, notes = resolve(name), _thread_notes(request, device)
    if model.source.kind != "gguf" and request.weights == "real":
        raise ProfileError(
            f"{model.name}: --backend {request.backend} reads real weights from GGUF files only",
            "Give the .gguf file itself or a folder of them, or --weights synthetic.",
        )
    if model.source.kind == "gguf" and request.weights != "synthetic":
        found = subject(name, request.weights, say, device)
    else:
        found = subject(name, "synthetic", say, device)
        text = "weights are synthetic: a GGUF file of random values, with the tensors of the real one"
        notes.insert(0, ModelNote(text, SYNTHETIC))
    return replace(found, notes=(*found.notes, *notes))


def backend_options(request: SweepRequest) -> tuple[str, ...]:
    """Every combination of the options that only the backend has, as in ``Case.options``. Raises ProfileError."""
    known = backends.find(request.backend).options
    axes: list[list[tuple[str, str]]] = []
    for option, typed in request.options.items():
        name, values = option.replace("_", "-"), words(typed)
        if not values:
            continue
        if name not in known:
            having = [each for each in registry.names(backends.FOLDER) if name in backends.find(each).options]
            raise ProfileError(
                f"--{name}: backend {request.backend} has no such option", f"--backend {' or '.join(having)} has it."
            )
        try:
            axes.append([(name, known[name](value)) for value in values])
        except ValueError as error:
            raise ProfileError(f"--{name}: {printable(error)}") from None
    return tuple(dict.fromkeys(options_text(dict(chosen)) for chosen in product(*axes)))


def subject(name: str, weights: str, say: Say, device: DeviceInfo | None = None) -> Subject:
    """The model ``name``, with the weights that ``weights`` (auto, real, synthetic) selects.

    ``auto`` uses real weights if they are on this machine and never downloads; ``real`` downloads from a hub.
    """
    model = resolve(name)
    if weights == "real" and model.checkpoint is None and model.source.kind == "hub":
        if device is not None and (reason := never_loaded(model, device)) is not None:
            raise ProfileError(
                f"{model.name} is not downloaded: {reason}", "--weights synthetic measures it with random weights."
            )
        model = _downloaded(name, model, say)
    requested = weights
    if weights == "auto":
        weights = "synthetic" if model.checkpoint is None else "real"
    return Subject(
        model.name,
        model.source,
        model.geometry,
        weights,
        model.id_for(weights),
        _notes(model, weights, requested),
        model.stored if weights == "real" else None,
        _checkpoint(model, weights, requested),
    )


def _notes(model: Model, weights: str, requested: str) -> tuple[ModelNote, ...]:
    """Notes on the model with these weights. Catalog models never have real weights, so their absence is not
    noted."""
    if weights == "real":
        return model.notes
    files = model.checkpoint.notes if model.checkpoint else ()  # these files are not read
    about = (*(note for note in model.notes if note not in files), *map(ModelNote, _not_reproduced(model)))
    if requested == "auto" and model.no_weights is not None and model.source.kind != "catalog":
        return (*about, ModelNote(f"weights are synthetic: {model.no_weights}", SYNTHETIC))
    return about


def _checkpoint(model: Model, weights: str, requested: str) -> dict[str, Any]:
    """What a row stores about the origin of its weights; for synthetic ones the reason."""
    if weights == "real" and model.checkpoint is not None:
        return model.checkpoint.to_json()
    return {"reason": (model.no_weights if requested == "auto" else None) or "--weights synthetic was given"}


def _not_reproduced(model: Model) -> tuple[str, ...]:
    """A caution if the checkpoint has a quantization for which we cannot generate random weights."""
    own = scheme.of(model.source.config)
    if own is None or own.name in registry.names("quants"):
        return ()
    return (f"the random weights are not in the checkpoint's {own.name} but in the quantization of -q",)


def _requested_quants(names: Sequence[str]) -> tuple[tuple[Quant, ...], dict[str, NotFound]]:
    """The known quantizations (nf4_dq and nf4-dq once), and the names that only a checkpoint may have."""
    found: dict[Quant, None] = {}
    own: dict[str, NotFound] = {}
    for name in names:
        try:
            found[_quant(name)] = None
        except NotFound as error:
            if not OF_CHECKPOINTS.fullmatch(name):
                raise
            own[name.casefold()] = error
    return tuple(found), own


def _stored_in(name: str, subjects: Sequence[Subject], error: NotFound) -> Quant:
    """The quantization ``name`` of a checkpoint among ``subjects``; raises ``error`` if none has it."""
    for entry in subjects:
        if entry.checkpoint_format is not None and entry.checkpoint_format.quant.casefold() == name:
            return checkpoint.quant_of(entry.checkpoint_format)
    raise error


def _effort(request: SweepRequest, usual_reps: int | None = None) -> Effort:
    """The requested effort; ``usual_reps`` if neither a number nor a precision was given. Raises ProfileError."""
    if request.reps is not None and request.precision is not None:
        raise ProfileError("-r and --precision contradict each other", "Use one of them.")
    reps = request.reps or (usual_reps if request.precision is None and not request.quick else None)
    precision = request.precision or (QUICK_PRECISION if request.quick else PRECISION)
    wanted = quality.requested(request.quality, request.quality_text, request.reference)
    return Effort(reps, request.max_phase_s or MAX_PHASE_S, precision, request.energy, request.quick, wanted)


def _distinct(subjects: Sequence[Subject], say: Say) -> tuple[Subject, ...]:
    """Each model once, under its first name. Two names for the same content would give the same cases."""
    found: dict[str, Subject] = {}
    for entry in subjects:
        first = found.setdefault(entry.model_id, entry)
        if first is not entry:
            say(f"{entry.name} and {first.name} are the same model, which is measured once")
    return tuple(_with_own_names(list(found.values())))


def _with_own_names(subjects: Sequence[Subject]) -> list[Subject]:
    """Files and folders of the same name get as much of their paths as distinguishes them."""
    parts = [PurePath(each.source.location).parts if each.source.kind in FILES else () for each in subjects]
    named = [each.name for each in subjects]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        alike = {name for name in named if named.count(name) > 1}
        named = [
            "/".join(mine[-depth:]) if name in alike and len(mine) >= depth else name
            for name, mine in zip(named, parts, strict=True)
        ]
    return [replace(each, name=printable(name)) for each, name in zip(subjects, named, strict=True)]


def _downloaded(name: str, model: Model, say: Say) -> Model:
    from profiler.models import hub

    size = hub.download_size(model.source.location, model.source.revision)
    say(f"downloading {model.name}: {bytes_text(size)}")
    hub.download(model.source.location, model.source.revision)
    return resolve(name)


def _with_scenario(request: SweepRequest) -> SweepRequest:
    """Fill in from the scenario what the options leave out."""
    if request.scenario is None:
        return request
    grid = run_grid.load(request.scenario)
    if not request.quants:
        try:
            _requested_quants(grid.quants)
        except NotFound as error:
            raise NotFound(f"scenario {printable(request.scenario)}: quants: {error.message}", error.hint) from None
    return replace(
        request,
        models=request.models or grid.models,
        quants=request.quants or grid.quants,
        contexts=request.contexts or tuple(map(str, grid.contexts)),
        batches=request.batches or tuple(map(str, grid.batches)),
        steps=request.steps or tuple(map(str, grid.steps)),
        fill=request.fill or grid.fill,
    )


def _headline(
    request: SweepRequest, quants: tuple[Quant, ...], device: DeviceInfo, available_bytes: int, say: Say
) -> ResolvedRequest:
    """Without -m: the largest Gemma 4 and Qwen 3.5 that can be measured here within the budget."""
    effort = _effort(request, headline.REPS)
    budget_s = request.budget_s or headline.BUDGET_S
    template = replace(
        request,
        contexts=request.contexts or headline.CONTEXTS,
        steps=request.steps or headline.STEPS,
    )

    def chosen_subject(name: str) -> Subject:
        return _noted(
            quality.checked(subject(name, request.weights, say), effort.quality, request.backend), request, device
        )

    def grid(name: str, quant: Quant) -> list[Task]:
        axes = _axes((chosen_subject(name),), (quant,), template, device)
        return tasks(axes, _settings(request, device), device)

    choice = headline.choose(headline.HeadlineBudget(device, effort, available_bytes, budget_s), grid, quants)
    say(choice.words)
    chosen = tuple(task for name, quant in choice.pairs for task in grid(name, quant))
    subjects = tuple(map(chosen_subject, dict.fromkeys(name for name, _ in choice.pairs)))
    return ResolvedRequest(chosen, effort, budget_s, subjects, backend=request.backend)


def _axes(subjects: tuple[Subject, ...], quants: Sequence[Quant], request: SweepRequest, device: DeviceInfo) -> Axes:
    return Axes(
        subjects=subjects,
        quants=tuple(quants),
        contexts=counts("-c", request.contexts, CONTEXTS),
        batches=counts("-b", request.batches, BATCHES),
        steps=counts("-n", request.steps, STEPS),
        paths=_paths(request, device),
    )


def _as_counted(axes: Axes, scenario: str) -> Axes:
    """The axes of one model with the contexts of a scenario as its tokenizer counts them, and a note on that."""
    (subject,) = axes.subjects
    contexts, note = contexts_of(scenario, subject.source)
    notes = (*subject.notes, ModelNote(note, SCENARIO)) if note else subject.notes
    return replace(axes, subjects=(replace(subject, notes=notes),), contexts=contexts)


def _paths(request: SweepRequest, device: DeviceInfo) -> tuple[str, ...]:
    """The decode paths. Raises NotFound with the nearest names for an unknown one."""
    found = tuple(path.casefold() for path in words(request.paths)) or (_usual_path(request, device),)
    for path in found:
        if path not in decode_path.PATHS:
            raise unknown("decode path", path, decode_path.PATHS)
    return found


def _noted(subject: Subject, request: SweepRequest, device: DeviceInfo) -> Subject:
    """The subject, with notes on what the options and the device make of it."""
    notes = [*_path_notes(request, device), *_thread_notes(request, device)]
    if not words(request.quants):
        notes += dtype_notes(subject.checkpoint_format, subject.source.config, device)
    return replace(subject, notes=(*subject.notes, *notes))


def _path_notes(request: SweepRequest, device: DeviceInfo) -> list[ModelNote]:
    """A note if no path was requested and our own step is unavailable."""
    own_step = backends.find(request.backend).own_step
    reason = kind_of(device.kind).no_step() if own_step and not words(request.paths) else None
    return [ModelNote(f"decode runs as transformers ships it (path eager): {reason}", EAGER)] if reason else []


def _thread_notes(request: SweepRequest, device: DeviceInfo) -> list[ModelNote]:
    """A caution if --threads exceeds the cores that this process may use."""
    if request.threads is None or device.cores is None or request.threads <= device.cores:
        return []
    cores = "1 core" if device.cores == 1 else f"{device.cores} cores"
    text = f"--threads {request.threads} is more than the {cores} that this process may use, and usually slower"
    return [ModelNote(text, THREADS)]


def _usual_path(request: SweepRequest, device: DeviceInfo) -> str:
    backend = backends.find(request.backend)
    return kind_of(device.kind).step_path(True) if backend.own_step else backend.paths[0]


def _settings(request: SweepRequest, device: DeviceInfo) -> SweepSettings:
    return SweepSettings(
        backend=request.backend,
        fill=request.fill or "prefill",
        ubatch=request.ubatch or backends.find(request.backend).ubatch or kind_of(device.kind).prefill_chunk,
        threads=request.threads,
        seed=request.seed,
    )


def _quant(name: str) -> Quant:
    known = registry.names("quants")
    if GGUF_FORMAT.match(name) and name.casefold().replace("_", "-") not in known:
        raise NotFound(
            f"unknown quantization of transformers: {printable(name)}, which is a type of GGUF files",
            f"Add --backend llama.cpp. Known: {', '.join(known)}; with -m FILE.gguf, the file is unpacked into one.",
        )
    found: Quant = registry.load("quants", name, "quantization").QUANT
    return found
