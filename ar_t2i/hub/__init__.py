"""Bundles and datasets: folders that go to the Hugging Face Hub and come from there."""
