"""Builds of llama.cpp that print what three real versions print, with stated speeds and faults on demand.

``install(folder, "b5900")`` puts ``llama-bench`` and ``llama-batched-bench`` into a folder. Formats, options and log
lines are those of each version (``tools/llama-bench``, ``tools/batched-bench`` and ``src`` of llama.cpp at the tags);
b9993 is recorded from a build, with the lines that nobody reads left out.

- b3800 (2024-09): no depth, no progress and no automatic flash attention; batched-bench prints a table
- b5900 (2025-07): depth and progress, ``-fa <0|1>``; the prefill of a depth is repeated every time
- b9993 (2026-07): ``-fa <on|off|auto>``, ``-ncmoe``; a depth is restored from a saved state
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

VERSIONS = ("b3800", "b5900", "b9993")
PREFILL_S, STEP_S = 1e-4, 2e-3  # seconds per prompt token, and per decode step of any batch

SCRIPT = """#!{python} -SE
import json, os, signal, sys, time

here = os.path.dirname(os.path.abspath(__file__))
name, words = os.path.basename(__file__), sys.argv[1:]
version = {version!r}
script = json.load(open(os.path.join(here, "script.json")))
batched = name == "llama-batched-bench"
help_text = open(os.path.join(here, name + ".help")).read()


def out(text, file=sys.stdout):
    file.write(text + "\\n")
    file.flush()


def log(text):
    out(text, sys.stderr)


if words[0] == "--help":
    out(help_text)
    sys.exit(0)
if words[0] == "--version" and batched:
    log("version: " + version[1:] + " (0123abcd)\\nbuilt with cc (Debian 12.2.0) for x86_64-linux-gnu")
    sys.exit(0)
if words[0] == "--list-devices":
    out("Available devices:\\n" + script.get("devices", "  (none)"))
    sys.exit(0)
known = set(help_text.replace(",", " ").split())
given, flags = {{}}, set()
while words:
    word = words.pop(0)
    if word not in known:
        log("error: invalid parameter for argument: " + word)
        sys.exit(1)
    if word in ("-v", "--progress", "--no-warmup") or (word == "-fa" and (not words or words[0][0] == "-")):
        flags.add(word)
    else:
        given[word] = words.pop(0)
with open(os.path.join(here, "calls.jsonl"), "a") as calls:
    calls.write(json.dumps([name, *sys.argv[1:]]) + "\\n")


def fault(when):
    for each in script.get("faults", []):
        if each["when"] == when and (each.get("verbose") is None or each["verbose"] == ("-v" in flags)):
            for line in each.get("say", []):
                log(line)
            kind, value = each["kind"], each.get("value")
            if kind == "exit":
                sys.exit(value)
            if kind == "signal":
                os.kill(os.getpid(), value)
            if kind == "hang":
                signal.pause()
            if kind == "garbage":
                out(value)
            if kind == "hold":
                script["held"] = bytearray(b"\\1") * (value << 20)
            if kind == "sleep":
                time.sleep(value)
            if kind == "spin":
                until = time.process_time() + value
                while time.process_time() < until:
                    pass


def say(text):
    if "-v" in flags:
        log(text)


old = version == "b3800"
fault("load")
for place, size in zip(script["weights"], (235.16, 12.66)):
    say(("llm_load_tensors" if old else "load_tensors") + ":   " + place + " model buffer size = %8.2f MiB" % size)
fault("context")
device = script["weights"][0].split("_")[0]
caches = {{"b3800": "llama_kv_cache_init", "b5900": "llama_kv_cache_unified", "b9993": "llama_kv_cache"}}
context = "llama_new_context_with_model" if old else "llama_context"
say(context + ":        CPU  output buffer size =     1.00 MiB")
say(caches[version] + ":        " + device + " KV buffer size =     0.75 MiB")
say(caches[version] + ":        " + device + " KV buffer size =     3.75 MiB")
reserve = "sched_reserve" if version == "b9993" else context
say(reserve + ":        " + device + " compute buffer size =    64.27 MiB")
say(context + ": graph nodes  = 936")
say(context + ": graph splits = 1")


def numbers(option):
    return [int(word) for word in given.get(option, "0").split(",")]


def threads():
    return int(given.get("-t", 2))


if batched:
    if "--output-format" not in given:
        out("\\nmain: n_kv_max = " + given["-c"] + ", n_batch = 2048, n_ubatch = 512\\n")
        out("|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |")
        out("|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|")
    for pp in numbers("-npp"):
        for tg in numbers("-ntg"):
            for pl in numbers("-npl"):
                fault("run")
                t_pp, t_tg = pl * pp * {prefill}, tg * {step}
                n_kv, t = pl * (pp + tg), t_pp + t_tg
                if "--output-format" in given:
                    out(json.dumps({{"n_kv_max": int(given["-c"]), "n_batch": 2048, "n_ubatch": 512, "flash_attn": -1,
                        "is_pp_shared": 0, "n_gpu_layers": -1, "n_threads": threads(), "n_threads_batch": threads(),
                        "pp": pp, "tg": tg, "pl": pl, "n_kv": n_kv, "t_pp": t_pp, "speed_pp": pl * pp / t_pp,
                        "t_tg": t_tg, "speed_tg": pl * tg / t_tg, "t": t, "speed": n_kv / t}}))
                else:
                    out("|%6d | %6d | %4d | %6d | %8.3f | %8.2f | %8.3f | %8.2f | %8.3f | %8.2f |"
                        % (pp, tg, pl, n_kv, t_pp, pl * pp / t_pp, t_tg, pl * tg / t_tg, t, n_kv / t))
    time.sleep(0.1)  # its peak memory is read when a line arrives, and a process that has ended has none
    sys.exit(0)


def progress(text):
    if "--progress" in flags:
        log("llama-bench: benchmark 1/1: " + text)


for p in numbers("-p"):
    for n in numbers("-n"):
        for d in numbers("-d"):
            if "--no-warmup" not in flags:
                progress("warmup prompt run" if p else "warmup generation run")
            fault("prefill" if p else "decode")
            samples, reps = [], int(given.get("-r", 5))
            for rep in range(reps):
                again = rep and version == "b9993"
                if d:
                    progress("depth run %d/%d%s" % (rep + 1, reps, " (cached)" if again else ""))
                    if not again:
                        fault("depth")
                progress("%s run %d/%d" % ("prompt" if p else "generation", rep + 1, reps))
                fault("repetition")
                samples.append(round((p * {prefill} + n * {step}) * 1e9 * (1 + 0.001 * (rep % 3))))
            row = {{"build_commit": "0123abcd", "build_number": int(version[1:]), "cpu_info": "AMD EPYC",
                "gpu_info": "", "backends": "CPU", "model_filename": given["-m"], "model_type": "llama 1B Q8_0",
                "model_size": 246587904, "model_n_params": 268098176,
                "n_batch": 2048, "n_ubatch": 512, "n_threads": threads(),
                "type_k": given.get("-ctk", "f16"), "type_v": given.get("-ctv", "f16"),
                "n_gpu_layers": 99,
                "n_prompt": p, "n_gen": n, **({{}} if old else {{"n_depth": d}}), "test_time": "2026-11-29T09:52:33Z",
                "avg_ns": sum(samples) // reps, "samples_ns": samples}}
            out(json.dumps(row))
log("llama_perf_context_print:        load time =     104.64 ms")
"""

SERVE = """#!{python} -SE
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

here, words = os.path.dirname(os.path.abspath(__file__)), sys.argv[1:]
answer = json.load(open(os.path.join(here, "server.json")))
if words[0] == "--help":
    print(open(os.path.join(here, "llama-server.help")).read())
    sys.exit(0)
if "say" in answer:
    sys.stderr.write(answer["say"] + "\\n")
    sys.exit(1)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def send(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.send({{"status": "ok"}})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert (asked["temperature"], asked["cache_prompt"]) == (0, False)
        self.send(answer)


HTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Handler).serve_forever()
"""

BENCH_HELP = {
    "b3800": """usage: ./llama-bench [options]

options:
  -h, --help
  -m, --model <filename>                    (default: models/7B/ggml-model-q4_0.gguf)
  -p, --n-prompt <n>                        (default: 512)
  -n, --n-gen <n>                           (default: 128)
  -pg <pp,tg>                               (default: )
  -b, --batch-size <n>                      (default: 2048)
  -ub, --ubatch-size <n>                    (default: 512)
  -ctk, --cache-type-k <t>                  (default: f16)
  -ctv, --cache-type-v <t>                  (default: f16)
  -t, --threads <n>                         (default: 8)
  -ngl, --n-gpu-layers <n>                  (default: 99)
  -sm, --split-mode <none|layer|row>        (default: layer)
  -fa, --flash-attn <0|1>                   (default: 0)
  -mmp, --mmap <0|1>                        (default: 1)
  -ts, --tensor-split <ts0/ts1/..>          (default: 0)
  -r, --repetitions <n>                     (default: 5)
  -o, --output <csv|json|jsonl|md|sql>      (default: md)
  -v, --verbose                             (default: 0)
""",
    "b5900": """usage: llama-bench [options]

options:
  -h, --help
  --numa <distribute|isolate|numactl>       numa mode (default: disabled)
  -r, --repetitions <n>                     number of times to repeat each test (default: 5)
  -o, --output <csv|json|jsonl|md|sql>      output format printed to stdout (default: md)
  -v, --verbose                             verbose output
  --progress                                print test progress indicators

test parameters:
  -m, --model <filename>                    (default: models/7B/ggml-model-q4_0.gguf)
  -p, --n-prompt <n>                        (default: 512)
  -n, --n-gen <n>                           (default: 128)
  -d, --n-depth <n>                         (default: 0)
  -ub, --ubatch-size <n>                    (default: 512)
  -ctk, --cache-type-k <t>                  (default: f16)
  -ctv, --cache-type-v <t>                  (default: f16)
  -t, --threads <n>                         (default: system dependent)
  -ngl, --n-gpu-layers <n>                  (default: 99)
  -fa, --flash-attn <0|1>                   (default: 0)
  -ts, --tensor-split <ts0/ts1/..>          (default: 0)
  -ot --override-tensors <tensor name pattern>=<buffer type>;...
                                            (default: disabled)
""",
    "b9993": """usage: llama-bench [options]

options:
  -h, --help
  -r, --repetitions <n>                       number of times to repeat each test (default: 5)
  -o, --output <csv|json|jsonl|md|sql>        output format printed to stdout (default: md)
  --list-devices                              list available devices and exit
  -v, --verbose                               verbose output
  --progress                                  print test progress indicators
  --no-warmup                                 skip warmup runs before benchmarking

test parameters:
  -m, --model <filename>                      (default: models/7B/ggml-model-q4_0.gguf)
  -p, --n-prompt <n>                          (default: 512)
  -n, --n-gen <n>                             (default: 128)
  -d, --n-depth <n>                           (default: 0)
  -ub, --ubatch-size <n>                      (default: 512)
  -ctk, --cache-type-k <t>                    (default: f16)
  -ctv, --cache-type-v <t>                    (default: f16)
  -t, --threads <n>                           (default: 2)
  -ngl, --n-gpu-layers <n>                    (default: -1)
  -ncmoe, --n-cpu-moe <n>                     (default: 0)
  -fa, --flash-attn <on|off|auto>             (default: auto)
  -dev, --device <dev0/dev1/...>              (default: auto)
  -ts, --tensor-split <ts0/ts1/..>            (default: 0)
""",
}
COMMON_HELP = """----- common params -----

-h,    --help, --usage                  print usage and exit
--version                               show version and build info
-t,    --threads N                      number of CPU threads to use during generation (default: -1)
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)
-ub,   --ubatch-size N                  physical maximum batch size (default: 512)
-fa,   --flash-attn{fa}
-m,    --model FNAME                    model path
-ctk,  --cache-type-k TYPE              KV cache data type for K (default: f16)
-ctv,  --cache-type-v TYPE              KV cache data type for V (default: f16)
-ngl,  --gpu-layers, --n-gpu-layers N   number of layers to store in VRAM
-ts,   --tensor-split N0,N1,N2,...      fraction of the model to offload to each GPU
-v,    --verbose, --log-verbose         Set verbosity level to infinity

----- example-specific params -----

-npp n0,n1,...                          number of prompt tokens
-ntg n0,n1,...                          number of text generation tokens
-npl n0,n1,...                          number of parallel prompts
"""
MORE_HELP = {
    "b3800": "",
    "b5900": "--output-format {md,jsonl}              output format for batched-bench results (default: md)\n",
    "b9993": "--output-format {md,jsonl}              output format for batched-bench results (default: md)\n"
    "-ncmoe, --n-cpu-moe N                   keep the Mixture of Experts (MoE) weights of the first N layers in the\n"
    "                                        CPU\n"
    "-dev,  --device <dev1,dev2,..>          comma-separated list of devices to use for offloading\n",
}
FLASH = {
    "b3800": "                enable Flash Attention (default: disabled)",
    "b5900": "                enable Flash Attention (default: disabled)",
    "b9993": " [on|off|auto]   set Flash Attention use ('on', 'off', or 'auto', default: 'auto')",
}


def install(
    folder: Path,
    version: str = "b9993",
    *faults: dict[str, Any],
    batched: bool = True,
    slower: float = 1.0,
    server: dict[str, Any] | None = None,
    **script: Any,
) -> Path:
    """Put a build into ``folder`` and return it. ``weights`` are the buffers of the model, ``devices`` the list.

    ``slower`` multiplies the times that it states. ``server`` is what its llama-server answers to every prompt, or
    ``{"say": …}`` what it says before it ends; without it there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {"weights": ["CPU_Mapped"], **script, "faults": list(faults)}
    (folder / "script.json").write_text(json.dumps(content))
    helps = {"llama-bench": BENCH_HELP[version]}
    if batched:
        helps["llama-batched-bench"] = COMMON_HELP.replace("{fa}", FLASH[version]) + MORE_HELP[version]
    for name, text in helps.items():
        (folder / f"{name}.help").write_text(text)
        program = folder / name
        speeds = {"prefill": PREFILL_S * slower, "step": STEP_S * slower}
        program.write_text(SCRIPT.format(python=sys.executable, version=version, **speeds))
        program.chmod(0o755)
    if server is not None:
        help_text = COMMON_HELP.replace("{fa}", FLASH[version]) + "-np,   --parallel N   slots\n--port PORT   port\n"
        (folder / "llama-server.help").write_text(help_text + MORE_HELP[version])
        (folder / "server.json").write_text(json.dumps(server))
        (folder / "llama-server").write_text(SERVE.format(python=sys.executable))
        (folder / "llama-server").chmod(0o755)
    return folder


def fault(when: str, kind: str, value: Any = None, *say: str, verbose: bool | None = None) -> dict[str, Any]:
    """A fault that happens ``when``: load, context, prefill, decode, depth (where it is computed), repetition, or run
    (batched).

    ``kind``: exit, signal, hang, garbage, hold (MiB), sleep or spin (seconds). ``verbose``: only in runs with
    ``-v``, or only in others.
    """
    return {"when": when, "kind": kind, "value": value, "say": say, "verbose": verbose}


def calls(folder: Path) -> list[list[str]]:
    """The commands that ran, without those that only asked about the build."""
    file = folder / "calls.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
