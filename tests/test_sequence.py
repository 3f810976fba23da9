import numpy as np
import pytest

from ar_t2i.sequence import prompt_ids, sequence_ids, sequence_length, sequence_text


def test_a_sequence_is_its_prompt_and_the_picture(vocabulary):
    caption = vocabulary.encode_captions(["a red bird"])[0]
    codes = np.arange(32)
    ids = sequence_ids(vocabulary, caption, codes)
    prompt = prompt_ids(vocabulary, caption)
    assert len(ids) == sequence_length(len(caption), 32)
    assert ids[: len(prompt)].tolist() == prompt.tolist() and prompt[-1] == vocabulary.start_of_image_id
    assert (
        ids[len(prompt) : -1].tolist() == vocabulary.image_ids[:32].tolist() and ids[-1] == vocabulary.end_of_image_id
    )


def test_text_as_published():
    assert sequence_text("a bird", [2931, 0]) == "a bird<|startofimage|><|image:2931|><|image:0|><|endofimage|>"
    assert sequence_text("a <|pad|> bird", [1]) == "a < |pad|> bird<|startofimage|><|image:1|><|endofimage|>"


def test_a_code_out_of_range_is_refused(vocabulary):
    with pytest.raises(ValueError, match="code 4096 is out of range"):
        sequence_ids(vocabulary, [], [4096])
