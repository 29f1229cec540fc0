"""Problems, their order and prompts; tokenizers and models made from scratch; the tiny world. No torch at import."""
