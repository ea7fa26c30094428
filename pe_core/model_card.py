"""The README.md of a saved model: how to load it, how it was trained, what it reached."""

from __future__ import annotations

from pathlib import Path

from pe_core import files
from pe_core.records import MODEL, Record

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
`DataCollatorForLanguageModeling`) takes the real ends of text out with it. Give the tokenizer a padding token of its own, or
make labels from the attention mask.
"""


def write(record: Record, folder: Path) -> None:
    """Write the card into the run's model folder."""
    perplexity, bits = record.metrics["perplexity"]["value"], record.metrics["bits_per_byte"]["value"]
    settings = {name: value for name, value in record.config.items() if value not in (None, {})}
    rows = {
        "test perplexity": f"{perplexity:.2f}",
        "bits per byte": "–" if bits is None or bits != bits else f"{bits:.3f}",
        "test documents": f"{record.metrics['documents']:,}",
        "text": f"{record.data['corpus_about']} ({record.data['licence']})",
        **{f"`{name}`": f"`{value}`" for name, value in settings.items()},
    }
    text = _CARD.format(
        label=_cell(record.label),
        parameters=record.parameters,
        run=record.run,
        folder=f"runs/{record.run}/{MODEL}",
        rows="\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items()),
    )
    files.write(folder / MODEL / "README.md", text)


def _cell(text: str) -> str:
    """One cell of a Markdown table, whatever a user's label or corpus is called."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
