"""Losses: what the tokenizer minimises."""
