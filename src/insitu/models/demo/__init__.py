"""The demo model: a small GPT-2 trained here on generated text; its corpus, trainer and exam."""
