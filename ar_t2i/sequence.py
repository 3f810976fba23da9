"""The one place that knows how a caption and codes become a sequence, for training and sampling alike.

    caption ids ...  <|startofimage|>  code ids (T of them)  <|endofimage|>

Without a caption (caption dropout in training, the unconditional branch of guidance) the sequence starts at
<|startofimage|>. Which next ids a position may see follows from its target:

    position   a     red   bird  SOI       code 0    ...   code T-1   EOI
    target     red   bird  SOI   code 0    code 1    ...   EOI        -
    loss       text  text  -     image     image     ...   -          -

SOI and EOI have but one legal value, so they are no targets.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ar_t2i.vocabulary import END_OF_IMAGE, SPECIAL_TOKENS, START_OF_IMAGE, Vocabulary, image_token


def prompt_ids(vocabulary: Vocabulary, caption_ids: Sequence[int]) -> np.ndarray:
    """What the model reads before it writes the first code: the caption and <|startofimage|>; int64."""
    return np.array([*caption_ids, vocabulary.start_of_image_id], dtype=np.int64)


def sequence_ids(vocabulary: Vocabulary, caption_ids: Sequence[int], codes: Sequence[int] | np.ndarray) -> np.ndarray:
    """The whole sequence of one example as ids, int64.

    Raises:
        ValueError: a code out of range.
    """
    image = vocabulary.codes_to_ids(codes)
    return np.concatenate([prompt_ids(vocabulary, caption_ids), image, [vocabulary.end_of_image_id]])


def sequence_text(caption: str, codes: Sequence[int]) -> str:
    """The whole sequence as text, the `data` column of a tokenized dataset.

    A tokenizer reads special tokens out of this text, so one that the caption itself spells is broken up: `< |pad|>`.
    """
    if "<|" in caption:
        for token in SPECIAL_TOKENS:
            caption = caption.replace(token, "< " + token[1:])
        caption = caption.replace("<|image:", "< |image:")
    return caption + START_OF_IMAGE + "".join(image_token(int(code)) for code in codes) + END_OF_IMAGE


def sequence_length(caption_length: "int | np.ndarray", num_codes: int) -> Any:
    """Positions that a caption of so many ids, or each of several, and its picture take."""
    return caption_length + num_codes + 2
