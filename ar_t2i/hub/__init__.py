"""The Hugging Face Hub: names there, patient requests, checked downloads, cards."""
