"""Text: corpora, their splits, and the token windows cut from them."""
