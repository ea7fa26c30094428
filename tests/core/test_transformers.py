"""A saved run is an ordinary model folder: the Auto classes, `generate`, pipelines, and Pythia's checkpoints."""

import json
import subprocess
import sys

import pytest
import torch
from helpers import tiny_model
from hub import LOOPBACK_ONLY
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Trainer,
    TrainingArguments,
)
from transformers import pipeline as make_pipeline

from pe_core import Experiment, LabForCausalLM, records, runner
from pe_core.convert import from_neox
from pe_core.errors import ConfigError

LENGTHS = (12, 9, 5)


def model_of(encoding, kind, attention="sdpa"):
    options = {"rotary_pct": 1.0} if (encoding, kind) == ("rope", "mla") else None  # a quarter of 8 dimensions is one pair
    return tiny_model(encoding, options, attention, attention_kind=kind)


@pytest.fixture(params=["mha", "mla"])
def kind(request):
    return request.param


@pytest.fixture
def mask():
    return torch.stack([torch.arange(12) >= 12 - length for length in LENGTHS]).long()


# --- generation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_left_padded_batch_through_the_cache_equals_each_row_alone(encoding, kind, attention, ids, mask):
    model = model_of(encoding, kind, attention)
    output = model(ids[:, :7], attention_mask=mask[:, :7])
    logits = [output.logits]
    for t in range(7, 12):
        output = model(ids[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=output.past_key_values)
        logits.append(output.logits)
    cached = torch.cat(logits, 1)
    for row, length in enumerate(LENGTHS):
        alone = model(ids[row : row + 1, -length:], use_cache=False).logits[0]
        torch.testing.assert_close(cached[row, -length:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_a_left_padded_batch_generates_the_same_with_and_without_a_cache(encoding, kind, sampled, ids, mask):
    model = model_of(encoding, kind)

    def generate(seed, use_cache):
        torch.manual_seed(seed)
        chosen = {"do_sample": True, "top_k": 20, "temperature": 0.8} if sampled else {"do_sample": False}
        return model.generate(ids, attention_mask=mask, use_cache=use_cache, max_new_tokens=6, pad_token_id=0, **chosen)

    one = generate(0, True)
    assert torch.equal(one, generate(0, False))
    assert torch.equal(one, generate(1, True)) == (not sampled)
    assert one.shape == (3, 18)


# --- a saved run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    texts = [" ".join(f"word{(i * j) % 97}" for j in range(1, 40)) for i in range(1, 80)]
    (folder / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    tiny = Experiment(
        encoding="alibi", corpus=str(folder / "corpus.jsonl"), samples=100, seq_len=16, epochs=2, preset="nano",
        compile="off", device="cpu", attention="mla",
    )  # fmt: skip
    return runner.run(tiny, folder)


def test_a_run_loads_through_the_auto_classes(record):
    folder = record.folder / records.MODEL
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert isinstance(model, LabForCausalLM)
    assert tokenizer.padding_side == "left"
    assert model.config.pad_token_id == tokenizer.pad_token_id == tokenizer.eos_token_id
    prompts = ["word1 word2", "word3 word6 word9 word12 word15"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    ids = model.generate(**batch, max_new_tokens=8, do_sample=False)
    for prompt, row in zip(prompts, ids, strict=True):
        alone = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=8, do_sample=False)[0]
        assert tokenizer.decode(row, skip_special_tokens=True) == tokenizer.decode(alone, skip_special_tokens=True)
        assert tokenizer.decode(row, skip_special_tokens=True).startswith(prompt)


def test_a_pipeline_goes_on_with_a_text(record):
    pipeline = make_pipeline("text-generation", model=str(record.folder / records.MODEL), device="cpu")
    options = {"do_sample": False, "max_new_tokens": 4, "max_length": None}
    one, two = pipeline(["word1 word2", "word3 word6 word9"], batch_size=2, **options)
    assert one[0]["generated_text"].startswith("word1 word2")
    assert two == pipeline("word3 word6 word9", **options)


@pytest.mark.slow
def test_another_process_needs_no_more_than_the_import(record):
    code = f"""{LOOPBACK_ONLY}
import pe_core.model
from transformers import pipeline
print(pipeline("text-generation", model={str(record.folder / records.MODEL)!r})("word1", max_new_tokens=3)[0]["generated_text"])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=record.folder)
    assert ran.returncode == 0, ran.stderr
    assert "word1" in ran.stdout


# --- Pythia's checkpoints --------------------------------------------------------------------------------------------


def neox(**changes):
    dimensions = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(max_position_embeddings=64, **{**dimensions, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "changes", [{}, {"num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 2, "vocab_size": 50}], ids=["a", "b"]
)
def test_a_checkpoint_on_disk_has_the_same_logits(tmp_path, ids, changes, dtype):
    neox(**changes).to(dtype).save_pretrained(tmp_path / "neox")
    source = GPTNeoXForCausalLM.from_pretrained(tmp_path / "neox", dtype=torch.float32)  # its rotation in full precision, too
    ours = from_neox(tmp_path / "neox")
    ours.save_pretrained(tmp_path / "ours")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert isinstance(loaded, LabForCausalLM)
    assert loaded.dtype == torch.float32
    expected = source(ids % 50).logits
    assert expected.std() > 1
    for model in (ours, loaded):
        torch.testing.assert_close(model(ids % 50).logits, expected, atol=1e-5, rtol=1e-5)
    greedy = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(loaded.generate(ids % 50, **greedy), source.generate(ids % 50, **greedy))


def test_a_checkpoint_that_cannot_be_taken_whole_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"checkpoint '.*missing' cannot be loaded"):
        from_neox(tmp_path / "missing")
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9, n_positions=8)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ConfigError, match="is of the type 'gpt2', not 'gpt_neox'"):
        from_neox(tmp_path / "gpt2")
    model = neox()
    state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path / "holes", state_dict=state)
    with pytest.raises(ConfigError, match=r"lacks weights: .*layers\.1\.mlp"):
        from_neox(tmp_path / "holes")


# --- training under transformers' Trainer ----------------------------------------------------------------------------


@pytest.mark.parametrize("accumulated", [1, 4, 16])
def test_accumulated_gradients_are_those_of_one_batch(accumulated, tmp_path):
    """Loss and gradient norm as `Trainer` logs them, of sixteen rows with different numbers of labels."""
    rows = torch.randint(97, (16, 12), generator=torch.Generator().manual_seed(3))
    data = [{"input_ids": row, "labels": row.where(torch.arange(12) < 4 + n % 8, -100)} for n, row in enumerate(rows)]
    arguments = TrainingArguments(
        tmp_path, per_device_train_batch_size=16 // accumulated, gradient_accumulation_steps=accumulated, max_steps=1,
        logging_steps=1, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, learning_rate=0.0,
    )  # fmt: skip
    trainer = Trainer(tiny_model().train(), arguments, train_dataset=data)
    trainer.train()
    logged = trainer.state.log_history[0]
    model = tiny_model().train()
    loss = model(rows, labels=torch.stack([row["labels"] for row in data])).loss
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert logged["loss"] == pytest.approx(loss.item(), abs=1e-3)
    assert logged["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)


def test_a_padding_token_may_be_added():
    model = tiny_model()
    model.resize_token_embeddings(98)
    assert model(torch.tensor([[97, 1]])).logits.shape == (1, 2, 98)


def test_label_smoothing_shifts_the_labels(tmp_path):
    """As for transformers' own models: the smoothed loss of a next token, not of the token itself."""
    rows = torch.randint(97, (4, 12), generator=torch.Generator().manual_seed(3))
    arguments = TrainingArguments(tmp_path, label_smoothing_factor=0.1, report_to=[], use_cpu=True)
    model = tiny_model()
    found = Trainer(model, arguments).compute_loss(model, {"input_ids": rows, "labels": rows.clone()})
    expected = torch.nn.functional.cross_entropy(
        model(rows).logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), label_smoothing=0.1
    )
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


def test_activations_may_be_computed_again(encoding, ids):
    """Gradient checkpointing: the same gradients."""
    gradients = []
    for again in (False, True):
        model = tiny_model(encoding).train()
        if again:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # its name since 5.13
        torch.manual_seed(0)
        model(ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_logits_of_some_places(ids):
    model = tiny_model()
    everything = model(ids).logits
    assert torch.equal(model(ids, logits_to_keep=2).logits, everything[:, -2:])
    assert torch.equal(model(ids, logits_to_keep=torch.tensor([0, 5])).logits, everything[:, [0, 5]])


def test_a_mask_of_more_dimensions_is_refused(ids):
    with pytest.raises(ConfigError, match=r"attention_mask of shape \[3, 1, 12, 12\]"):
        tiny_model()(ids, attention_mask=torch.ones(3, 1, 12, 12))


def test_a_saved_model_says_how_to_load_it(corpus, tmp_path):
    record = runner.run(
        Experiment(corpus=corpus, samples=40, seq_len=16, epochs=1, batch_size=4, compile="off", device="cpu", preset="nano"),
        tmp_path,
    )
    card = (record.folder / records.MODEL / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    assert len(code.split("\n\n")) == 2
    loaded: dict[str, object] = {}
    exec(code, loaded)
    assert isinstance(loaded["model"], LabForCausalLM)
    assert f"{record.metrics['perplexity']['value']:.2f}" in card
    assert "| `encoding` | `rope` |" in card
    assert "takes the real ends of text out" in card
