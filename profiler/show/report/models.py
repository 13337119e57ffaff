"""The models of a report: what rows share, one name for all GGUF files of a model, and different ones for others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from profiler.case import Case
from profiler.show.columns import OF_GGUF, plain, suffixes

_SERIES = attrgetter("quant", "weights", "dtype", "device", "backend", "path", "fill", "options", "threads")


@dataclass(slots=True, eq=False)
class CaseGroup:
    """What rows of one machine share that differ only in context, batch and fields that no report shows.

    A row refers to its group, but a group not to its rows: 100,000 of them in reference cycles would keep Python's
    garbage collector busy for half a second.
    """

    case: Case  # that of one row
    names: tuple[str, str]  # model and quantization, as stored
    parameters: int | None = None  # of the weights' files
    is_gguf: bool = False
    model: str = ""  # printable
    series: str = ""  # the quantization, and settings that distinguish the group from others of its model
    settings: str = ""  # the same without the prompt, which is not a setting
    beside: str = ""  # the same without the engine

    @property
    def keys(self) -> tuple[str, str]:
        """The model and the quantization by which a reader filters."""
        return self.model, plain(self.case.quant, 60)


def tell_models_apart(groups: Sequence[CaseGroup]) -> None:
    """Tell models of one name apart: a GGUF file from another kind by "(GGUF)", otherwise by the start of an id."""
    shared = _models_of_files(groups)
    ids: dict[tuple[str, str], dict[str, list[CaseGroup]]] = {}
    for group in groups:
        case = group.case
        name = shared.get(case.model_id)
        if name is not None:
            group.names = name, group.names[1]
        model_id = case.model_id if name is None else name
        ids.setdefault((group.names[0], case.weights), {}).setdefault(model_id, []).append(group)
    for by_id in ids.values():
        added = suffixes({model_id: any(group.is_gguf for group in mine) for model_id, mine in by_id.items()})
        for model_id, mine in by_id.items():
            for group in mine if added[model_id] else ():
                group.names = f"{group.names[0]}{added[model_id]}", group.names[1]
    # Letters of another size, as in smollm2-135m and SmolLM2-135M-Q8_0.gguf, tell nobody which of two is which.
    # A server of a file has its id.
    files = {group.case.model_id for group in groups if group.is_gguf}
    others = {group.names[0].casefold() for group in groups if group.case.model_id not in files}
    for group in groups:
        if group.case.model_id in files and group.names[0].casefold() in others:
            group.names = f"{group.names[0]}{OF_GGUF}", group.names[1]


def without_kind(model: str) -> str:
    """The name of a model without what tells its GGUF files from others, for counting models."""
    return model.removesuffix(OF_GGUF).casefold()


def _models_of_files(groups: Iterable[CaseGroup]) -> dict[str, str]:
    """The name of the model, by the ids of GGUF files that are quantizations of one: ``gemma-3-270m`` for its files
    ``gemma-3-270m-Q8_0`` and ``gemma-3-270m-Q4_K_M``.

    The name of a single file is shortened, too, because the quantization names its lines anyway, and predicted lines
    have others. Files whose sizes differ, and several of one quantization, keep their own names: they may be of other
    weights.
    """
    of_file: dict[str, list[CaseGroup]] = {}
    for group in groups:
        of_file.setdefault(group.case.model_id, []).append(group)
    files: dict[tuple[str, int | None], list[str]] = {}
    for model_id, mine in of_file.items():
        base = next((found for group in mine if group.is_gguf and (found := _without_quant(group.case))), None)
        if base is not None:
            # A server states no parameters of a file that it runs.
            parameters = next((group.parameters for group in mine if group.parameters), None)
            files.setdefault((base, parameters), []).append(model_id)
    alike = Counter(base for base, _ in files)
    names: dict[str, str] = {}
    for (base, _), model_ids in files.items():
        series = [(*_SERIES(group.case), model_id) for model_id in model_ids for group in of_file[model_id]]
        if alike[base] == 1 and len(set(series)) == len({each[:-1] for each in series}):
            names |= dict.fromkeys(model_ids, base)
    return names


def _without_quant(case: Case) -> str | None:
    """The name of a file without the quantization at its end; None if that is not there."""
    base, quant = case.model[: -len(case.quant)], case.model[-len(case.quant) :]
    return base.rstrip("-._") or None if quant.casefold() == case.quant.casefold() and base[-1:] in "-._" else None
