"""What is trained and how: the alignment model, its stages as data, and the run."""
