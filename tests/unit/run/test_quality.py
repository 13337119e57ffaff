"""``--quality`` before anything runs: what is requested, what is refused, how long it takes, and what is reused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import stored
from fakes.reported import measured

from profiler import devices
from profiler.errors import ProfileError
from profiler.models import gguf
from profiler.quality import texts
from profiler.quality.definition import DEFINITION
from profiler.quality.placement import ReferencePlace
from profiler.results.quality import Block, columns
from profiler.run import plan, quality
from profiler.run.repetitions import Effort
from profiler.run.request import SweepRequest, resolve_request

WANTED = quality.requested(True, None, None)
BLOCKS = columns([Block("prose", "a", 10, 0.1, 9, 20.0, 19.0)])


def known(**changed: Any) -> dict[str, Any]:
    content = {
        "definition": DEFINITION,
        "text": {"hash": texts.shipped().hash},
        "reference": {"model_id": measured().case.model_id},
        "blocks": BLOCKS,
    }
    return content | changed


def test_nothing_is_requested_by_default() -> None:
    assert quality.requested(False, None, None) is None
    assert Effort().quality is None and "quality" not in Effort().requested


def test_a_request_names_the_texts_by_their_content(tmp_path: Path) -> None:
    assert WANTED is not None
    assert (WANTED["text"], WANTED["hash"], WANTED["kinds"]) == (None, texts.shipped().hash, 6)
    assert Effort(quality=WANTED).requested["quality"] == texts.shipped().hash
    (tmp_path / "mine.txt").write_text("Some text.")
    own = quality.requested(True, str(tmp_path), None)
    assert own is not None and own["hash"] != WANTED["hash"]


@pytest.mark.parametrize(
    ("stored", "reused"),
    [
        (None, False),
        ({"reason": "no tokenizer"}, False),
        (known(), True),
        (known(definition=0), False),
        (known(text={"hash": "other"}), False),
        (known(reference={"model_id": "other"}), False),
    ],
)
def test_a_row_is_reused_only_with_the_quality_that_is_requested(stored: dict[str, Any] | None, reused: bool) -> None:
    row = replace(measured(), quality=stored)
    assert quality.has(row, WANTED) is reused
    assert quality.has(row, None)


def test_another_reference_is_another_quality() -> None:
    assert WANTED is not None
    wanted = {**WANTED, "reference": {"model_id": "other"}}
    assert not quality.has(replace(measured(), quality=known()), wanted)
    assert quality.has(replace(measured(), quality=known(reference={"model_id": "other"})), wanted)


def test_the_plan_counts_the_texts_and_once_for_a_model_the_reference() -> None:
    device = devices.find("cpu")
    request = SweepRequest(models=("gemma-3-270m",), quants=("bf16", "nf4"))
    tasks = resolve_request(request, device, device.free_bytes, lambda text: None).tasks
    plain = plan.make(tasks, device, Effort(), 2**50)
    scored = plan.make(tasks, device, Effort(quality=WANTED), 2**50)
    assert len(plain.tasks) == len(scored.tasks) == 2
    for before, after in zip(plain.tasks, scored.tasks, strict=True):
        assert after.run_s > before.run_s
    loads = [after.load_s - before.load_s for before, after in zip(plain.tasks, scored.tasks, strict=True)]
    assert loads[0] > 0 and loads[1] == 0


def test_the_plan_counts_a_reference_that_runs_from_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    device = devices.find("cpu")
    request = SweepRequest(models=("gemma-3-270m",), quants=("bf16",))
    tasks = resolve_request(request, device, device.free_bytes, lambda text: None).tasks
    usual = plan.make(tasks, device, Effort(quality=WANTED), 2**50).seconds
    on_disk = ReferencePlace("bf16", "cpu", 10**9, from_disk=True)
    monkeypatch.setattr(quality, "place", lambda *model: on_disk)
    slow = plan.make(tasks, device, Effort(quality=WANTED), 2**50).seconds
    assert slow - usual > 28  # one read of the file for each document, at 1 GB/s


def test_synthetic_weights_are_refused_with_the_reason() -> None:
    device = devices.find("cpu")
    with pytest.raises(ProfileError, match="--quality needs real weights"):
        resolve_request(
            SweepRequest(models=("gemma-3-270m",), quality=True), device, device.free_bytes, lambda text: None
        )


def test_the_reference_of_gguf_files_is_the_best_plain_file_of_the_same_model_beside_them(tmp_path: Path) -> None:
    for kind, number in (("f16", 1), ("bf16", 32), ("q8_0", 7), ("q4_0", 2)):
        stored.gguf(tmp_path / f"tiny-{kind}.gguf", kind, file_type=number)
    stored.gguf(tmp_path / "other-f32.gguf", "f32", file_type=0, context_length=4096)
    (tmp_path / "unfinished-f32.gguf").write_bytes(b"GGUF")
    device = devices.find("cpu")
    names = tuple(str(tmp_path / f"tiny-{kind}.gguf") for kind in ("q8_0", "q4_0"))
    request = SweepRequest(models=names, backend="llama.cpp", quality=True)
    resolved = resolve_request(request, device, device.free_bytes, lambda text: None)
    wanted = resolved.effort.quality
    assert wanted is not None
    assert [each["name"] for each in wanted["references"].values()] == ["tiny-bf16", "tiny-bf16"]
    planned = plan.make(resolved.tasks, device, resolved.effort, 2**50).tasks
    plain = plan.make(resolved.tasks, device, Effort(), 2**50).tasks
    assert [after.load_s > before.load_s for before, after in zip(plain, planned, strict=True)] == [True, False]
    case = resolved.tasks[0].case
    reference = wanted["references"][case.model_id]["model_id"]
    row = replace(measured(), case=case, quality=known(reference={"model_id": reference}))
    assert quality.has(row, wanted) and not quality.has(replace(row, quality=known()), wanted)


def test_a_file_of_other_weights_is_no_reference_although_its_shapes_are_the_same(tmp_path: Path) -> None:
    """A base model and what was tuned from it share their config, and a name says nothing."""
    base, tuned = (stored.gguf(tmp_path / f"{name}.gguf", "f32", file_type=0) for name in ("a-base-f32", "tuned-f32"))
    packed = stored.gguf(tmp_path / "tuned-q4_0.gguf", "q4_0", file_type=2)
    header = gguf.model_header(base)
    with base.open("r+b") as file:
        file.seek(header.data + header.tensors["output_norm.weight"].offset)
        file.write(b"\x01")
    device = devices.find("cpu")
    request = SweepRequest(models=(str(packed),), backend="llama.cpp", quality=True)
    wanted = resolve_request(request, device, device.free_bytes, lambda text: None).effort.quality
    assert wanted is not None
    assert [each["name"] for each in wanted["references"].values()] == [tuned.stem]
    (elsewhere := tmp_path / "elsewhere").mkdir()
    alone, _ = (file.rename(elsewhere / file.name) for file in (packed, base))
    with pytest.raises(ProfileError, match=r"themselves quantized \(q4_0\)"):
        resolve_request(replace(request, models=(str(alone),)), device, device.free_bytes, lambda text: None)


def test_a_quantized_gguf_file_alone_needs_a_named_reference(tmp_path: Path) -> None:
    file, device = stored.gguf(tmp_path / "tiny.gguf", "q8_0", file_type=7), devices.find("cpu")
    request = SweepRequest(models=(str(file),), backend="llama.cpp", quality=True)
    with pytest.raises(ProfileError, match=r"themselves quantized \(q8_0\)"):
        resolve_request(request, device, device.free_bytes, lambda text: None)
    named = resolve_request(replace(request, reference=str(file)), device, device.free_bytes, lambda text: None)
    assert named.effort.quality is not None and named.effort.quality["reference"]["quant"] == "q8_0"
    checkpoint = stored.plain(tmp_path / "folder", "bf16", None)
    with pytest.raises(ProfileError, match=r"reads \.gguf files, and folder is none"):
        resolve_request(replace(request, reference=str(checkpoint)), device, device.free_bytes, lambda text: None)


def test_a_failed_comparison_leaves_the_speed_and_says_why() -> None:
    row = quality.add(measured(), None, None, WANTED, "no tokenizer.json", lambda text: None)  # type: ignore[arg-type]
    assert row.quality == {"reason": "no tokenizer.json"}
    assert [caution.code for caution in row.cautions][-1] == "quality-unknown"
    assert row.samples == measured().samples
