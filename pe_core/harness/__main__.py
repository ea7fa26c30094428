"""lm-evaluation-harness on saved runs: `python -m pe_core.harness` is its `lm_eval` with our model and tasks known to it.

python -m pe_core.harness run --model hf --model_args pretrained=runs/<id>/model --tasks lab_heldout
"""

from __future__ import annotations

import sys
from pathlib import Path

import pe_core.model  # noqa: F401  registers it with the Auto classes
from pe_core.errors import ConfigError

TASKS = Path(__file__).parent


def main() -> None:
    """The harness's own command line; tasks of this package are found without `--include_path`."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise ConfigError(
            f"lm-evaluation-harness is not installed ({error}): pip install 'position-encoding-lab[eval]'"
        ) from None
    if sys.argv[1:2] in (["run"], ["ls"], ["validate"]) and "--include_path" not in sys.argv:
        sys.argv += ["--include_path", str(TASKS)]
    cli_evaluate()


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
