"""Comparisons: several tokenizers at one budget, a generator on each, and what all of them are measured to be."""

from aligntok.evaluation.comparison.plan import read_comparison
from aligntok.evaluation.comparison.run import compare

__all__ = ["compare", "read_comparison"]
