"""Every recipe: learns, resumes bit for bit, keeps frozen what is frozen, and leaves a folder that loads."""

import shutil

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from ar_t2i.data.pictures import unseen_pictures
from ar_t2i.image_tokenizer import load_image_tokenizer
from ar_t2i.titok import MaskGITVQGAN, TiTok
from ar_t2i.training.checkpoint import load_states
from ar_t2i.training.tokenizer.objective import psnr, to_pixels
from ar_t2i.training.trackers import read_metrics

RECIPES = ["vqgan", "stage1", "stage2", "single_stage"]


@pytest.fixture
def sources(vqgan_folder, stage1_folder):
    """What each recipe starts from."""
    return {
        "vqgan": {},
        "stage1": {"vqgan": str(vqgan_folder)},
        "stage2": {"vqgan": str(vqgan_folder), "stage1": str(stage1_folder)},
        "single_stage": {},
    }


def losses(output, name):
    return [record[name] for record in read_metrics(output / "metrics.jsonl") if name in record]


@pytest.mark.parametrize(
    ("recipe", "steps", "falls_to"),
    [("vqgan", 40, 0.25), ("stage1", 120, 0.65), ("stage2", 60, 0.7), ("single_stage", 50, 0.2)],
)
def test_sixteen_pictures_are_learnt(train, sources, tmp_path, recipe, steps, falls_to):
    """The loss on 16 pictures falls to the stated part of what it was at first, the discriminator's part included."""
    gan = {} if recipe == "stage1" else {"gan": {"start": steps // 2, "weight": 0.005}}
    train(recipe, tmp_path, **sources[recipe], **gan, loop={"steps": steps})
    found = losses(tmp_path, "reconstruction_loss")
    assert sum(found[-5:]) / 5 < falls_to * sum(found[:3]) / 3, found


@pytest.mark.parametrize("recipe", RECIPES)
def test_resume_goes_on_as_if_never_stopped(train, sources, tmp_path, recipe):
    """Weights, averages, discriminator, its optimizer and averages, code usage, figures, order of files and flips."""
    gan = {} if recipe == "stage1" else {"gan": {"start": 2}}
    settings = {
        **sources[recipe], **gan, "random_flip": True, "codes": {"window": 20},
        "loop": {"steps": 6, "checkpoint_every": 3, "keep_checkpoints": 3, "gradient_accumulation_steps": 2},
    }  # fmt: skip
    train(recipe, tmp_path / "whole", **settings)
    result = train(recipe, tmp_path / "cut", **settings)
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-000006")
    shutil.rmtree(result)
    train(recipe, tmp_path / "cut", resume="auto", **settings)
    logs = [
        [
            {name: value for name, value in record.items() if not name.endswith("per_second")}
            for record in read_metrics(tmp_path / run / "metrics.jsonl")
        ]
        for run in ("whole", "cut")
    ]
    assert len(logs[0]) == 7 and logs[0] == logs[1]
    folders = [tmp_path / run / "checkpoints" / "step-000006" for run in ("whole", "cut")]
    compared = 0
    for name in ("model.safetensors", "ema.safetensors"):
        one, two = (load_file(folder / name) for folder in folders)
        assert one.keys() == two.keys()
        for key in one:
            assert torch.equal(one[key], two[key]), key
            compared += 1
    one, two = (load_states(folder / "companions.safetensors") for folder in folders)
    compared += same(one, two)
    assert compared > 60 and ("discriminator_loss" in logs[0][3]) == (recipe != "stage1")


def same(one, two) -> int:
    """Assert that two nested states are equal, and count their leaves."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        return sum(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return sum(same(a, b) for a, b in zip(one, two, strict=True))
    assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
    return 1


def test_the_second_stage_changes_decoders_alone(train, sources, tmp_path, stage1_folder, vqgan_folder, pictures):
    """Codes stay those of the first stage, which its folder's own weights are too."""
    folder = train("stage2", tmp_path, **sources["stage2"], loop={"steps": 3})
    tokenizer, stage1 = load_image_tokenizer(folder), TiTok.from_pretrained(stage1_folder)
    assert tokenizer.num_codes == 8 and tokenizer.codebook_size == 64 and tokenizer.image_size == 32
    before = {**stage1.state_dict()}
    vqgan = MaskGITVQGAN.from_pretrained(vqgan_folder)
    before |= {f"pixel_{name}": tensor for name, tensor in vqgan.state_dict().items() if "encoder" not in name}
    moved = {name for name, tensor in tokenizer.state_dict().items() if not torch.equal(tensor, before[name])}
    parts = {name.split(".")[0] for name in moved}
    assert parts == {"decoder", "pixel_quantize", "pixel_decoder"}
    pixels = to_pixels(unseen_pictures((str(pictures),), 2, 32, 0))
    codes = tokenizer.encode(pixels)
    assert torch.equal(codes, stage1.encode(pixels)) and tokenizer.decode(codes).shape == pixels.shape


def test_the_first_stage_leaves_its_teacher_and_says_who_it_was(train, sources, tmp_path, vqgan_folder):
    before = (vqgan_folder / "model.safetensors").read_bytes()
    folder = train("stage1", tmp_path / "one", **sources["stage1"], loop={"steps": 2})
    assert (vqgan_folder / "model.safetensors").read_bytes() == before
    other = train("vqgan", tmp_path / "other", seed=1, gan={"weight": 0.0}, loop={"steps": 1})
    with pytest.raises(ValueError, match="learnt the codes of another VQGAN"):
        train("stage2", tmp_path / "two", vqgan=str(other), stage1=str(folder), loop={"steps": 1})
    assert not (tmp_path / "two").exists()


def test_the_discriminator_learns_from_its_start_on(train, tmp_path):
    """And the model's loss does not hear it before."""
    changes = {"loop": {"steps": 4}, "gan": {"start": 2, "weight": 0.5}}
    train("single_stage", tmp_path / "with", **changes)
    train("single_stage", tmp_path / "without", loop={"steps": 4}, gan={"weight": 0.0})
    records, plain = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("with", "without"))
    steps = [record["step"] for record in records if "discriminator_loss" in record]
    assert steps == [3, 4] and not any("discriminator_loss" in record for record in plain)
    assert [record["loss"] for record in records[:2]] == [record["loss"] for record in plain[:2]]
    expected = (
        records[2]["reconstruction_loss"] + 0.1 * records[2]["perceptual_loss"] + records[2]["quantizer_loss"]
        - 0.5 * records[2]["logits_fake"]
    )  # fmt: skip
    assert records[2]["loss"] == pytest.approx(expected, rel=1e-5)


def test_what_a_run_leaves(train, tmp_path):
    folder = train("vqgan", tmp_path, loop={"steps": 4, "evaluate_every": 2, "checkpoint_every": 2}, draw_every=2)
    averaged = load_file(tmp_path / "checkpoints" / "step-000004" / "ema.safetensors")
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == averaged.keys()
    assert all(torch.equal(stored[name], averaged[name]) for name in stored)
    trained = load_file(tmp_path / "checkpoints" / "step-000004" / "model.safetensors")
    assert not torch.equal(trained["decoder.conv_out.weight"], averaged["decoder.conv_out.weight"])
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert {"validation_psnr", "validation_perceptual"} <= records[2].keys()
    assert {"codes_used", "code_perplexity", "restarted_codes", "pictures_per_second"} <= records[0].keys()
    with Image.open(tmp_path / "pictures" / "step-000002.png") as grid:
        assert grid.size == (2 * 32 + 4, 2 * 32 + 4)
    assert (tmp_path / "config.yaml").read_text().startswith("recipe: vqgan\n")


def test_half_of_the_pictures_are_mirrored(train, tmp_path, monkeypatch):
    from ar_t2i.training.tokenizer import run

    seen = []
    monkeypatch.setattr(run, "train", lambda task, *rest: seen.extend(task.read(0, 40)))
    train("vqgan", tmp_path / "plain", gan={"weight": 0.0})
    train("vqgan", tmp_path / "flipped", gan={"weight": 0.0}, random_flip=True)
    plain, flipped = (torch.cat([batch["pictures"] for batch in part]) for part in (seen[:40], seen[40:]))
    as_is = (plain == flipped).flatten(1).all(1)
    mirrored = (plain == flipped.flip(2)).flatten(1).all(1)
    assert len(plain) == 320 and (as_is | mirrored).all() and 120 < int(mirrored.sum()) < 200


@pytest.fixture
def fresh_accelerate():
    """Accelerate keeps the arithmetic of a process's first run; forget it, before and after."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def test_bf16_and_wrong_sources(train, sources, tmp_path, vqgan_folder, fresh_accelerate):
    train("stage2", tmp_path / "bf16", **sources["stage2"], loop={"steps": 2, "precision": "bf16"})
    assert len(losses(tmp_path / "bf16", "loss")) == 2
    with pytest.raises(ValueError, match="neither a folder here nor"):
        train("stage1", tmp_path / "none", vqgan="nobody/nothing", loop={"precision": "bf16"})
    with pytest.raises(ValueError, match="patch_size=16: expected 8, the pixels along a code of the VQGAN"):
        train(
            "stage1", tmp_path / "none", vqgan=str(vqgan_folder), model={"patch_size": 16}, loop={"precision": "bf16"}
        )
    with pytest.raises(ValueError, match="holds a run already"):
        train("stage2", tmp_path / "bf16", **sources["stage2"], loop={"precision": "bf16"})


@pytest.mark.slow
def test_the_second_stage_paints_better_than_the_first_with_its_vqgan(train, tmp_path, pictures):
    """The whole chain on 16 pictures, through the folders that each recipe leaves."""
    vqgan = train("vqgan", tmp_path / "vqgan", loop={"steps": 400}, gan={"weight": 0.0})
    # At 4e-3 all pictures end with the same codes on some machines.
    stage1 = train("stage1", tmp_path / "stage1", vqgan=str(vqgan), loop={"steps": 600}, optim={"lr": 1e-3})
    whole = train(
        "stage2", tmp_path / "stage2", vqgan=str(vqgan), stage1=str(stage1), loop={"steps": 300}, gan={"weight": 0.0}
    )
    files = sorted(pictures.glob("*.png"))
    arrays = [torch.frombuffer(bytearray(Image.open(file).tobytes()), dtype=torch.uint8) for file in files]
    pixels = to_pixels(torch.stack(arrays).view(-1, 32, 32, 3))
    tokenizer, first, painter = load_image_tokenizer(whole), TiTok.from_pretrained(stage1), MaskGITVQGAN
    codes = tokenizer.encode(pixels)
    assert torch.equal(codes, first.encode(pixels)) and len(codes.unique(dim=0)) > 4
    with torch.no_grad():
        proxy = painter.from_pretrained(vqgan).decode(first.decode_tokens(codes).argmax(1))
    before, after = psnr(proxy, pixels).mean(), psnr(tokenizer.decode(codes), pixels).mean()
    assert after > before + 0.5, f"{before:.2f} dB by the VQGAN, {after:.2f} dB by the pixel decoder"
