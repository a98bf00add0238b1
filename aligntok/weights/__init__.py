"""The weights of other models: where they are, and how they come into ours."""
