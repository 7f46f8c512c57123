"""Corpora for language models: acquire, filter, tokenise, shard, load."""
