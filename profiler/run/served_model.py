"""What is known of a model that a server has, and what that server is predicted to reach with it.

The model is the one that the user names, or the file that a server on this machine names, or the catalog's model of
the same name. Ceilings are those of this machine, as calibrated, for a server that runs here. For one on other
hardware, ``--on`` names it, and the ceilings are those of its data sheet.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from profiler import devices
from profiler.backends.endpoint.servers import ServedModel, Server
from profiler.case import UNSTATED, Case
from profiler.cost import cases, explanation
from profiler.cost.prediction import Predictor
from profiler.devices import target
from profiler.devices.base import DeviceInfo
from profiler.errors import ProfileError
from profiler.models import gguf, hub
from profiler.models.resolve import Model, resolve
from profiler.run import fit
from profiler.run.endpoint import EndpointResult
from profiler.run.prompts import counter
from profiler.units import printable

TUNED = re.compile(r"[-_.](?:it|instruct|chat|qat)(?=$|[-_.])", re.I)  # suffixes of models with the same shapes


@dataclass(frozen=True, slots=True)
class KnownModel:
    """What is known of a served model apart from its name."""

    model: Model
    argument: str  # its name on the command line of ``profile fit``
    how: str  # how it is known, in words
    same_weights: bool  # whether its file has the weights that are served, so that their bytes are known


class ServedModels:
    """The models of one run. ``config`` names what is served, as for ``resolve``; ``on`` the hardware, as for fit.

    Raises ProfileError for what neither of them can mean.
    """

    def __init__(self, config: str | None = None, on: str | None = None) -> None:
        self._config = None if config is None else _named(config)
        self._on = on
        self.hardware: str | None = None if on is None else _title(on)
        self._known: dict[str, KnownModel | str] = {}
        self._predictors: dict[tuple[str, str | None, str], Predictor | str] = {}

    @property
    def count(self) -> Callable[[str], int] | None:
        """Counts the tokens of a text by the tokenizer of the model that the user names; None if it is not here."""
        return None if self._config is None else counter(self._config.model.source)

    def known(self, model: ServedModel, here: bool) -> KnownModel | str:
        """What is known of a model, or why nothing is; ``here``: its server is on this machine."""
        if model.name not in self._known:
            stated = self._config and replace(self._config, same_weights=_same_weights(self._config.model, model))
            self._known[model.name] = stated or (_by_file(model) if here else None) or _by_name(model)
        return self._known[model.name]

    def expected(
        self, result: EndpointResult, case: Case, device: DeviceInfo | None, known: KnownModel | str
    ) -> tuple[dict[str, Any], str | None]:
        """The fields of a prediction for one stream, with the seconds at the ceilings, and why any are missing.

        ``device``: that of this machine which the server uses; None: it is on another machine.
        """
        if isinstance(known, str):
            return {}, known
        unsure = None if self._on is not None else _unsure(result, device)
        if unsure is not None:
            return {}, unsure
        hardware = self._on if self._on is not None or device is None else device.name
        predictor = self._predictor(result, known, case.quant, hardware)
        if isinstance(predictor, str):
            return {}, predictor
        on = predictor.machine.target
        taken = result.use.gpu_peak_bytes
        if self._on is None and not on.device_kind.is_host and (taken or 0) < predictor.storage.device_bytes:
            return {}, "part of the model is not on the GPU"
        if case.context + case.steps > predictor.geometry.max_position:
            return {}, f"{known.model.name} supports at most {predictor.geometry.max_position:,} tokens"
        if self._on is not None and predictor.predict(case.context, case.batch).verdict.word not in ("fits", "tight"):
            return {}, f"the model does not fit in the memory of {on.title}, which --on names"
        content = of_one_stream(cases.speeds(predictor, case), case.batch)
        if "ceiling_s" not in content and self._on is not None and not on.guessed:
            prefill, decode = explanation.explain(predictor, case.context, case.batch).phases
            content["ceiling_s"] = {"prefill": prefill.ceiling_s, "step": decode.ceiling_s}
        if "ceiling_s" in content:
            return content, None
        return content, (
            f"the ceilings of {on.title} are not known"
            if self._on is not None
            else "this device was not calibrated; profile calibrate takes a minute"
        )

    def _predictor(
        self, result: EndpointResult, known: KnownModel, quant: str, hardware: str | None
    ) -> Predictor | str:
        """The predictor of the engine that runs a model, or why there is none."""
        engine = result.model.engine or result.server.engine
        key = (known.argument, engine, quant)
        if key not in self._predictors:
            self._predictors[key] = _predictor(result.server, engine, known, quant, hardware)
        return self._predictors[key]


def of_one_stream(content: dict[str, Any], streams: int) -> dict[str, Any]:
    """Predicted rates of all sequences as those of one; of the prefill only for one, which waits for no other."""
    if streams == 1:
        return content
    found = {name: value for name, value in content.items() if not name.startswith("prefill_")}
    if rate := found.get("decode_tps"):
        found["decode_tps"] = rate | {name: rate[name] / streams for name in ("value", "low", "high")}
    return found


def _title(on: str) -> str:
    """The hardware that ``--on`` names. Raises ProfileError if it is unknown, or a device of this machine."""
    found = target.find(on)
    if found.local:
        raise ProfileError(
            f"--on {printable(on, 40)} is a device of this machine, which is found without it",
            'It names the hardware of another one, such as --on "rtx 4090".',
        )
    return printable(found.title, 60)


def _unsure(result: EndpointResult, device: DeviceInfo | None) -> str | None:
    """Why it is not known which hardware the server uses."""
    if result.use.on_other_gpu:
        return "the server uses a GPU that is not NVIDIA's; --on names it"
    if device is None:
        return "the server is on another machine; --on names its hardware"
    alike = [each for each in devices.local() if each.kind == device.kind]
    if result.use.program is None or result.use.gpu_peak_bytes is None or len(alike) > 1:
        return "it is not known which device the server uses; --on names one"
    return None


def _named(config: str) -> KnownModel:
    """The model that the user names. Raises ProfileError."""
    model = resolve(config)
    return KnownModel(model, model.source.argument(config), "--config", False)


def _same_weights(named: Model, served: ServedModel) -> bool:
    """Whether the file that the user names may be the one that is served: it is stored in the same quantization."""
    stored = named.stored
    return stored is not None and (served.quant is None or _letters(stored.quant) == _letters(served.quant))


def _by_file(model: ServedModel) -> KnownModel | None:
    """The model in the file that a server on this machine names."""
    path = Path(model.path or "")
    if not (model.path and path.is_absolute()):
        return None
    try:
        if not path.is_file() or not gguf.is_gguf(path):
            return None
        found = resolve(str(path))
    except (ProfileError, OSError):
        return None
    stored = found.stored
    if stored is None or (model.file_bytes and not 0.9 < stored.nbytes / model.file_bytes < 1.1):
        return None  # another file at the same path, as in a container
    return KnownModel(found, found.source.argument(), "the file that the server names", True)


def _by_name(model: ServedModel) -> KnownModel | str:
    """The catalog's model of the same name, or why there is none."""
    base = re.sub(r"\.gguf$", "", PurePath(model.name).name, flags=re.IGNORECASE)
    if model.quant:
        base = re.sub(rf"[-_.:@]{re.escape(model.quant)}$", "", base, flags=re.IGNORECASE)
    wanted = _letters(TUNED.sub("", base.removesuffix(":latest")))
    named = [name for name in hub.names() if _letters(name) == wanted]
    if len(named) != 1:
        return f"{model.shown} is not in the catalog; --config names its file or config"
    return KnownModel(resolve(named[0]), named[0], "the catalog's model of that name", False)


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def _predictor(
    server: Server, engine: str | None, known: KnownModel, quant: str, hardware: str | None
) -> Predictor | str:
    if engine is None:
        return f"nothing is known of how {server.kind} runs a model"
    if quant == UNSTATED:
        return "the server does not state the quantization; --config with the file or folder of the weights does"
    quants, on = () if known.same_weights else (quant,), () if hardware is None else (hardware,)
    try:
        return fit.one_case(fit.FitRequest((known.argument,), on, engine, quants, ("1",), ("1",))).predictor
    except ProfileError as error:
        return error.message
