"""A gate between two builds of llama.cpp: speed, memory, and whether both compute the same."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakes import printed, stored
from fakes.lab import make_case, source
from fakes.llama_cpp import fault, install

from profiler.backends.base import Completion, InstalledBuild
from profiler.backends.llama_cpp import build, completion
from profiler.case import Task
from profiler.cli import main
from profiler.errors import ProfileError
from profiler.gate import baseline, bench, builds
from profiler.gate.agreement import KL_LIMIT_F32, agreement, divergence
from profiler.gate.variants import Variant
from profiler.run.process import Launch

Gate = Callable[..., Result]


def answer(*tokens: int, gap: float = 5.0) -> dict[str, Any]:
    """What a server says: at each place its own token is ``gap`` nats more likely than the token 9."""
    places = [{"token": f"t{token}", "top_logprobs": likely(token, gap)} for token in tokens]
    return {"tokens": list(tokens), "completion_probabilities": places}


def likely(token: int, gap: float) -> list[dict[str, Any]]:
    first = -math.log1p(math.exp(-gap))
    return [{"id": token, "logprob": first}, {"id": 9, "logprob": first - gap}]


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """A gate on a machine that is always quiet. Two sequences, because llama-batched-bench states all times."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(bench, "obstacles", lambda device, clock: [])
    monkeypatch.setattr(bench, "DISTURBED_WALL", ())
    monkeypatch.setattr(bench, "RESTART", 99)
    model = stored.gguf(tmp_path / "tiny-q8_0.gguf", "q8_0")

    def run(base: Path, candidate: Path | None, *more: str) -> Result:
        builds = ("--base", str(base), *(() if candidate is None else ("--llama-cpp", str(candidate))))
        sizes = ("-c", "64", "-b", "2", "-n", "16", "-r", "1")
        asked = ("gate", "--backend", "llama.cpp", "--device", "cpu", "-m", str(model), *builds, *sizes, *more)
        return CliRunner().invoke(main, asked, catch_exceptions=False)

    return run


def words(ran: Result) -> dict[str, str]:
    return {each["metric"]: each["word"] for each in json.loads(ran.stdout)["verdicts"]}


def said(ran: Result) -> str:
    """The page on one line."""
    return " ".join(ran.stdout.split())


def test_equal_builds_pass_in_time_memory_and_tokens(gate: Gate, tmp_path: Path) -> None:
    builds = [install(tmp_path / name, server=answer(1, 2, 3)) for name in ("old", "new")]
    ran = gate(*builds, "-o", "json")
    assert words(ran) == dict.fromkeys(
        ("tokens", "kl", "prefill_wall_s", "decode_wall_s", "process_peak_bytes"), "PASS"
    ), ran.output
    assert ran.exit_code == 0
    content = json.loads(ran.stdout)
    assert "tokens: the same 9 tokens after 3 prompts" in content["notes"]
    assert "base and candidate are the same build: this gate tests itself" in content["notes"]
    assert content["sides"]["base"]["facts"]["executable"] == str(builds[0] / "llama-bench")


def test_a_slower_build_fails_and_its_version_is_on_the_page(gate: Gate, tmp_path: Path) -> None:
    ran = gate(install(tmp_path / "old", "b5900"), install(tmp_path / "new", slower=1.5))
    assert ran.exit_code == 1
    assert "and again in 10 pairs of new processes (1.5" in said(ran)
    assert "llama.cpp b5900 (0123abcd), files" in said(ran) and "→ b9993 (0123abcd), files" in said(ran)
    assert "tokens of tiny-q8_0: unknown, because there is no llama-server in" in said(ran)
    assert "cmake --build build --target llama-server" in said(ran)


def test_a_larger_or_broken_build_fails(gate: Gate, tmp_path: Path) -> None:
    old = install(tmp_path / "old")
    ran = gate(old, install(tmp_path / "large", "b9993", fault("run", "hold", 200)), "-o", "json")
    assert words(ran)["process_peak_bytes"] == "FAIL"
    ran = gate(old, install(tmp_path / "broken", "b9993", fault("run", "exit", 3)))
    assert ran.exit_code == 1 and "the candidate failed: failed: llama-batched-bench ended with code 3" in said(ran)
    assert gate(install(tmp_path / "never", "b9993", fault("load", "exit", 3)), old).exit_code == 4


def test_other_tokens_fail_with_both_of_them(gate: Gate, tmp_path: Path) -> None:
    old, new = (install(tmp_path / str(last), server=answer(1, 2, last)) for last in (3, 4))
    ran = gate(old, new, "--metric", "decode")
    assert ran.exit_code == 1
    assert "token 3 after prompt 1: 't3' → 't4'" in said(ran)


def test_a_folder_without_a_build_is_a_usage_error(gate: Gate, tmp_path: Path) -> None:
    ran = gate(tmp_path / "nothing", install(tmp_path / "new"))
    assert ran.exit_code == 2
    assert f"there is no llama-bench in {tmp_path}/nothing" in ran.stderr
    with pytest.raises(ProfileError, match="is empty"):
        builds.of_build("", build.installed)


@pytest.fixture
def fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own repository of an engine, whose second commit is slower. The user stands in it."""
    root = tmp_path / "fork"
    for slower in (1.0, 1.5):
        install(root / "bin", slower=slower)
        git(root, "init", "-q")
        git(root, "add", "-A")
        git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", f"{slower}")
    monkeypatch.chdir(root)
    return root


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(root), *words], check=True)


def test_a_revision_of_the_users_own_project_is_built_and_compared_with(gate: Gate, fork: Path) -> None:
    copying = "mkdir -p build/bin && cp bin/* build/bin && rm -r bin && echo once >> ../built"
    (fork / "bin" / "uncommitted").touch()
    ran = gate(Path("HEAD~1"), fork, "--build", copying, "--metric", "decode", "-o", "json")
    assert words(ran)["decode_wall_s"] == "FAIL", ran.output
    base = json.loads(ran.stdout)["sides"]["base"]
    assert base["name"].startswith("HEAD~1 (") and base["repository"] == str(fork)
    folder = Path(base["facts"]["executable"]).parents[2]
    assert not (folder / "bin").exists() and not list(folder.rglob("uncommitted"))
    assert not (fork / "build").exists()
    gate(Path("HEAD~1"), fork, "--build", copying, "--metric", "decode", "--seed", "1")
    assert (folder.parent / "built").read_text() == "once\n"


def test_the_candidate_of_the_users_own_project_is_its_build_as_it_is(
    gate: Gate, fork: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not another one, such as that on the PATH."""
    monkeypatch.setenv(build.VARIABLE, str(install(tmp_path / "usual")))
    (fork / "sub").mkdir()
    monkeypatch.chdir(fork / "sub")
    ran = gate(Path("HEAD~1"), None, "--build", "true", "--metric", "decode", "-o", "json")
    assert words(ran)["decode_wall_s"] == "FAIL", ran.output
    assert json.loads(ran.stdout)["sides"]["candidate"]["facts"]["executable"] == str(fork / "bin" / "llama-bench")
    assert build.find().folder == tmp_path / "usual"


def test_two_revisions_are_compared_where_no_other_build_is(
    gate: Gate, fork: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.defpath)
    moving = "mkdir -p build/bin && mv bin/* build/bin"
    ran = gate(Path("HEAD~1"), None, "--candidate", "HEAD", "--build", moving, "--metric", "decode", "-o", "json")
    assert words(ran)["decode_wall_s"] == "FAIL", ran.output
    sides = json.loads(ran.stdout)["sides"]
    assert {role: side["name"].partition(" ")[0] for role, side in sides.items()} == {
        "base": "HEAD~1",
        "candidate": "HEAD",
    }


def test_a_revision_needs_a_build_command_that_works(gate: Gate, fork: Path, tmp_path: Path) -> None:
    ran = gate(Path("HEAD~1"), fork)
    assert ran.exit_code == 2
    assert f"'HEAD~1' is a revision of {fork}, which has to be built" in ran.stderr
    assert "--build 'cmake -B build && cmake --build build -j --target llama-bench" in ran.stderr
    ran = gate(Path("HEAD~1"), fork, "--build", "echo no compiler here; exit 3")
    assert ran.exit_code == 2
    assert "the build command ended with code 3" in ran.stderr and "no compiler here" in ran.stderr
    assert "is no revision of" in gate(Path("no-such"), fork, "--build", "true").stderr
    ran = gate(Path("HEAD~1"), fork, "--build", "rm -r bin")
    assert (ran.exit_code, "there is no llama-bench in" in ran.stderr) == (2, True)


def test_a_stored_baseline_compares_an_update_of_the_build(gate: Gate, tmp_path: Path) -> None:
    """The version may differ, since that is what is judged; the advice names the builds to compare."""
    file, model = tmp_path / "base.json", stored.gguf(tmp_path / "tiny-q8_0.gguf", "q8_0")

    def judge(folder: Path, *more: str) -> Result:
        asked = ("-m", str(model), "-c", "64", "-b", "2", "-n", "16", "-r", "1", "--llama-cpp", str(folder), *more)
        words = ("gate", "--backend", "llama.cpp", "--device", "cpu", "--baseline", str(file), *asked)
        return CliRunner().invoke(main, words, catch_exceptions=False)

    assert judge(install(tmp_path / "old", "b5900"), "--accept").exit_code == 0
    assert judge(install(tmp_path / "same", "b9993")).exit_code == 0
    ran = judge(install(tmp_path / "slower", "b9993", slower=1.2))
    assert (ran.exit_code, ran.stdout.partition(":")[0]) == (0, "INCONCLUSIVE")
    assert "where OLD_DIR is the folder of the earlier build" in said(ran)
    assert f"profile gate --base OLD_DIR -m {model} -c 64 -b 2 -n 16 " in said(ran)
    assert judge(install(tmp_path / "slow", "b9993", slower=3)).exit_code == 1


def test_builds_that_load_the_same_libraries_are_not_compared() -> None:
    """Copied programs load the libraries of the folder that they were built in, unless those were copied too."""

    def built(folder: str, *libraries: str) -> Variant:
        return Variant(folder, Launch(()), build=InstalledBuild(folder, f"{folder}/llama-bench", {}, {}, libraries))

    new = built("/new", "/new/libggml-cpu.so.0", "/new/libllama.so.0")
    builds.refuse_shared_libraries(built("/old", "/old/libllama.so.0"), new)
    builds.refuse_shared_libraries(new, new)
    with pytest.raises(ProfileError, match="load the same /new/libllama"):
        builds.refuse_shared_libraries(built("/old", "/new/libllama.so.0"), new)


def test_a_build_knows_the_libraries_that_its_programs_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "\tlibllama.so.0 => /new/bin/libllama.so.0 (0x00007f)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007e)\n"
    monkeypatch.setattr(
        build, "answer", lambda words, environ, seconds: said if environ.get("LD_TRACE_LOADED_OBJECTS") else ""
    )
    assert build.Build(tmp_path).linked == (Path("/new/bin/libllama.so.0"),)


def test_the_advice_for_a_build_is_a_command_of_the_same_case() -> None:
    case = make_case(64, backend="llama.cpp", path="eager", options="gpu-layers=4 kv=q8_0")
    line = str(baseline.advice_for(Task(case, source())).command)
    assert "--base OLD_DIR" in line and "--kv q8_0" in line and "--gpu-layers 4" in line
    printed.check(line.split())


# Whether two completions agree


def completed(*tokens: int, gap: float) -> Completion:
    logprobs = tuple({each["id"]: each["logprob"] for each in likely(token, gap)} for token in tokens)
    return Completion(tokens, tuple(map(str, tokens)), logprobs)


def test_other_tokens_of_kernels_that_round_differently_pass_and_are_named() -> None:
    base = Completion((1, 2), ("a", "b"), ({1: -0.1}, {2: -0.7, 3: -0.75}))
    candidate = Completion((1, 3), ("a", "\n"), ({1: -0.1}, {2: -0.75, 3: -0.7}))
    tokens, kl = agreement("m", [base], [candidate])
    assert (tokens.word, tokens.before, tokens.now, kl.word) == ("PASS", 2, 1, "PASS")
    assert "token 2 after prompt 1: 'b' → '\\n', which are 0.050 nats apart" in tokens.reason
    assert [each.word for each in agreement("m", [base], [candidate], KL_LIMIT_F32)] == ["FAIL", "FAIL"]


@pytest.mark.parametrize(
    "candidate",
    [
        Completion((1, 3), ("a", "c"), ({1: -0.1}, {2: -3.0, 3: -0.1})),  # prefers another token by far
        Completion((1, 3), ("a", "c"), ()),  # nobody knows how near they are
    ],
)
def test_other_differences_fail(candidate: Completion) -> None:
    base = Completion((1, 2), ("a", "b"), ({1: -0.1}, {2: -0.7, 3: -0.75}))
    assert agreement("m", [base], [candidate])[0].word == "FAIL"


def test_the_same_tokens_with_other_probabilities_fail() -> None:
    tokens, kl = agreement("m", [completed(1, 2, gap=3.0)], [completed(1, 2, gap=1.0)])
    assert (tokens.word, kl.word) == ("PASS", "FAIL")
    assert "more than 0.01" in kl.reason


def test_the_divergence_is_that_of_the_merged_distributions_and_no_more_than_the_whole() -> None:
    p, q = (0.5, 0.3, 0.15, 0.05), (0.4, 0.35, 0.05, 0.2)
    whole = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    known = [{token: math.log(side[token]) for token in range(2)} for side in (p, q)]
    merged = 0.5 * math.log(0.5 / 0.4) + 0.3 * math.log(0.3 / 0.35) + 0.2 * math.log(0.2 / 0.25)
    assert divergence(*known) == pytest.approx(merged)
    assert merged < whole
    assert divergence(known[0], known[0]) == 0.0


def test_a_token_that_the_candidate_no_longer_finds_likely_counts() -> None:
    """By the probability of the least likely token that is known: 0.1."""
    p, q = {1: math.log(0.8), 2: math.log(0.1)}, {3: math.log(0.8), 2: math.log(0.1)}
    bound = 0.8 * math.log(0.8 / 0.1) + 0.1 * math.log(0.1 / 0.8)
    assert divergence(p, q) == pytest.approx(bound)
    assert divergence({1: math.log(0.5)}, {2: math.log(0.5)}) == 0.0  # the other half may be that very token


def test_an_old_server_and_synthetic_weights_have_no_tokens(tmp_path: Path) -> None:
    case = make_case(64, backend="llama.cpp", device="cpu", weights="real")
    old = build.named(str(install(tmp_path / "old", server={"content": "no tokens"})))
    with pytest.raises(ProfileError, match="does not return the tokens"):
        completion.complete(case, source(), old)
    with pytest.raises(ProfileError, match="random weights"):
        completion.complete(make_case(64, weights="synthetic"), source(), old)


def test_a_server_that_does_not_load_says_why(tmp_path: Path) -> None:
    case = make_case(64, backend="llama.cpp", device="cpu", weights="real")
    broken = install(tmp_path / "bin", server={"say": "error loading model: unknown model architecture: 'gemma9'"})
    with pytest.raises(ProfileError, match="llama-server ended with code 1: error loading model: unknown model arch"):
        completion.complete(case, source(), build.named(str(broken)))
