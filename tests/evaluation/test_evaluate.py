import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluations import PAINT, ColorDetector, Painter, paint
from PIL import Image

from ar_t2i.cli import main
from ar_t2i.evaluation.evaluate import EvaluateConfig, evaluate
from ar_t2i.evaluation.harness import by_detector, run_suite, suite_folder, weights_fingerprint
from ar_t2i.evaluation.pictures import check_ids, draw_missing
from ar_t2i.evaluation.prompts import Prompt, read_prompts
from ar_t2i.evaluation.results import read_results
from ar_t2i.evaluation.sources import BundleSource, FolderSource, RendererSource, seed_of, squared
from ar_t2i.evaluation.suites.asked import check_asked
from ar_t2i.evaluation.suites.catalogue import SUITES
from ar_t2i.infer import InferConfig, infer

SUITE = "scenes/basic"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The verb on the shipped bundle, one prompt of each category: its folder and its report."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("shipped")
    return out, evaluate(EvaluateConfig(out=str(out), suite=(SUITE,), count=1, batch_size=8))


def recount(path):
    """All figures of a suite from its lines alone."""
    rows = [json.loads(line) for line in (path / "results.jsonl").read_text().splitlines()]
    found = {}
    for category in [*dict.fromkeys(row["category"] for row in rows), None]:
        for metric in rows[0]["scores"]:
            scores = {}
            for row in rows:
                if category in (None, row["category"]) and row["scores"][metric] is not None:
                    scores.setdefault(row["id"], []).append(row["scores"][metric])
            if scores:
                found[category, metric, "value"] = np.mean([np.mean(values) for values in scores.values()])
                found[category, metric, "count"] = len(scores)
    return found


def reported(part):
    whole = {**part["categories"], None: part["figures"]}
    return {
        (category, metric, what): figure[what]
        for category, figures in whole.items()
        for metric, figure in figures.items()
        for what in ("value", "count")
    }


def test_the_report_says_what_the_lines_say(shipped, tmp_path):
    out, report = shipped
    (part,) = report["suites"]
    assert json.loads((out / "report.json").read_text()) == report
    assert reported(part) == pytest.approx(recount(out / part["folder"])) and len(part["figures"]) >= 3
    assert part["pictures"] == part["prompts"] == len(list((out / part["folder"] / "pictures").iterdir()))
    assert report["source"]["settings"]["sampling"]["guidance_scale"] == 2.5 and report["versions"]["torch"]
    rounds = paint(tmp_path, {"ball-00", ("ball-01", 1), ("cube_x-03", 0)}, rounds=3)["suites"][0]
    assert reported(rounds) == pytest.approx(recount(tmp_path / "scenes/paint"))
    assert rounds["figures"]["right"]["value"] == pytest.approx((1 + 1 / 3 + 1 / 3) / 8)
    assert rounds["figures"]["right"]["interval"] == "bootstrap"
    assert rounds["figures"]["right"]["deviation"] == pytest.approx(np.std([2 / 8, 2 / 8, 1 / 8], ddof=1))


def test_intervals(tmp_path):
    """Wilson's for yes and no with a picture a prompt, else a bootstrap."""
    part = paint(tmp_path, {"ball-00", "ball-01", "ball-02", "cube_x-00", "cube_x-01", "cube_x-02"}, count=4)[
        "suites"
    ][0]
    right, half = part["figures"]["right"], part["figures"]["half"]
    assert right["interval"] == "Wilson" and (right["value"], right["count"]) == (0.75, 8)
    assert (right["low"], right["high"]) == pytest.approx((0.4093, 0.9285), abs=1e-4)
    assert half["interval"] == "bootstrap" and 0.25 <= half["low"] < half["value"] == 0.625 < half["high"] <= 0.75
    assert part["figures"]["even"]["count"] == 4


def test_a_killed_run_goes_on(tmp_path):
    """What is there and fits is neither drawn nor read again; the figures are those of a run in one go."""
    right = {"ball-01", "cube_x-00"}
    whole = paint(tmp_path / "whole", right)
    source, detector = Painter(right), ColorDetector()
    folder = tmp_path / "killed" / "scenes/paint"
    paint(tmp_path / "killed", right)
    for name in ("ball-02-0.png", "cube_x-03-0.png"):
        (folder / "pictures" / name).unlink()
    (folder / "pictures" / "ball-00-0.png").write_bytes((folder / "pictures" / "ball-00-0.png").read_bytes()[:99])
    lines = (folder / "results.jsonl").read_text()
    (folder / "results.jsonl").write_text(lines[: len(lines) * 2 // 3])
    scorer = by_detector(PAINT, detector, {"name": "colors", "weights": "none"})
    part = run_suite(PAINT, PAINT.prompts(4, 0), source, scorer, tmp_path / "killed")
    assert source.drawn == [("ball-00", 0), ("ball-02", 0), ("cube_x-03", 0)]
    assert 1 <= detector.read_pictures < 8
    again = whole["suites"][0]
    assert (part["figures"], part["categories"]) == (again["figures"], again["categories"])
    for path in (tmp_path / "whole" / "scenes/paint" / "pictures").iterdir():
        assert path.read_bytes() == (folder / "pictures" / path.name).read_bytes()
    assert (tmp_path / "whole/scenes/paint/results.jsonl").read_text() == (folder / "results.jsonl").read_text()


def test_other_settings_are_made_again(tmp_path):
    source = Painter({"ball-01"})
    paint(tmp_path, (), source=source)
    paint(tmp_path, (), source=source)
    assert len(source.drawn) == 8
    other = Painter({"ball-02"})
    report = paint(tmp_path, (), source=other)
    assert len(other.drawn) == 8 and report["suites"][0]["figures"]["right"]["value"] == 1 / 8
    detector = ColorDetector()
    for _ in range(2):
        run_suite(PAINT, PAINT.prompts(4, 0), other, by_detector(PAINT, detector, {"name": "new"}), tmp_path)
    assert detector.read_pictures == 8


def test_a_picture_hangs_on_prompt_seed_and_round_alone(shipped):
    out, report = shipped
    folder = out / report["suites"][0]["folder"]
    prompts = read_prompts(folder / "prompts.jsonl")
    source = BundleSource("ar_t2i/bundle", seed=0, options={}, batch_size=2)
    chosen = prompts[::-3]
    for prompt, image in zip(chosen, source.draw(chosen, 0), strict=True):
        kept = np.asarray(Image.open(folder / "pictures" / f"{prompt.id}-0.png"))
        assert np.abs(np.asarray(image).astype(int) - kept).max() <= 1
    seeds = {seed_of(seed, prompt, round) for seed in (0, 1) for prompt in prompts for round in (0, 1)}
    assert len(seeds) == 4 * len(prompts)


def test_pictures_of_a_folder_score_as_where_they_come_from(shipped, tmp_path):
    out, report = shipped
    part = report["suites"][0]
    again = evaluate(
        EvaluateConfig(images=str(out / part["folder"] / "pictures"), suite=(SUITE,), count=1, out=str(tmp_path))
    )
    assert again["suites"][0]["figures"] == part["figures"]
    assert again["source"]["settings"]["kind"] == "folder"


def test_kept_prompts(shipped, tmp_path):
    """A kept prompts.jsonl is taken as it is; the pictures are those of the run that made it."""
    out, report = shipped
    kept = out / report["suites"][0]["folder"] / "prompts.jsonl"
    few = tmp_path / "few.jsonl"
    few.write_text("".join(kept.read_text().splitlines(keepends=True)[:2]))
    part = evaluate(EvaluateConfig(prompts=str(few), suite=(SUITE,), out=str(tmp_path / "out")))["suites"][0]
    folder = tmp_path / "out" / part["folder"]
    assert (folder / "prompts.jsonl").read_text() == few.read_text() and part["prompts"] == 2
    mine, theirs = read_results(folder / "results.jsonl"), read_results(kept.parent / "results.jsonl")
    assert [result.scores for result in mine] == [result.scores for result in theirs[:2]]


PROMPTS = [Prompt(id="a", text="a red ball", category="x"), Prompt(id="b", text="a blue ball", category="x")]


def solid(color, size=(256, 256)):
    return Image.new("RGB", size, color)


def drawn(folder, round=0, prompts=PROMPTS):
    return [image.getpixel((128, 128)) for image in FolderSource(str(folder)).draw(prompts, round)]


def test_pictures_by_id(tmp_path):
    solid("red", (300, 200)).save(tmp_path / "a.png")
    solid("blue").save(tmp_path / "b-0.png")
    solid("lime").save(tmp_path / "a-1.png")
    assert drawn(tmp_path) == [(255, 0, 0), (0, 0, 255)]
    assert drawn(tmp_path, 1, PROMPTS[:1]) == [(0, 255, 0)]
    with pytest.raises(ValueError, match=r"lacks 1 of 2 pictures of round 1: b; expected b.png"):
        drawn(tmp_path, 1)


def test_pictures_by_metadata(tmp_path):
    for name, color in (("x", "red"), ("y", "blue"), ("z", "lime")):
        solid(color).save(tmp_path / f"{name}.png")
    rows = [("x.png", "a red ball"), ("y.png", "a blue ball"), ("z.png", "a red ball")]
    for suffix, text in (
        (".jsonl", "".join(json.dumps({"file_name": name, "text": words}) + "\n" for name, words in rows)),
        (".csv", "file_name,text\n" + "".join(f"{name},{words}\n" for name, words in rows)),
    ):
        (tmp_path / f"metadata{suffix}").write_text(text)
        assert drawn(tmp_path) == [(255, 0, 0), (0, 0, 255)] and drawn(tmp_path, 1, PROMPTS[:1]) == [(0, 255, 0)]
        (tmp_path / f"metadata{suffix}").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "../x.png", "text": "a red ball"}\n')
    with pytest.raises(ValueError, match="outside of the folder"):
        drawn(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file": "x.png"}\n')
    with pytest.raises(ValueError, match="expected the columns file_name and text"):
        drawn(tmp_path)


def test_a_folder_that_changes_is_another_source(tmp_path):
    """Pictures of a table's folders below, and the table itself, are told as well; so nothing stale is kept."""
    (tmp_path / "below").mkdir()
    seen = []
    for color, words in (("red", "a red ball"), ("blue", "a red ball"), ("blue", "a blue ball")):
        solid(color, (256 if color == "red" else 255, 256)).save(tmp_path / "below" / "x.png")
        (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "below/x.png", "text": words}) + "\n")
        seen.append(FolderSource(str(tmp_path)).settings["files"])
    assert len(set(seen)) == 3 and FolderSource(str(tmp_path)).settings["files"] == seen[-1]


def test_what_is_asked_for_tells_pictures_apart(tmp_path):
    """The renderer draws what is asked for, which may change under one text."""
    source, asked = RendererSource(0), {"objects": [{"count": 1, "kind": "bird", "color": "red"}]}
    first = Prompt(id="a", text="a bird", category="x", asked=asked)
    other = replace(first, asked={"objects": [{"count": 1, "kind": "bird", "color": "blue"}]})
    drawn = [len(list(draw_missing(source, [prompt], 0, tmp_path))) for prompt in (first, first, other)]
    assert drawn == [1, 0, 1]


def test_weights_are_told_by_what_they_hold(tmp_path):
    for name, content in (("one", b"a"), ("two", b"b"), ("copy", b"a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    one, two, copy = (weights_fingerprint(tmp_path / name) for name in ("one", "two", "copy"))
    assert one == copy != two and weights_fingerprint("owner/name") == "owner/name"


def test_pictures_of_infer_know_their_prompt(tmp_path, capsys):
    paths = infer(InferConfig(prompt=("a red ball", "a blue ball"), num_images=2, out=str(tmp_path)))
    source = FolderSource(str(tmp_path))
    assert [[source.find(prompt, round) for round in (0, 1)] for prompt in PROMPTS] == [paths[:2], paths[2:]]


def test_the_crop_rule():
    wide = solid("red", (512, 256))
    wide.paste(solid("blue", (256, 256)), (128, 0))
    assert squared(wide).getcolors() == [(256 * 256, (0, 0, 255))]
    assert squared(solid("red", (64, 48))).size == (256, 256)


def test_the_renderer_errs_nowhere(tmp_path):
    """So what is missing to 100 % is the verifier's."""
    names = tuple(name for name in SUITES if name.startswith("scenes/"))
    report = evaluate(EvaluateConfig(renderer=True, suite=names, count=2, out=str(tmp_path)))
    assert [part["suite"] for part in report["suites"]] == list(names) and len(names) > 3
    for part in report["suites"]:
        assert part["figures"][part["headline"]]["value"] > 0.9, part["suite"]


@pytest.fixture
def tiny_pipeline(tmp_path):
    """Stable Diffusion as small as can be, with random weights, as a folder that diffusers loads."""
    diffusers = pytest.importorskip("diffusers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = {"<|endoftext|>": 0, "a": 1, "red": 2, "ball": 3}
    raw = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<|endoftext|>", eos_token="<|endoftext|>", model_max_length=12
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=12, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 8), layers_per_block=1,
        norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=diffusers.DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.filterwarnings("default")
def test_any_pipeline_of_diffusers(tiny_pipeline, tmp_path):
    names = [name for name, suite in SUITES.items() if suite.domain == "scenes" and suite.scored_by == "detector"]
    options = {"diffusers": str(tiny_pipeline), "suite": tuple(names), "count": 1, "num_inference_steps": 1}
    report = evaluate(EvaluateConfig(**options, batch_size=4, out=str(tmp_path / "out")))
    assert [part["suite"] for part in report["suites"]] == names
    assert report["source"]["facts"]["model"] == "StableDiffusionPipeline"
    for part in report["suites"]:
        assert part["pictures"] >= 1 and part["figures"][part["headline"]]["value"] <= 1
    before = (tmp_path / "out" / report["suites"][0]["folder"] / "results.jsonl").read_text()
    again = evaluate(EvaluateConfig(**options, batch_size=1, out=str(tmp_path / "again")))
    after = (tmp_path / "again" / again["suites"][0]["folder"] / "results.jsonl").read_text()
    ids = [[json.loads(line)["id"] for line in text.splitlines()] for text in (before, after)]
    assert ids[0] == ids[1]


def test_the_verb(shipped, tmp_path, capsys):
    out, report = shipped
    shutil.copytree(out, tmp_path / "out")
    assert main(["evaluate", "--suite", SUITE, "--count", "1", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"{100 * report['suites'][0]['figures']['right']['value']:.1f} %" in printed and "report.html" in printed
    assert json.loads((tmp_path / "out" / "report.json").read_text())["suites"][0]["drawn_now"] == 0


def test_help_tells_the_other_verbs(capsys):
    for verb_name in ("evaluate", "evaluate compare", "evaluate blind"):
        with pytest.raises(SystemExit):
            main([*verb_name.split(), "--help"])
        printed = capsys.readouterr().out
        assert f"usage: ar-t2i {verb_name} " in printed
        assert ("ar-t2i evaluate compare " in printed) == (verb_name in ("evaluate", "evaluate compare"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "scenes/none"], "suite 'scenes/none' is not known; use one of"),
        (["--suite", SUITE, "--suite", SUITE], "expected at least one suite, each once"),
        (["--bundle", "/none"], "'/none' is neither a folder here nor an id of the Hub"),
        (["--images", "/none"], "images='/none' is no folder"),
        (["--images", "/tmp", "--bundle", "/tmp"], "bundle and images are given: expected one of them"),
        (["--images", "/tmp", "--top-k", "3"], "top_k means nothing for images"),
        (["--num-inference-steps", "3"], "num_inference_steps means nothing for bundle"),
        (["--count", "0"], "count=0: expected at least 1"),
        (["--rounds", "0"], "rounds=0: expected at least 1"),
        (["--seed", "-1"], "seed=-1: expected 0 to"),
        (["--prompts", "x", "--count", "3"], "count=3 with prompts='x': a file is taken whole"),
        (["--prompts", "/none"], "cannot read prompts from '/none'"),
        (["--top-p", "2"], "top_p=2.0"),
        (["--verifier", "/none"], "no scene verifier at '/none'"),
    ],
)
def test_wrong_input_is_one_line(options, message, tmp_path, capsys):
    assert main(["evaluate", *options, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and message in error[0], error
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(capsys):
    assert main(["evaluate", "--suite", SUITE, "--count", "1", "--out", "/proc/none"]) == 2
    assert "cannot write out='/proc/none'" in capsys.readouterr().err


def test_prompts_that_ask_for_nothing(tmp_path, capsys):
    (tmp_path / "lines.txt").write_text("a red ball\n")
    command = ["evaluate", "--suite", SUITE, "--prompts", str(tmp_path / "lines.txt"), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "cannot score line-00001: it does not say what must be seen" in capsys.readouterr().err


RED = {"count": 1, "kind": "bird", "color": "red"}


@pytest.mark.parametrize(
    ("suite", "asked", "message"),
    [
        ("scenes/basic", {"things": []}, '"asked" has no list "objects"'),
        ("scenes/basic", {"objects": [3]}, 'one of "objects" is 3'),
        ("scenes/basic", {"objects": [{"kind": "bird"}]}, "a count is None: expected an integer"),
        ("scenes/basic", {"objects": [{"count": True, "kind": "bird"}]}, "a count is True: expected an integer"),
        ("scenes/basic", {"objects": [{"count": 1, "kind": ["bird"]}]}, "a kind is ['bird']: expected one of"),
        ("photos/multigen", {"objects": [{"count": 1, "kind": "dragon"}]}, "a kind is 'dragon': expected one of"),
        ("scenes/binding", {"objects": [{"count": 1, "kind": "bird"}]}, "a color is 'missing': expected null or"),
        ("scenes/binding", {"objects": [RED]}, "does not ask for two things, each in a colour"),
        ("scenes/binding", {"objects": [RED, {**RED, "color": None}]}, "does not ask for two things, each in a col"),
        ("scenes/spatial", {"objects": [RED, RED]}, "does not ask for one relation"),
        ("scenes/spatial", {"objects": [RED, RED], "relations": [[0, "near", 1]]}, "a relation is [0, 'near', 1]"),
        ("scenes/spatial", {"objects": [RED, RED], "relations": [[0, "on", 2]]}, "is not between two of the 2"),
        ("scenes/geneval", {"objects": [RED, RED], "relations": [[0, "on", 1]]}, "asks for 'on': geneval scores left"),
        ("scenes/geneval", {"objects": [RED], "relations": {}}, '"relations" are {}'),
        ("scenes/basic", {"objects": [RED], "place": "moon"}, "the place is 'moon': expected one of"),
        ("scenes/basic", {"objects": [{**RED, "size": "huge"}]}, "size 'huge' is not known"),
        ("scenes/basic", [], "line 1: asked is []: expected a json object"),
        ("photos/binding", {"objects": [RED, RED]}, "asks for colours, which CLIP says in photos: give --clip"),
    ],
)
def test_prompts_of_a_wrong_form(suite, asked, message, tmp_path, capsys):
    prompt = {"id": "mine", "text": "a red bird", "category": "all", "asked": asked}
    (tmp_path / "mine.jsonl").write_text(json.dumps(prompt) + "\n")
    command = ["evaluate", "--suite", suite, "--prompts", str(tmp_path / "mine.jsonl")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and message in error[0] and not (tmp_path / "out").exists(), error


def test_all_prompts_of_a_suite_have_its_form():
    checked = 0
    for name, suite in SUITES.items():
        for prompt in suite.prompts(2, 0) if not name.endswith("optigen") else ():  # a minute of a language model
            check_asked(suite, prompt)
            checked += 1
    assert checked > 50
    with pytest.raises(ValueError, match="asks for colours"):
        evaluate(EvaluateConfig(suite=("photos/geneval",), detector="/none", out="/none"))


def test_ids_are_file_names():
    for id in ("../x", "a/b", "", ".hidden", "a b", "x" * 201):
        with pytest.raises(ValueError, match="cannot name a picture"):
            check_ids([Prompt(id=id, text="a ball", category="x")])
    assert suite_folder("photos/parti:../../etc/x.tsv") == "photos/parti/suite/etc/x-tsv"
