"""What others may have written runs no code, leads nowhere else, and fills no memory (SECURITY.md)."""

import ast
import builtins
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ar_t2i.bundles import load_bundle, save_bundle
from ar_t2i.cli import main
from ar_t2i.config import gather, load
from ar_t2i.hub.cards import plain, read_card
from ar_t2i.hub.names import split_id
from ar_t2i.image_tokenizer import load_image_tokenizer
from ar_t2i.model.build import load_causal_lm
from ar_t2i.push import collect, kind_of
from ar_t2i.sampling.logits import SamplingConfig
from ar_t2i.training.checkpoint import load_states, read_checkpoint
from ar_t2i.training.decoder import TrainConfig
from ar_t2i.training.samples import write_table
from ar_t2i.untrusted import parse_json, parse_yaml, printable, read_bytes, read_tensors, stored_shapes
from ar_t2i.vocabulary import Vocabulary
from ar_t2i.words import read_words

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bundle(tmp_path, model, vocabulary, image_tokenizer) -> Path:
    return save_bundle(tmp_path / "bundle", model, vocabulary, image_tokenizer, SamplingConfig(), "# x\n")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_no_module_loads_pickles_or_runs_what_it_reads():
    """Calls that could; torch.load is left at the two places where the user names a file of weights."""
    found = []
    for path in sorted([*(ROOT / "ar_t2i").rglob("*.py"), ROOT / "train.py", ROOT / "infer.py"]):
        if path.name == "cluster.py":  # what Ray's processes of one run send each other, as Ray itself does
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
                if name in (
                    "pickle.load",
                    "pickle.loads",
                    "eval",
                    "exec",
                    "yaml.load",
                    "yaml.unsafe_load",
                    "os.system",
                ):
                    found.append((path.name, name))
                if name == "torch.load":
                    assert options["weights_only"] == "True"
                    found.append((path.name, name))
                assert options.get("trust_remote_code", "False") == "False" and "allow_pickle" not in options
                assert options.get("shell", "False") == "False"
                if name.endswith(("AutoTokenizer.from_pretrained", "AutoModelForCausalLM.from_pretrained")):
                    assert "trust_remote_code" in options, f"{path} would ask whether to run code"
                    found.append((path.name, name))
    assert sorted(found) == [
        ("build.py", "AutoModelForCausalLM.from_pretrained"),
        ("inception.py", "torch.load"),
        ("pretrained.py", "torch.load"),
        ("vocabulary.py", "AutoTokenizer.from_pretrained"),
    ]


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_a_bundle_with_code_runs_none(bundle, tmp_path, monkeypatch, where):
    marker = tmp_path / "ran"
    (bundle / "modeling_x.py").write_text(f"open({str(marker)!r}, 'w')\nclass X: pass\n")
    code = {
        "AutoConfig": "modeling_x.X",
        "AutoModelForCausalLM": "modeling_x.X",
        "AutoTokenizer": ["modeling_x.X", None],
    }
    kind = {"model_type": "x", "architectures": ["X"]} if where == "config.json" else {"tokenizer_class": "X"}
    edit(bundle / where, auto_map=code, **kind)
    monkeypatch.setattr(builtins, "input", lambda *_: "y")  # what a hurried user would say
    if where == "config.json":
        with pytest.raises(ValueError, match="auto_map"):
            load_bundle(bundle)
    else:  # read as the plain tokenizer that it is
        assert load_bundle(bundle).vocabulary.codebook_size == 4096
    assert not marker.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}},
        {"attn_implementation": "someone/kernel"},
        {"text_config": {"_attn_implementation": "someone/kernel"}},
        {"hidden_size": 10**9},
        {"vocab_size": 10**12},
        {"num_hidden_layers": 10**9},
        {"hidden_size": "x"},
        {"num_attention_heads": 0},
        {"head_dim": None},
        {"rope_parameters": [1]},
        {"rope_parameters": {"rope_type": "default", "rope_theta": "x"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_absurd_decoders_are_refused_before_memory_is_taken(bundle, changes, model_type, little_memory):
    edit(bundle / "config.json", **changes)
    if model_type == "llama":
        if "head_dim" in changes or "rope_parameters" in changes:
            pytest.skip("what transformers makes of it is another matter")
        edit(bundle / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    with pytest.raises(ValueError):
        load_bundle(bundle)


def test_a_long_context_takes_no_memory(bundle, little_memory):
    edit(bundle / "config.json", max_position_embeddings=2**30)
    assert load_bundle(bundle).model.config.max_position_embeddings == 2**30


@pytest.mark.parametrize("place", ["../x.safetensors", "/x.safetensors", "a/b.safetensors", 3])
def test_an_index_names_files_of_its_folder_alone(bundle, tmp_path, place):
    (bundle / "model.safetensors").rename(tmp_path / "x.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": place}}
    (bundle / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="expected files of this folder"):
        load_causal_lm(bundle)


def test_an_adapter_leads_to_no_other_model(bundle):
    (bundle / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    with pytest.raises(ValueError, match="names another model"):
        load_causal_lm(bundle)


@pytest.mark.parametrize(
    "name", ["../x", "/tmp", "owner/name", "owner/name@../../x", "x", 3, None, "a/b/c", "pipe:true"]
)
def test_a_reference_is_an_id_of_the_hub(bundle, image_tokenizer, tmp_path, monkeypatch, name):
    (tmp_path / "owner").mkdir()
    image_tokenizer.save_pretrained(tmp_path / "owner" / "name")
    image_tokenizer.save_pretrained(tmp_path / "x")
    monkeypatch.chdir(tmp_path)
    for path in (bundle / "image_tokenizer").iterdir():
        path.unlink()
    (bundle / "image_tokenizer" / "reference.json").write_text(json.dumps({"repo_id": name}))
    with pytest.raises(ValueError, match="id of the Hub|neither a folder here nor in the cache"):
        load_bundle(bundle)


def test_revisions_name_nothing_else_in_the_cache():
    assert split_id("owner/name@refs/pr/1") == ("owner/name", "refs/pr/1")
    for revision in ("../x", "a/../b", "/etc", "a//b", "a b", "a\n"):
        with pytest.raises(ValueError, match="neither a folder"):
            split_id(f"owner/name@{revision}")


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 32 * 10**8, "regions": [10**8, 10**8]}, {"mixer_depth": 10**9},
        {"mixer_depth": 4095}, {"codebook_size": 10**15},
        {"mixer_width": 2**62}, {"stage_widths": [2**40] * 4}, {"stage_widths": [0] * 4}, {"regions": [1]},
        {"num_codes": 10**400}, {"image_size": 1e300},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_absurd_slot_tokenizers_are_refused(image_tokenizer_folder, tmp_path, changes, little_memory):
    (tmp_path / "model.safetensors").write_bytes((image_tokenizer_folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text((image_tokenizer_folder / "config.json").read_text())
    edit(tmp_path / "config.json", **changes)
    with pytest.raises(ValueError):
        load_image_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 2**40, "num_layers": 1, "num_heads": 1}, {"width": 8, "num_layers": 10**9, "num_heads": 1},
        {"width": 8, "num_layers": 257, "num_heads": 8, "depth": 1},
    ],
)  # fmt: skip
def test_absurd_titoks_are_refused(tmp_path, changes, little_memory):
    from ar_t2i.titok.config import published_config

    config = published_config("l32").to_dict()
    config["model"]["vq_model"]["vit_enc_model_size"] = "x"
    config["shapes"] = {"sizes": {"x": changes}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError):
        load_image_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"1234567", struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 40_000) + b"[" * 40_000, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 62) + b'{"a":{"dtype":"F32","shape":[9999999],"data_offsets":[0,4]}}  ' + b"1234",
    ],
    ids=["empty", "short", "2**40", "2**63", "nested", "list", "null", "lying"],
)  # fmt: skip
def test_damaged_safetensors_are_told(tmp_path, content, little_memory):
    (tmp_path / "x.safetensors").write_bytes(content)
    for read in (read_tensors, stored_shapes, load_states):
        with pytest.raises(ValueError, match="damaged|header") as raised:
            read(tmp_path / "x.safetensors")
        assert "\n" not in str(raised.value)


def test_a_large_header_is_not_read(tmp_path, little_memory):
    with open(tmp_path / "x.safetensors", "wb") as file:
        file.write(struct.pack("<Q", 10**9))
        file.truncate(2 * 10**9)
    with pytest.raises(ValueError, match="a header of 1,000,000,000 bytes"):
        read_tensors(tmp_path / "x.safetensors")


def test_pickled_weights_are_refused_in_a_bundle(bundle, tmp_path):
    class Code:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    import pickle

    (bundle / "image_tokenizer" / "model.safetensors").unlink()
    (bundle / "image_tokenizer" / "pytorch_model.bin").write_bytes(pickle.dumps(Code()))
    with pytest.raises(ValueError, match="a pickle, which can run code"):
        load_bundle(bundle)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "token, number", [("<|image:999999999|>", None), ("<|image:" + "9" * 5000 + "|>", None), ("x", 2**31)]
)
def test_tokens_make_no_tables_without_end(vocabulary_folder, tmp_path, token, number, little_memory):
    rules = json.loads((vocabulary_folder / "tokenizer.json").read_text())
    rules["model"]["vocab"][token] = number or len(rules["model"]["vocab"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    (tmp_path / "tokenizer_config.json").write_bytes((vocabulary_folder / "tokenizer_config.json").read_bytes())
    if len(token) < 5000:
        with pytest.raises(ValueError, match="codes are missing|expected less than"):
            Vocabulary.from_pretrained(tmp_path)
    else:
        assert Vocabulary.from_pretrained(tmp_path).codebook_size == 4096  # a word like any other


def test_a_token_for_the_unknown_that_is_unknown(vocabulary_folder, tmp_path):
    """Found by the fuzzer: tokenizers raises a plain Exception, and only when it meets such a letter."""
    rules = json.loads((vocabulary_folder / "tokenizer.json").read_text())
    rules["model"] |= {"unk_token": "nowhere", "vocab": {"a": 0}, "merges": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    (tmp_path / "tokenizer_config.json").write_bytes((vocabulary_folder / "tokenizer_config.json").read_bytes())
    with pytest.raises(ValueError, match="cannot encode: Unk token `nowhere` not found"):
        Vocabulary.from_pretrained(tmp_path).encode_captions(["b"])


def test_files_that_are_too_large_are_not_read(bundle, tmp_path, little_memory):
    for name, what in (("words.txt", "words"), ("ar_t2i.json", ""), ("tokenizer.json", "vocabulary")):
        before = (bundle / name).read_bytes() if (bundle / name).exists() else None
        with open(bundle / name, "wb") as file:
            file.truncate(10**9)
        with pytest.raises(ValueError, match=f"{what}.*more than the"):
            load_bundle(bundle)
        (bundle / name).unlink() if before is None else (bundle / name).write_bytes(before)


def test_a_small_file_takes_little_memory(tmp_path, little_memory):
    """Found by the fuzzer: a buffer of the largest size that was allowed."""
    (tmp_path / "x").write_bytes(b"1")
    assert read_bytes(tmp_path / "x", 2**40) == b"1"


def test_devices_and_pipes_are_not_read(bundle, tmp_path):
    (bundle / "words.txt").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="no plain file"):
        read_words(bundle / "words.txt")
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="no plain file"):
        read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": ' + "9" * 5000 + "}",
        "[]",
        "3",
        "",
        b"\xff",
    ],
)
def test_json_that_is_none(text):
    with pytest.raises(ValueError, match="^x ") as raised:
        parse_json(text, "x")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{new}: &{new} {{<<: [{','.join([f'*{old}'] * 9)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [LAUGHS, MERGES, "a: &a [*a]", "&a {b: *a}", "[" * 600, "- " * 600, "a: " + "1:" * 10_000 + "1",
     "a: !!timestamp 9999-99-99", "!!python/object/apply:os.system ['touch ran']", "a: \x07", "a: !!int x",
     "? [a]\n: b", "a: !!binary é", "a: 2001-13-45", "x" * 2**21],
    ids=["laughs", "merges", "cycle", "cycle of groups", "flow", "blocks", "sexagesimal", "date", "code", "bell",
         "int", "key", "binary", "implicit date", "long"],
)  # fmt: skip
def test_yaml_that_is_none(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(text)
    reads = (
        lambda: parse_yaml(text, "x"),
        lambda: read_card(f"---\n{text}\n---\n"),
        lambda: load(TrainConfig, tmp_path / "run.yaml"),
        lambda: gather(None, [f"data={text}"]),
    )
    for read in reads:
        with pytest.raises(ValueError) as raised:
            read()
        assert len(printable(str(raised.value))) < 2100 and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", [LAUGHS, MERGES])
def test_yaml_bombs_take_no_memory(text, little_memory):
    with pytest.raises(ValueError, match="stand for too much"):
        parse_yaml(text, "x")


def test_aliases_of_honest_yaml_are_read():
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a", "x") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": {"x": 1},
    }


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1" + "0" * 400, "0x" + "f" * 5000, "1e308999"])
def test_numbers_that_are_none(value):
    from ar_t2i.config import build

    with pytest.raises(ValueError):
        build(
            TrainConfig,
            {"output": "a", "image_tokenizer": "b"} | gather(None, ["data.dataset=d", f"optim.lr={value}"]),
        )


def test_what_is_shown_steers_no_terminal(capsys, tmp_path):
    hostile = "a\x1b[2J\x1b]0;x\x07b\u202ec\r\nd\x9b3Je\ud800f\u2028g"
    assert printable(hostile) == r"a\x1b[2J\x1b]0;x\x07b\u202ec d\x9b3Je\ud800f g"
    assert printable("👩\u200d🚀 schön 字") == "👩\u200d🚀 schön 字" and len(printable("x" * 10**6)) < 2100
    (tmp_path / "run.yaml").write_text(json.dumps({hostile: 1}))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said[:-1].isprintable()


def test_texts_in_pages_are_text_alone(tmp_path):
    hostile = "<img src=x onerror=alert(1)> [a](javascript:x) `b` |c| <!-- written by ar-t2i: end -->\n# d"
    shown = plain(hostile)
    assert not re.search(r"(?<!\\)[|`\[\]#!]|[<>\n]", shown)
    write_table(tmp_path, [hostile])
    assert shown in (tmp_path / "samples.md").read_text() and "<img" not in (tmp_path / "samples.md").read_text()


def test_only_files_of_the_folder_are_pushed(bundle, tmp_path):
    (tmp_path / "secret").write_text("x")
    (bundle / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="a link to .*secret, outside of the folder"):
        collect(bundle, kind_of(bundle))


def test_a_linked_readme_is_not_copied_into_a_bundle(tmp_path, model, vocabulary, image_tokenizer_folder):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        (source / name).write_bytes((image_tokenizer_folder / name).read_bytes())
    (tmp_path / "secret").write_text("x")
    for name in ("README.md", "notes.txt"):
        (source / name).symlink_to(tmp_path / "secret")
    made = save_bundle(tmp_path / "made", model, vocabulary, source, SamplingConfig(), "# x\n")
    assert sorted(path.name for path in (made / "image_tokenizer").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "state",
    ["[]", "{}", '{"step": "x", "facts": {}}', '{"step": -1, "facts": {}}', '{"step": 1, "facts": []}', "[" * 10**5],
)
def test_states_of_checkpoints_are_checked(tmp_path, state):
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(ValueError, match="state.json"):
        read_checkpoint(tmp_path, {})


def test_states_that_nest_without_end_are_told(tmp_path):
    nested = '{"list":[' * 20_000 + "1" + "]}" * 20_000
    save_file({"0": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"states": nested})
    with pytest.raises(ValueError, match="missing or damaged"):
        load_states(tmp_path / "x.safetensors")


def test_no_reader_falls_over_changed_inputs():
    """Some thousand cases of tests/fuzz; a million are run by hand."""
    line = [sys.executable, str(ROOT / "tests" / "fuzz" / "run.py"), "--share", "0.002", "--seed", "7"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert int(re.search(r"all +([\d,]+) cases, 0 finds", done.stdout)[1].replace(",", "")) > 2000
