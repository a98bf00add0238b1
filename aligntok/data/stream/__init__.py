"""A stream of samples: those of an index that pass a condition, in an order without a list, read as they come."""
