import hashlib
import json
import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ar_t2i.bundles import shipped_bundle
from ar_t2i.cli import main
from ar_t2i.data import scenes
from ar_t2i.evaluation import inception
from ar_t2i.evaluation.extractors import INCEPTION, FeatureExtractor
from ar_t2i.evaluation.frechet import FeatureMoments, frechet_distance
from ar_t2i.evaluation.inception import load_inception
from ar_t2i.evaluation.tokenizer import Comparison, TokenizerEvaluationConfig, evaluate_tokenizer
from ar_t2i.image_tokenizer import load_image_tokenizer
from ar_t2i.likeness import psnr, ssim
from ar_t2i.perceptual import load_perceptual
from ar_t2i.pipeline import to_uint8

PICTURES = 23
FAKE = FeatureExtractor("fake", lambda pictures: pictures.float().mean((2, 3)))


@pytest.fixture(scope="module")
def pictures():
    """Smooth pictures of 64x64 with some noise, uint8."""
    rng = np.random.default_rng(0)
    coarse = [
        Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((64, 64)) for _ in range(PICTURES)
    ]
    return np.stack([np.asarray(picture) for picture in coarse])


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory):
    """As png files without captions, and three files that are no good pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:02d}.png")
    (folder / "10-broken.png").write_bytes((folder / "10.png").read_bytes()[:200])
    (folder / "11-empty.png").touch()
    (folder / "12-empty.png").touch()
    return folder


class BlockTokenizer(torch.nn.Module):
    """A code is the mean colour of one of 8x4 blocks, 16 steps a channel: no two codes are ever close to a tie."""

    num_codes, codebook_size, image_size, fingerprint = 32, 4096, 64, "blocks"

    def encode(self, pixels):
        steps = (F.avg_pool2d(pixels, (8, 16)) * 15.99).long()
        return (steps[:, 0] * 256 + steps[:, 1] * 16 + steps[:, 2]).flatten(1)

    def decode(self, codes):
        steps = torch.stack([codes // 256, codes // 16 % 16, codes % 16], dim=1).unflatten(2, (8, 4))
        return F.interpolate((steps + 0.5) / 16, scale_factor=(8.0, 16.0))


@pytest.fixture
def blocks():
    return BlockTokenizer()


@pytest.fixture
def evaluate(folder, blocks, tmp_path, monkeypatch):
    monkeypatch.setattr("ar_t2i.evaluation.tokenizer.load_image_tokenizer", lambda folder: blocks)

    def run(extractor=None, **changes):
        options = {"data": (str(folder),), "tokenizer": str(folder), "count": 0, **changes}
        return evaluate_tokenizer(
            TokenizerEvaluationConfig(out=str(tmp_path / "out"), device="cpu", **options), extractor=extractor
        )

    return run


def flat(metrics):
    return {
        f"{name}.{part}": figure
        for name, value in metrics.items()
        for part, figure in (value if isinstance(value, dict) else {"": value}).items()
    }


def test_figures_are_those_of_all_pictures_together(evaluate, pictures, blocks):
    """Whatever the size of the batches, and worked out here without any."""
    found = [flat(evaluate(FAKE, batch_size=size, perceptual="pyramid")["metrics"]) for size in (1, 5, 100)]
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        codes = blocks.encode(pixels)
        rebuilt = blocks.decode(codes)
    before, after = FeatureMoments(), FeatureMoments()
    before.add(torch.from_numpy(pictures).float().mean((1, 2)))
    after.add(torch.from_numpy(to_uint8(rebuilt)).float().mean((1, 2)))
    chances = np.unique(codes, return_counts=True)[1] / codes.numel()
    expected = {
        "psnr.mean": psnr(pixels, rebuilt).mean().item(),
        "ssim.mean": ssim(pixels, rebuilt).mean().item(),
        "pyramid.": load_perceptual("pyramid")(pixels, rebuilt).mean().item(),
        "frechet_fake.": frechet_distance(before, after),
        "codes_used.": len(chances),
        "codes_used_share.": len(chances) / 4096,
        "perplexity.": np.exp(-(chances * np.log(chances)).sum()),
        "codes.": 32 * PICTURES,
    }
    for metrics in found:
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-6)
        assert metrics == pytest.approx(found[0], rel=1e-6)
        assert metrics["psnr.p5"] < metrics["psnr.p50"] < metrics["psnr.p95"]


def test_what_is_written(evaluate, pictures, blocks, tmp_path, capsys):
    report = evaluate(batch_size=5)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert report["pictures"] == {"measured": PICTURES, "dropped": {"image-empty": 2, "image-broken": 1}}
    assert report["image_tokenizer"]["fingerprint"] == "blocks"
    assert report["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    printed = capsys.readouterr().out
    assert "23 pictures of" in printed and "dropped: 2 image-empty, 1 image-broken" in printed
    assert f"{report['metrics']['psnr']['mean']:9.2f}" in printed
    with Image.open(tmp_path / "out" / "reconstructions.png") as image:
        grid = np.asarray(image)
    pair, gap = 2 * 64 + 2, 12
    assert grid.shape == (4 * (64 + gap) - gap, 3 * (pair + gap) - gap, 3)
    rebuilt = to_uint8(blocks.decode(blocks.encode(torch.from_numpy(pictures[:12]).permute(0, 3, 1, 2) / 255)))
    for number in range(12):
        top, left = number // 3 * (64 + gap), number % 3 * (pair + gap)
        np.testing.assert_array_equal(grid[top : top + 64, left : left + 64], pictures[number])
        shown = grid[top : top + 64, left + 66 : left + 130]
        np.testing.assert_array_equal(shown, rebuilt[number])


def test_count_takes_the_first(evaluate):
    assert evaluate(count=7, batch_size=3)["pictures"]["measured"] == 7
    assert evaluate(count=6, batch_size=3)["pictures"]["measured"] == 6
    assert evaluate(count=1000)["pictures"]["measured"] == PICTURES


def test_no_stand_in_has_the_name_of_another_figure(evaluate, capsys):
    """Another network's distance is not called FID, and what was not computed says what it wants."""
    report = evaluate(FAKE, perceptual="pyramid")
    assert "frechet_fake" in report["metrics"] and not {"rfid", "lpips", "lpips-alex"} & report["metrics"].keys()
    assert (
        report["not_computed"].keys() == {"lpips", "rfid"} and "--inception-weights" in report["not_computed"]["rfid"]
    )
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "not computed: " in rows["rFID"] and "not computed: " in rows["LPIPS"]
    assert float(rows["frechet_fake"].split()[1]) == pytest.approx(report["metrics"]["frechet_fake"], abs=0.005)


def test_lpips_that_cannot_be_had(evaluate, monkeypatch, capsys):
    """Said in its row where nobody asked for it, an error where somebody did."""
    monkeypatch.setitem(sys.modules, "lpips", None)
    report = evaluate()
    assert "pip install" in report["not_computed"]["lpips"] and "lpips-alex" not in report["metrics"]
    assert "LPIPS" in capsys.readouterr().out
    with pytest.raises(ValueError, match="lpips-alex needs the package lpips"):
        evaluate(perceptual="lpips-alex")


def test_memory_does_not_grow_with_the_pictures():
    rng = torch.Generator().manual_seed(0)
    comparison, sizes = Comparison(4096, load_perceptual("pyramid"), FAKE), []
    for _ in range(20):
        pixels = torch.rand(4, 3, 16, 16, generator=rng)
        comparison.add(pixels, pixels.flip(-1), torch.randint(4096, (4, 32), generator=rng))
        state = {**vars(comparison), "perceptual": None, "extractor": None}
        sizes.append(len(pickle.dumps(state)))
    assert comparison.psnr.count == 80 and max(sizes) - min(sizes) < 100


def test_the_shipped_tokenizer_on_scenes(tmp_path):
    """The default: unseen scenes, the same as everywhere else."""
    report = evaluate_tokenizer(TokenizerEvaluationConfig(out=str(tmp_path), count=5, batch_size=2, seed=3))
    tokenizer = load_image_tokenizer(shipped_bundle() / "image_tokenizer")
    pixels = torch.from_numpy(scenes.batch(3, 0, 5, "validation")[0]).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = psnr(pixels, tokenizer.decode(tokenizer.encode(pixels))).mean().item()
    assert report["metrics"]["psnr"]["mean"] == pytest.approx(expected, abs=0.01) and expected > 20
    assert report["data"] == {"sources": ["scenes"], "split": "validation", "seed": 3}


class FakeInception(torch.nn.Module):
    def __init__(self, name, features_list, feature_extractor_weights_path):
        super().__init__()
        assert name == INCEPTION and features_list == ["2048"]
        self.weight = torch.nn.Parameter(torch.load(feature_extractor_weights_path)["weight"])

    def forward(self, pictures):
        assert pictures.dtype == torch.uint8 and pictures.shape[1] == 3
        return (pictures.float().mean((2, 3)) * self.weight.detach(),)


@pytest.fixture
def library(monkeypatch):
    """Stands in for torch-fidelity: the names that are used of it, and nothing more."""
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = FakeInception  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_rfid_wants_the_true_file(library, evaluate, tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.tensor([1.0, 2.0, 3.0])}, path)
    with pytest.raises(ValueError, match=r"has the sha256 [0-9a-f]{8}..., expected weights-inception"):
        evaluate(inception_weights=str(path))
    with pytest.raises(ValueError, match="cannot read inception_weights"):
        evaluate(inception_weights=str(tmp_path / "none.pth"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(inception, "WEIGHTS", f"weights-{digest}.pth")
    report = evaluate(inception_weights=str(path))
    assert report["metrics"]["rfid"] > 0 and "rfid" not in report["not_computed"]


def test_weights_that_run_code_are_refused(library, tmp_path, monkeypatch):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "was-here"), "w"))

    path = tmp_path / "weights.pth"
    torch.save({"weight": Attack()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(inception, "WEIGHTS", f"weights-{digest}.pth")
    with pytest.raises(ValueError, match="cannot read inception_weights"):
        load_inception(path, torch.device("cpu"))
    assert not (tmp_path / "was-here").exists()


def test_rfid_without_the_library(evaluate, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"pip install 'ar_t2i\[rfid\]'"):
        evaluate(inception_weights=str(tmp_path / "weights.pth"))


def test_the_verb(folder, image_tokenizer_folder, tmp_path, capsys):
    command = ["tokenizer", "evaluate", "--data", str(folder), "--tokenizer", str(image_tokenizer_folder)]
    assert main([*command, "--out", str(tmp_path / "out"), "--count", "4", "--batch-size", "3"]) == 0
    assert "PSNR, dB" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "report.json").read_text())["pictures"]["measured"] == 4


def test_a_tokenizer_of_small_pictures_sees_small_scenes(image_tokenizer_folder, tmp_path):
    config = TokenizerEvaluationConfig(tokenizer=str(image_tokenizer_folder), count=5, out=str(tmp_path / "out"))
    evaluate_tokenizer(config)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["pictures"]["measured"] == 5 and report["image_tokenizer"]["image_size"] == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": ()}, "data is empty"),
        ({"data": ("scenes",)}, "count=0 with data=scenes"),
        ({"data": ("/none.tar",)}, "no file matches '/none.tar'"),
        ({"count": -1}, "count=-1, batch_size=32"),
        ({"batch_size": 0}, "count=0, batch_size=0"),
        ({"split": "test"}, "split='test'"),
        ({"tokenizer": "/none"}, "'/none' is neither a folder here nor an id of the Hub"),
        ({"out": "/proc/none"}, "cannot write out='/proc/none'"),
    ],
)
def test_wrong_input(folder, image_tokenizer_folder, tmp_path, options, message):
    whole = {
        "data": (str(folder),),
        "tokenizer": str(image_tokenizer_folder),
        "count": 0,
        "out": str(tmp_path / "out"),
    }
    with pytest.raises(ValueError, match=message):
        evaluate_tokenizer(TokenizerEvaluationConfig(**{**whole, **options}))


def test_no_good_picture(image_tokenizer_folder, tmp_path):
    (tmp_path / "empty.png").touch()
    config = TokenizerEvaluationConfig(
        data=(str(tmp_path),), tokenizer=str(image_tokenizer_folder), out=str(tmp_path / "out")
    )
    with pytest.raises(ValueError, match="no picture in .*'image-empty': 1"):
        evaluate_tokenizer(config)
