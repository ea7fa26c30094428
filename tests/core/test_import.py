"""`import pe_core` is quick, whole and without effect; `pe_core.model` is known to the Auto classes in any order of imports."""

import subprocess
import sys

import pytest

import pe_core


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_loads_neither_torch_nor_transformers():
    printed = python(
        "import pe_core, sys; print([name for name in ('torch', 'transformers', 'pandas') if name in sys.modules])"
    )
    assert printed == "[]"


def test_importing_leaves_the_process_as_it_is():
    state = "(dict(os.environ), list(sys.meta_path), list(sys.path_hooks), threading.active_count(), warnings.filters[:])"
    code = f"import os, sys, threading, warnings; before = {state}; import pe_core; assert {state} == before"
    python(code + "; assert not hasattr(pe_core, 'process')")


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import pe_core.model; from transformers import AutoConfig, AutoModelForCausalLM",
        "from transformers import AutoConfig, AutoModelForCausalLM; import pe_core.model",
        "import transformers, pe_core.model; from transformers import AutoModelForCausalLM, AutoConfig",
        "from pe_core import LabForCausalLM; from transformers import AutoConfig, AutoModelForCausalLM",
        "import pe_core.model; from transformers import AutoTokenizer, AutoConfig, AutoModelForCausalLM",
    ],
)
def test_auto_classes_know_the_model(imports):
    small = "vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8"
    code = f"{imports}\nconfig = AutoConfig.for_model('position-encoding-lab', {small})\n"
    assert python(code + "print(type(AutoModelForCausalLM.from_config(config)).__name__)") == "LabForCausalLM"


def test_every_public_name_is_there():
    for name in pe_core.__all__:
        assert getattr(pe_core, name) is not None
        assert name in dir(pe_core)
    assert pe_core.records.load
    with pytest.raises(AttributeError, match="module 'pe_core' has no attribute 'no_such'"):
        _ = pe_core.no_such
