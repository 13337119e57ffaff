"""The hf backend on tiny models of every family: what it processes, keeps, restores and counts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import tiny
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from profiler import devices, registry
from profiler.backends.hf.session import HfGeneration, HfSession, open_session
from profiler.case import Case, Source
from profiler.devices.cpu import process_bytes
from profiler.errors import ProfileError
from profiler.models import families
from profiler.results.measurement import SHARED_DECODE
from profiler.run.loop import measure
from profiler.run.repetitions import Effort, Repeater

CONTEXT, STEPS = 50, 5  # longer than the tiny models' window of 32
# A quantization's rule sees one weight at a time: every model in one format, every format in a model with all roles.
EVERY_ROLE = "qwen3.5-moe"
EVERY_MODEL = [(name, "nf4") for name in sorted(tiny.CONFIGS)]
QUANTS = ("fp32", "bf16", "int8", "nf4-dq", "fp4")
SCRATCH = 100 * 2**20  # the noise that is laid over weights, before and after quantizing it: the same for any model


def silent(text: str) -> None:
    """A beat that does nothing."""


def case(**fields: Any) -> Case:
    base: dict[str, Any] = {
        "model": "tiny",
        "model_id": "tiny",
        "weights": "real",
        "quant": "fp32",
        "dtype": "fp32",
        "device": "cpu",
        "backend": "hf",
        "path": "eager",
        "context": CONTEXT,
        "batch": 2,
        "steps": STEPS,
    }
    return Case(**(base | fields))


def session(folder: Path, asked: Case) -> HfSession:
    config = json.loads((folder / "config.json").read_text())
    return open_session(asked, Source("folder", str(folder), None, config), silent)


def decoded(generation: HfGeneration, steps: int = STEPS) -> list[list[int]]:
    for _ in range(steps):
        generation.step()
    return generation.tokens


def test_greedy_tokens_equal_those_of_generate(any_tiny_model: Path) -> None:
    asked = case()
    generation = session(any_tiny_model, asked).begin(asked)
    generation.prefill()
    first = generation.next.flatten().tolist()
    ours = [first, *decoded(generation)[:-1]]
    model = AutoModelForCausalLM.from_pretrained(any_tiny_model, dtype=torch.float32)
    generated = model.generate(
        generation.ids,
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=None,
        attention_mask=torch.ones_like(generation.ids),
    )
    assert ours == generated[:, CONTEXT:].T.tolist()


def test_prefill_in_chunks_leaves_the_same_cache_as_in_one(any_tiny_model: Path) -> None:
    whole, chunked = case(ubatch=CONTEXT), case(ubatch=16)
    loaded = session(any_tiny_model, whole)
    ends = []
    for asked in (whole, chunked):
        generation = loaded.begin(asked)
        assert generation.prefill() == asked.batch * CONTEXT
        assert generation.cache().length == CONTEXT
        ends.append((decoded(generation), generation.cache().storage_bytes))
    assert ends[0] == ends[1]


def test_decode_from_a_restored_cache_gives_the_same_tokens(any_tiny_model: Path) -> None:
    asked = case()
    generation = session(any_tiny_model, asked).begin(asked)
    generation.prefill()
    straight = decoded(generation)
    generation.prefill()
    generation.save()
    for _ in range(3):
        generation.restore()
        assert decoded(generation) == straight
        assert generation.cache().length == CONTEXT + STEPS


def test_saving_frees_the_prefill_chunk_behind_a_window(tiny_model: Any) -> None:
    asked = case(ubatch=CONTEXT)
    generation = session(tiny_model("gemma3"), asked).begin(asked)
    generation.prefill()
    assert generation.cache().retained_bytes > 0
    generation.save()
    assert generation.cache().retained_bytes == 0


def test_a_synthetic_fill_has_the_size_and_length_of_a_real_cache(any_tiny_model: Path) -> None:
    asked = case(fill="synthetic", context=200)
    loaded = session(any_tiny_model, asked)
    real, filled = loaded.begin(asked), loaded.begin(asked)
    real.prefill()
    filled.fill()
    for generation in (real, filled):
        assert generation.cache().length == 200
        generation.save()
        generation.restore()
        decoded(generation)
    assert filled.cache() == real.cache()
    for layer in filled.kv.layers:
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            assert tensor is None or (tensor.isfinite().all() and tensor.std() > 0)


@pytest.mark.parametrize(("name", "quant"), [*EVERY_MODEL, *((EVERY_ROLE, quant) for quant in QUANTS)])
def test_synthetic_weights_take_the_bytes_of_real_ones_and_of_the_formula(
    tiny_model: Any, name: str, quant: str
) -> None:
    folder = tiny_model(name)
    config = json.loads((folder / "config.json").read_text())
    dtype = "bf16" if quant == "bf16" else "fp32"
    sizes = {}
    for weights in ("real", "synthetic"):
        asked = case(weights=weights, quant=quant, dtype=dtype)
        sizes[weights] = session(folder, asked).info.weights_bytes
    rule = registry.load("quants", quant, "quantization").QUANT
    formula = sum(rule.weight_bytes(weight, dtype) for weight in families.geometry(config).weights())
    assert sizes["real"] == sizes["synthetic"]
    assert sizes["synthetic"] - formula == buffer_bytes(folder, dtype)


@pytest.mark.parametrize(("name", "quant"), [*EVERY_MODEL, (EVERY_ROLE, "nf4-dq"), (EVERY_ROLE, "fp4")])
def test_repacked_weights_take_the_bytes_of_the_formula(
    tiny_model: Any, name: str, quant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pass on a CPU with AVX512-BF16 repacks them; here, any CPU does."""
    import bitsandbytes.nn.modules as modules
    from bitsandbytes.functional import _convert_weight_packed_for_cpu

    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    folder = tiny_model(name)
    opened = session(folder, case(quant=quant))
    for layer in opened.model.modules():
        if isinstance(layer, modules.Linear4bit) and layer.support_avx512bf16_for_cpu:
            layer.weight.data, _ = _convert_weight_packed_for_cpu(layer.weight.data, layer.weight.quant_state)
    config = json.loads((folder / "config.json").read_text())
    rule = registry.load("quants", quant, "quantization").QUANT
    formula = sum(rule.weight_bytes(weight, "fp32", True) for weight in families.geometry(config).weights())
    assert opened.info.weights_bytes - formula == buffer_bytes(folder, "fp32")


@pytest.mark.parametrize("quant", ["nf4", "int8", "bf16"])
def test_mapped_pages_of_quantized_weights_are_counted(tiny_model: Any, tmp_path: Path, quant: str) -> None:
    """A 16-bit checkpoint stays mapped for the weights that are used as they are, and so do the others' pages."""
    AutoModelForCausalLM.from_pretrained(tiny_model("qwen3"), dtype=torch.bfloat16).save_pretrained(tmp_path)
    asked = case(quant=quant, dtype="bf16", context=8)
    opened = session(tmp_path, asked)
    opened.begin(asked).prefill()
    weights = families.geometry(json.loads((tmp_path / "config.json").read_text())).weights()
    packed = 2 * sum(weight.parameters for weight in weights if weight.role == "linear")
    left = opened.info.left_mapped_bytes
    assert left is not None
    assert abs(left - (0 if quant == "bf16" else packed)) < 64 * 1024  # the file's head, and pages around


def buffer_bytes(folder: Path, dtype: str) -> int:
    """Rotary frequencies and scalars: buffers of the model that no checkpoint stores, so the formula omits them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
    stored = model.state_dict()
    return sum(buffer.untyped_storage().nbytes() for name, buffer in model.named_buffers() if name not in stored)


@pytest.mark.parametrize("quant", ["fp32", "int8", "nf4", "nf4-dq"])
def test_synthetic_models_give_finite_logits_and_no_constant_weight(quant: str) -> None:
    asked = case(weights="synthetic", quant=quant)
    for name, config in tiny.CONFIGS.items():
        loaded = open_session(asked, Source("catalog", name, None, config), silent)
        logits = loaded.model(loaded.begin(asked).ids).logits
        assert logits.isfinite().all(), name
        assert logits.std() > 0, name
        for label, parameter in loaded.model.named_parameters():
            if parameter.numel() > 1:
                assert parameter.float().std() > 0, (name, label)


def test_synthetic_states_decay_as_in_a_freshly_initialized_model() -> None:
    """With transformers' own initialization, they shrink by e^-10 per token and become denormal numbers."""
    loaded = open_session(case(weights="synthetic"), Source("catalog", "q", None, tiny.CONFIGS["qwen3.5"]), silent)
    found = [module for module in loaded.model.modules() if hasattr(module, "dt_bias")]
    assert found
    for module in found:
        steps = torch.nn.functional.softplus(module.dt_bias.float())
        assert 0.0009 < steps.min() <= steps.max() < 0.11
        assert steps.unique().numel() == steps.numel()


def test_synthetic_models_have_outlier_features() -> None:
    """Without outliers, an 8-bit layer skips some operators; in a trained model, few layers before attention do."""
    import bitsandbytes as bnb

    asked = case(weights="synthetic", quant="int8")
    outlying: list[int] = []

    def look(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        outlying.append(int((inputs[0].flatten(0, -2).abs() >= 6).any(dim=0).sum()))

    for name in ("gemma3", "qwen3"):
        loaded = open_session(asked, Source("catalog", name, None, tiny.CONFIGS[name]), silent)
        for label, module in loaded.model.named_modules():
            if isinstance(module, bnb.nn.Linear8bitLt) and label.endswith("q_proj"):
                module.register_forward_pre_hook(look)
        loaded.begin(asked).prefill()
    assert len(outlying) >= 4
    assert all(1 <= count <= 3 for count in outlying)


def test_synthetic_weights_follow_the_seed() -> None:
    source = Source("catalog", "llama", None, tiny.CONFIGS["llama"])
    first, again, other = (
        open_session(case(weights="synthetic", quant="nf4", seed=seed), source, silent).model for seed in (1, 1, 2)
    )
    pick = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(first.get_parameter(pick), again.get_parameter(pick))
    assert not torch.equal(first.get_parameter(pick), other.get_parameter(pick))


@pytest.mark.parametrize("quant", ["fp32", "bf16", "int8", "nf4"])
def test_building_takes_at_most_115_percent_of_the_weights(quant: str) -> None:
    """PyTorch's profiler counts live tensors, so interpreter and heap do not add noise."""
    wide = tiny.CONFIGS["qwen3"] | {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 32768}
    wide |= {"num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64}
    source = Source("catalog", "wide", None, wide)
    asked = case(weights="synthetic", quant=quant, dtype="bf16" if quant == "bf16" else "fp32")
    open_session(asked, source, silent)  # so that libraries and threads are there before
    before = process_bytes("VmRSS")
    meter = devices.meter("cpu")
    meter.reset_peak()
    weights = open_session(asked, source, silent).info.weights_bytes
    assert meter.peak().process_bytes - before <= 1.15 * weights + SCRATCH


def test_a_cpu_that_repacks_four_bit_weights_still_runs_what_it_cannot_repack(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes repacks on CPUs with AVX512-BF16, and raises for weights without whole blocks of 32 by 64."""
    import bitsandbytes.nn.modules as modules

    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    monkeypatch.setattr(modules, "_convert_weight_packed_for_cpu", refuse_broken)
    asked = case(quant="nf4", context=4)
    generation = session(tiny_model("qwen3.5"), asked).begin(asked)
    generation.prefill()
    assert generation.cache().length == 4


def refuse_broken(weight: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
    assert state.shape[0] % 32 == 0 and state.shape[1] % 64 == 0, "the weight has no whole blocks"
    return weight, state


@pytest.mark.parametrize(("rows", "columns", "repacked"), [(32, 64, True), (16, 64, False), (32, 96, False)])
def test_four_bit_weights_are_repacked_in_whole_blocks_only(rows: int, columns: int, repacked: bool) -> None:
    import bitsandbytes as bnb

    from profiler.backends.hf import load

    layer = bnb.nn.Linear4bit(columns, rows, bias=False)
    layer.support_avx512bf16_for_cpu = True  # as on a CPU with those units
    load._keep_packing(torch.nn.Sequential(layer))
    assert layer.support_avx512bf16_for_cpu is repacked


def test_a_checkpoint_that_lacks_weights_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    folder = tiny_model("qwen3")
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(ProfileError, match="11 of the 35 weights that config"):
        session(tmp_path, case())


VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
MULTIMODAL: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3", {"vision_config": VISION}),
    "gemma4": ("gemma4", {"vision_config": VISION, "audio_config": None}),
    "gemma4-moe": ("gemma4", {"vision_config": VISION, "audio_config": None}),
    "qwen3.5": (
        "qwen3_5",
        {"vision_config": VISION | {"num_heads": 2, "depth": 1, "out_hidden_size": 64}, "tie_word_embeddings": True},
    ),
    "qwen3.5-moe": ("qwen3_5_moe", {"vision_config": VISION | {"num_heads": 2, "depth": 1, "out_hidden_size": 64}}),
    "llama4": ("llama4", {"vision_config": VISION | {"vision_output_dim": 64, "projector_output_dim": 64}}),
}


@pytest.mark.parametrize("name", sorted(MULTIMODAL))
def test_only_the_text_tower_of_a_multimodal_checkpoint_is_loaded(name: str, tmp_path: Path) -> None:
    kind, towers = MULTIMODAL[name]
    config = AutoConfig.for_model(kind, text_config=dict(tiny.CONFIGS[name]), **towers)
    whole = AutoModelForImageTextToText.from_config(config)
    whole.save_pretrained(tmp_path)
    loaded = session(tmp_path, case()).model
    alone = sum(
        weight.parameters
        for weight in families.geometry(json.loads((tmp_path / "config.json").read_text())).weights()
    )
    named = dict(loaded.named_parameters())
    buffers = sum(1 for key in loaded.state_dict() if key not in named and key.endswith("layer_scalar"))
    assert sum(parameter.numel() for parameter in named.values()) + buffers == alone
    assert torch.equal(loaded.get_input_embeddings().weight, whole.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("name", "path"), [*((name, "eager") for name in tiny.CONFIGS), ("gemma3", "static"), ("qwen3.5", "static")]
)
def test_cache_bytes_by_kind_of_layer_equal_the_geometry(tiny_model: Any, name: str, path: str) -> None:
    folder = tiny_model(name)
    asked = case(context=64, steps=2, path=path)
    generation = session(folder, asked).begin(asked)
    generation.prefill()
    generation.save()
    decoded(generation, 2)
    found = generation.cache()
    if path == "static":
        generation.step()  # its buffers have room for the step that the loop takes for the peak
        found = generation.cache()
    geometry = families.geometry(json.loads((folder / "config.json").read_text()))
    expected = geometry.cache_bytes(found.length, asked.batch, 4)
    assert (found.growing_bytes, found.window_bytes, found.recurrent_bytes) == (
        expected.growing,
        expected.window,
        expected.state,
    )
    assert found.growing_bytes + found.window_bytes + found.recurrent_bytes == found.storage_bytes


def test_a_sliding_layer_retains_its_whole_prefill_chunk_until_the_first_step(tiny_model: Any) -> None:
    """A window of 32 keeps 31 tokens of the 96 that a chunk of 96 leaves in each of the layers."""
    folder = tiny_model("gemma3")
    config = json.loads((folder / "config.json").read_text())
    sliding = config["layer_types"].count("sliding_attention")
    token = 2 * 4 * config["num_key_value_heads"] * config["head_dim"]
    asked = case(context=96, batch=1, steps=1, ubatch=96)
    result = measure(session(folder, asked), asked, Repeater(Effort(reps=1)))
    assert result.memory.retained_bytes == sliding * (96 - 31) * token


@pytest.mark.parametrize("path", ["static", "eager"])
def test_a_case_that_shares_the_steps_of_another_has_its_own_memory(any_tiny_model: Path, path: str) -> None:
    longer, shorter = (case(path=path, steps=steps) for steps in (STEPS, 2))
    opened, known = session(any_tiny_model, longer), {}
    measure(opened, longer, Repeater(Effort(reps=1)), known)
    shared = measure(opened, shorter, Repeater(Effort(reps=1)), known)
    alone = measure(opened, shorter, Repeater(Effort(reps=1)))
    assert SHARED_DECODE in [caution.code for caution in shared.cautions]
    for part in ("cache_bytes", "growing_cache_bytes", "window_cache_bytes", "recurrent_bytes", "weights_bytes"):
        assert getattr(shared.memory, part) == getattr(alone.memory, part), part
    if alone.decode_path is not None:  # a step at the end reads what it would have read after own steps
        assert shared.decode_path == replace(alone.decode_path, prepare_s=shared.decode_path.prepare_s)


@pytest.mark.parametrize("name", ["gemma3_270m", "smollm2"])
def test_greedy_tokens_of_real_models_equal_those_of_generate(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    asked = case(context=24, batch=1, steps=8)
    generation = session(folder, asked).begin(asked)
    generation.prefill()
    ours = [generation.next.flatten().tolist(), *decoded(generation, 7)]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = model.generate(
        generation.ids,
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        attention_mask=torch.ones_like(generation.ids),
    )
    assert ours == theirs[:, 24:].T.tolist()


@pytest.mark.parametrize("context", [512, 2048, 8192])
def test_only_the_full_layers_of_gemma_3_270m_grow(gemma3_270m: Path, context: int) -> None:
    """2 (K, V) × 4 bytes × 1 K/V head × 256 × (3 full layers × depth + 15 sliding layers × min(depth, 512))."""
    asked = case(context=context, batch=1, steps=2, fill="synthetic")
    generation = session(gemma3_270m, asked).begin(asked)
    generation.fill()
    generation.save()
    decoded(generation, 2)
    depth = context + 2
    assert generation.cache().storage_bytes == 2 * 4 * 256 * (3 * depth + 15 * min(depth, 512))


def test_a_gguf_file_is_measured_like_its_unpacked_folder(gemma3_270m_gguf: Path, gemma3_270m: Path) -> None:
    from profiler.models.resolve import resolve

    asked = case(context=8, batch=1)
    given = resolve(str(gemma3_270m_gguf)).source
    packed = open_session(asked, given, silent)
    generation, plain = packed.begin(asked), session(gemma3_270m, asked).begin(asked)
    generation.prefill()
    plain.prefill()
    assert decoded(generation) == decoded(plain)
    assert [caution.code for caution in packed.info.cautions] == ["gguf"]


@pytest.mark.parametrize("path", ["eager", "static"])
def test_extra_outputs_in_a_config_are_switched_off(tiny_model: Any, tmp_path: Path, path: str) -> None:
    """Hidden states of every layer would be counted as memory; without ``return_dict`` nothing runs."""
    folder = tmp_path / "trained"
    shutil.copytree(tiny_model("qwen3"), folder)
    config = json.loads((folder / "config.json").read_text())
    left = {"output_hidden_states": True, "output_attentions": True, "return_dict": False}
    (folder / "config.json").write_text(json.dumps(config | left))
    asked = case(path=path, batch=1)
    loaded = session(folder, asked)
    made = []
    loaded.model.register_forward_hook(lambda module, args, output: made.append(output))
    generation = loaded.begin(asked)
    assert generation.prefill() == CONTEXT
    generation.save()
    generation.restore()
    assert len(decoded(generation)) == STEPS
    assert made and all(output.hidden_states is None and output.attentions is None for output in made)


@pytest.mark.parametrize("path", ["eager", "static"])
@pytest.mark.parametrize("broken", ["model.layers.0.mlp.gate.weight", "model.norm.weight"])
def test_a_model_whose_logits_are_no_numbers_is_measured_with_a_caution(
    tiny_model: Any, tmp_path: Path, path: str, broken: str
) -> None:
    """The router of a mixture of experts, and a norm: argmax chooses a token all the same."""
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model(EVERY_ROLE), folder)
    asked = case(path=path)
    repeater = Repeater(Effort(2, 1.0))
    assert "not-finite" not in [each.code for each in measure(session(folder, asked), asked, repeater).cautions]
    tensors = load_file(folder / "model.safetensors")
    tensors[broken].fill_(torch.nan)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    row = measure(session(folder, asked), asked, repeater)
    (found,) = (each for each in row.cautions if each.code == "not-finite")
    assert row.outcome == "ok" and "NaN or infinite" in found.text
