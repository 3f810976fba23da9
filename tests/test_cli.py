import os
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ar_t2i.cli import VERBS, main


def test_help_of_every_verb(capsys):
    for verb in VERBS:
        with pytest.raises(SystemExit) as end:
            main([verb, "--help"])
        assert end.value.code == 0 and f"usage: ar-t2i {verb}" in capsys.readouterr().out


def test_guidance_convention_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["infer", "--help"])
    assert "u + s (c - u)" in capsys.readouterr().out


def train(tmp_path, run_options, *overrides):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_options))
    return main(["train", "--config", str(tmp_path / "run.yaml"), *overrides])


def test_train_from_a_yaml_file(tmp_path, run_options, capsys):
    assert train(tmp_path, run_options, "loop.steps=2", "samples.prompts=[a red bird]") == 0
    assert (tmp_path / "run" / "bundle" / "ar_t2i.json").is_file()
    assert train(tmp_path, run_options, "loop.steps=2", "samples.prompts=[a red bird]", "--resume") == 0
    assert "resumed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr_max=1", "unknown option optim.lr_max; did you mean optim.lr?"),
        ("loop.steps=many", "loop.steps='many': expected a whole number"),
        ("data.dataset=/none", "dataset '/none'"),
        ("vocabulary=/none", "'/none' is neither a folder here nor an id of the Hub"),
        ("loop.trackers=[abacus]", "loop.trackers: 'abacus' is not known"),
        ("loop.trackers=[tensorboard,clearml]", "loop.trackers: clearml is not installed"),
        ("samples.prompts=[a", "override 'samples.prompts=[a': '[a' is not valid yaml"),
        ("samples.guidance_scale=-1", "guidance_scale=-1.0: expected 0 or more"),
        ("samples.prompts=['']", "samples.prompts: a prompt is empty"),
        ("seed=-1", "seed=-1: expected 0 to"),
        ("output=/proc/none", "cannot write output='/proc/none'"),
    ],
)
def test_wrong_options_of_training(tmp_path, run_options, capsys, override, message):
    assert train(tmp_path, run_options, override) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and error.startswith("ar-t2i train: ")
    assert not (tmp_path / "run").exists()


def test_wrong_files_are_one_line_and_exit_code_2(tmp_path, run_options, vocabulary_folder, capsys):
    """A code 4096, a row of 31 codes, a tokenizer without <|image:17|>: refused before anything is written."""
    good = [1] * 32
    for number, (codes, message) in enumerate(
        (([good, [4096] * 32], "row 1 has the code 4096"), ([good[1:]], "row 0 has 31 codes"))
    ):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"image_tokens": codes, "text": ["a bird"] * len(codes)}), path)
        assert train(tmp_path, run_options, f"data.dataset={path}", "data.validation_split=") == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    broken = tmp_path / "vocabulary"
    shutil.copytree(vocabulary_folder, broken)
    text = (broken / "tokenizer.json").read_text().replace("<|image:17|>", "<|image:x|>")
    (broken / "tokenizer.json").write_text(text)
    assert train(tmp_path, run_options, f"vocabulary={broken}") == 2
    assert "lacks <|image:17|>" in capsys.readouterr().err.splitlines()[-1]
    assert main(["infer", "a bird", "--bundle", str(vocabulary_folder), "--out", str(tmp_path / "out")]) == 2
    assert "is no bundle" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_options_may_stand_in_any_order(tmp_path, run_options, capsys):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_options))
    command = ["train", "loop.steps=1", "--config", str(tmp_path / "run.yaml"), "samples.prompts=[]", "seed=3"]
    assert main(command) == 0
    assert "seed: 3" in (tmp_path / "run" / "config.yaml").read_text()
    assert main([*command, "--resume", "seed=4"]) == 2
    assert "put --resume behind the options" in capsys.readouterr().err
    assert main(["tokenizer", "train", "--config", str(tmp_path / "none.yaml"), "data=[a]", "output=b"]) == 2
    assert "cannot read the config" in capsys.readouterr().err


def test_recipes_of_the_tokenizer(tmp_path, capsys):
    """The yaml's key `recipe` chooses the options; the help tells each recipe's own."""
    told = {}
    for recipe in ("slots", "vqgan", "stage1", "stage2", "single_stage"):
        with pytest.raises(SystemExit) as end:
            main(["tokenizer", "train", f"recipe={recipe}", "--help"])
        assert end.value.code == 0
        told[recipe] = capsys.readouterr().out
    assert "mixer_width" in told["slots"] and "gan.lecam_weight" in told["vqgan"] and "stage1: The" in told["stage2"]
    assert "gan." not in told["stage1"] and "model.num_latent_tokens = 32" in told["single_stage"]
    for text, message in (
        ("recipe: stage3\n", "recipe='stage3': expected one of slots, vqgan, stage1, stage2, single_stage"),
        ("recipe: stage1\noutput: a\n", "option vqgan is required"),
        ("recipe: vqgan\noutput: a\ngan: {wait: 1}\n", "unknown option gan.wait"),
        ("recipe: slots\nmodel: {codes: 1}\n", "unknown option model.codes"),
        ("output: a\nvqgan: b\n", "unknown option vqgan"),
    ):
        (tmp_path / "run.yaml").write_text(text)
        assert main(["tokenizer", "train", "--config", str(tmp_path / "run.yaml")]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("ar-t2i tokenizer train: ") and message in error
    with pytest.raises(SystemExit) as end:
        main(["tokenizer", "bake"])
    assert end.value.code == 2 and "invalid choice: 'bake'" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="cannot read the config"):
        main(["train", "--config", str(tmp_path / "none.yaml"), "--debug"])


def output_of(*command):
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_and_help_load_no_heavy_library():
    """Which is what keeps them fast; the time itself is told by benchmarks/startup.py."""
    heavy = "{'torch', 'transformers', 'datasets', 'PIL', 'numpy'} & set(sys.modules)"
    out = output_of("-c", f"import sys, ar_t2i; print({heavy})")
    assert out.strip() == "set()"
    script = (
        f"import sys; from ar_t2i.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    print({heavy})"
    )
    out = output_of("-c", script)
    assert out.strip().endswith("set()") and "preprocess" in out
