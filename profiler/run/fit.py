"""Resolves the options of `profile fit` (models, quantizations, contexts, batches, machines) into predictions."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from profiler import devices
from profiler.case import Source
from profiler.cost.engines.base import Engine, Named, Placement, Serving, placement
from profiler.cost.engines.transformers import swept
from profiler.cost.learned import NOTHING, Learned, from_store
from profiler.cost.machine import RAM_BYTES_S, Machine, Split
from profiler.cost.prediction import Goal, Prediction, Predictor
from profiler.cost.rates import PLAIN
from profiler.cost.speculation import Speculation, speculation
from profiler.cost.storage import left_plain
from profiler.devices import target as targets
from profiler.devices.target import Target
from profiler.errors import ProfileError
from profiler.models.geometry import DRAFT_LEFT_OUT, Geometry
from profiler.models.resolve import Model, resolve
from profiler.models.stored import Stored
from profiler.quants.base import DTYPE_BYTES
from profiler.run import choice, elsewhere, grid, own_build
from profiler.run.engine_choice import ChosenEngine, chosen
from profiler.run.goal import closest, least_loss, ranked
from profiler.run.grid import counts, model_names, words
from profiler.run.loss import KnownLoss, KnownLosses
from profiler.run.quantization import EngineQuant, checked, defaults, engine_quants, held
from profiler.run.refusal import Refusal, accepted, combined_error
from profiler.shell import Command
from profiler.units import printable

CONTEXTS, BATCHES = (choice.CONTEXT,), (1,)
MAP_CONTEXTS = ("2k-128k*4", "256k")
MAX_PREDICTIONS = 20_000  # of one call, because every one is printed


@dataclass(frozen=True, slots=True)
class FitRequest:
    """The options as typed; empty and None mean that an option was not given."""

    models: tuple[str, ...] = ()
    on: tuple[str, ...] = ()
    engine: str | None = None  # llama.cpp for GGUF files, otherwise transformers
    quants: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    batches: tuple[str, ...] = ()
    kv: str | None = None
    split: Split | None = None
    ram_bytes: int | None = None
    ram_bandwidth: float | None = None  # GB/s
    goal: Goal | None = None
    path: str | None = None  # decode path of transformers; None: the default of a sweep on that device
    mapped: bool = False  # contexts come from a map, which goes up to the limit of each model
    scenario: str | None = None  # supplies contexts, batches and models that the options do not give
    mtp: int | None = None  # tokens that a step drafts with the model's multi-token-prediction layers
    acceptance: float | None = None  # of a drafted token, 0 to 1
    learned: bool = True  # whether rows that were measured on this machine correct predictions for it
    store: Path | None = None  # those rows; None: the default store

    @property
    def speculation(self) -> Speculation | None:
        """What ``mtp`` and ``acceptance`` mean. Raises ProfileError if they do not go together."""
        return speculation(self.mtp, self.acceptance)

    @property
    def names_contexts(self) -> bool:
        """Whether the user named the contexts. Default contexts may be dropped for short models."""
        return bool(self.contexts or (self.goal is not None and self.goal.context))


@dataclass(frozen=True, slots=True)
class FitPrediction:
    """One predicted case: its model, its prediction, and the largest context and batch for the same machine."""

    model: str
    named: Named
    cautions: tuple[str, ...]
    prediction: Prediction
    largest_context: int  # at this batch; 0: not even one token
    largest_batch: int  # at this context; 0: not even one
    geometry: Geometry
    placed: Placement
    checkpoint_format: Stored | None = None  # of the model's checkpoint, whatever quantization is predicted
    speculation: Speculation | None = None
    loss: KnownLoss | None = None  # what the quantization is known to lose, if the goal limits it

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        return self.geometry.parameters

    @property
    def verify(self) -> Command | None:
        """The command that measures this case; ``None`` if there is none, for example if the case does not fit."""
        return _verify(self.named, self.prediction, self.placed)

    @property
    def serve(self) -> Serving | None:
        """How to run this case for use, as predicted; ``None`` if there is no rule, or the case does not fit."""
        return _serving(self.named, self.prediction, self.placed)


@dataclass(frozen=True, slots=True)
class FitResult:
    """The predictions, and the models that could not be predicted. ``best``: the fastest, if none meets the goal.
    ``reasons``: sentences on what was chosen. ``elsewhere``: where a model is faster that decodes slower than people
    read, or meets the goal, in an engine that nobody named. ``tried``: with a goal, all predictions.
    """

    predictions: list[FitPrediction]
    refused: tuple[Refusal, ...] = ()
    best: FitPrediction | None = None
    reasons: tuple[str, ...] = ()
    elsewhere: tuple[str, Command] | None = None
    tried: tuple[FitPrediction, ...] = ()
    goal: Goal | None = None


def predictions(request: FitRequest) -> FitResult:
    """Predictions in the order of the options; with a goal, those that meet it, best model first.

    Raises NotFound for unknown names, and ProfileError for invalid options and if every model is refused.
    """
    counted = request.scenario if not request.contexts else None
    request = _with_files(_with_scenario(request))
    targets_asked = [targets.find(text) for text in request.on or (None,)]
    picked = _engine(request, targets_asked)
    engine = picked.engine
    machines = _machines(request, engine, targets_asked)
    _check_options(request, engine, machines)
    contexts, batches = _contexts(request), counts("-b", request.batches, BATCHES)
    asked = words(request.quants)
    if request.quants and not asked:
        raise ProfileError("-q: the list is empty")
    if not request.models:
        asked = tuple(checked(engine, word) for word in asked)
    taught = {machine: _learned(machine.target, request) for machine in machines}
    plans = [(machine, *_plan(request, engine, machine, asked, taught[machine])) for machine in machines]
    names = dict.fromkeys(name for _, plan, _ in plans for name in plan)
    models, refused = accepted(list(names), lambda name: _model(name, request, contexts))
    resolved = dict(models)
    cases = [
        (machine, name, quants) for machine, plan, _ in plans for name, quants in plan.items() if name in resolved
    ]
    _check_count(len(contexts) * len(batches) * sum(max(len(quants), len(asked)) for *_, quants in cases))
    found: list[FitPrediction] = []
    impossible: dict[tuple[str, str], Refusal] = {}
    for machine, name, quants in cases:
        model = resolved[name]
        with _noted(impossible, name):
            as_stored = held(model)
            own, note = _contexts_of(counted, model.source) if counted is not None else (contexts, None)
            for run_as in engine_quants(model, as_stored, engine, machine.target, asked, quants):
                run_as = replace(run_as, cautions=(*run_as.cautions, *filter(None, [note])))
                with _noted(impossible, name):
                    found += _cases(
                        name, model, as_stored, engine, run_as, machine, own, batches, request, taught[machine]
                    )
    refused += tuple(impossible.values())
    if any(each.prediction.machine.target.local for each in found):
        build = own_build.needed(engine, request.store)
        found = [replace(each, named=replace(each.named, build=build)) for each in found] if build else found
    if refused and not found and {name for name, _ in models} <= {name for name, _ in impossible}:
        raise combined_error(refused)
    if request.goal is None:
        reasons = (*picked.reasons, *dict.fromkeys(reason for *_, why in plans for reason in why))
        return FitResult(found, refused, reasons=reasons, elsewhere=elsewhere.faster(found, request))
    if request.goal.kl is not None:
        found = _with_losses(found, resolved, engine, request.store)
    met = ranked(found, request.goal)
    met = met if request.quants else least_loss(met)
    best = None if met else closest(found, request.goal)
    other = None if met else elsewhere.reaching(request, machines, engine, predictions)
    return FitResult(met, refused, best, picked.reasons, other, tuple(found), request.goal)


@contextmanager
def _noted(impossible: dict[tuple[str, str], Refusal], name: str) -> Iterator[None]:
    """Notes why a model, or one of its quantizations, cannot be predicted."""
    try:
        yield
    except ProfileError as error:
        impossible[name, error.message] = Refusal(name, error)


def _with_losses(
    found: Sequence[FitPrediction], models: Mapping[str, Model], engine: Engine, store: Path | None
) -> list[FitPrediction]:
    """The predictions with what their quantizations are known to lose."""
    known = KnownLosses.of_store(store)
    losses = {model.source.location: known.of(model, engine) for model in models.values()}  # folders share names
    return [
        replace(each, loss=losses[each.named.source.location].get(each.prediction.request.quant)) for each in found
    ]


def _plan(
    request: FitRequest, engine: Engine, machine: Machine, asked: Sequence[str], learned: Learned
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The models to predict on a machine, each with its quantizations if neither -q nor its checkpoint decides, and
    the reasons for models that nobody named.
    """
    names = model_names(request.models)
    if request.models and not names:
        raise ProfileError("no model named", "profile models lists the catalog.")
    if request.goal is not None:
        return dict.fromkeys(names or choice.names(), choice.usual_quants(engine, machine.target)), []
    if names:
        return dict.fromkeys(names, defaults(engine, machine.target)), []
    found: dict[str, tuple[str, ...]] = {}
    slower = []
    for family, prefix in choice.FAMILIES.items():
        choices = choice.Choices(
            prefix, engine, choice.with_room(machine), tuple(asked), request.path, learned=learned
        )
        best = next(choices.ranking(), None)
        name, quant = choices.smallest() if best is None else (best.name, best.quant)
        found[name] = (quant,)
        if best is None:
            slower.append(f"{family}: no model fits at {choice.CONTEXT // 1024}k; {name} is the smallest")
        elif not best.reads:
            slower.append(f"{family}: no model decodes that fast here; {name} {quant} is the fastest that fits")
    return found, [choice.rule(asked), *slower]


def _engine(request: FitRequest, on: Sequence[Target]) -> ChosenEngine:
    return chosen(
        request.engine,
        model_names(request.models),
        words(request.quants),
        on,
        path=request.path,
        drafts=request.mtp is not None,
    )


def _with_scenario(request: FitRequest) -> FitRequest:
    """Fill in what the options leave out. A scenario's quantizations are ignored, since not every engine has them."""
    if request.scenario is None:
        return request
    scenario = grid.load(request.scenario)
    return replace(
        request,
        models=request.models or scenario.models,
        contexts=request.contexts or tuple(map(str, scenario.contexts)),
        batches=request.batches or tuple(map(str, scenario.batches)),
    )


def _with_files(request: FitRequest) -> FitRequest:
    """The models of a folder of GGUF files instead of the folder, as a sweep of llama.cpp takes it."""
    names = model_names(request.models)
    return replace(request, models=tuple(file for name in names for file in _files_of(name))) if names else request


def _files_of(name: str) -> list[str]:
    folder = Path(os.path.expanduser(name))
    try:
        if not folder.is_dir() or (folder / "config.json").is_file():
            return [name]
        from profiler.run import gguf_files  # which takes a while to import

        return gguf_files.of_folder(name)
    except (ProfileError, OSError, ValueError):  # reported when the name is resolved
        return [name]


@dataclass(frozen=True, slots=True)
class OneCase:
    """A single case to explain."""

    model: Model
    named: Named
    predictor: Predictor
    context: int
    batch: int
    cautions: tuple[str, ...] = ()

    def serving(self, prediction: Prediction) -> Serving | None:
        """How to run the case for use, as predicted."""
        return _serving(self.named, prediction, self._placed(prediction))

    def check(self, prediction: Prediction) -> Command | None:
        """The command that measures the case, as ``FitPrediction.verify``."""
        return _verify(self.named, prediction, self._placed(prediction))

    def _placed(self, prediction: Prediction) -> Placement:
        return _placed(prediction, self.model.geometry, self.predictor)


def one_case(request: FitRequest) -> OneCase:
    """The one case that ``request`` names. Raises ProfileError if it names several."""
    target = targets.find(request.on[0] if request.on else None)
    picked = _engine(request, [target])
    engine = picked.engine
    (machine,) = _machines(request, engine, [target])
    _check_options(request, engine, [machine])
    asked, usual = words(request.quants), defaults(engine, machine.target)
    contexts, batches, names = _contexts(request), counts("-b", request.batches), model_names(request.models)
    if max(map(len, (asked, contexts, batches, names))) > 1:
        raise ProfileError(
            "explain takes one case: one model, quantization, context and batch", "profile fit accepts lists."
        )
    if not names:
        raise ProfileError("no model named", "profile models lists the catalog.")
    _, model = _model(names[0], request, contexts)
    run_as = engine_quants(model, held(model), engine, machine.target, asked, usual)[0]
    _check_device(engine, machine.target, run_as.quant)
    learned = _learned(machine.target, request)
    predictor = choice.predictor(model.geometry, engine, run_as.quant, machine, request.path, learned, run_as)
    cautions = (*picked.reasons, *model.cautions, *run_as.cautions, *_extrapolated(engine, run_as, machine, request))
    cautions += (*predictor.learned.notes(engine.name), *engine.remarks(model.geometry))
    (context,) = _reached(contexts, model.geometry.max_position, request)
    named = replace(_named(names[0], model, run_as, request), build=own_build.needed(engine, request.store))
    return OneCase(model, named, predictor, context, batches[0], cautions)


def _named(name: str, model: Model, run_as: EngineQuant, request: FitRequest) -> Named:
    as_stored = run_as.checkpoint_format is not None or not request.quants
    longest = model.geometry.max_position
    return Named(model.source.argument(name), model.source, as_stored, run_as.measurable, longest=longest)


def _placed(prediction: Prediction, geometry: Geometry, predictor: Predictor) -> Placement:
    target, terms = prediction.machine.target, prediction.terms
    used, cache = terms.needed.value / target.memory_bytes, terms.cache.value * prediction.machine.whole
    return placement(geometry, predictor.storage, prediction.host_bytes, used, cache)


def _verify(named: Named, prediction: Prediction, placed: Placement) -> Command | None:
    """``None`` if nothing measures the case, for example because it does not fit."""
    if prediction.verdict.word == "no" or not named.measurable or prediction.machine.target.computers > 1:
        return None
    return prediction.engine.verify(named, prediction.request, prediction.machine, placed)


def _serving(named: Named, prediction: Prediction, placed: Placement) -> Serving | None:
    """``None`` if the engine has no rule, the case does not fit, or several computers would share the model."""
    if prediction.verdict.word == "no" or prediction.machine.target.computers > 1:
        return None
    return prediction.engine.serve(named, prediction.request, prediction.machine, placed)


def _contexts_of(scenario: str, source: Source) -> tuple[tuple[int, ...], str | None]:
    """``prompts.contexts_of``, which is imported with the checkers of answers, and only a scenario needs it."""
    from profiler.run.prompts import contexts_of

    return contexts_of(scenario, source)


def _cases(
    name: str,
    model: Model,
    checkpoint_format: Stored | None,
    engine: Engine,
    run_as: EngineQuant,
    machine: Machine,
    contexts: Sequence[int],
    batches: Sequence[int],
    request: FitRequest,
    learned: Learned,
) -> Iterator[FitPrediction]:
    drafts, kv = request.speculation, request.kv
    _check_device(engine, machine.target, run_as.quant)
    predictor = choice.predictor(model.geometry, engine, run_as.quant, machine, request.path, learned, run_as, drafts)
    longest = {batch: predictor.largest_context(batch, kv) for batch in batches}
    named = _named(name, model, run_as, request)
    if predictor.storage.plain and run_as.checkpoint_format is None and run_as.quant not in PLAIN:
        raise ProfileError(
            f"{model.name}: {engine.name} stores none of its weights in {run_as.quant}", "Choose another -q."
        )
    left = left_plain(predictor.storage, run_as.quant, predictor.dtype)
    unchecked = (*_extrapolated(engine, run_as, machine, request), *learned.notes(engine.name), *filter(None, [left]))
    remarks = engine.remarks(model.geometry) if drafts is None else (*engine.remarks(model.geometry), str(drafts))
    for context in _reached(contexts, model.geometry.max_position, request):
        widest = predictor.largest_batch(context, kv)
        for batch in batches:
            prediction = predictor.predict(context, batch, kv)
            yield FitPrediction(
                model=model.name,
                named=named,
                cautions=(*run_as.cautions, *unchecked, *machine.target.limits, *_of_model(model, drafts), *remarks),
                prediction=prediction,
                largest_context=longest[batch],
                largest_batch=widest,
                geometry=model.geometry,
                placed=_placed(prediction, model.geometry, predictor),
                checkpoint_format=checkpoint_format,
                speculation=drafts,
            )


def _of_model(model: Model, drafts: Speculation | None) -> tuple[str, ...]:
    """The cautions of a model, without that about draft layers if those are predicted."""
    return tuple(each for each in model.cautions if drafts is None or each != DRAFT_LEFT_OUT)


def _reached(contexts: Sequence[int], most: int, request: FitRequest) -> tuple[int, ...]:
    """The contexts that a model supports. Default contexts beyond its limit become the limit."""
    if not (request.names_contexts or request.mapped):
        contexts = [min(context, most) for context in contexts]
    return tuple(context for context in contexts if context <= most)


def _learned(target: Target, request: FitRequest) -> Learned:
    """What the rows in the store teach about a device of this machine."""
    if not request.learned or target.local is None or target.count > 1:
        return NOTHING
    return from_store(request.store, devices.find(target.local), target)


def _extrapolated(engine: Engine, run_as: EngineQuant, machine: Machine, request: FitRequest) -> tuple[str, ...]:
    """Notes on the assumptions for a device on which `profile sweep` cannot run."""
    target = machine.target
    if not engine.loads_with_transformers:
        return ()
    if run_as.quant in target.unsupported_dtypes:
        told = f"{target.name} only emulates {run_as.quant}, which is slower than predicted"
        return (f"{told}: use -q {target.default_dtype}",)
    if target.kind == "described" and request.path is None:
        return ("--on with figures assumes eager decode; for an NVIDIA GPU add --path graph, the default there",)
    if swept(target):
        return ()
    told = f"profile sweep does not run on {target.vendor} devices, so it cannot check these figures"
    if run_as.quant in DTYPE_BYTES or run_as.checkpoint_format is not None:
        return (told,)
    return (told, f"{run_as.quant} assumes that bitsandbytes is as efficient there as on NVIDIA GPUs")


def _machines(request: FitRequest, engine: Engine, on: Sequence[Target]) -> list[Machine]:
    """The machines of ``--on``. Devices after a comma belong to the same machine; each ``--on`` is another one."""
    split: Split = request.split or engine.default_split
    if request.ram_bandwidth is not None and not math.isfinite(request.ram_bandwidth):
        raise ProfileError(f"--ram-bandwidth {request.ram_bandwidth} is not a valid bandwidth")
    speed = RAM_BYTES_S if request.ram_bandwidth is None else request.ram_bandwidth * 1e9
    return [Machine(target, split, None if target.unified else request.ram_bytes, speed) for target in on]


def _check_options(request: FitRequest, engine: Engine, machines: Sequence[Machine]) -> None:
    """Raise ProfileError for an option that would have no effect."""
    if request.speculation is not None and not request.models:
        raise ProfileError("--mtp needs a model", "For example: profile fit qwen3.5-27b --mtp 2 --acceptance 0.7")
    if request.path is not None and len(engine.paths) == 1:
        raise ProfileError(f"--path: {engine.name} has a single decode path", "Leave --path out.")
    if request.ram_bandwidth is not None and request.ram_bytes is None:
        raise ProfileError("--ram-bandwidth needs --ram", "Add the size of that memory, such as --ram 64GiB.")
    if request.ram_bytes is not None and all(machine.ram_bytes is None for machine in machines):
        title = printable(machines[0].target.title)
        raise ProfileError(f"--ram: {title} already uses the host's memory, so offloading to it is impossible",
                           "Leave --ram out.")  # fmt: skip
    if request.split is not None and all(machine.target.count == 1 for machine in machines):
        raise ProfileError("--split needs several devices", 'For example: --on 2x"rtx 3090"')


def _check_device(engine: Engine, target: Target, quant: str) -> None:
    """Raise ProfileError for a device on which the engine does not run in ``quant``."""
    if len(target.makers) > 1 and not engine.mixes_makers:
        told = f"{engine.name} does not share a model between devices of {' and '.join(target.makers)}"
        raise ProfileError(told, "Take --engine llama.cpp.")
    for member in target.members or (target,):
        if (reason := engine.unavailable(member, quant)) is not None:
            raise ProfileError(reason, "Choose another --engine, -q or --on.")


def _contexts(request: FitRequest) -> tuple[int, ...]:
    if request.contexts:
        asked, wanted = counts("-c", request.contexts), request.goal and request.goal.context
        if wanted and wanted not in asked:
            raise ProfileError(
                f"the goal is for {wanted:,} tokens, which is not among the contexts", "Leave out -c or --scenario."
            )
        return asked
    if request.goal and request.goal.context:
        return (request.goal.context,)
    return counts("-c", MAP_CONTEXTS) if request.mapped else CONTEXTS


def _model(name: str, request: FitRequest, contexts: Sequence[int]) -> tuple[str, Model]:
    """The model and its name. A model that the user named must support the contexts that the user named; other models
    are left out if they do not.
    """
    model = resolve(name)
    most = model.geometry.max_position
    beyond = [context for context in contexts if context > most]
    if beyond and request.models and request.names_contexts and not request.mapped:
        hint = f"Use -c {most}." if request.contexts else "Use a smaller context in --goal."
        raise ProfileError(f"{model.name} supports at most {most:,} tokens, not {beyond[0]:,}", hint)
    return name, model


def _check_count(many: int) -> None:
    if many > MAX_PREDICTIONS:
        raise ProfileError(f"{many:,} predictions are too many to print", f"The limit is {MAX_PREDICTIONS:,}.")
