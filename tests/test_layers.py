"""Who may import whom: the contracts that pyproject.toml states."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.filterwarnings("ignore")  # of the linter's own dependencies
def test_the_import_contracts_are_kept(capsys):
    from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    printed = capsys.readouterr().out
    assert status == EXIT_STATUS_SUCCESS, printed
    assert "0 broken" in printed
