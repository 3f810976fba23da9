"""The model card of a run, as the Hub's own library reads it."""

import json

from huggingface_hub import ModelCard

from ar_t2i.training.card import run_card
from ar_t2i.training.trackers import read_metrics


def test_the_card_tells_scores_and_links_in_the_hubs_own_form(train_run, tokenized, tmp_path):
    output = train_run()
    measured = {name: value for record in read_metrics(output / "metrics.jsonl") for name, value in record.items()}
    card = ModelCard.load(output / "bundle" / "README.md")
    (image, text) = card.data.eval_results
    assert (image.metric_type, text.metric_type) == ("validation_image_loss", "validation_text_loss")
    assert image.metric_value == round(measured["validation_image_loss"], 4)
    assert image.dataset_name == str(tokenized) and image.task_type == "text-to-image"
    assert card.data.datasets is None and card.data.base_model is None, "folders are no links"
    assert f"| {measured['image_loss_chance']:.3f} |" in card.text and "![curves](curves.png)" in card.text
    drawn = {"step": 8, "image_loss": 8.0, "validation_scene_score": 0.25, "validation_frechet_scenes": 7.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(drawn) + "\n")
    alone, _ = run_card(tmp_path, 5, "me/tokens", "", (), "seed: 1\n")
    assert "what unseen captions ask for | 0.250 |" in alone and "those of real scenes | 7.000 |" in alone
    text, _ = run_card(output, 5, "me/tokens@v1", "me/birds@refs/pr/1", (), "seed: 1\n")
    linked = ModelCard(text)
    assert linked.data.datasets == ["me/tokens"] and linked.data.base_model == "me/birds"
    assert linked.data.library_name == "transformers" and linked.data.pipeline_tag == "text-to-image"
