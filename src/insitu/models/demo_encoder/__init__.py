"""The demo encoder: a small BERT trained here on generated text; its corpus, trainer and exam."""
