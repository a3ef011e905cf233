"""What can be traced: any torch module, and language models with their tokenizer."""
