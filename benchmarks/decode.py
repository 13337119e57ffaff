"""How fast a decode step runs on this CPU, compared with what people use. Writes ``decode.md`` in this folder.

    python benchmarks/decode.py [--model FOLDER | --shapes gemma-3-270m] [--quant fp32] [--context 512] [--batch 1]
                                [--steps 16] [--pairs 6] [--gguf FILE]

The contenders take turns (AB, BA, …) in one process, and each decodes ``steps`` tokens from the same prompt:

    generate        transformers' ``model.generate``, greedy; its prefill is timed separately and subtracted
    generate-static the same with a static cache, which transformers compiles where it can
    eager           transformers' forward in a plain loop, as ``--path eager`` measures it
    static, graph   our step called from Python, and compiled
    llama.cpp       llama-cpp-python with ``--gguf``, if it is installed (an optional dependency of this file only)

Absolute rates depend on the machine's other load, so quote the ratios. The time for compilation is printed
separately.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from figures import in_turn, ratio_text
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from profiler import registry
from profiler.backends.hf import synthetic
from profiler.backends.hf.ceilings import DTYPES
from profiler.kernels.graph import CompiledRunner
from profiler.kernels.runner import EagerRunner, StaticRunner
from profiler.quants.base import Quant
from profiler.results.stats import summarize

QUANTS = ("fp32", "bf16", "int8")
RESULT = Path(__file__).with_name("decode.md")
Contender = Callable[[], float]  # seconds of ``steps`` decode steps


def main() -> None:
    options = _options()
    transformers_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs a line per product
    torch.set_num_threads(options.threads)
    model = _model(options)
    ids = torch.randint(model.config.vocab_size, (options.batch, options.context),
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
    notes: list[str] = []
    contenders = dict(_contenders(model, ids, options, notes))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()  # warm-up
    runs = [lambda name=name: seconds[name].append(contenders[name]()) for name in contenders]
    in_turn(options.pairs, *runs)
    text = "\n".join(_lines(seconds, options, notes))
    print(text)
    with RESULT.open("a") as file:
        file.write(f"\n{text}\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--shapes", default="gemma-3-270m", help="catalog name, with random weights")
    parser.add_argument("--quant", choices=QUANTS, default="fp32")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--only", nargs="*", help="names of contenders; generate is always included")
    return parser.parse_args()


def _model(options: argparse.Namespace) -> PreTrainedModel:
    scheme: Quant = registry.load("quants", options.quant, "quantization").QUANT
    name = scheme.dtype or "fp32"
    dtype = DTYPES[name]
    if options.model:
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            options.model, dtype=dtype, quantization_config=scheme.load_config(name)
        )
        return loaded.eval().requires_grad_(False)
    raw = json.loads((files("profiler.scenarios") / "models" / f"{options.shapes}.json").read_text())
    config = CONFIG_MAPPING[raw["model_type"]].from_dict(raw).get_text_config(decoder=True)
    return synthetic.build(config, dtype, torch.device("cpu"), scheme, 0, lambda words: None)


def _contenders(
    model: PreTrainedModel, ids: torch.Tensor, options: argparse.Namespace, notes: list[str]
) -> Iterator[tuple[str, Contender]]:
    wanted = set(options.only or ("generate-static", "eager", "static", "graph"))
    yield "generate", _generate(model, ids, options.steps)
    if "generate-static" in wanted:
        yield "generate-static", _generate(model, ids, options.steps, cache_implementation="static")
    for name, kind in (("eager", EagerRunner), ("static", StaticRunner), ("graph", CompiledRunner)):
        if name in wanted:
            yield name, _runner(kind(model), ids, options, notes)
    if options.gguf:
        yield "llama.cpp", _llama_cpp(options, ids[0].tolist())


def _generate(model: PreTrainedModel, ids: torch.Tensor, steps: int, **how: Any) -> Contender:
    def seconds(count: int) -> float:
        start = time.perf_counter()
        model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, **how)
        return time.perf_counter() - start

    return lambda: -seconds(1) + seconds(steps + 1)


def _runner(runner: Any, ids: torch.Tensor, options: argparse.Namespace, notes: list[str]) -> Contender:
    runner.prefill(ids)
    runner.prepare(options.steps * (options.pairs + 2))
    stats = runner.stats()
    if stats.prepare_s or stats.reason:
        notes.append(f"{stats.path}: prepared in {stats.prepare_s:.0f} s, {stats.reason or 'no fallback'}")
    if stats.kernels:
        notes.append(f"{stats.path}: {stats.kernels}")

    def seconds() -> float:
        start = time.perf_counter()
        runner.enqueue(options.steps)
        return time.perf_counter() - start

    return seconds


def _llama_cpp(options: argparse.Namespace, prompt: list[int]) -> Contender:
    from llama_cpp import Llama

    llama = Llama(str(options.gguf), n_ctx=options.context + options.steps * (options.pairs + 3),
                  n_threads=options.threads, verbose=False)  # fmt: skip
    llama.eval(prompt)

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(options.steps):
            llama.eval([llama.sample(temp=0.0)])
        return time.perf_counter() - start

    return seconds


def _lines(seconds: dict[str, list[float]], options: argparse.Namespace, notes: list[str]) -> Iterator[str]:
    what = options.model.name if options.model else f"{options.shapes} (random weights)"
    yield f"## {what}, {options.quant}, batch {options.batch}, context {options.context}, {options.threads} threads"
    yield ""
    yield f"{options.pairs} rounds of {options.steps} steps, in turns. torch {torch.__version__}."
    yield ""
    yield "| contender | tokens/s (median) | × generate |"
    yield "|---|---|---|"
    for name, values in seconds.items():
        figure = summarize([options.batch * options.steps / value for value in values])
        assert figure is not None
        yield f"| {name} | {figure.median:.2f} | {ratio_text(seconds['generate'], values)} |"
    yield ""
    yield from (f"- {note}" for note in dict.fromkeys(notes))


if __name__ == "__main__":
    main()
