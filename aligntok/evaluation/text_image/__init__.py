"""How well pictures show their prompts, and how well people would like them: the metrics of text to image.

Each is on a frozen network from local files; a number's name says of which, and the result what these files hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntok.evaluation.settings import TextImageSettings
from aligntok.evaluation.text_image.needs import check_weights

if TYPE_CHECKING:  # what is missing is told before torch is loaded
    from aligntok.evaluation.results import Result


def evaluate_text_image(asked: TextImageSettings) -> Result:
    """Measure pictures against their prompts, of one folder or of two side by side; see :mod:`..run`.

    Writes into `out` (None: ``evaluation/text_image`` in the first folder) ``text_image.json``, ``per_image.csv`` and
    ``report.html``. Collective under torchrun. Raises ConfigError and WeightsError for what cannot be measured with,
    DataError for the pictures and files of prompts, Preempted after SIGTERM.
    """
    check_weights(asked.metrics, asked.weights)
    from aligntok.evaluation.text_image.run import evaluate

    return evaluate(asked)
