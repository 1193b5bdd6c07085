"""Commands that use token rewards on rows: score, filter, rerank."""
