"""What a gate compares of two versions of the code: their predictions over the same short texts, teacher-forced.

Each version runs in a worker of its own, loads the same model, and reads the same tokens, once as a prompt and the
last ``STEPS`` of each text a second time by decode steps of the case's path. What it keeps of its predictions
(``quality/definition.py``) travels in the messages to the gate and from there to the other version's worker. Equal
code gives equal logits, so the divergence is 0 to the last bit.

The texts are the beginnings of one document of each kind. Without a tokenizer, as for synthetic weights, they are
random tokens: two versions of the code can be compared on any weights, as long as both have the same.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from profiler.backends.base import Beat
from profiler.backends.hf import quality, text_pass
from profiler.backends.hf.comparison import Keeper, PositionFigures, Rows, Scorer
from profiler.backends.hf.memory import memory_errors
from profiler.case import Case, Source
from profiler.errors import ProfileError
from profiler.quality.definition import DEFINITION
from profiler.quality.references import NAMES, ReferenceArrays
from profiler.quality.texts import TextWindow
from profiler.units import printable

TEXT_TOKENS = 64  # of each kind: with six kinds, a pass takes seconds even on a CPU
STEPS = 8  # decode steps of each text
TOP, SAMPLES = 16, 8  # tokens that are kept at each position, 200 bytes: a stored baseline should stay small
RANDOM, RANDOM_TEXTS = "random tokens", 6
MAX_TEXTS, MAX_TEXT_TOKENS, MAX_NAME = 64, 8192, 80  # of stored predictions, which somebody else may have written
DAMAGED = "the stored predictions are damaged"


def measure(session: Any, case: Case, source: Source, wanted: Mapping[str, Any], beat: Beat) -> dict[str, Any]:
    """The predictions of the loaded model, and their divergence from ``wanted["against"]``, if there are any.

    Raises ProfileError, OutOfMemory.
    """
    model, against = session.model, wanted["against"]
    cut = _texts(case, source, model) if against is None else _of_stored(against)
    if max(max(window.tokens) for window in cut) >= model.config.get_text_config().vocab_size:
        raise ProfileError(DAMAGED)
    kept: dict[str, Any] = {"definition": DEFINITION, "texts": [_to_stored(window) for window in cut]}
    kept |= {"prefill": [], "decode": []}
    kinds: dict[str, dict[str, dict[str, float]]] = {}
    path = {"ran": case.path, "reason": None}
    for number, window in enumerate(cut, 1):
        beat(f"agreement {number}/{len(cut)}")
        found = [_Side(phase, part, against, number - 1) for phase, part in _parts(window)]
        with memory_errors():
            ran, reason = text_pass.read_window(
                model, window.tokens, found[0].rows(model.device), beat, found[1].rows(model.device), case.path, STEPS
            )
        path = {"ran": ran, "reason": reason}
        for side in found:
            kept[side.phase].append(_packed(side.keeper.arrays({})))
            if side.scorer is not None:
                _count(kinds.setdefault(window.kind, {}).setdefault(side.phase, {}), side.scorer.figures())
    return {"kept": kept, "identical": kept == against, "kinds": kinds, "path": path}


@dataclass
class _Side:
    """Keeps the predictions of one phase over one text, and compares them with those of the other version."""

    phase: str
    window: TextWindow
    against: Mapping[str, Any] | None
    number: int

    def __post_init__(self) -> None:
        self.keeper = Keeper(self.window, TOP, SAMPLES)
        self.scorer: Scorer | None = None

    def rows(self, device: torch.device) -> Rows:
        """What takes the logits."""
        if self.against is None:
            return self.keeper
        scorer = self.scorer = Scorer(
            self.window, _unpacked(self.against, self.phase, self.number, self.window), device
        )

        def both(at: int, logits: torch.Tensor) -> None:
            self.keeper(at, logits)
            scorer(at, logits)

        return both


def _parts(window: TextWindow) -> tuple[tuple[str, TextWindow], ...]:
    """Every predicted token of a text as a prompt, and those that are predicted by decode steps."""
    stepped = max(1, len(window.tokens) - STEPS + 1)
    return ("prefill", window), ("decode", replace(window, unscored=max(window.unscored, stepped)))


def _count(sums: dict[str, float], figures: PositionFigures) -> None:
    """Add the figures of a text to the sums of its kind."""
    values = {"tokens": len(figures.kl), "kl": float(figures.kl.sum()), "same": int(figures.same.sum())}
    for name, value in values.items():
        sums[name] = sums.get(name, 0) + value


def _texts(case: Case, source: Source, model: Any) -> list[TextWindow]:
    """The beginning of the first document of each kind, or random tokens."""
    if case.weights == "real":
        try:
            cut = quality.windows(replace(case, context=TEXT_TOKENS), source, {"text": None, "reference": None})
        except ProfileError:  # it has no tokenizer
            cut = []
        first: dict[str, TextWindow] = {}
        for window in cut:
            if len(window.tokens) > STEPS + window.unscored:
                first.setdefault(window.kind, window)
        if first:
            return list(first.values())
    random = torch.Generator().manual_seed(case.seed)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (RANDOM_TEXTS, TEXT_TOKENS), generator=random).tolist()
    return [TextWindow(RANDOM, str(number), tuple(tokens), 1) for number, tokens in enumerate(ids, 1)]


def _to_stored(window: TextWindow) -> dict[str, Any]:
    tokens = " ".join(map(str, window.tokens))  # one line of a baseline, whose JSON is indented
    return {"kind": window.kind, "document": window.document, "tokens": tokens, "unscored": window.unscored}


def _of_stored(content: Mapping[str, Any]) -> list[TextWindow]:
    """The texts of stored predictions. Raises ProfileError for others than this module writes."""
    if content.get("definition") != DEFINITION:
        raise ProfileError("the predictions were stored by another definition", "Store them once more with --accept.")
    try:
        found = [
            TextWindow(
                printable(each["kind"], MAX_NAME),
                printable(each["document"], MAX_NAME),
                tuple(map(int, each["tokens"].split(" "))),
                int(each["unscored"]),
            )
            for each in content["texts"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ProfileError(DAMAGED) from None
    if not 0 < len(found) <= MAX_TEXTS or any(not _is_usable(window) for window in found):
        raise ProfileError(DAMAGED)
    return found


def _is_usable(window: TextWindow) -> bool:
    return (
        STEPS < len(window.tokens) <= MAX_TEXT_TOKENS
        and 0 < window.unscored < len(window.tokens) - STEPS
        and min(window.tokens) >= 0
    )


def _packed(arrays: ReferenceArrays) -> str:
    return base64.b64encode(b"".join(arrays.arrays[name] for name in NAMES)).decode()


def _unpacked(content: Mapping[str, Any], phase: str, number: int, window: TextWindow) -> ReferenceArrays:
    """The arrays of one text. Raises ProfileError if they have another size than its tokens say."""
    found = ReferenceArrays(window.scored, TOP, SAMPLES, {}, {})
    try:
        data = base64.b64decode(content[phase][number], validate=True)
    except (KeyError, IndexError, TypeError, ValueError, binascii.Error):
        raise ProfileError(DAMAGED) from None
    sizes = [found.nbytes(name) for name in NAMES]
    if len(data) != sum(sizes):
        raise ProfileError(DAMAGED)
    parts: dict[str, bytes] = {}
    for name, size in zip(NAMES, sizes, strict=True):
        parts[name], data = data[:size], data[size:]
    return replace(found, arrays=parts)
