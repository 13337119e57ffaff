"""An error for a checkpoint that transformers cannot load names the weight and the cause, not a report in a log."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from fakes import tiny
from transformers.utils.loading_report import LoadStateDictInfo, log_state_dict_report

from profiler.backends.hf import session
from profiler.backends.hf.load import loading_errors
from profiler.case import Case, Source
from profiler.errors import ProfileError

torch.set_num_threads(1)


def info(**found: object) -> LoadStateDictInfo:
    keys = ("missing_keys", "unexpected_keys", "mismatched_keys", "skipped_pp_keys")
    fields = {name: set() for name in keys} | {"error_msgs": [], "conversion_errors": {}}
    return LoadStateDictInfo(**(fields | found))


def report(found: LoadStateDictInfo) -> None:
    """What ``from_pretrained`` does at its end."""
    logger = logging.getLogger("nobody listens")
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    log_state_dict_report(torch.nn.Linear(1, 1), "folder", False, found, logger)


TRACEBACK = """Traceback (most recent call last):
  File "core_model_loading.py", line 1, in convert
    torch.stack(tensors)
RuntimeError: stack expects each tensor to be equal size, but got [4] at entry 0 and [5] at entry 1
stack expects each tensor to be equal size, but got [4] at entry 0 and [5] at entry 1
Error: MergeModulelist on tensors destined for ['model.layers.0.mlp.experts.gate_up_proj']. Ckpt contains: 8"""


def test_a_weight_that_cannot_be_converted_is_named_with_the_cause() -> None:
    found = info(conversion_errors={"model.layers.0.mlp.experts.gate_up_proj": TRACEBACK})
    with pytest.raises(RuntimeError, match="the above report"):
        report(found)
    with pytest.raises(ProfileError) as told, loading_errors("tiny"):
        report(found)
    assert told.value.message == (
        "tiny: 1 weight could not be converted, first model.layers.0.mlp.experts.gate_up_proj: RuntimeError:"
        " stack expects each tensor to be equal size, but got [4] at entry 0 and [5] at entry 1"
    )


def test_other_errors_are_not_changed() -> None:
    with pytest.raises(RuntimeError, match="as it is"), loading_errors("tiny"):
        raise RuntimeError("as it is")


def test_a_weight_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    """A real checkpoint whose config is of another model."""
    folder = tiny.write("llama", tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    raw["intermediate_size"] += 32
    (folder / "config.json").write_text(json.dumps(raw))
    case = Case("tiny", "tiny", "real", "fp32", "fp32", "cpu", "hf", "eager", context=8, batch=1, steps=1)
    with pytest.raises(ProfileError) as told:
        session.open_session(case, Source("folder", str(folder), None, raw), lambda text: None)
    assert f"{folder.name}: model.layers." in told.value.message
    assert "mlp" in told.value.message
    assert " in the weights, " in told.value.message and " in config.json" in told.value.message
    assert "above report" not in str(told.value)
