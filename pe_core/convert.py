"""Pythia checkpoints as models of this library."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, GPTNeoXConfig, GPTNeoXForCausalLM

from pe_core.errors import ConfigError
from pe_core.model import LabForCausalLM
from pe_core.model_config import LabConfig


def from_neox(model: GPTNeoXForCausalLM | str | Path) -> LabForCausalLM:
    """A Pythia checkpoint as one of our models, in fp32: same weights, same logits.

    Args:
        model: a model of `transformers`, the folder of a saved one, or its name on the hub.

    Raises:
        ConfigError: for a checkpoint with a part that this decoder does not have, or that cannot be loaded whole.
    """
    if not isinstance(model, GPTNeoXForCausalLM):
        model = _load_neox(str(model))
    source = model.config
    rope = source.rope_parameters
    needed = {"use_parallel_residual": True, "hidden_act": "gelu", "attention_bias": True}
    found = {name: getattr(source, name) for name in needed} | {"rope_type": rope["rope_type"]}
    for name, value in (needed | {"rope_type": "default"}).items():
        if found[name] != value:
            raise ConfigError(f"{name}={found[name]!r}: only GPT-NeoX models with {name}={value!r} can be converted")
    config = LabConfig(
        vocab_size=source.vocab_size,
        hidden_size=source.hidden_size,
        num_hidden_layers=source.num_hidden_layers,
        num_attention_heads=source.num_attention_heads,
        intermediate_size=source.intermediate_size,
        max_position_embeddings=source.max_position_embeddings,
        layer_norm_eps=source.layer_norm_eps,
        encoding="rope",
        encoding_options={"rotary_pct": rope["partial_rotary_factor"], "base": float(rope["rope_theta"])},
    )
    converted = LabForCausalLM(config)
    weights = {name.removeprefix("gpt_neox."): value for name, value in model.state_dict().items()}
    if "embed_out.weight" not in weights:  # transformers 5 may call the output projection lm_head
        weights["embed_out.weight"] = weights.pop("lm_head.weight")
    converted.load_state_dict(weights)
    converted.eval()
    return converted


def _load_neox(name: str) -> GPTNeoXForCausalLM:
    try:
        source = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if not isinstance(source, GPTNeoXConfig):  # its weights would be passed over, and random ones taken
            raise ConfigError(f"checkpoint '{name}' is of the type '{source.model_type}', not 'gpt_neox'")
        model, report = GPTNeoXForCausalLM.from_pretrained(name, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"checkpoint '{name}' cannot be loaded ({str(error).splitlines()[0]})") from None
    if report["missing_keys"]:
        raise ConfigError(f"checkpoint '{name}' lacks weights: {', '.join(sorted(report['missing_keys']))}")
    return model
