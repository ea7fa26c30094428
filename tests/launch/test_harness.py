"""lm-evaluation-harness scores a saved run on a task of this repository, without a network."""

import json
import math
import subprocess
import sys

import pytest
import torch
from hub import LOOPBACK_ONLY

from pe_core import Experiment, records, runner
from pe_core.data import corpora
from pe_core.data.sides import split

pytest.importorskip("lm_eval", reason="lm-eval is not installed")


@pytest.mark.slow
def test_its_bits_per_byte_are_the_models(tmp_path):
    texts = [" ".join(f"word{(i * j) % 97}" for j in range(1, 40)) for i in range(1, 80)]
    file = tmp_path / "corpus.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    tiny = Experiment(
        corpus=str(file), samples=40, seq_len=128, epochs=1, preset="nano", compile="off", device="cpu", batch_size=2
    )
    record = runner.run(tiny, tmp_path / "runs")
    code = f"{LOOPBACK_ONLY}\nfrom pe_core.harness.__main__ import main\nmain()"
    arguments = ["run", "--model", "hf", "--model_args", f"pretrained={record.folder / records.MODEL},dtype=float32"]
    arguments += ["--tasks", "lab_heldout", "--metadata", json.dumps({"corpus": str(file)}), "--device", "cpu"]
    command = [sys.executable, "-c", code, *arguments, "--batch_size", "4", "--output_path", str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    [found] = (tmp_path / "out").rglob("results_*.json")
    measured = json.loads(found.read_text())["results"]["lab_heldout"]["bits_per_byte,none"]

    model, tokenizer = record.model(), record.tokenizer()
    nats = size = 0.0
    for text in split(list(corpora.load(str(file)).documents()))[2]:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        assert ids.shape[1] <= 129, "one window each, for this test"
        nats += float(model.losses(ids[:, :-1], ids[:, 1:]).detach().sum())
        size += len(text.encode())
    assert measured == pytest.approx(nats / size / math.log(2), rel=1e-4)
