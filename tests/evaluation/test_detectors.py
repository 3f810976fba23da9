"""The open-vocabulary detector: what it makes of a network's boxes and scores, with tiny random networks."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ar_t2i.data.scenes import COLORS
from ar_t2i.evaluation.detectors import MEAN, OpenVocabularyDetector, box_in_pixels, cropped_pixels, padded_pixels
from ar_t2i.evaluation.evaluate import EvaluateConfig, evaluate
from ar_t2i.evaluation.judge import box_overlap

KINDS = ("cat", "dog", "kite")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a tiny OWLv2 and a tiny CLIP."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPModel, Owlv2Config, Owlv2ForObjectDetection, PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", *"a photo of object colored -".split(), *COLORS, *KINDS, "<eos>"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": len(words) - 1, "pad_token_id": 0}
    sight = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    made = {}
    torch.manual_seed(0)
    for name, config, kind, side in (
        ("owlv2", Owlv2Config, Owlv2ForObjectDetection, 64),
        ("clip", CLIPConfig, CLIPModel, 32),
    ):
        made[name] = tmp_path_factory.mktemp(name)
        sizes = {"text_config": {**text, "max_position_embeddings": 16}, "projection_dim": 16}
        model = kind(config(**sizes, vision_config={**sight, "image_size": side, "patch_size": 16}))
        model.save_pretrained(made[name])
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
        fast.save_pretrained(made[name])
    return made


@pytest.fixture
def detector(folders):
    return OpenVocabularyDetector.from_pretrained(KINDS, folders["owlv2"], folders["clip"], threshold=0.0)


def plant(detector, monkeypatch, boxes, logits):
    """Let the network say these boxes (P, 4) and logits (P, K) of every picture."""

    def say(input_ids, attention_mask, pixel_values):
        count = len(pixel_values)
        assert len(input_ids) == len(attention_mask) == count * len(KINDS)
        return SimpleNamespace(
            logits=torch.tensor(logits)[None].repeat(count, 1, 1),
            pred_boxes=torch.tensor(boxes)[None].repeat(count, 1, 1),
        )

    monkeypatch.setattr(detector.model, "forward", say)


def test_a_random_network_gives_readings_within_the_picture(detector):
    images = [Image.effect_noise((80, 48), 90), Image.effect_noise((30, 70), 90), Image.effect_noise((9, 9), 90)]
    readings = detector.read(images)
    assert len(readings) == 3 and any(reading.objects for reading in readings)
    for image, reading in zip(images, readings, strict=True):
        assert reading.place is None
        assert len(reading.objects) <= 16
        for seen in reading.objects:
            assert seen.kind in KINDS and seen.color in COLORS and 0 < seen.score < 1
            assert 0 <= seen.box[0] <= seen.box[2] <= image.width and 0 <= seen.box[1] <= seen.box[3] <= image.height
        assert [seen.score for seen in reading.objects] == sorted((s.score for s in reading.objects), reverse=True)
        for index, seen in enumerate(reading.objects):
            same = [other for other in reading.objects[:index] if other.kind == seen.kind]
            assert all(box_overlap(seen.box, other.box) <= 0.5 for other in same)
    for one, other in zip(readings, detector.read(images, batch_size=1), strict=True):
        assert [seen.kind for seen in one.objects] == [seen.kind for seen in other.objects]


def test_boxes_are_scaled_by_the_longer_side(detector, monkeypatch):
    plant(detector, monkeypatch, [[0.5, 0.25, 0.4, 0.2]], [[-9.0, 3.0, -9.0]])
    [reading] = detector.read([Image.new("RGB", (200, 100))])
    assert reading.objects[0].kind == "dog"
    assert reading.objects[0].box == pytest.approx((60, 30, 140, 70))
    assert reading.objects[0].score == pytest.approx(torch.tensor(3.0).sigmoid().item())
    assert box_in_pixels((0.5, 0.9, 1.2, 1.0), (100, 50)) == (0.0, 40.0, 100.0, 50.0)


def test_of_boxes_of_one_kind_that_overlap_the_surest_stays(detector, monkeypatch):
    boxes = [[0.5, 0.5, 0.4, 0.4], [0.52, 0.5, 0.4, 0.4], [0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4]]
    plant(detector, monkeypatch, boxes, [[1.0, -9, -9], [2.0, -9, -9], [0.5, -9, -9], [-9, 1.5, -9]])
    [reading] = detector.read([Image.new("RGB", (100, 100))])
    assert [(seen.kind, round(seen.box[0])) for seen in reading.objects] == [("cat", 32), ("dog", 30), ("cat", 10)]


def test_a_higher_threshold_leaves_the_surest(detector, monkeypatch):
    boxes = [[0.1 + 0.2 * index, 0.5, 0.1, 0.1] for index in range(5)]
    plant(detector, monkeypatch, boxes, [[level, -9.0, -9.0] for level in (-2.0, -1.0, 0.0, 1.0, 2.0)])
    image, found = Image.new("RGB", (100, 100)), []
    for threshold in (0.0, 0.2, 0.5, 0.6, 0.9):
        detector.threshold = threshold
        found.append([seen.score for seen in detector.read([image])[0].objects])
        assert all(score > threshold for score in found[-1])
    assert [len(scores) for scores in found] == [5, 4, 2, 2, 0]
    assert all(later == sooner[: len(later)] for sooner, later in zip(found, found[1:], strict=False))


def test_without_clip_no_colour_is_told(folders):
    detector = OpenVocabularyDetector.from_pretrained(KINDS, folders["owlv2"], threshold=0.0)
    [reading] = detector.read([Image.effect_noise((64, 64), 90)])
    assert reading.objects and all(seen.color is None for seen in reading.objects)


def test_the_colour_is_that_of_the_box(detector, monkeypatch):
    """CLIP's vision is replaced by one that sees whether a crop is red or blue."""
    boxes = [[0.25, 0.5, 0.4, 0.8], [0.75, 0.5, 0.4, 0.8]]
    plant(detector, monkeypatch, boxes, [[3.0, -9.0, -9.0], [-9.0, 2.0, -9.0]])
    names = list(COLORS)
    basis = torch.eye(len(names))
    detector._colors_of.update(dict.fromkeys(KINDS, basis))

    def sees(pixel_values):
        red = pixel_values[:, 0].mean((1, 2)) > pixel_values[:, 2].mean((1, 2))
        rows = [basis[names.index("red" if is_red else "blue")] for is_red in red]
        return SimpleNamespace(pooler_output=torch.stack(rows))

    monkeypatch.setattr(detector.clip.vision_model, "forward", sees)
    monkeypatch.setattr(detector.clip, "visual_projection", torch.nn.Identity())
    image = Image.new("RGB", (100, 100), (220, 0, 0))
    image.paste((0, 0, 220), (50, 0, 100, 100))
    assert [(seen.kind, seen.color) for seen in detector.read([image])[0].objects] == [("cat", "red"), ("dog", "blue")]


def test_pixels():
    image = Image.new("RGB", (40, 20), (255, 255, 255))
    pixels = padded_pixels(image, 16)
    black = -torch.tensor(MEAN) / torch.tensor((0.26862954, 0.26130258, 0.27577711))
    assert pixels.shape == (3, 16, 16) and torch.allclose(pixels[:, -1, -1], black)
    assert (pixels[:, 0, -1] > 1).all()
    assert cropped_pixels(image, (39.9, 19.9, 40, 20), 8).shape == (3, 8, 8)
    assert cropped_pixels(image, (0, 0, 40, 3), 8).shape == (3, 8, 8)


def test_what_cannot_be_is_told(folders, tmp_path):
    for categories, threshold, words in ((), 0.1, "categories"), (("cat", "cat"), 0.1, "once"), (KINDS, 1.0, "1.0"):
        with pytest.raises(ValueError, match=words):
            OpenVocabularyDetector.from_pretrained(categories, folders["owlv2"], threshold=threshold)
    with pytest.raises(ValueError, match="Owlv2ForObjectDetection"):
        OpenVocabularyDetector.from_pretrained(KINDS, tmp_path)


def test_suites_of_photos_run_from_prompts_to_a_report(folders, clip_folder, tmp_path):
    """With networks of random weights, whose scores mean nothing; each figure is counted again from its lines."""
    names = ("photos/geneval", "photos/binding", "photos/spatial", "photos/multigen")
    networks = {"detector": str(folders["owlv2"]), "clip": str(folders["clip"])}
    report = evaluate(EvaluateConfig(suite=names, count=1, out=str(tmp_path / "a"), **networks))
    captions = tmp_path / "parti.tsv"
    captions.write_text("Prompt\tCategory\na bird\tAnimals\na tall tower\tOutdoor Scenes\n", encoding="utf-8")
    parti = evaluate(
        EvaluateConfig(suite=(f"photos/parti:{captions}",), count=1, clip=str(clip_folder), out=str(tmp_path / "b"))
    )
    checked = 0
    for out, part in [("a", part) for part in report["suites"]] + [("b", parti["suites"][0])]:
        lines = (tmp_path / out / part["folder"] / "results.jsonl").read_text().splitlines()
        scores = [json.loads(line)["scores"][part["headline"]] for line in lines]
        assert len(scores) == part["pictures"] > 0
        assert part["figures"][part["headline"]]["value"] == pytest.approx(sum(scores) / len(scores))
        checked += 1
    assert checked == 5 and (tmp_path / "a" / "report.html").stat().st_size > 10_000
