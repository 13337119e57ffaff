"""From names to models: which of path, catalog and hub is meant, and what is said when nothing is."""

from __future__ import annotations

import json
import os
import shlex
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import weights

from profiler.errors import NotFound, ProfileError
from profiler.models import hub
from profiler.models.resolve import Model, resolve

LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 5,
    "tie_word_embeddings": True,
}


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr(hub, "raw_config", refuse)
    monkeypatch.setattr(hub, "downloaded_snapshot", refuse)


def safetensors(path: Path, tensors: dict[str, list[int]], cut: int = 0) -> None:
    content = weights.content(tensors)
    path.write_bytes(content[: len(content) - cut])


def folder(path: Path, raw: dict[str, Any] = LLAMA) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(raw))
    return path


def one_line(name: str, *, within: float = 2.0) -> str:
    """The message for a name that must be refused: in time, in one printable line."""
    start = time.monotonic()
    with pytest.raises(ProfileError) as caught:
        resolve(name)
    assert time.monotonic() - start < within
    assert "\n" not in caught.value.message
    assert "\x1b" not in str(caught.value)
    return caught.value.message


def test_a_catalog_name_needs_no_weights_and_no_network() -> None:
    model = resolve("Gemma-4-E2B")
    assert (model.name, model.source.kind, model.source.location) == ("gemma-4-e2b", "catalog", "gemma-4-e2b")
    assert model.real_id is None and model.no_weights is not None
    assert model.geometry.parameters == 4_628_569_379


def test_identities_of_the_catalog_are_distinct_where_configs_are() -> None:
    ids = {name: resolve(name).model_id for name in hub.names()}
    same = {("qwen3.6-27b", "qwen3.8-27b")}
    clashes = {(a, b) for a in ids for b in ids if a < b and ids[a] == ids[b]}
    assert clashes <= same


def test_an_inferred_config_is_said_to_be_one() -> None:
    assert any("inferred" in caution for caution in resolve("qwen3.8-27b").cautions)


def test_a_folder_with_only_a_config_has_no_real_weights(tmp_path: Path) -> None:
    model = resolve(str(folder(tmp_path / "small")))
    assert (model.name, model.source.kind, model.real_id) == ("small", "folder", None)
    assert model.no_weights == "the folder has no safetensors"
    assert model.id_for("synthetic") == model.model_id
    with pytest.raises(ProfileError, match="no real weights: the folder has no safetensors"):
        model.id_for("real")


def test_a_folder_of_pickles_has_no_real_weights_and_says_why(tmp_path: Path) -> None:
    (folder(tmp_path / "old") / "pytorch_model.bin").write_bytes(b"x")
    model = resolve(str(tmp_path / "old"))
    assert model.real_id is None and model.no_weights is not None and "pytorch_model.bin" in model.no_weights


def test_real_weights_give_an_identity_of_their_own(tmp_path: Path) -> None:
    path = folder(tmp_path / "small")
    safetensors(path / "model.safetensors", weights.described(LLAMA))
    model = resolve(str(path))
    assert model.real_id is not None and model.no_weights is None
    assert len({model.model_id, model.id_for("real"), model.real_id}) == 3


def test_the_same_content_elsewhere_is_the_same_model(tmp_path: Path) -> None:
    def made(name: str) -> Model:
        path = folder(tmp_path / name)
        safetensors(path / "model.safetensors", weights.described(LLAMA))
        return resolve(str(path))

    one, two = made("one"), made("two")
    assert one.name != two.name and one.id_for("real") == two.id_for("real")


def test_truncated_weights_are_refused_before_anything_loads_them(tmp_path: Path) -> None:
    path = folder(tmp_path / "cut")
    safetensors(path / "model.safetensors", {"model.embed_tokens.weight": [5, 8]}, cut=1)
    assert "truncated" in one_line(str(path))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "mixed")
    safetensors(path / "model.safetensors", weights.described(LLAMA) | {"model.embed_tokens.weight": [6, 8]})
    assert "[6, 8] in the weights, [5, 8] in config.json" in one_line(str(path))


def test_a_quantized_checkpoint_is_said_to_be_one(tmp_path: Path) -> None:
    path = folder(tmp_path / "q", LLAMA | {"quantization_config": {"quant_method": "awq"}})
    assert resolve(str(path)).cautions == ("the checkpoint's weights are stored quantized (awq)",)


def test_existing_paths_come_before_the_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "gemma-4-e2b")
    assert resolve("gemma-4-e2b").source.kind == "folder"


def test_a_folder_named_to_break_terminals_and_tables_is_shown_clean(tmp_path: Path) -> None:
    model = resolve(str(folder(tmp_path / "\x1b[31mred|\x1b[0m\x07\u202eevil")))
    assert model.name == "red|evil"
    assert model.source.location.endswith("evil")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (LLAMA | {"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        (LLAMA | {"num_attention_heads": 0}, "num_attention_heads is 0"),
        (LLAMA | {"num_hidden_layers": 10_000}, "num_hidden_layers is 10000"),
        (
            LLAMA | {"model_type": "gpt_bigcode"},
            "model_type gpt_bigcode (1 layer, hidden size 8, vocabulary 5): this family is not supported",
        ),
        (LLAMA | {"x": "y" * 20 * 2**20}, "larger than 1.00 MiB"),
    ],
    ids=["-1 layers", "0 heads", "10000 layers", "unknown type", "20 MiB"],
)
def test_hostile_configs_are_one_line(tmp_path: Path, raw: dict[str, Any], says: str) -> None:
    assert says in one_line(str(folder(tmp_path / "bad", raw)))


def test_a_folder_of_an_unknown_family_says_what_it_stores(tmp_path: Path) -> None:
    path = folder(tmp_path / "glm", LLAMA | {"model_type": "glm4"})
    assert one_line(str(path)).endswith("nothing is predicted or measured")
    safetensors(path / "model.safetensors", {"a": [5, 8], "b": [8]})
    assert one_line(str(path)).endswith("measured; its weights are 192 bytes (192 B) in 2 tensors")


def test_a_43_byte_gguf_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 3) + b"abc"
    path.write_bytes(head + struct.pack("<II", 9, 8))
    assert path.stat().st_size == 43
    assert "not a valid GGUF file" in one_line(str(path))


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "\x1b[31mgemma|\x1b[0m",
        "a" * 10_000,
        "nul\0byte",
        "~nobody-here/x",
        "./missing",
        "missing.gguf",
        "/x/y",
    ],
)
def test_names_of_nothing_are_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one_line(name)


def test_a_miss_lists_the_nearest_first() -> None:
    with pytest.raises(NotFound) as caught:
        resolve("gemma4-e2b")
    assert caught.value.hint is not None and caught.value.hint.startswith("Did you mean gemma-4-e2b")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("gemma3", ["gemma-3-12b", "gemma-3-1b", "gemma-3-270m"]),
        ("Gemma_3_270M", ["gemma-3-270m"]),
        ("google/gemma-3-270m-it", ["gemma-3-270m"]),
        ("qwen3.5-0.8", ["qwen3.5-0.8b"]),
    ],
)
def test_what_starts_alike_is_nearest(name: str, near: list[str]) -> None:
    assert hub.nearest(name)[: len(near)] == near


def test_a_miss_counts_the_catalog_instead_of_listing_it() -> None:
    with pytest.raises(NotFound) as caught:
        resolve("zzz")
    assert caught.value.hint == (
        f"profile models lists all {len(hub.names())}. You can also pass a folder, a .gguf file or a Hugging Face id."
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("https://hub.example/google/gemma-3-270m", "Pass the Hugging Face id owner/name: google/gemma-3-270m."),
        (
            "https://hub.example/google/gemma-3-270m/tree/main",
            "Pass the Hugging Face id owner/name: google/gemma-3-270m.",
        ),
        ("https://hub.example", "Pass the Hugging Face id owner/name."),
        ("google/gemma-3-270m/", "For Hugging Face, pass owner/name: google/gemma-3-270m."),
    ],
)
def test_a_url_or_a_trailing_slash_is_told_what_a_hub_id_is(name: str, hint: str) -> None:
    with pytest.raises(NotFound) as caught:
        resolve(name)
    assert caught.value.hint == hint


def test_a_catalog_name_with_the_slash_of_a_folder_is_told_the_name() -> None:
    with pytest.raises(NotFound) as caught:
        resolve("Gemma-3-270m/")
    assert (caught.value.hint or "").endswith(" gemma-3-270m.")


def test_a_link_to_nothing_says_where_it_leads(tmp_path: Path) -> None:
    """The nearest name beside it is its own."""
    (tmp_path / "model.gguf").symlink_to("moved.gguf")
    with pytest.raises(NotFound, match=r"model\.gguf is a link to moved\.gguf, which does not exist$"):
        resolve(str(tmp_path / "model.gguf"))


def test_a_refused_path_is_named_as_a_path(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "model.safetensors.index.json", tmp_path / "empty"):
        assert str(path) in one_line(str(path))


def test_a_config_by_itself_is_a_model_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One named config.json stands for its folder, also on the command lines that are printed."""
    inside = resolve(str(folder(tmp_path / "tiny") / "config.json"))
    assert inside == resolve(str(tmp_path / "tiny"))
    assert inside.source.argument("tiny/config.json") == "./tiny"
    (tmp_path / "tiny" / "config.json").rename(tmp_path / "saved.json")
    monkeypatch.chdir(tmp_path)
    alone = resolve("saved.json")
    assert (alone.name, alone.geometry, alone.checkpoint) == ("saved", inside.geometry, None)
    assert resolve(alone.source.argument("saved.json")).model_id == alone.model_id
    (tmp_path / "package.json").write_text('{"name": "x"}')
    assert "model_type is missing" in one_line("package.json")
    assert "no such file" in one_line("missing.json")


def test_a_file_that_is_no_gguf_and_a_folder_without_config_say_what_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    assert "neither a folder nor a GGUF file" in one_line(str(tmp_path / "model.bin"))
    assert "has no config.json" in one_line(str(tmp_path))


def test_a_folder_of_the_hubs_cache_names_its_snapshot(tmp_path: Path) -> None:
    cached = tmp_path / "my cache" / "models--google--tiny"
    (cached / "snapshots").mkdir(parents=True)
    for hour, commit in enumerate(("aaa", "bbb")):
        os.utime(folder(cached / "snapshots" / commit), (3600 * hour, 3600 * hour))
    for name, expected in ((None, "bbb"), ("aaa", "aaa")):  # the newest, unless the cache says what main is
        if name is not None:
            (cached / "refs").mkdir()
            (cached / "refs" / "main").write_text(name)
        for path in (cached, cached / "snapshots"):
            with pytest.raises(NotFound, match="is a folder of the Hugging Face cache") as caught:
                resolve(str(path))
            said, _, argument = str(caught.value.hint).rpartition(": ")
            assert "google/tiny" in said
            assert shlex.split(argument) == [str(cached / "snapshots" / expected)]
            assert resolve(*shlex.split(argument)).geometry.layers


def test_the_output_of_a_training_names_its_newest_checkpoint(tmp_path: Path) -> None:
    output = tmp_path / "my run"
    output.mkdir()
    for step in (1000, 500):
        folder(output / f"checkpoint-{step}")
    (output / "training_args.bin").write_bytes(b"x")
    with pytest.raises(NotFound, match=r"has no config\.json, but checkpoints") as caught:
        resolve(str(output))
    assert shlex.split(str(caught.value.hint))[-1] == str(output / "checkpoint-1000")
    (output / "checkpoint-2000").mkdir()
    (output / "checkpoint-2000" / "adapter_config.json").write_text("{}")
    assert "checkpoint-2000 holds only an adapter" in one_line(str(output))


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        ((), "The folder is empty."),
        (("tokenizer.json", "tokenizer_config.json"), "A model is a folder with config.json and safetensors"),
        (("model.onnx",), "it has weights for ONNX only (model.onnx)"),
        (("consolidated.00.pth",), "it has only pickled weights (consolidated.00.pth)"),
        (("training_args.bin",), "A model is a folder with"),
        (("model.safetensors",), "Copy the model's config.json into it"),
        (("model.safetensors.part",), "model.safetensors.part is an unfinished download"),
        (("b.gguf", "a.gguf"), "Pass one of its 2 GGUF files, such as {folder}/a.gguf"),
        (("one/config.json",), "Pass the folder of a model in it, such as {folder}/one"),
        (("model_index.json", "unet/config.json"), "A model is a folder with"),
    ],
)
def test_a_folder_that_is_no_model_says_what_to_pass_instead(
    tmp_path: Path, files: tuple[str, ...], hint: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(NotFound, match=r"has no config\.json") as caught:
        resolve(str(tmp_path))
    assert hint.format(folder=tmp_path) in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.safetensors.incomplete", "model.safetensors.incomplete is an unfinished download"),
        (".cache/huggingface/download/model.safetensors.0a1b.incomplete", "model.safetensors is an unfinished"),
        ("model.onnx", "it has weights for ONNX only (model.onnx), which transformers does not load"),
        ("model.gguf", "it has weights for GGUF only (model.gguf), which is passed by its own path"),
        ("tf_model.h5", "it has weights for TensorFlow only (tf_model.h5)"),
        ("optimizer.pt", "the folder has no safetensors"),
    ],
)
def test_weights_that_are_not_read_are_named(tmp_path: Path, name: str, reason: str) -> None:
    path = folder(tmp_path / "model") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    assert str(resolve(str(tmp_path / "model")).no_weights).startswith(reason)


@pytest.mark.parametrize("content", [b"GGUF", b"GGUF\3\0\0\0", b"", b"\0" * 64])
def test_an_unfinished_download_of_a_file_is_said_to_be_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf.part"
    path.write_bytes(content)
    assert "is an unfinished download" in one_line(str(path))


def test_an_adapter_is_not_taken_for_the_model(tmp_path: Path) -> None:
    path = folder(tmp_path / "lora")
    safetensors(path / "adapter_model.safetensors", {"base_model.q_proj.lora_A.weight": [5, 8]})
    model = resolve(str(path))
    assert model.real_id is None
    why = "adapter_model.safetensors is not named model.safetensors, and no model.safetensors.index.json names it"
    assert model.no_weights == why


def test_the_weights_that_are_checked_are_those_that_transformers_loads(tmp_path: Path) -> None:
    """One whole file goes before an index."""
    path = folder(tmp_path / "both")
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    assert "gone.safetensors, which model.safetensors.index.json names, is missing" in one_line(str(path))
    safetensors(path / "model.safetensors", weights.described(LLAMA))
    assert resolve(str(path)).real_id is not None


@pytest.mark.parametrize("name", ["MODEL.GGUF", "sha256-0123", "model", "gemma-3-1b", "model.bin"])
def test_a_gguf_file_is_known_by_its_first_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF" + bytes(16))
    monkeypatch.chdir(tmp_path)
    for typed in (name, f"./{name}", str(tmp_path / name)):
        assert "version" in one_line(typed).lower()  # the header's reader has it


def test_a_chance_file_does_not_stand_in_the_way_of_a_catalog_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gemma-3-1b").write_text("notes")
    monkeypatch.chdir(tmp_path)
    assert resolve("gemma-3-1b").source.kind == "catalog"
    assert "neither a folder nor a GGUF file" in one_line("./gemma-3-1b")


def test_a_wrong_path_has_a_hint_with_similar_names(tmp_path: Path) -> None:
    (tmp_path / "gemma-3.gguf").touch()
    with pytest.raises(NotFound) as error:
        resolve(str(tmp_path / "gema-3.gguf"))
    assert str(tmp_path / "gemma-3.gguf") in str(error.value.hint)
