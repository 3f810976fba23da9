"""Marks of pictures of fixed prompts, on an image tokenizer and a verifier with random weights."""

import numpy as np
import pytest
import torch

from ar_t2i.bundles import Bundle
from ar_t2i.data.scenes import COLORS, KINDS, PLACES, draw, scene_at
from ar_t2i.evaluation.frechet import FeatureMoments
from ar_t2i.evaluation.probe import Marks, SceneJudge, measure, random_numbers, real_scenes, scene_prompts
from ar_t2i.evaluation.prompts import Prompt
from ar_t2i.evaluation.reader import ReaderConfig, SceneReader
from ar_t2i.evaluation.scenes import SceneVerifier
from ar_t2i.pipeline import TextToImagePipeline
from ar_t2i.sampling.logits import SamplingConfig


@pytest.fixture
def judge():
    torch.manual_seed(0)
    sizes = {"stem_width": 4, "fine_width": 4, "wide_width": 6, "fine_blocks": 0, "wide_blocks": 0}
    names = {"kinds": tuple(KINDS), "colors": tuple(COLORS), "places": tuple(PLACES)}
    return SceneJudge(SceneVerifier(SceneReader(ReaderConfig(image_size=64, **sizes, **names)).eval()))


def test_the_shipped_verifier_knows_scenes_that_are_right():
    judge, prompts = SceneJudge.from_pretrained(), scene_prompts(12, seed=3)
    assert prompts[:5] == scene_prompts(5, seed=3) != scene_prompts(5, seed=4)
    images = [draw(scene_at(3, index, "validation")[0]) for index in range(12)]
    marks, others = judge.mark(prompts, images), judge.mark(prompts, images[1:] + images[:1])
    assert marks.alignment >= 0.9 and others.alignment <= 0.2
    assert torch.equal(marks.features_ND, judge.features(images)) and marks.features_ND.shape == (12, 256)
    assert torch.equal(others.features_ND[:-1], marks.features_ND[1:]) or torch.allclose(
        others.features_ND[:-1], marks.features_ND[1:], atol=1e-5
    )
    assert not judge.verifier.reader.cells._forward_pre_hooks, "the hook is gone"
    with pytest.raises(ValueError, match="does not say what must be seen"):
        judge.mark([Prompt(id="a", text="a red bird", category="all")], images[:1])
    near, far = real_scenes(judge, 16, seed=3), FeatureMoments()
    far.add(judge.features([image.point(lambda value: 255 - value) for image in images]))
    assert marks.distance(near) < marks.distance(far)


def test_marks_do_not_depend_on_how_pictures_are_spread(model, vocabulary, image_tokenizer, judge):
    pipe = TextToImagePipeline(Bundle(model, vocabulary, image_tokenizer, SamplingConfig()))
    prompts, uniform = scene_prompts(6, seed=0), random_numbers(6, 32, seed=0)
    captions, sampling = pipe.encode_prompts([prompt.text for prompt in prompts]), SamplingConfig(guidance_scale=2)
    whole = measure(pipe, judge, prompts, captions, sampling, uniform)
    assert torch.equal(uniform[:4], random_numbers(4, 32, seed=0)) and len(uniform.unique()) == 6 * 32
    for size in (1, 4):
        parts = measure(pipe, judge, prompts, captions, sampling, uniform, batch_size=size)
        torch.testing.assert_close(parts.features_ND, whole.features_ND, atol=1e-5, rtol=1e-5)
        assert torch.equal(parts.scores_N, whole.scores_N)
    part = measure(pipe, judge, prompts[1::2], captions[1::2], sampling, uniform[1::2])
    torch.testing.assert_close(part.features_ND, whole.features_ND[1::2], atol=1e-5, rtol=1e-5)


def test_resampled_marks_are_those_of_the_chosen_pictures():
    marks = Marks(torch.tensor([0.0, 1.0, 1.0]).double(), torch.arange(6).reshape(3, 2).double())
    again = marks.resampled(np.array([2, 2, 0]))
    assert again.scores_N.tolist() == [1, 1, 0] and again.features_ND.tolist() == [[4, 5], [4, 5], [0, 1]]
    assert marks.alignment == pytest.approx(2 / 3)
