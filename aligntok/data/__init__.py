"""Images to batches: a source lists and reads, a transform makes tensors, a sampler says which and when."""
