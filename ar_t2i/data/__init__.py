"""From captioned pictures to batches: scenes, shards, preprocessing, the tokenized dataset."""
