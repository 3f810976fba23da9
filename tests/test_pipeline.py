import numpy as np
import pytest
import torch

from ar_t2i.bundles import Bundle, save_bundle
from ar_t2i.pipeline import TextToImagePipeline, to_uint8
from ar_t2i.sampling.logits import SamplingConfig


@pytest.fixture
def pipe(model, vocabulary, image_tokenizer):
    return TextToImagePipeline(Bundle(model, vocabulary, image_tokenizer, SamplingConfig(guidance_scale=2)))


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_as_diffusers_has_it(pipe):
    output = pipe(["a red bird", "a fish"], num_images_per_prompt=3, generator=torch.Generator().manual_seed(0))
    assert len(output.images) == 6 and output.codes.shape == (6, 32)
    assert {image.size for image in output.images} == {(64, 64)} and output.images[0].mode == "RGB"
    again = pipe(["a red bird", "a fish"], num_images_per_prompt=3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(output.codes, again.codes)
    assert len({tuple(codes) for codes in output.codes.tolist()}) == 6


def test_output_types_agree(pipe):
    outputs = {kind: pipe("a red bird", generator=seeded(1), output_type=kind).images for kind in ("pil", "np", "pt")}
    assert outputs["pt"].shape == (1, 3, 64, 64) and 0 <= outputs["pt"].min() and outputs["pt"].max() <= 1
    np.testing.assert_array_equal(outputs["np"], outputs["pt"].permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(np.asarray(outputs["pil"][0]), to_uint8(outputs["pt"])[0])


def test_a_picture_depends_on_its_prompt_and_seed_alone(pipe):
    prompts = ["a red bird", "a blue house by the sea", "tree"]
    whole = pipe(prompts, num_images_per_prompt=5, generator=seeded(*range(15))).codes
    small = pipe(prompts, num_images_per_prompt=5, generator=seeded(*range(15)), batch_size=4).codes
    assert torch.equal(whole, small)
    assert torch.equal(pipe(prompts[1], generator=seeded(7)).codes[0], whole[7])


def test_options_win_over_the_bundles_defaults(pipe):
    default = pipe("a red bird", generator=seeded(3)).codes
    assert torch.equal(default, pipe("a red bird", guidance_scale=2, generator=seeded(3)).codes)
    assert not torch.equal(default, pipe("a red bird", guidance_scale=6, generator=seeded(3)).codes)
    greedy = [pipe("a red bird", temperature=0, generator=seeded(seed)).codes for seed in (1, 2)]
    assert torch.equal(*greedy)


def test_callback(pipe):
    seen = []
    pipe(
        "a bird",
        callback_on_step_end=lambda pipeline, step, timestep, values: seen.append(
            (pipeline is pipe, step, values["codes"].shape)
        ),
    )
    assert seen == [(True, step, (1, step + 1)) for step in range(32)]


@torch.no_grad()
def test_what_is_done_to_the_model_tells_in_sampling(model, vocabulary, image_tokenizer, tmp_path):
    save_bundle(tmp_path / "bundle", model, vocabulary, image_tokenizer, SamplingConfig(guidance_scale=2), "")
    pipe, plain = (TextToImagePipeline.from_pretrained(tmp_path / "bundle") for _ in range(2))
    before = plain("a red bird", generator=seeded(1)).codes
    assert type(pipe.model).__name__ == "Qwen3ForCausalLM" and pipe.model is pipe.model
    assert torch.equal(pipe("a red bird", generator=seeded(1)).codes, before)
    pipe.model.model.layers[0].mlp.down_proj.weight.mul_(-3)
    changed = pipe("a red bird", generator=seeded(1)).codes
    assert not torch.equal(changed, before)
    pipe.model.model.layers[0].mlp.down_proj.register_forward_hook(lambda module, inputs, output: output / -3)
    assert torch.equal(pipe("a red bird", generator=seeded(1)).codes, before)
    plain.model = pipe.model
    assert plain.model is pipe.model


def test_unseen_words(model, vocabulary, image_tokenizer):
    words = frozenset({"a", "red", "bird"})
    pipe = TextToImagePipeline(Bundle(model, vocabulary, image_tokenizer, SamplingConfig(), words))
    assert pipe.unseen_words("A red bird's nest, a red tree") == ["nest", "tree"]
    assert pipe.unseen_words(["birds", "a red bird", "Birds, trees"]) == ["birds", "trees"]
    assert pipe.unseen_words("a red bird") == []


def test_a_bundle_without_words_says_nothing(pipe):
    assert pipe.unseen_words("hard rock artist performing music") == []


def test_uint8_rounds():
    pixels = torch.tensor([-0.2, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.3]).reshape(1, 1, 2, 3).expand(1, 3, 2, 3)
    assert to_uint8(pixels)[0, :, :, 0].flatten().tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": ["a", "  "]}, "the prompt is empty"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": "a", "num_images_per_prompt": 0}, "num_images_per_prompt=0"),
        ({"prompt": "a", "guidance_scale": -1}, "guidance_scale=-1"),
        ({"prompt": "a", "output_type": "latent"}, "output_type='latent'"),
        ({"prompt": "a", "generator": []}, "0 generators for 1 pictures"),
        ({"prompt": "a bird " * 200}, "expected at most 222"),
    ],
)
def test_wrong_calls_are_named(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(**options)
