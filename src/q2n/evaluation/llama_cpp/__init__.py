"""llama.cpp's protocol of KL divergence: its base file and its statistics, to compare with numbers
that others publish.

A text is cut into chunks of n_ctx tokens, and the second half of each is scored: positions n_ctx//2
to n_ctx - 2 predict the token after them, so that each has at least half a chunk of context. The
log probabilities of the base model lie in a file (`base_file`), 16 bits each (`records`). Per
scored token the tested model is compared with them (`comparison`), and of that the tool prints
means, standard errors and percentiles (`statistics`).

Source: tools/perplexity/perplexity.cpp of ggml-org/llama.cpp.
"""
