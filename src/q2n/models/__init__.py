"""The only room that knows Hugging Face models: where tensors come from, and one block at a time."""
