"""Where tests find what lies beside them."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
CONTRACTS = ROOT / "tests" / "contracts"
FIRST_RELEASE = FIXTURES / "model-first-release"
