import json
import os
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from ar_t2i.bundles import load_bundle, replace_directory, save_bundle, words_learnt, write_sampling
from ar_t2i.evaluation.sources import BundleSource, _averaged
from ar_t2i.hub.names import resolve
from ar_t2i.pipeline import TextToImagePipeline
from ar_t2i.sampling.logits import SamplingConfig
from ar_t2i.vocabulary import SPECIAL_TOKENS, Vocabulary, image_token


@pytest.fixture
def bundle_folder(model, vocabulary, image_tokenizer, tmp_path):
    return save_bundle(
        tmp_path / "bundle", model, vocabulary, image_tokenizer, SamplingConfig(guidance_scale=2, top_k=9), "# card\n"
    )


def test_round_trip(bundle_folder, model, image_tokenizer, vocabulary):
    bundle = load_bundle(bundle_folder)
    assert bundle.sampling == SamplingConfig(guidance_scale=2, top_k=9)
    assert bundle.image_tokenizer.fingerprint == image_tokenizer.fingerprint
    assert bundle.vocabulary.fingerprint == vocabulary.fingerprint
    ids = torch.arange(9)[None]
    assert torch.equal(bundle.model(ids).logits, model(ids).logits)


def test_the_root_is_a_stock_checkpoint(bundle_folder, model):
    """No code of ours is needed to load it, and nothing is pickled."""
    stock = AutoModelForCausalLM.from_pretrained(bundle_folder)
    assert type(stock).__module__.startswith("transformers.")
    assert AutoTokenizer.from_pretrained(bundle_folder)("<|image:7|>").input_ids == [9 + 7]
    files = {path.relative_to(bundle_folder).as_posix() for path in bundle_folder.rglob("*") if path.is_file()}
    assert files == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "ar_t2i.json", "README.md", "image_tokenizer/config.json", "image_tokenizer/model.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_other_architectures_and_other_orders_of_the_blocks(architecture, image_tokenizer, tmp_path):
    """Image codes first, then special tokens, text last, in an order of its own: everything is found by name."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    fixed = [image_token(code) for code in reversed(range(4096))] + list(reversed(SPECIAL_TOKENS))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        ["a red bird"] * 9, trainers.BpeTrainer(special_tokens=fixed, initial_alphabet=alphabet, show_progress=False)
    )
    vocabulary = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|pad|>"))
    assert vocabulary.codes_to_ids([0, 4095]).tolist() == [4095, 0]
    torch.manual_seed(0)
    if architecture == "llama":
        size = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary.size, **size))
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary.size, n_embd=32, n_layer=2, n_head=2))
    folder = save_bundle(tmp_path / "bundle", model, vocabulary, image_tokenizer, SamplingConfig(), "")
    pipe = TextToImagePipeline.from_pretrained(folder)
    prompts = ["a red bird", "bird"]
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    drawn = pipe(prompts, generator=generators)
    alone = pipe(prompts[1], generator=torch.Generator().manual_seed(2))
    assert drawn.images[0].size == (64, 64) and torch.equal(drawn.codes[1], alone.codes[0])


def damage(folder, file, change):
    values = json.loads((folder / file).read_text())
    change(values)
    (folder / file).write_text(json.dumps(values))


def test_words_and_verifier_are_carried_along(model, vocabulary, image_tokenizer, tmp_path):
    judge = tmp_path / "judge"
    judge.mkdir()
    for name in ("config.json", "model.safetensors"):
        (judge / name).write_text(name)
    parts = (model, vocabulary, image_tokenizer, SamplingConfig(), "")
    first = load_bundle(save_bundle(tmp_path / "a", *parts, words={"tree", "bird"}, verifier=judge))
    copy = save_bundle(tmp_path / "b", *parts, words=first.words, verifier=first.verifier)
    assert (copy / "words.txt").read_text() == "bird\ntree\n"
    assert {path.name: path.read_text() for path in (copy / "verifier").iterdir()} == {
        "config.json": "config.json", "model.safetensors": "model.safetensors",
    }  # fmt: skip
    assert load_bundle(copy).words == {"tree", "bird"} and load_bundle(copy).verifier == copy / "verifier"
    (copy / "words.txt").write_text("bird\n")
    with pytest.raises(ValueError, match="the words.txt is not the one"):
        load_bundle(copy)
    bare = load_bundle(save_bundle(tmp_path / "c", *parts))
    assert bare.words is None and bare.verifier is None


def test_a_bundle_says_whether_its_weights_are_averaged(train_run, bundle_folder, tmp_path):
    """One that does not say, as those made before, loads as well."""
    said = {"old": _averaged(bundle_folder)}
    for name, decay in (("mean", 0.9), ("last", 0.0)):
        folder = train_run(output=str(tmp_path / name), loop={"steps": 1}, optim={"ema_decay": decay}) / "bundle"
        said[name] = _averaged(folder)
        write_sampling(folder, SamplingConfig(guidance_scale=3))
        assert load_bundle(folder).sampling.guidance_scale == 3 and _averaged(folder) == said[name]
    assert said == {"old": None, "mean": True, "last": False}
    assert BundleSource(tmp_path / "mean" / "bundle", seed=0, options={}).facts["averaged_weights"] is True


def test_words_of_a_model_that_started_from_another(model, vocabulary, image_tokenizer, tmp_path):
    """Those that it knew count too; a bundle that does not tell leaves them unknown, a language model knew none."""
    parts = (model, vocabulary, image_tokenizer, SamplingConfig(), "")
    knows = save_bundle(tmp_path / "a", *parts, words={"bird"})
    silent = save_bundle(tmp_path / "b", *parts)
    model.save_pretrained(tmp_path / "lm")
    captions = frozenset({"tree"})
    assert words_learnt(knows, captions) == {"bird", "tree"}
    assert words_learnt(silent, captions) is None
    assert words_learnt(tmp_path / "lm", captions) == words_learnt(None, captions) == captions


def test_what_is_missing_or_foreign_is_named(bundle_folder, vocabulary, tmp_path):
    def broken(name, spoil):
        folder = shutil.copytree(bundle_folder, tmp_path / name)
        spoil(folder)
        with pytest.raises(ValueError) as error:
            load_bundle(folder)
        return str(error.value)

    assert "no image_tokenizer/ folder" in broken("a", lambda folder: shutil.rmtree(folder / "image_tokenizer"))
    assert "is no bundle" in broken("b", lambda folder: (folder / "ar_t2i.json").unlink())
    assert "no causal LM with safetensors" in broken("c", lambda folder: (folder / "model.safetensors").unlink())
    assert "no vocabulary" in broken("d", lambda folder: (folder / "tokenizer.json").unlink())
    newer = broken("e", lambda folder: damage(folder, "ar_t2i.json", lambda facts: facts.update(format_version=99)))
    assert "bundle format 99" in newer
    other = Vocabulary.train(["another corpus"] * 2)
    assert "the vocabulary is not the one" in broken("f", other.save_pretrained)

    def lose_a_tensor(folder):
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        del tensors["model.layers.0.mlp.up_proj.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    assert "missing tensors in the weights, the first model.layers.0.mlp.up_proj.weight" in broken("g", lose_a_tensor)
    with pytest.raises(ValueError, match="neither a folder here nor in the cache"):
        resolve("somebody/nothing")


def test_an_image_tokenizer_by_reference(bundle_folder, image_tokenizer_folder, monkeypatch):
    shutil.rmtree(bundle_folder / "image_tokenizer")
    (bundle_folder / "image_tokenizer").mkdir()
    (bundle_folder / "image_tokenizer" / "reference.json").write_text(json.dumps({"repo_id": "owner/tokenizer"}))
    hub = {"owner/tokenizer": image_tokenizer_folder}
    monkeypatch.setattr("ar_t2i.bundles.download", hub.__getitem__)
    assert load_bundle(bundle_folder).image_tokenizer.num_codes == 32


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "bundle"

    def good(folder):
        (folder / "a").write_text("1")

    def bad(folder):
        (folder / "a").write_text("2")
        raise ValueError("halfway")

    replace_directory(target, good)
    with pytest.raises(ValueError, match="halfway"):
        replace_directory(target, bad)
    assert (target / "a").read_text() == "1" and os.listdir(tmp_path) == ["bundle"]

    def private(folder):
        (folder / "b").write_text("3")
        (folder / "b").chmod(0o600)

    replace_directory(target, private)
    (tmp_path / "probe").touch()
    assert (target / "b").stat().st_mode == (tmp_path / "probe").stat().st_mode
    (tmp_path / "probe").unlink()
    assert os.listdir(target) == ["b"] and os.listdir(tmp_path) == ["bundle"]
