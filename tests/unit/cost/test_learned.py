"""What measured rows teach predictions: how far, how surely, and which rows teach nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from fakes.ceilings import MEASURED

from profiler import devices
from profiler.case import Case, digest
from profiler.cost import engines, learned
from profiler.cost.cases import host_of, stored_prediction
from profiler.cost.interval import Interval
from profiler.cost.learned import NOTHING, Learned, LearnedCase, Lesson, Process
from profiler.cost.machine import Machine
from profiler.cost.prediction import Predictor
from profiler.devices import target as targets
from profiler.devices.base import DeviceInfo
from profiler.devices.cpu import describe
from profiler.models import families, hub
from profiler.results import environment
from profiler.results.measurement import Caution, Measurement, Memory, Repetitions, Sample

GUESS, CALIBRATED = 0.8, 0.09  # standard deviations of the logarithm: a factor of 3.7 and 16% either way
SMALL = LearnedCase("q8_0", 270_000_000, 512, 1)
GEOMETRY = families.geometry(hub.shipped_config("gemma-3-270m"))


def lesson(ratio: float, spread: float = GUESS, case: LearnedCase = SMALL, key: str = "") -> Lesson:
    return Lesson(key or f"{case} {ratio}", case, math.log(ratio), spread)


def grid(ratio: Callable[[LearnedCase], float], spread: float = GUESS) -> list[Lesson]:
    """Rows of three quantizations, four contexts and two batches, each 3% off ``ratio`` one way or the other."""
    noise = random.Random(7)
    cases = [
        LearnedCase(quant, 270_000_000, context, batch)
        for quant in ("f32", "q8_0", "q4_k_m")
        for context in (128, 512, 1024, 4096)
        for batch in (1, 4)
    ]
    return [lesson(ratio(case) * noise.choice((0.97, 1.03)), spread, case) for case in cases]


def factor(lessons: Sequence[Lesson], case: LearnedCase = SMALL, phase: str = "decode") -> float:
    found = Process(phase, lessons).correction(case)
    return 1.0 if found is None else found.factor


def test_nothing_is_learned_without_rows() -> None:
    assert not NOTHING
    assert NOTHING.correction("llama.cpp", "eager", "decode", SMALL) is None


def test_a_few_rows_move_a_guess_far_and_a_calibrated_prediction_little() -> None:
    moved = {
        (name, count): factor([lesson(2.0, spread, SMALL._replace(context=128 * n)) for n in range(1, count + 1)])
        for name, spread in (("guess", GUESS), ("calibrated", CALIBRATED))
        for count in (1, 3, 12)
    }
    assert moved["guess", 1] < 1.5 and moved["guess", 3] > 1.85
    assert moved["calibrated", 1] < 1.2 and moved["calibrated", 3] < 1.6
    for name in ("guess", "calibrated"):
        assert 1 <= moved[name, 1] < moved[name, 3] < moved[name, 12] <= 2.0


def test_a_case_like_no_row_keeps_its_plain_prediction() -> None:
    rows = [lesson(3.0, GUESS, SMALL._replace(context=128 * n)) for n in range(1, 6)]
    assert factor(rows) == pytest.approx(3.0, rel=0.1)
    assert 1 <= factor(rows, LearnedCase("f32", 7_000_000_000, 512, 1)) < 2
    assert factor(rows, SMALL._replace(batch=64)) < 1.5  # other kernels
    assert factor(rows, SMALL._replace(batch=8), "prefill") > 1.5  # a prefill has many tokens anyway


def test_what_all_rows_have_in_common_holds_for_another_model_and_quantization() -> None:
    """The prior of llama.cpp on CPUs was 1.3 to 8 times too fast on one machine: no row of another quantization
    should be predicted as if nothing had been measured."""
    rows = grid(lambda case: {"f32": 2.0, "q8_0": 3.0, "q4_k_m": 4.0}[case.quant])
    other = LearnedCase("q4_1", 135_000_000, 512, 1)
    found = Process("decode", rows).correction(other)
    assert found is not None and 2.0 < found.factor < 4.0
    own = Process("decode", rows).correction(rows[0].case)
    assert own is not None and own.width < found.width
    alone = [each for each in rows if each.case.quant == "f32" and each.case.batch == 1]
    assert factor(alone, other) < 1.5  # one model and quantization says little about others


def test_rows_of_another_kind_that_agree_are_not_outliers() -> None:
    """SmolLM2 in q4_1 decoded six times slower than predicted, Gemma in three quantizations 1.3 to 2.7 times."""
    rows = grid(lambda case: {"f32": 1.3, "q8_0": 2.1, "q4_k_m": 2.5}[case.quant], spread=0.35)
    for ratio, context, batch in ((4.1, 256, 1), (5.9, 512, 1), (6.1, 1024, 1), (8.1, 2048, 1), (6.4, 512, 4)):
        rows.append(lesson(ratio, 0.35, LearnedCase("q4_1", 135_000_000, context, batch)))
    assert factor(rows, LearnedCase("q4_1", 135_000_000, 768, 1)) == pytest.approx(6.0, rel=0.2)


def test_each_quantization_and_batch_learns_its_own_ratio() -> None:
    own = {"f32": 0.4, "q8_0": 2.0, "q4_k_m": 1.5}
    rows = grid(lambda case: own[case.quant] / case.batch**0.5)
    for quant, ratio in own.items():
        for batch in (1, 4):
            case = LearnedCase(quant, 270_000_000, 2048, batch)
            assert factor(rows, case) == pytest.approx(ratio / batch**0.5, rel=0.1)


@pytest.mark.parametrize("bad", [0.1, 10.0])
@pytest.mark.parametrize("spread", [GUESS, CALIBRATED])
def test_two_bad_rows_poison_nothing(bad: float, spread: float) -> None:
    rows = grid(lambda case: 2.0, spread)
    for places in ((3, 11), (8, 9), (0, 23)):
        spoilt = [each._replace(ratio=math.log(bad)) if n in places else each for n, each in enumerate(rows)]
        for each in rows:
            clean, found = factor(rows, each.case), factor(spoilt, each.case)
            assert found == pytest.approx(clean, rel=0.1)


def test_the_range_holds_nine_of_ten_new_cases_and_is_narrower_than_a_guess() -> None:
    noise, inside, widths = random.Random(3), [], []
    for _ in range(30):
        rows = [each._replace(ratio=math.log(2.0) + noise.gauss(0, 0.1)) for each in grid(lambda case: 2.0)]
        for n, each in enumerate(rows[::4]):
            found = Process("decode", [row for row in rows if row is not each]).correction(each.case)
            assert found is not None, n
            inside.append(abs(each.ratio - math.log(found.factor)) <= math.log(found.width))
            widths.append(found.width)
    assert 0.85 <= fmean(inside) <= 1.0
    assert max(widths) < 2 < math.exp(1.645 * GUESS)


def test_what_the_others_say_of_a_row_is_what_is_learned_without_it() -> None:
    rows = grid(lambda case: 2.0 if case.batch == 1 else 0.7)
    whole = Process("decode", rows)
    for each in rows[::5]:
        beside, without = whole.of_others(each), Process("decode", [row for row in rows if row is not each])
        alone = without.correction(each.case)
        assert beside is not None and alone is not None
        assert beside.factor == pytest.approx(alone.factor, rel=0.02)
        assert beside.width == pytest.approx(alone.width, rel=0.1)
        assert beside.rows == alone.rows


def test_a_correction_never_makes_a_range_wider() -> None:
    found = Process("decode", [lesson(2.0, CALIBRATED)] * 1).correction(SMALL)
    assert found is not None
    plain = Interval(10.0, 9.9, 10.1, "calibrated")
    corrected = found.of(plain)
    assert corrected.value / corrected.low == pytest.approx(plain.value / plain.low)
    assert (corrected.basis, corrected.rows, corrected.basis_text) == ("learned", 1, "learned from 1 row here")


def test_the_inverse_of_a_matrix_times_the_matrix_is_one() -> None:
    size, numbers = 7, random.Random(1)
    root = [[numbers.random() for _ in range(size)] for _ in range(size)]
    matrix = [[sum(a * b for a, b in zip(x, y, strict=True)) + (x is y) for y in root] for x in root]
    inverse = learned._inverse(matrix)
    for i in range(size):
        for j in range(size):
            product = sum(matrix[i][k] * inverse[k][j] for k in range(size))
            assert product == pytest.approx(float(i == j), abs=1e-9)


def case(context: int, **fields: Any) -> Case:
    content: dict[str, Any] = {
        "model": "gemma",
        "model_id": "0",
        "weights": "real",
        "quant": "q8_0",
        "dtype": "bf16",
        "device": "cpu",
        "backend": "llama.cpp",
        "path": "eager",
        "batch": 1,
        "steps": 16,
        "ubatch": 512,
    }
    return Case(**content | {"context": context} | fields)


def measured(asked: Case, device: DeviceInfo, faster: float, taught: Learned = NOTHING) -> Measurement:
    """A row whose phases were ``faster`` than the plain prediction, and whose memory was as predicted."""
    expected = stored_prediction(asked, GEOMETRY, device, learned=taught)
    plain = expected["plain"]
    samples = [
        Sample(
            "prefill",
            asked.context * asked.batch / plain["prefill_tps"]["value"] / faster,
            asked.context * asked.batch,
        ),
        Sample(
            "decode", asked.steps * asked.batch / plain["decode_tps"]["value"] / faster, asked.steps * asked.batch
        ),
    ]
    memory = Memory(decode_peak_bytes=round(plain["peak_bytes"]["value"]))
    return Measurement(
        asked,
        environment.snapshot(device),
        "ok",
        None,
        samples=Repetitions(samples * 3),
        memory=memory,
        expected=expected,
    )


@pytest.fixture
def here() -> DeviceInfo:
    return devices.find("cpu")


@pytest.fixture
def rows(here: DeviceInfo) -> list[Measurement]:
    return [measured(case(context), here, 2.0) for context in (128, 256, 512, 1024)]


def decode_tps(predictor: Predictor) -> Interval:
    found = predictor.predict(512, 1).decode
    assert found is not None
    return found.tps


def predictor(taught: Learned) -> Predictor:
    return Predictor(
        GEOMETRY, engines.find("llama.cpp"), "q8_0", Machine(targets.find("cpu")), "bf16", learned=taught
    )


def test_rows_that_were_twice_as_fast_make_predictions_twice_as_fast(
    here: DeviceInfo, rows: list[Measurement]
) -> None:
    taught = learned.from_rows(rows[::-1], here, host_of(here, None))
    plain, corrected = decode_tps(predictor(NOTHING)), decode_tps(predictor(taught))
    assert corrected.value == pytest.approx(2 * plain.value, rel=0.1)
    assert (corrected.basis, corrected.rows) == ("learned", 4)
    assert corrected.high / corrected.low < plain.high / plain.low
    assert decode_tps(predictor(taught).plain) == plain
    peak = predictor(taught).predict(512, 1).terms.peak
    assert peak.value == pytest.approx(predictor(NOTHING).predict(512, 1).terms.peak.value, rel=0.02)
    assert predictor(taught).predict(512, 1).terms.framework.basis == "learned"


def test_a_row_that_was_predicted_by_learning_teaches_by_its_plain_prediction(
    here: DeviceInfo, rows: list[Measurement]
) -> None:
    on = host_of(here, None)
    taught = learned.from_rows(rows[::-1], here, on)
    again = [measured(row.case, here, 2.0, taught) for row in rows]
    assert again[0].expected["decode_tps"]["basis"] == "learned"
    assert again[0].expected["plain"] == rows[0].expected["plain"]
    twice = learned.from_rows(again[::-1], here, on)
    assert decode_tps(predictor(twice)) == decode_tps(predictor(taught))


UNLIKE: dict[str, Callable[[Measurement], Measurement]] = {
    "another machine": lambda row: changed(row, device={**row.environment["device"], "title": "Another CPU"}),
    "fewer cores": lambda row: changed(row, cpu={**row.environment["cpu"], "cores": 1000}),
    "failed": lambda row: replace(row, outcome="failed"),
    "simulated": lambda row: replace(row, case=replace(row.case, backend="fake")),
    "an option that nothing predicts": lambda row: replace(row, case=replace(row.case, options="flash-attn=on")),
    "an older release": lambda row: rested(row, version=learned.PLAIN_VERSION - 1),
    "before a calibration": lambda row: rested(row, calibrated="no"),
    "after the ceilings moved": lambda row: rested(row, bytes_s=2 * row.expected["plain"]["bytes_s"]),
    "from before rows had a plain prediction": lambda row: replace(row, expected={}),
    "spoilt": lambda row: rested(row, parameters=None, rest_bytes={}),
}


def changed(row: Measurement, **parts: Any) -> Measurement:
    return replace(row, environment=row.environment | parts)


def rested(row: Measurement, **parts: Any) -> Measurement:
    return replace(row, expected=row.expected | {"plain": row.expected["plain"] | parts})


@pytest.mark.parametrize("what", UNLIKE)
def test_a_row_of_something_else_teaches_nothing(what: str, here: DeviceInfo, rows: list[Measurement]) -> None:
    taught = learned.from_rows([UNLIKE[what](row) for row in rows], here, host_of(here, None))
    assert not taught
    told = taught.notes("llama.cpp")
    assert told == () or "4 rows that were measured here do not correct these speeds: they are from before" in told[0]


def test_rows_of_a_gpu_are_those_of_the_card_whatever_cpus_its_process_may_use() -> None:
    card = DeviceInfo("cuda:0", "cuda", "A card", 2**34, 2**34, "bf16", features=("sm_89",), uuid="GPU-1", driver="1")
    stated = {"title": "A card", "driver": "1", "features": ["sm_89"], "uuid_hash": digest("GPU-1")}
    for limits in ({}, {"cores": 0.5, "cpus": [1, 2]}):
        assert learned._is_of(card, {"device": stated, "limits": limits})
    assert not learned._is_of(replace(card, uuid="GPU-2"), {"device": stated})


def test_only_rows_of_the_newest_build_teach(here: DeviceInfo, rows: list[Measurement]) -> None:
    other = changed(rows[0], libraries={**rows[0].environment["libraries"], "llama.cpp": "b2"})
    slower = [replace(measured(case(64), here, 0.5), environment=other.environment)]
    on = host_of(here, None)
    newest = learned.from_rows([*slower, *rows], here, on)
    assert decode_tps(predictor(newest)).value < decode_tps(predictor(NOTHING)).value
    asked = learned.from_rows([*slower, *rows], here, on, rows[0].environment)
    assert decode_tps(predictor(asked)).value > decode_tps(predictor(NOTHING)).value


@pytest.mark.parametrize(
    ("code", "teaches"),
    [("decode-cpu-pressure", False), ("decode-unsteady", False), ("decode-few", True), ("decode-cold", True)],
)
def test_a_phase_with_a_caution_that_doubts_it_teaches_nothing(
    code: str, teaches: bool, here: DeviceInfo, rows: list[Measurement]
) -> None:
    doubted = [replace(row, cautions=(Caution(code, "decode: a reason"),)) for row in rows]
    taught = learned.from_rows(doubted, here, host_of(here, None))
    about = LearnedCase("q8_0", GEOMETRY.parameters, 512, 1)
    assert (taught.correction("llama.cpp", "eager", "decode", about) is not None) == teaches
    assert taught.correction("llama.cpp", "eager", "prefill", about) is not None
    assert taught.notes("llama.cpp") == ()


def test_rows_that_teach_nothing_are_counted_with_the_reason(here: DeviceInfo, rows: list[Measurement]) -> None:
    noisy = tuple(Caution(f"{phase}-noisy", f"{phase}: a reason") for phase in ("prefill", "decode"))
    taught = learned.from_rows([replace(rows[0], cautions=noisy)], here, host_of(here, None))
    (told,) = taught.notes("llama.cpp")
    assert told.startswith("the row that was measured here does not correct these speeds: other work disturbed")


def test_learning_from_many_rows_takes_milliseconds() -> None:
    import time

    lessons = [lesson(2.0, GUESS, SMALL._replace(context=64 + n)) for n in range(learned.MAX_ROWS)]
    start = time.process_time()
    process = Process("decode", lessons)
    for n in range(20):
        process.correction(SMALL._replace(context=100 + n))
    assert time.process_time() - start < 0.25


CPU = describe(DeviceInfo("cpu", "cpu", "Some CPU", 2**38, 2**38, "fp32", cores=8, features=("avx2", "avx512f")))
CALIBRATED_CPU = replace(
    CPU, spread=1.0, ceilings=MEASURED, bandwidth_bytes_s=MEASURED.read_bytes_s, flops=MEASURED.flops
)
# Predictions of fixed cases, which change with every change of our model of time or memory.
PLAIN = "d2190a06a6fba415"


def test_the_version_changes_when_plain_predictions_change() -> None:
    """If this fails, raise ``learned.PLAIN_VERSION`` and put the new digest here: rows that were predicted before
    must not teach predictions that are made now."""
    found: list[float] = []
    for engine in map(engines.find, engines.names()):
        for name in ("gemma-3-270m", "qwen3.5-4b", "gemma-4-26b-a4b"):
            for on in (*map(targets.find, ("rtx 4090", "vram=24,bandwidth=500,bf16=50")), CPU, CALIBRATED_CPU):
                shape, quant = families.geometry(hub.shipped_config(name)), engine.usual_quants[0]
                made = Predictor(shape, engine, quant, Machine(on, ram_bytes=2**38))
                for context, batch in ((512, 1), (4096, 4)):
                    prediction = made.predict(context, batch)
                    assert prediction.prefill is not None and prediction.decode is not None
                    found += [prediction.prefill.seconds.value, prediction.decode.seconds.value]
                    found.append(prediction.terms.buffers.value + prediction.terms.framework.value)
    assert (learned.PLAIN_VERSION, digest([f"{value:.6g}" for value in found])) == (9, PLAIN)
