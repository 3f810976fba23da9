"""The model card of a run, as the Hub's own library reads it."""

from huggingface_hub import ModelCard

from ar_t2i.training.card import run_card
from ar_t2i.training.trackers import read_metrics


def test_the_card_tells_scores_and_links_in_the_hubs_own_form(train_run, tokenized):
    output = train_run()
    measured = {name: value for record in read_metrics(output / "metrics.jsonl") for name, value in record.items()}
    card = ModelCard.load(output / "bundle" / "README.md")
    (image, text) = card.data.eval_results
    assert (image.metric_type, text.metric_type) == ("validation_image_loss", "validation_text_loss")
    assert image.metric_value == round(measured["validation_image_loss"], 4)
    assert image.dataset_name == str(tokenized) and image.task_type == "text-to-image"
    assert card.data.datasets is None and card.data.base_model is None, "folders are no links"
    assert f"| {measured['image_loss_chance']:.3f} |" in card.text and "![curves](curves.png)" in card.text
    text, _ = run_card(output, 5, "me/tokens@v1", "me/birds@refs/pr/1", (), "seed: 1\n")
    linked = ModelCard(text)
    assert linked.data.datasets == ["me/tokens"] and linked.data.base_model == "me/birds"
    assert linked.data.library_name == "transformers" and linked.data.pipeline_tag == "text-to-image"
