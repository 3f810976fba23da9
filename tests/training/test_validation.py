"""Pictures judged while training: they change nothing, and figures do not depend on the number of processes."""

import pytest
import torch
from safetensors.torch import load_file

from ar_t2i.bundles import load_bundle
from ar_t2i.config import build
from ar_t2i.data.scenes import COLORS, KINDS, PLACES
from ar_t2i.evaluation import probe
from ar_t2i.evaluation.reader import ReaderConfig, SceneReader
from ar_t2i.evaluation.scenes import SceneVerifier
from ar_t2i.training import validation
from ar_t2i.training.trackers import read_metrics
from ar_t2i.training.validation import DrawnValidation, ValidationConfig

FIGURES = "validation_scene_score", "validation_frechet_scenes"


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Options of a suite with a verifier of random weights; real scenes are made as small as it reads."""
    torch.manual_seed(1)
    sizes = {"stem_width": 4, "fine_width": 4, "wide_width": 6, "fine_blocks": 0, "wide_blocks": 0}
    names = {"kinds": tuple(KINDS), "colors": tuple(COLORS), "places": tuple(PLACES)}
    reader = SceneReader(ReaderConfig(image_size=64, **sizes, **names)).eval()
    SceneVerifier(reader).save_pretrained(tmp_path / "verifier")
    whole = probe.draw
    monkeypatch.setattr(probe, "draw", lambda scene: whole(scene).resize((64, 64)))
    return {"prompts": 5, "real_pictures": 9, "verifier": str(tmp_path / "verifier")}


def figures(output) -> list[list[float]]:
    records = [record for record in read_metrics(output / "metrics.jsonl") if FIGURES[0] in record]
    return [[record[name] for name in FIGURES] for record in records]


def test_a_run_with_judged_pictures_has_the_same_weights(train_run, judged, tmp_path):
    shaky = {"model": {"dropout": 0.1}, "data": {"bpe_dropout": 0.1}}
    plain = train_run(output=str(tmp_path / "plain"), **shaky)
    seen = train_run(output=str(tmp_path / "seen"), validation=judged, **shaky)
    assert figures(plain) == [] and len(figures(seen)) == 2
    compared = 0
    for name in ("model.safetensors", "ema.safetensors"):
        one, two = (load_file(run / "checkpoints" / "step-000008" / name) for run in (plain, seen))
        for key in one:
            assert torch.equal(one[key], two[key]), key
            compared += 1
    assert compared > 20
    bundle = load_bundle(seen / "bundle")  # the averaged weights, which are those that are judged
    suite = DrawnValidation(
        build(ValidationConfig, judged), bundle.vocabulary, bundle.image_tokenizer, bundle.sampling
    )
    assert list(suite.measure(bundle.model, Ranks(0, 1)).values()) == pytest.approx(figures(seen)[-1], rel=1e-4)


class Ranks:
    """One process of several that add up what the others left in `parts`."""

    device = torch.device("cpu")

    def __init__(self, process_index, num_processes, parts=()):
        self.process_index, self.num_processes, self.parts = process_index, num_processes, parts

    def reduce(self, tensor, how):
        assert how == "sum"
        self.sent = tensor
        return tensor + sum(self.parts)


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_rows_are_the_same_from_any_number_of_processes(processes):
    table, asked = torch.rand(5, 3, dtype=torch.float64), []

    def rows(mine):
        asked.append(list(mine))
        return table[list(mine)]

    ranks = [Ranks(number, processes) for number in range(processes)]
    for rank in ranks:
        validation.gathered(5, rows, rank)
    last = Ranks(processes - 1, processes, [rank.sent for rank in ranks[:-1]])
    assert torch.equal(validation.gathered(5, rows, last), table)
    assert max(len(mine) for mine in asked) == -(-5 // processes)
    assert torch.equal(validation.gathered(5, rows, Ranks(0, 1)), table)


def test_what_cannot_be_judged_is_refused(train_run, judged, tmp_path):
    with pytest.raises(ValueError, match="makes pictures of 64 pixels, the scene verifier reads 256; set it to 0"):
        train_run(validation={"prompts": 4})
    with pytest.raises(ValueError, match="no scene verifier at"):
        train_run(validation={"prompts": 4, "verifier": str(tmp_path / "none")})
    with pytest.raises(ValueError, match="validation.prompts=1: expected at least 2"):
        train_run(validation={"prompts": 1})
    with pytest.raises(ValueError, match="the prompt has"):
        train_run(validation=judged, model={"max_positions": 40}, data={"max_caption_length": 6})
    assert not (tmp_path / "run").exists()
