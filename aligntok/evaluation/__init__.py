"""Numbers about tokenizers that can be trusted; the same code online and offline."""
