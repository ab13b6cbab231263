"""GGUF: one file that llama.cpp, Ollama and LM Studio run, beside a config.json and a tokenizer."""
