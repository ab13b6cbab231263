"""The only room that knows Hugging Face models: their tensors, one block at a time."""
