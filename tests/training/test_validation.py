"""Pictures judged while training: they change nothing, and figures do not depend on the number of processes."""

import launch
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from ar_t2i.bundles import load_bundle
from ar_t2i.config import build
from ar_t2i.data.dataset import load_rows
from ar_t2i.data.scenes import COLORS, KINDS, PLACES
from ar_t2i.evaluation import probe
from ar_t2i.evaluation.alignment import ClipScorer
from ar_t2i.evaluation.frechet import FeatureMoments
from ar_t2i.evaluation.probe import ClipJudge
from ar_t2i.evaluation.prompts import Prompt
from ar_t2i.evaluation.reader import ReaderConfig, SceneReader
from ar_t2i.evaluation.scenes import SceneVerifier
from ar_t2i.pipeline import TextToImagePipeline, to_uint8
from ar_t2i.slots import SlotConfig, SlotTokenizer
from ar_t2i.training import validation
from ar_t2i.training.trackers import read_metrics
from ar_t2i.training.validation import DrawnValidation, ValidationConfig

FIGURES = "validation_scene_score", "validation_frechet_scenes"
CLIP_FIGURES = "validation_clip_score", "validation_frechet_clip"


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


def figures(output, names=FIGURES) -> list[list[float]]:
    records = [record for record in read_metrics(output / "metrics.jsonl") if names[-1] in record]
    return [[record[name] for name in names] for record in records]


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


def test_clip_judges_a_model_of_anything(train_run, clip_folder):
    """Captions of the validation split, and what the image tokenizer makes of its codes."""
    options = {"prompts": 4, "real_pictures": 6, "clip": str(clip_folder)}
    run = train_run(validation=options)
    last = [record for record in read_metrics(run / "metrics.jsonl") if "validation_clip_score" in record][-1]
    bundle, rows = load_bundle(run / "bundle"), load_rows(dataset_of(run), "validation")
    pipe, judge = TextToImagePipeline(bundle), ClipJudge(ClipScorer.from_pretrained(clip_folder))
    texts = rows["text"][:4]
    codes = pipe.draw_codes(pipe.encode_prompts(texts), bundle.sampling, probe.random_numbers(4, 32, 0))
    prompts = [Prompt(id=str(number), text=text, category="all") for number, text in enumerate(texts)]
    marks = judge.mark(prompts, [Image.fromarray(each) for each in to_uint8(pipe.decode(codes))])
    real = FeatureMoments()
    painted = pipe.decode(torch.tensor(rows["image_tokens"][:6]))
    real.add(judge.features([Image.fromarray(each) for each in to_uint8(painted)]))
    assert last["validation_clip_score"] == pytest.approx(marks.alignment, abs=1e-5)
    assert last["validation_frechet_clip"] == pytest.approx(marks.distance(real), rel=1e-3)
    assert "CLIP's cosine" in (run / "bundle" / "README.md").read_text()
    with pytest.raises(ValueError, match="the validation split has 0 captions to draw"):
        train_run(output="none", validation=options, data={"validation_split": ""})
    with pytest.raises(ValueError, match="no CLIP can be loaded"):
        train_run(output="none", validation={**options, "clip": str(run)})
    with pytest.raises(ValueError, match="verifier and validation.clip are given"):
        train_run(output="none", validation={**options, "verifier": "x"})


def dataset_of(run) -> str:
    return yaml.safe_load((run / "config.yaml").read_text())["data"]["dataset"]


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["scenes", "clip"])
def test_two_processes_tell_the_same_as_one(judge, train_run, run_options, clip_folder, tmp_path):
    """An uneven number of pictures, from a tokenizer of random weights that paints as large as the verifier reads."""
    torch.manual_seed(0)
    small = {"code_dim": 2, "stage_widths": (8, 8, 8, 8), "regions": (2, 2), "unmixer_width": 16}
    SlotTokenizer(SlotConfig(image_size=256, **small)).save_pretrained(tmp_path / "painter")
    options = {
        **run_options,
        "image_tokenizer": str(tmp_path / "painter"),
        "loop": {**run_options["loop"], "steps": 2, "evaluate_every": 1},
        "samples": {"prompts": []},
        "validation": {"prompts": 5, "real_pictures": 7, "clip": str(clip_folder) if judge == "clip" else ""},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(options))
    launch.launch(tmp_path / "run.yaml", f"output={tmp_path / 'two'}", "data.batch_size=8", processes=2)
    alone = train_run(**{**options, "output": str(tmp_path / "alone")})
    names = ("validation_image_loss", *(FIGURES if judge == "scenes" else CLIP_FIGURES))
    one, two = figures(alone, names), figures(tmp_path / "two", names)
    assert len(one) == len(two) == 2 and two[0] == pytest.approx(one[0], rel=1e-5)
    assert two[1] == pytest.approx(one[1], rel=2e-3)  # gradients are summed in another order


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
