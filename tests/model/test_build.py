import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from ar_t2i.model.build import (
    SIZES,
    ModelConfig,
    add_residual_dropout,
    build_model,
    embed_codes_by_likeness,
    load_vocabulary_for,
)
from ar_t2i.vocabulary import Vocabulary

EXPECTED = {"scenes": 10e6, "small": 100e6, "base": 330e6, "large": 1e9}


def test_sizes_are_what_they_say(vocabulary):
    """With 30,000 ids; the smallest is for the shipped vocabulary of 13,470."""
    checked = 0
    for size, expected in EXPECTED.items():
        with torch.device("meta"):
            model = build_model(ModelConfig(size=size), vocabulary, 0)
        width = SIZES[size]["hidden_size"]
        ids = 13_470 if size == "scenes" else 30_000
        count = sum(parameter.numel() for parameter in model.parameters()) + (ids - vocabulary.size) * width
        assert abs(count / expected - 1) < 0.12, (size, count)
        checked += 1
    assert checked == 4


def test_same_seed_same_weights_and_the_global_state_is_left(vocabulary):
    config = ModelConfig(hidden_size=32, num_layers=1, intermediate_size=32, head_dim=16)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = (build_model(config, vocabulary, seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_starts_from_another_causal_lm(vocabulary, tmp_path):
    """A GPT-2 with its own tokenizer gets the image tokens on top; what it knew stays."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "red": 2, "bird": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    source = GPT2LMHeadModel(GPT2Config(vocab_size=4, n_embd=32, n_layer=1, n_head=2))
    source.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    config = ModelConfig(init_from=str(tmp_path))
    extended = load_vocabulary_for(config, "")
    model = build_model(config, extended, 0)
    assert extended.size == 4 + 9 + 4096 and extended.text_ids.tolist() == [1, 2, 3]
    table = model.get_input_embeddings().weight
    assert table.shape[0] == extended.size and torch.equal(table[:4], source.get_input_embeddings().weight)
    extended.save_pretrained(tmp_path / "out")
    model.save_pretrained(tmp_path / "out")
    assert Vocabulary.from_pretrained(tmp_path / "out").fingerprint == extended.fingerprint
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").get_input_embeddings().weight.shape == table.shape


def test_dropout_acts_in_training_alone(vocabulary):
    model = build_model(ModelConfig(hidden_size=32, num_layers=2, intermediate_size=32, head_dim=16), vocabulary, 0)
    ids = torch.arange(10)[None]
    plain = model(ids).logits
    add_residual_dropout(model, 0.5)
    assert torch.equal(model.eval()(ids).logits, plain)
    assert not torch.allclose(model.train()(ids).logits, plain)
    with pytest.raises(ValueError, match="has no o_proj"):
        add_residual_dropout(GPT2LMHeadModel(GPT2Config(vocab_size=4, n_embd=32, n_layer=1, n_head=2)), 0.1)


def test_wrong_options_are_named(vocabulary):
    with pytest.raises(ValueError, match="model.dropout=1.5"):
        ModelConfig(dropout=1.5)
    with pytest.raises(ValueError, match="multiple of head_dim"):
        ModelConfig(hidden_size=100)
    with pytest.raises(ValueError, match="model.init_from='/nowhere'"):
        build_model(ModelConfig(init_from="/nowhere"), vocabulary, 0)
    with pytest.raises(ValueError, match="vocabulary is not set"):
        load_vocabulary_for(ModelConfig(), "")


def test_codes_that_look_alike_start_alike(vocabulary, image_tokenizer):
    """Products of embeddings fall with the distance in the codebook; other ids and the size are left."""
    config = ModelConfig(hidden_size=256, num_layers=1, intermediate_size=32, head_dim=64)
    plain, model = (build_model(config, vocabulary, 0) for _ in range(2))
    embed_codes_by_likeness(model, vocabulary, image_tokenizer.code_vectors, 0)
    before, after = (each.get_input_embeddings().weight.detach() for each in (plain, model))
    assert torch.equal(after[torch.from_numpy(vocabulary.text_ids)], before[torch.from_numpy(vocabulary.text_ids)])
    codes = after[torch.from_numpy(vocabulary.image_ids)]
    assert codes.std() == pytest.approx(before.std().item(), rel=0.05)
    vectors = image_tokenizer.code_vectors[:300]
    likeness = torch.nn.functional.cosine_similarity(codes[:300, None], codes[None, :300], dim=-1)
    distances = torch.cdist(vectors, vectors)
    near, far = likeness[(distances < 0.01) & (distances > 0)], likeness[distances > 1.5]
    assert len(near) > 20 and len(far) > 1000 and near.mean() > 0.8 and far.mean().abs() < 0.3
