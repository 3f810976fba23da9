"""The whole training: learns by heart, resumes exactly, exports a bundle that draws."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from ar_t2i.bundles import load_bundle
from ar_t2i.data.dataset import load_rows
from ar_t2i.pipeline import TextToImagePipeline
from ar_t2i.training import decoder
from ar_t2i.training.checkpoint import list_checkpoints
from ar_t2i.training.trackers import read_metrics

BY_HEART = {
    "data": {"limit": 64, "batch_size": 64, "caption_dropout": 0.0, "validation_split": ""},
    "model": {"hidden_size": 128, "num_layers": 3, "intermediate_size": 256},
    "optim": {"lr": 4e-3, "warmup_steps": 20, "ema_decay": 0.9, "weight_decay": 0.0},
    "loop": {"steps": 100, "evaluate_every": 0, "checkpoint_every": 0},
    "samples": {"every": 0, "num_images": 1},
}


def test_learns_64_pairs_by_heart(train_run, tokenized):
    """This sees every off-by-one in masks, positions, shift, cache and sampler."""
    output = train_run(**BY_HEART)
    assert read_metrics(output / "metrics.jsonl")[-1]["image_loss"] < 0.05
    rows = load_rows(tokenized, "train", limit=64)
    pipe = TextToImagePipeline.from_pretrained(output / "bundle")
    drawn = pipe(rows["text"][:], temperature=0, guidance_scale=1, output_type="pt")
    equal = (drawn.codes.numpy() == np.array(rows["image_tokens"][:])).mean()
    assert equal >= 0.95


def weights(folder, name="model.safetensors"):
    return load_file(folder / name)


def test_resume_continues_as_if_never_stopped(train_run, run_options, tmp_path):
    """Weights, averages, losses and data order, bit for bit; dropout and caption dropout are on."""
    shaky = {"model": {"dropout": 0.1}, "data": {"bpe_dropout": 0.1}, "loop": {"keep_checkpoints": 5}}
    whole = train_run(output=str(tmp_path / "whole"), **shaky)
    cut = train_run(output=str(tmp_path / "cut"), **shaky)
    for path in (cut / "checkpoints" / "step-000008", cut / "bundle"):
        shutil.rmtree(path)
    (cut / "metrics.jsonl").write_text("".join((cut / "metrics.jsonl").read_text().splitlines(True)[:7]))
    train_run(resume="auto", output=str(cut), **shaky)
    timeless = [
        [
            {name: value for name, value in record.items() if not name.endswith("per_second")}
            for record in read_metrics(run / "metrics.jsonl")
        ]
        for run in (whole, cut)
    ]
    assert len(timeless[0]) == 10 and timeless[0] == timeless[1]
    compared = 0
    for name in ("model.safetensors", "ema.safetensors"):
        one, two = (weights(run / "checkpoints" / "step-000008", name) for run in (whole, cut))
        assert one.keys() == two.keys()
        for key in one:
            assert torch.equal(one[key], two[key]), key
            compared += 1
    assert compared > 20


def test_resume_refuses_another_run(train_run, run_options):
    output = train_run()
    with pytest.raises(ValueError, match="holds a run already"):
        train_run()
    with pytest.raises(ValueError, match="seed was 0, now 1"):
        train_run(resume="auto", seed=1)
    with pytest.raises(ValueError, match="run/nothing' is neither a folder here nor an id"):
        train_run(resume=str(output / "nothing"))
    with pytest.raises(ValueError, match="data was"):
        train_run(resume="auto", data={"limit": 100})
    with pytest.raises(ValueError, match="has a newer one beside it, step-000008"):
        train_run(resume=str(output / "checkpoints" / "step-000004"))
    assert "seed: 0" in (output / "config.yaml").read_text() and "limit: 0" in (output / "config.yaml").read_text()


def test_a_resumed_run_takes_its_own_optimizer_options(train_run):
    """The states are the checkpoint's, the options the run's; another optimizer's states are refused."""
    output = train_run(loop={"steps": 8, "checkpoint_every": 4})
    shutil.rmtree(output / "checkpoints" / "step-000008")
    with pytest.raises(ValueError, match="step-000004 is of another optimizer: set optim.name back"):
        train_run(resume="auto", optim={"name": "muon"})
    before = weights(output / "bundle")
    train_run(resume="auto", optim={"weight_decay": 100.0})
    matrix, vector = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
    after = weights(output / "bundle")
    assert after[matrix].norm() < 0.9 * before[matrix].norm(), "the decay was that of the checkpoint"
    assert after[vector].norm() > 0.99 * before[vector].norm()


def test_a_run_stopped_before_its_export_is_finished_by_resume(train_run):
    output = train_run()
    shutil.rmtree(output / "bundle")
    train_run(resume="auto")
    assert load_bundle(output / "bundle").sampling.guidance_scale == 3.0


def test_checkpoints_sort_by_number(tmp_path):
    for step in (999_000, 1_000_000):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "state.json").write_text("{}")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-999000", "step-1000000"]


def test_what_a_run_leaves(train_run, run_options):
    output = train_run(loop={"trackers": ["tensorboard"]})
    records = read_metrics(output / "metrics.jsonl")
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 9))
    assert {"image_loss", "text_loss", "lr", "grad_norm", "tokens_per_second", "pictures_per_second"} <= steps[
        0
    ].keys()
    assert steps[0]["image_loss_chance"] == pytest.approx(8.3178, abs=1e-4) and steps[0]["image_loss_unigram"] < 8.3178
    assert abs(steps[0]["image_loss"] - 8.32) < 0.3
    assert steps[-1]["image_loss"] < steps[0]["image_loss"]
    assert [record["step"] for record in records if "validation_image_loss" in record] == [4, 8]
    assert list((output / "ar_t2i").glob("events*"))
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step-000004", "step-000008"]
    table = (output / "samples.md").read_text()
    assert "| iteration | a red bird | a blue fish at night |" in table and "samples/step-000008/1.png" in table
    with Image.open(output / "samples" / "step-000004" / "0.png") as strip:
        assert strip.size == (2 * 64 + 4, 64)
    bundle = load_bundle(output / "bundle")
    averaged = weights(output / "checkpoints" / "step-000008", "ema.safetensors")
    assert torch.equal(bundle.model.model.embed_tokens.weight, averaged["model.embed_tokens.weight"])
    assert bundle.sampling.guidance_scale == 3.0


@pytest.mark.filterwarnings("ignore")  # torch.compile trips over its own
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_options_of_memory_and_speed_change_no_loss(train_run, tmp_path, compiled):
    plain = train_run(output=str(tmp_path / "plain"), loop={"steps": 3})
    other = train_run(
        output=str(tmp_path / "other"),
        gradient_checkpointing=True,
        loop={"steps": 3, "compile": compiled},
        data={"workers": 2},
    )
    losses = [
        [record["loss"] for record in read_metrics(run / "metrics.jsonl") if "loss" in record]
        for run in (plain, other)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_starts_from_a_bundle_and_from_gpt2(train_run, vocabulary, tmp_path):
    first = train_run(loop={"steps": 20})
    frozen = {
        "optim": {"lr": 0.0},
        "loop": {"steps": 1},
        "vocabulary": "",
        "model": {"init_from": str(first / "bundle")},
    }
    second = train_run(output=str(tmp_path / "more"), **frozen)
    before, after = (read_metrics(run / "metrics.jsonl")[-1] for run in (first, second))
    assert before["step"] == 20 and after["validation_image_loss"] == pytest.approx(
        before["validation_image_loss"], abs=1e-5
    )
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary.size, n_embd=32, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "gpt2"
    )
    gpt2 = train_run(output=str(tmp_path / "run2"), model={"init_from": str(tmp_path / "gpt2")})
    pipe = TextToImagePipeline.from_pretrained(gpt2 / "bundle")
    assert pipe.unseen_words("a red bird on a unicorn") == ["unicorn"]
    assert type(pipe.model).__name__ == "GPT2LMHeadModel" and pipe("a red bird").images[0].size == (64, 64)


def test_validation_has_no_dropout(train_run, tmp_path):
    """Also without averaged weights, when those in training are validated; training goes on with it."""
    still = {"optim": {"lr": 0.0, "ema_decay": 0.0}, "loop": {"steps": 4, "evaluate_every": 2}}
    found = []
    for dropout in (0.0, 0.5):
        run = train_run(output=str(tmp_path / str(dropout)), model={"dropout": dropout}, **still)
        records = read_metrics(run / "metrics.jsonl")
        found.append([record["validation_image_loss"] for record in records if "validation_image_loss" in record])
        losses = [record["image_loss"] for record in records if "image_loss" in record]
    assert len(found[0]) == 2 and found[0] == pytest.approx(found[1], abs=1e-6)
    assert found[0][0] == pytest.approx(found[0][1], abs=1e-6) and len(set(losses)) == 4


def test_a_bundle_in_bf16_is_half_the_size(train_run, tmp_path):
    sizes = []
    for dtype in ("fp32", "bf16"):
        bundle = train_run(output=str(tmp_path / dtype), bundle_dtype=dtype, loop={"steps": 1}) / "bundle"
        sizes.append((bundle / "model.safetensors").stat().st_size)
        assert load_bundle(bundle).model.dtype == torch.float32
    assert 0.49 < sizes[1] / sizes[0] < 0.51


def test_a_cpu_cuts_a_batch_into_pieces_and_takes_the_same_step(train_run, tmp_path, monkeypatch):
    assert [decoder.pieces_of(size) for size in (1, 16, 32, 48, 64, 67, 256)] == [1, 1, 1, 2, 2, 1, 8]
    found = []
    for pieces in (1, 4):
        monkeypatch.setattr(decoder, "pieces_of", lambda size, pieces=pieces: pieces)
        run = train_run(output=str(tmp_path / str(pieces)), loop={"steps": 3})
        found.append([record["loss"] for record in read_metrics(run / "metrics.jsonl") if "loss" in record])
    assert len(found[0]) == 3 and found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_failing_run_says_why(train_run, tmp_path, vocabulary):
    with pytest.raises(ValueError, match="max_caption_length=250 makes sequences of 284"):
        train_run(output=str(tmp_path / "b"), data={"max_caption_length": 250})
    with pytest.raises(ValueError, match="neither a folder here nor"):
        train_run(output=str(tmp_path / "c"), image_tokenizer=str(tmp_path / "none"))
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()


def test_a_dataset_of_another_image_tokenizer_is_refused(train_run, tokenized, tmp_path):
    shutil.copytree(tokenized, tmp_path / "other")
    (tmp_path / "other" / "manifest.json").write_text('{"image_tokenizer": {"fingerprint": "0123456789abcdef"}}')
    with pytest.raises(ValueError, match="made with another image tokenizer"):
        train_run(data={"dataset": str(tmp_path / "other")})


def test_the_bundles_card_shows_the_run(train_run):
    bundle = train_run() / "bundle"
    card = (bundle / "README.md").read_text()
    assert "![samples](samples.png)" in card and "From top to bottom: a red bird; a blue fish at night." in card
    measured = [
        record for record in read_metrics(bundle.parent / "metrics.jsonl") if "validation_image_loss" in record
    ]
    assert f"nats a code | {measured[-1]['validation_image_loss']:.3f} |" in card and "| after 8 steps |" in card
    with Image.open(bundle / "samples.png") as samples, Image.open(bundle / "curves.png") as curves:
        assert samples.size == (2 * 64 + 4, 2 * 64 + 4) and curves.size == (700, 400)
        assert len(curves.getcolors(1 << 20)) > 20, "something is drawn"
