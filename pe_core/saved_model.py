"""The saved model of a run: a folder as transformers reads it, with a README and the checksums of what was written."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pe_core import files, progress
from pe_core.errors import ConfigError, RecordError, out_of_memory

if TYPE_CHECKING:
    from pe_core.model import LabForCausalLM
    from pe_core.records import Record

FOLDER, WEIGHTS, SUMS = "model", "model.safetensors", "SHA256SUMS"  # the last as `sha256sum --check` reads it
_NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")

_CARD = """---
library_name: transformers
tags: [position-encoding-lab]
---

# {label}

{parameters:,} parameters, trained by Position Encoding Lab as run `{run}`. The architecture is the package's own, so import it
first (without `import pe_core.model`, transformers does not know the model type and asks for an upgrade that does not help):

```python
import pe_core.model
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{folder}")
```

| | |
|---|---|
{rows}

Fine-tuning: the padding token is the end-of-text token, and a collator that takes padding out of the labels (such as
`DataCollatorForLanguageModeling`) takes the real ends of text out with it. Give the tokenizer a padding token of its own
(`tokenizer.add_special_tokens({{"pad_token": "[PAD]"}})`, then `model.resize_token_embeddings(len(tokenizer))`), or make labels
from the attention mask. LoRA with peft: `target_modules=["query_key_value"]`. transformers' `Trainer` decays the encoding's own
parameters too where `weight_decay` is not 0; `pe_core.trainer.decay_groups` gives the groups these runs were trained with.
"""


def save(model: LabForCausalLM, tokenizer: Any, folder: Path) -> None:
    """Model and tokenizer, as transformers loads them."""
    # `generate` goes on from the last token of each row, so a batch is padded on the left.
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # the second has it saved

    def write(where: Path) -> None:
        with progress.quiet_transformers():
            model.save_pretrained(where)
        tokenizer.save_pretrained(where)
        sums = [f"{files.sha256(file)}  {file.name}\n" for file in sorted(where.iterdir())]
        (where / SUMS).write_text("".join(sums))

    files.write_folder(folder, write)


def write_card(record: Record, folder: Path) -> None:
    """A README.md for a run's saved model: how to load it, how it was trained, what it reached."""
    perplexity, bits = record.metrics["perplexity"]["value"], record.metrics["bits_per_byte"]["value"]
    settings = {name: value for name, value in record.config.items() if value not in (None, {})}
    rows = {
        "test perplexity": f"{perplexity:.2f}",
        "bits per byte": "–" if bits is None or bits != bits else f"{bits:.3f}",
        "measured on": record.held_out,
        "text": f"{record.data['corpus_about']} ({record.data['licence']})",
        **{f"`{name}`": f"`{value}`" for name, value in settings.items()},
    }
    text = _CARD.format(
        label=_cell(record.label),
        parameters=record.parameters,
        run=record.run,
        folder=os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else folder,
        rows="\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items()),
    )
    files.write(folder / "README.md", text)


def _cell(text: str) -> str:
    """One cell of a Markdown table, whatever a user's label or corpus is called."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def model(folder: Path) -> Any:
    """The weights, as a `transformers` model in evaluation mode. Raises RecordError where they cannot be read."""
    from pe_core.model import LabForCausalLM

    return _opened(lambda: LabForCausalLM.from_pretrained(folder).eval(), folder)


def tokenizer(folder: Path) -> Any:
    """The tokenizer saved with the model. Raises RecordError where it cannot be read."""
    from transformers import PreTrainedTokenizerFast  # `AutoTokenizer` may run code that lies in the folder

    return _opened(lambda: PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True), folder)


def _opened(read: Callable[[], Any], folder: Path) -> Any:
    if not folder.is_dir():
        raise RecordError(f"no saved model at '{folder}'; train the run again")
    try:
        with progress.quiet_transformers():
            return read()
    except Exception as error:  # transformers, tokenizers and safetensors raise many kinds over a damaged file
        if out_of_memory(error):
            raise
        raise RecordError(f"the saved model '{folder}' cannot be read ({damage(folder) or _first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def damage(folder: Path) -> str | None:
    """What is missing, or not as it was written; `None` where all is there."""
    name = WEIGHTS
    try:
        if (folder / SUMS).exists():
            for line in (folder / SUMS).read_text().splitlines():
                expected, _, name = line.partition("  ")
                if files.sha256(folder / name) != expected:
                    return f"{name} is not as it was written"
        weights = folder / WEIGHTS
        with weights.open("rb") as file:
            [header] = struct.unpack("<Q", file.read(8))
            parts = files.from_json(file.read(header))
            ends = [part["data_offsets"][1] for name, part in parts.items() if name != "__metadata__"]
        if weights.stat().st_size != 8 + header + max(ends):
            return f"{WEIGHTS} is cut off"
        for name in _NEEDED:
            if not dict(files.from_json((folder / name).read_text())):
                return f"{name} is empty"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError, struct.error):
        return f"{name} is damaged"
    return None


def generate(folder: Path, text: str, tokens: int, temperature: float, seed: int) -> str:
    """See `Record.generate`."""
    import torch

    opened, language = tokenizer(folder), model(folder)
    # The end-of-text token typed by a user is text, not the control token.
    ids = opened(text, return_tensors="pt", add_special_tokens=False, split_special_tokens=True).input_ids
    if not ids.shape[1]:
        ids = torch.tensor([[opened.eos_token_id]])
    most = language.encoding.longest_text
    if most is not None and most - ids.shape[1] < tokens:
        if ids.shape[1] >= most:
            raise ConfigError(
                f"a text of {ids.shape[1]} tokens: this model has positions for {most}, its next token's included"
            )
        progress.say(f"Ends after {most} tokens, beyond which this model has no positions.")
        tokens = most - ids.shape[1]
    sampled = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    with torch.random.fork_rng([]), progress.quiet_transformers():  # it would warn of lengths beyond those trained on
        torch.manual_seed(seed)
        made = language.generate(ids, max_new_tokens=tokens, pad_token_id=opened.eos_token_id, **sampled)
    return text + str(opened.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
