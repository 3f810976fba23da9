"""The console script `ar-t2i`, and what the doors train.py and infer.py call: a verb and its options."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from ar_t2i import __version__
from ar_t2i.config import add_flags, describe, from_flags, load

VERBS: dict[str, tuple[str, str, str, str]] = {
    "scenes": (
        "ar_t2i.data.scenes",
        "ScenesConfig",
        "write_scenes",
        "draw captioned pictures from a seed, as webdataset shards",
    ),
    "vocabulary": (
        "ar_t2i.data.corpus",
        "VocabularyConfig",
        "train_vocabulary",
        "train the joint vocabulary on captions",
    ),
    "preprocess": (
        "ar_t2i.data.preprocess",
        "PreprocessConfig",
        "preprocess",
        "captioned pictures to a tokenized dataset",
    ),
    "tokenizer": ("ar_t2i.training.slots", "SlotTrainingConfig", "train_slots", "train an image tokenizer"),
    "train": ("ar_t2i.training.decoder", "TrainConfig", "train_decoder", "train the decoder on a tokenized dataset"),
    "infer": ("ar_t2i.infer", "InferConfig", "infer", "draw pictures of prompts"),
}
"""Verb: module, options, function, one-line help. The module is imported when its verb is asked for."""
POSITIONAL = {"infer": "prompt", "vocabulary": "sources", "preprocess": "sources"}
"""The option that stands without dashes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code: 0 done, 2 wrong input, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] not in VERBS:
        _top_parser().parse_args(arguments or ["--help"])
        return 0
    verb, rest = arguments[0], arguments[1:]
    debug = "--debug" in rest
    try:
        _run(verb, [argument for argument in rest if argument != "--debug"])
    except (ValueError, OSError) as error:
        if debug:
            raise
        print(f"ar-t2i {verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"ar-t2i {verb}: interrupted", file=sys.stderr)
        return 130
    return 0


def _top_parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {verb:12}{summary}" for verb, (*_, summary) in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="ar-t2i",
        description="Autoregressive text-to-image over 1D image tokens.",
        epilog=f"verbs:\n{lines}\n\nar-t2i VERB --help tells a verb's options; --debug shows tracebacks.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB")
    parser.add_argument("--version", action="version", version=f"ar_t2i {__version__}")
    return parser


def _run(verb: str, arguments: Sequence[str]) -> None:
    module_name, config_name, function_name, summary = VERBS[verb]
    parser = argparse.ArgumentParser(prog=f"ar-t2i {verb}", description=summary[0].upper() + summary[1:] + ".")
    takes_yaml = verb in ("train", "tokenizer")
    if takes_yaml and not {"-h", "--help"} & set(arguments):
        _run_yaml(parser, verb, arguments)
        return
    module = import_module(module_name)
    config_class = getattr(module, config_name)
    if takes_yaml:
        _yaml_arguments(parser, verb)
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = "options, in the yaml file or as key=value:\n\n" + "\n".join(describe(config_class))
    else:
        add_flags(parser, config_class, POSITIONAL.get(verb))
    options = parser.parse_intermixed_args(arguments)
    _quiet()
    getattr(module, function_name)(from_flags(config_class, options))


def _run_yaml(parser: argparse.ArgumentParser, verb: str, arguments: Sequence[str]) -> None:
    _yaml_arguments(parser, verb)
    options = parser.parse_intermixed_args(arguments)
    if "=" in options.resume:
        raise ValueError(f"--resume {options.resume}: expected a checkpoint's folder; put --resume behind the options")
    module_name, config_name, function_name, _ = VERBS[verb]
    module = import_module(module_name)
    config = load(getattr(module, config_name), options.config, options.overrides)
    function: Callable[..., object] = getattr(module, function_name)
    _quiet()
    function(config, resume=options.resume)


def _yaml_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    if verb == "tokenizer":
        parser.add_argument("action", choices=["train"], help="what to do")
    parser.add_argument("--config", required=True, metavar="FILE", help="yaml file of the run")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        default="",
        metavar="CHECKPOINT",
        help="go on from the newest checkpoint, or from this one",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options in place of the file's, such as optim.lr=1e-3"
    )


def _quiet() -> None:
    """Libraries' own progress bars for loading weights say nothing to a user."""
    from transformers.utils import logging

    logging.disable_progress_bar()
