"""A page in the browser to try tokenizers and a generator on; what it shows is computed without it, in `functions`."""
