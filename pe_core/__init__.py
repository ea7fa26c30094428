"""Position Encoding Lab: the same small causal language model under every position encoding.

Importing it changes nothing and is quick: torch and transformers are loaded when something that needs them is first used.
`import pe_core.model` registers the model with the Auto classes of `transformers`, as any model outside of that library is.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pe_core import records
    from pe_core.config import PRESETS, Experiment
    from pe_core.encodings import ENCODINGS
    from pe_core.errors import LabError
    from pe_core.model import LabForCausalLM
    from pe_core.model_config import LabConfig
    from pe_core.runner import run
    from pe_core.sweeper import sweep

__all__ = ["ENCODINGS", "PRESETS", "Experiment", "LabConfig", "LabError", "LabForCausalLM", "records", "run", "sweep"]

_HOME = {"PRESETS": "config", "Experiment": "config", "ENCODINGS": "encodings", "LabError": "errors",
         "run": "runner", "sweep": "sweeper", "LabConfig": "model_config", "LabForCausalLM": "model"}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"pe_core.{_HOME[name]}"), name)
    if name == "records":
        return import_module("pe_core.records")
    raise AttributeError(f"module 'pe_core' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
