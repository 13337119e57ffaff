"""A name in a docstring or comment is one that exists: text outlives what it describes when code is renamed."""

from __future__ import annotations

import ast
import builtins
import io
import itertools
import keyword
import re
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from profiler import registry

ROOT = Path(__file__).parents[2]
FILES = [path for folder in ("profiler", "kernels") for path in sorted((ROOT / folder).rglob("*.py"))]
NAME = re.compile(r"``([A-Za-z_][\w.]*\w)(?:\([^`()]*\))?``")  # a call may have arguments
MEMBER = re.compile(r"(?<![\w`./])([A-Z]+[a-z]\w*\.[a-z_]\w*)(?!\.?\w)")  # of a class, in text without marks
SCRIPT = re.compile(r"(?<![\w/])(\w+\.py)\b")  # without a folder: a file of ours, not one of another project
SCRIPTS = {path.name for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")}
SCRIPTS |= {path.name for path in FILES}
DATA_FILES = (".json", ".md", ".sqlite", ".txt")

# Names of others. One that begins with its library (``torch.bmm``) or its folder (``src/llama.cpp``) needs no entry.
LIBRARIES = {"huggingface_hub", "nn", "safetensors", "torch", "transformers", *sys.stdlib_module_names}
FOREIGN = """
    buffer exp log NaN Infinity diff status
    VmData VmRSS ru_maxrss schedstat rtx
    HF_ENDPOINT HF_HUB_OFFLINE
    bmm conv1d meta FlopCounterMode
    cache_utils.py modeling_gguf_pytorch_utils.py modeling_rope_utils.py
    ACT2FN DynamicCache DynamicSlidingWindowLayer.update Fp8Dequantize Gemma4UnifiedConfig
    Gemma4TextModel._maybe_slice_kv_shared_inputs Llama4TextExperts Llama4TextMoe.forward Qwen3_5MoeConfig
    attn_output_gate auto_map batched_mm layer_types log_state_dict_report quantization_config rope_scaling.factor
    should_convert_module use_gqa_in_sdpa mlp.gate mlp.gate_proj q_proj.qweight
    functional.py gated_deltanet.py
    derive_max_model_len_info get_num_kv_heads
    Q4_K_M llama.cpp llama_tensor_get_type_impl pp tg tensor_allows_quantization tensor_type_fallback
"""
# What a plug-in, a row or a mapping is said to hold in a file that does not use it.
OURS = {*registry.OBJECTS.values(), "NAME", "eager", "interrupted", "ok", "open_session", "real", "shared", "static"}
OURS |= {"channel_s", "own_byte_s", "pass_flop_s", "sequence_s", "step_byte_s", "token_s"}  # ``Calibration``
OURS |= {"other", "repacking"}  # ``Prior``
KNOWN = {*FOREIGN.split(), *OURS, *dir(builtins), *keyword.kwlist}


def texts(tree: ast.Module, source: str) -> Iterator[tuple[int, str]]:
    """Docstrings, the strings below attributes, and comments, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def names_in(tree: ast.Module) -> set[str]:
    """Every identifier of the code, and every string that is one: a key, a column, a value."""
    found = set()
    for node in ast.walk(tree):
        for _, value in ast.iter_fields(node):
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, str) and re.fullmatch(r"[\w.-]+", each):
                    found |= set(each.split("."))
    return found


@cache
def parsed(path: Path) -> tuple[ast.Module, str]:
    source = path.read_text(encoding="utf-8")
    return ast.parse(source), source


@cache
def bound(scope: ast.Module | ast.ClassDef) -> set[str]:
    """What a module or class defines: classes, functions, constants and fields."""
    found = set()
    for node in scope.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


def place(path: Path) -> tuple[str, ...]:
    """A file's dotted name, in parts, without ``profiler``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return tuple(part for part in parts if part not in ("profiler", "__init__"))


@cache
def members() -> dict[str, set[str]]:
    """What every module, folder and class has, by its own name; several of one name together."""
    found: dict[str, set[str]] = {"profiler": set()}
    for path in FILES:
        tree, *parts = parsed(path)[0], "profiler", *place(path)
        for outer, inner in itertools.pairwise(parts):
            found.setdefault(outer, set()).add(inner)
        found.setdefault(parts[-1], set()).update(bound(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                stored = {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
                found.setdefault(node.name, set()).update(bound(node) | stored)
    found["profiler"] |= found["api"]
    return found


def near(path: Path, tree: ast.Module) -> set[str]:
    """What the files in the same folder, and those that a file imports, define, members of their classes included."""
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    imported = {part for node in froms for part in str(node.module).split(".")}
    imported |= {alias.name for node in froms for alias in node.names}
    known = members()
    homes = [each for each in FILES if each.parent == path.parent or imported.intersection(place(each)[-1:])]
    own = set().union(*(bound(parsed(home)[0]) for home in homes))
    return own.union(*(known[name] for name in own if name in known))


def is_known(name: str, here: set[str], near: set[str]) -> bool:
    """Whether a name in a file that has the names ``here``, close to others that define ``near``, means something."""
    first, *rest = name.split(".")
    known = members()
    if first in LIBRARIES or name in KNOWN or name.endswith(DATA_FILES):
        return True
    if not rest:
        return first in here or first in near or first in known
    if first not in here and first not in known:
        return False
    pairs = itertools.pairwise([first, *rest])
    return all(inner in here or inner in known.get(outer, near) for outer, inner in pairs)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_name_in_prose_exists(path: Path) -> None:
    tree, source = parsed(path)
    here, around = names_in(tree), near(path, tree)
    missing = [
        f"line {line}: {name}"
        for line, text in texts(tree, source)
        for name in {*NAME.findall(text), *MEMBER.findall(text), *SCRIPT.findall(text)} - SCRIPTS
        if not is_known(name, here, around)
    ]
    assert missing == []
