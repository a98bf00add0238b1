"""Reports: what trainings, samples and evaluations left in their folders, as one page to read."""

from aligntok.evaluation.report.page import write_report

__all__ = ["write_report"]
