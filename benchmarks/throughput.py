"""How fast is training here, beside what one would otherwise use? `make bench` (or `python benchmarks/throughput.py --short`).

Every contender trains the same shape (Pythia architecture, RoPE 25 %, AdamW, clipped gradients) on the same random
tokens. They take turns within one run (A B C A B C …), each in a process of its own, so that drift of the machine meets
all alike; medians and ratios are what counts. The limit is measured the same way: the matrix products of one step, and
nothing else, of the very shapes the step needs. `pe_core.studies.throughput.measure` says what the record means.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from pe_core import hardware, process, records
from pe_core.config import PRESETS, Experiment
from pe_core.encodings import ENCODINGS
from pe_core.launch import processes
from pe_core.studies.throughput import measure as throughput

# A step takes a batch of token ids (B, T + 1) and trains on it once.
Step = Callable[[torch.Tensor], object]


def ours(preset: str, B: int, T: int, encoding: str = "rope") -> Step:
    """pe_core's trainer."""
    from pe_core.model import LabForCausalLM
    from pe_core.model_config import LabConfig
    from pe_core.trainer import TrainStep

    experiment = Experiment(encoding=encoding, preset=preset, seq_len=T, batch_size=B).resolved()
    model = LabForCausalLM(LabConfig.of(experiment)).initialise(0)
    train_step = TrainStep(model, experiment)
    return lambda tokens: train_step(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def evaluation(preset: str, B: int, T: int) -> Step:
    """pe_core's evaluation, in batches of its own size."""
    from pe_core.loss import LossFunction
    from pe_core.model import LabForCausalLM
    from pe_core.model_config import LabConfig

    experiment = Experiment(preset=preset, seq_len=T, batch_size=B).resolved()
    compute = LossFunction(LabForCausalLM(LabConfig.of(experiment)).initialise(0), experiment)
    return lambda tokens: compute.evaluate(tokens.numpy())


def plain(preset: str, B: int, T: int) -> Step:
    """The same model in fp32, eager, with explicit score matrices."""
    from pe_core.model import LabForCausalLM
    from pe_core.model_config import LabConfig

    model = LabForCausalLM(LabConfig.of(Experiment(preset=preset, seq_len=T, batch_size=B).resolved())).initialise(0)
    model.set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)

    def step(tokens: torch.Tensor) -> None:
        logits = model(tokens[:, :-1], use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def x_transformers(preset: str, B: int, T: int) -> Step:
    """x-transformers, a decoder of the same dimensions with rotary embedding."""
    from x_transformers import Decoder, TransformerWrapper

    shape = PRESETS[preset]
    layers = Decoder(dim=shape.hidden, depth=shape.layers, heads=shape.heads, attn_dim_head=shape.hidden // shape.heads,
                     rotary_pos_emb=True, attn_flash=True)  # fmt: skip
    model = TransformerWrapper(num_tokens=shape.vocab, max_seq_len=T, use_abs_pos_emb=False, attn_layers=layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)

    def step(tokens: torch.Tensor) -> None:
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def trainer(preset: str, B: int, T: int, **arguments: Any) -> Callable[[int], list[float]]:
    """transformers' GPTNeoX under its Trainer. Returns a function that trains n steps and gives each one's seconds."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Trainer, TrainerCallback, TrainingArguments

    shape = PRESETS[preset]
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=shape.vocab, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
                      num_attention_heads=shape.heads, intermediate_size=4 * shape.hidden, rotary_pct=0.25,
                      max_position_embeddings=T)
    )  # fmt: skip

    def train(steps: int) -> list[float]:
        rows = torch.randint(shape.vocab, (B * steps, T), generator=torch.Generator().manual_seed(0))
        ends: list[float] = []

        class Clock(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *_: Any, **__: Any) -> None:
                ends.append(time.perf_counter())

        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingArguments(folder, per_device_train_batch_size=B, max_steps=steps, report_to="none",
                                         save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
                                         **arguments)  # fmt: skip
            Trainer(
                model, settings, train_dataset=[{"input_ids": row, "labels": row} for row in rows], callbacks=[Clock()]
            ).train()
        return [b - a for a, b in pairwise(ends)]

    return train


def products(dtype: torch.dtype, preset: str, B: int, T: int) -> Step:
    """Only the matrix products of one training step: each weight forward and twice backward, each attention product too."""
    shape = PRESETS[preset]
    D, H, V, N = shape.hidden, shape.heads, shape.vocab, B * T
    K = D // H
    linears = [(D, 3 * D), (D, D), (D, 4 * D), (4 * D, D)] * shape.layers + [(D, V)]
    jobs: list[tuple[torch.Tensor, torch.Tensor]] = []
    made: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    def product(*sizes: int) -> None:
        *batch, m, k, n = sizes
        if sizes not in made:
            made[sizes] = torch.randn(*batch, m, k, dtype=dtype), torch.randn(*batch, k, n, dtype=dtype)
        jobs.append(made[sizes])

    for i, o in linears:
        product(N, i, o)  # forward
        product(N, o, i)  # gradient of the input
        product(i, N, o)  # gradient of the weight
    for _ in range(shape.layers):
        for m, k, n in ((T, K, T), (T, T, K)) * 3:  # scores and values; two backward products each
            product(B * H, m, k, n)
    return lambda tokens: [torch.matmul(a, b) for a, b in jobs]


STEPS: dict[str, Callable[..., Any]] = {
    "ours": ours,
    "ours, evaluation": evaluation,
    "plain fp32": plain,
    "Trainer, defaults": trainer,
    "Trainer, compiled": lambda *shape: trainer(*shape, torch_compile=True),
    "Trainer, bf16 and compiled": lambda *shape: trainer(*shape, bf16=True, torch_compile=True),
    "x-transformers": x_transformers,
    "limit: bf16 products": lambda *shape: products(torch.bfloat16, *shape),
    "limit: fp32 products": lambda *shape: products(torch.float32, *shape),
}
SHORT = ("ours", "Trainer, defaults", "x-transformers", "limit: bf16 products", "limit: fp32 products")


def serve(name: str, preset: str, B: int, T: int, threads: int) -> None:
    """Child process: get ready, then for each line on stdin train that many seconds and answer with one line of JSON."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    began = time.perf_counter()
    contender, _, encoding = name.partition(" · ")
    made = STEPS[contender](preset, B, T, encoding) if encoding else STEPS[contender](preset, B, T)
    if contender == "ours, evaluation":
        from pe_core.loss import EVALUATION_TOKENS

        B = -(-4 * EVALUATION_TOKENS // T)  # several of its batches
    tokens = torch.randint(PRESETS[preset].vocab, (B, T + 1), generator=torch.Generator().manual_seed(0))
    by_trainer = contender.startswith("Trainer")

    def rate(seconds: float, guess: float) -> tuple[float, float]:
        if by_trainer:
            steps = made(max(4, round(seconds / guess) + 2))[1:]  # the first step after a start is not like the others
            return B * T / statistics.median(steps), statistics.median(steps)
        end = time.perf_counter() + seconds
        took: list[float] = []
        while time.perf_counter() < end or len(took) < 3:
            start = time.perf_counter()
            made(tokens)
            took.append(time.perf_counter() - start)
        return B * T / statistics.median(took), statistics.median(took)

    _, guess = rate(0.0, 1.0)
    ready = time.perf_counter() - began
    _, guess = rate(0.0, guess)
    print(json.dumps({"ready_seconds": ready}), flush=True)
    for line in sys.stdin:
        tokens_per_second, guess = rate(float(line), guess)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        print(json.dumps({"tokens_per_second": tokens_per_second, "peak_memory_mb": peak}), flush=True)


class Contender:
    """A child process that trains when asked, and sleeps while the others do."""

    def __init__(self, name: str, preset: str, B: int, T: int, threads: int) -> None:
        arguments = [sys.executable, __file__, "--serve", json.dumps([name, preset, B, T, threads])]
        self.name, self.rates, self.peak = name, [], 0.0  # type: ignore[var-annotated]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            # What others ship runs as it would without us; ours and the limit have our settings of the process.
            env={**os.environ, "PE_STOCK_PROCESS": "0" if name.startswith(("ours", "limit")) else "1"},
        )  # fmt: skip
        self.ready_seconds = self._answer()["ready_seconds"]

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{") and ("ready_seconds" in line or "tokens_per_second" in line):
                answer: dict[str, float] = json.loads(line)
                return answer
        raise RuntimeError(f"{self.name}: the process ended ({self.process.wait()})")

    def ask(self, seconds: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()

    def take(self) -> None:
        answer = self._answer()
        self.rates.append(answer["tokens_per_second"])
        self.peak = answer["peak_memory_mb"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def compare(preset: str, B: int, T: int, names: list[str], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Each contender in turn, `rounds` times, with all cores; rows with medians and the ratio to the first, by round."""
    contenders = []
    try:
        for name in names:
            contenders.append(Contender(name, preset, B, T, processes.cores()))
        for _ in range(rounds):
            for contender in contenders:
                contender.ask(seconds)
                contender.take()
        return [_row(preset, B, T, contender, contenders[0].rates) for contender in contenders]
    finally:
        for contender in contenders:
            contender.close()


def _row(preset: str, B: int, T: int, contender: Contender, first: list[float]) -> dict[str, Any]:
    ratios = [ours / theirs for ours, theirs in zip(first, contender.rates, strict=True)]
    return {
        "shape": f"{preset}, {B} × {T:,}",
        "contender": contender.name,
        "tokens_per_second": statistics.median(contender.rates),
        "ours_over_it": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "peak_memory_mb": contender.peak,
        "ready_seconds": contender.ready_seconds,
        "rounds": contender.rates,
    }


def two_at_once(preset: str, B: int, T: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A sweep: one run of ours a core, together, in turn with the Trainer's defaults alone on all cores."""
    pair = [Contender("ours", preset, B, T, 1) for _ in range(processes.cores())]
    alone = Contender("Trainer, defaults", preset, B, T, processes.cores())
    try:
        for _ in range(rounds):
            for contender in pair:
                contender.ask(seconds)
            for contender in pair:
                contender.take()
            alone.ask(seconds)
            alone.take()
        total = [sum(rates) for rates in zip(*(contender.rates for contender in pair), strict=True)]
        pair[0].name, pair[0].rates = f"ours, {len(pair)} runs at once", total
        rows = [_row(preset, B, T, contender, total) for contender in (pair[0], alone)]
        return [{**row, "shape": f"{row['shape']}, one run a core"} for row in rows]
    finally:
        for contender in (*pair, alone):
            contender.close()


def every_encoding(preset: str, B: int, T: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Each registered encoding in turn with none at all, some at a time so that all fit in memory."""
    names = [name for name in ENCODINGS if name != "none"]
    rows: list[dict[str, Any]] = []
    for start in range(0, len(names), 6):
        found = compare(
            preset, B, T, ["ours · none", *(f"ours · {name}" for name in names[start : start + 6])], rounds, seconds
        )
        rows += found if not rows else found[1:]
        _print(found)
    return rows


def start_up() -> list[dict[str, Any]]:
    """Seconds from a command to its first training step: with nothing compiled yet, and again."""
    rows = [{"what": "import pe_core", "seconds": _seconds("import pe_core")}]
    code = """
import time; began = time.time()
from pe_core import Experiment, sweep
from pe_core.report import notebook
notebook.begin()
if __name__ == "__main__":
    (record,) = sweep([Experiment(samples=100, epochs=1)])
    after = sum(record.runtime[name] for name in ("train_seconds", "eval_seconds"))
    print(time.time() - began - after)
"""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "run.py"
        script.write_text(code)
        for what in ("first step, nothing compiled", "first step, compiled before"):
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled", "PE_RUNS": f"{folder}/{what}"}
            # Tokens are prepared beforehand: their cache is not what is measured.
            prepare = (
                "from pe_core import Experiment, data, paths; data.prepare(Experiment(samples=100).resolved(), paths.cache())"
            )
            subprocess.run([sys.executable, "-c", prepare], check=True, env=environment)
            printed = subprocess.run(
                [sys.executable, script], check=True, env=environment, capture_output=True, text=True
            ).stdout
            rows.append({"what": what, "seconds": float(printed.splitlines()[-1])})
    for row in rows:
        print(f"{row['what']:<40}{row['seconds']:>8.1f} s", flush=True)
    return rows


def _seconds(code: str) -> float:
    took = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        took.append(time.perf_counter() - began)
    return min(took)


def main() -> None:
    process.tune()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="nano alone, under two minutes")
    parser.add_argument("--shape", action="append", metavar="PRESET:B:T", help="only these shapes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="where the record goes (default: runs/throughput/MACHINE.json)")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(*json.loads(arguments.serve))
        return
    from pe_core import paths
    from pe_core.runner import versions

    # What nobody would choose here is left out: bf16 where the processor multiplies it more slowly than fp32.
    precision = hardware.precision("auto", "cpu")
    slow = {"bf16": ("Trainer, compiled",), "fp32": ("Trainer, bf16 and compiled", "limit: bf16 products")}[precision]
    names = [name for name in STEPS if name not in slow]
    if precision == "fp32":
        print("bf16 products are slower than fp32 on this processor: the Trainer in bf16 is left out.")
    shapes = [("nano", 8, 128), ("micro", 8, 128), ("pythia-70m", 8, 128), ("pythia-70m", 1, 2048)]
    rounds = arguments.rounds
    if arguments.short:  # what compiles for half a minute on a laptop is left out, but ours
        shapes, rounds = shapes[:1], 3
        names = [name for name in names if name in SHORT]
    if arguments.shape:
        shapes = [(p, int(b), int(t)) for p, b, t in (shape.split(":") for shape in arguments.shape)]
    rows = []
    for preset, B, T in shapes:
        found = compare(preset, B, T, names, rounds, 2.0 if preset == "nano" else 5.0)
        rows += found
        _print(found)
    encodings, started = [], []
    if ("nano", 8, 128) in shapes and not arguments.short:
        found = two_at_once("nano", 8, 128, rounds, 2.0)
        rows += found
        _print(found)
    if not arguments.shape and not arguments.short:
        encodings = every_encoding("nano", 8, 128, rounds, 1.0)
    if not arguments.short:
        started = start_up()
    result = {
        "created": records.now(),
        "versions": versions(),
        **hardware.describe("cpu"),
        "precision": precision,
        "rounds": rounds,
        "rows": rows,
        "encodings": encodings,
        "start_up": started,
    }
    output = arguments.output or paths.runs() / throughput.FOLDER / throughput.file_name(result)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    print("\n" + throughput.targets([result]).to_string(index=False, float_format="{:.2f}".format, na_rep="–"))
    print(f"\nRecord: {output}")


def _print(rows: list[dict[str, Any]]) -> None:
    print(f"\n{rows[0]['shape']:<28}{'tokens/s':>10}{'ours is':>10}{'(range)':>16}{'peak MB':>10}{'ready s':>9}")
    for row in rows:
        ratio, spread = f"{row['ours_over_it']:.2f} ×", f"{row['lowest_ratio']:.2f}–{row['highest_ratio']:.2f}"
        print(
            f"{row['contender']:<28}{row['tokens_per_second']:>10,.0f}{ratio:>10}{spread:>16}"
            f"{row['peak_memory_mb']:>10,.0f}{row['ready_seconds']:>9.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
