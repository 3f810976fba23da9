import io
import json
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from evaluations import Painter
from PIL import Image

from ar_t2i.cli import main
from ar_t2i.data.scenes import example
from ar_t2i.evaluation.compare import CompareConfig, compare
from ar_t2i.evaluation.evaluate import EvaluateConfig, evaluate
from ar_t2i.evaluation.extractors import FeatureExtractor
from ar_t2i.evaluation.frechet import FeatureMoments, frechet_distance
from ar_t2i.evaluation.reference import Measures, reference_pairs, run_reference

MEAN = FeatureExtractor("mean", lambda pictures: pictures.float().mean((2, 3)))


class Blocks:
    """An image tokenizer that keeps all."""

    image_size = 64
    code_vectors = torch.zeros(1)

    def encode(self, pixels):
        return pixels

    def decode(self, codes):
        return codes


@pytest.fixture
def tar(tmp_path):
    """Six captioned pictures, one of them broken, one without a caption."""
    rng = np.random.default_rng(0)
    path = tmp_path / "cc3m.tar"
    with tarfile.open(path, "w") as file:
        for number in range(8):
            content = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(content, "PNG")
            picture = b"none" if number == 3 else content.getvalue()
            for suffix, data in (("png", picture), ("txt", b"" if number == 5 else f"ball {number}".encode())):
                entry = tarfile.TarInfo(f"{number:04d}.{suffix}")
                entry.size = len(data)
                file.addfile(entry, io.BytesIO(data))
    return str(path)


def test_what_a_reference_holds(tar):
    dropped = Counter()
    pairs = list(reference_pairs((tar,), 0, 0, dropped))
    assert [prompt.text for prompt, _ in pairs] == [f"ball {number}" for number in (0, 1, 2, 4, 6, 7)]
    assert sum(dropped.values()) == 2 and len({prompt.id for prompt, _ in pairs}) == 6
    assert all(picture.shape == (256, 256, 3) for _, picture in pairs)
    assert len(list(reference_pairs((tar,), 4, 0, dropped))) == 4
    prompt, picture = next(reference_pairs(("scenes",), 1, 7, dropped))
    image, text, _ = example(7, 0, "validation")
    assert prompt.text == text and np.array_equal(picture, image)


def test_rows_are_those_of_the_sets(tar, tmp_path):
    """The model's row against numbers made here; a tokenizer that keeps all is at the floor of nothing."""
    tokenizer: object = Blocks()
    measures = Measures(extractor=MEAN, image_tokenizer=tokenizer)  # type: ignore[arg-type]
    source = Painter({"pair-0000001", "pair-0000004"})
    part = run_reference("distribution", (tar,), source, measures, tmp_path, count=0, batch_size=4)
    rows = {row["what"]: row for row in part["rows"]}
    assert list(rows) == ["generated", "floor", "real"] and part["pictures"] == 6
    true, painted = FeatureMoments(), FeatureMoments()
    for prompt, picture in reference_pairs((tar,), 0, 0, Counter()):
        true.add(torch.tensor(picture).float().mean((0, 1))[None])
        painted.add(torch.tensor([[255.0, 0, 0] if prompt.id in source.right else [0, 0, 255.0]]))
    found = rows["generated"]["figures"]["frechet_mean"]
    assert found["value"] == pytest.approx(frechet_distance(true, painted), rel=1e-6)
    assert rows["floor"]["figures"]["frechet_mean"]["value"] < found["value"] / 100
    assert rows["real"]["pictures"]["generated"] + rows["real"]["pictures"]["reference"] == 6
    assert (tmp_path / "distribution" / "results.jsonl").read_text().count("\n") == 6
    again = run_reference("distribution", (tar,), source, measures, tmp_path, count=0, batch_size=6)
    assert again["drawn_now"] == 0 and len(source.drawn) == 6


def test_the_verb_and_its_page(tmp_path, capsys):
    out = tmp_path / "out"
    options = {"suite": ("distribution",), "pictures": 12, "batch_size": 8}
    report = evaluate(EvaluateConfig(**options, out=str(out)))
    assert [row["what"] for row in report["suites"][0]["rows"]] == ["generated", "floor", "real"]
    text = (out / "report.html").read_text()
    assert "image tokenizer&#x27;s reconstruction (floor)" in text and text.count("<img ") == 12
    printed, kept = capsys.readouterr().out, (out / "report.md").read_text()
    assert "real against real" in kept and "real against real" in printed
    assert printed.count("need at least 257 pictures") == kept.count("need at least 257 pictures") == 1
    assert kept.count(", not meaningful |") == 4 and text.count("<small>not meaningful</small>") == 3
    assert "frechet_scenes, not meaningful</span>" in text
    evaluate(EvaluateConfig(**options, renderer=True, out=str(tmp_path / "perfect")))
    found = compare(CompareConfig(reports=(str(out), str(tmp_path / "perfect")), out=str(tmp_path / "both")))
    assert [row["name"].partition(":")[0] for row in found["suites"][0]["rows"]] == ["shipped"] * 3 + ["renderer"]
    json.dumps(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "cc3m"], "suite=cc3m needs --reference"),
        (["--suite", "distribution", "--pictures", "0"], "pictures=0 with reference=scenes"),
        (["--suite", "distribution", "--reference", "/none.tar"], "no file matches '/none.tar'"),
        (["--suite", "distribution", "--extractor", "eyes"], "no feature extractor is called 'eyes'"),
        (["--suite", "distribution", "--prompts", "x"], "are --reference's own"),
        (["--suite", "distribution", "--pictures", "1"], "expected at least 2"),
        (["--suite", "distribution", "--count", "1"], "count=1: of whole sets give --pictures"),
        (["--suite", "distribution", "--rounds", "2"], "rounds=2: whole sets hold one picture"),
    ],
)
def test_wrong_input(options, message, tmp_path, capsys):
    assert main(["evaluate", *options, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_cc3m_wants_the_clip_of_the_papers(tar, clip_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("ar_t2i.evaluation.evaluate.load_extractor", lambda *arguments: MEAN)
    options = {"suite": ("cc3m",), "reference": (tar,), "out": str(tmp_path / "out")}
    with pytest.raises(ValueError, match="is no ViT-B/32, which suite=cc3m compares with papers by"):
        evaluate(EvaluateConfig(**options, clip=str(clip_folder)))
