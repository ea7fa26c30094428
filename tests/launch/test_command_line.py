"""`python -m pe_core`: every setting is an option, errors are one line, and JSON is all that stdout holds."""

import json
import subprocess
import sys

import pytest
import torch

from pe_core import ENCODINGS, Experiment, records, runner
from pe_core.__main__ import _experiments, _parser, main

TINY = ["--samples", "40", "--seq-len", "8", "--epochs", "1", "--preset", "nano", "--compile", "off", "--device", "cpu"]


def given(*arguments):
    return _experiments(_parser().parse_args(list(arguments)))


def test_every_setting_is_an_option_and_explained(capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for name, field in Experiment.model_fields.items():
        assert f"--{name.replace('_', '-')} " in shown
        assert field.description, f"no docstring says what {name} is"
        assert " ".join(field.description.replace("`", "").split()) in " ".join(shown.split())
        assert field.default in (None, {}) or f"(default: {field.default})" in " ".join(shown.split())


def test_the_defaults_are_those_of_experiment():
    assert given("run") == [Experiment()]


def test_values_become_what_experiment_takes():
    [one] = given(
        "run", "--encoding", "alibi", "--options", '{"slope": 0.5}', "--samples", "1000", "--lr", "3e-4", "--facts", "none"
    )
    assert one == Experiment(encoding="alibi", options={"slope": 0.5}, samples=1000, lr=3e-4)
    assert given("run", "--encoding", "alibi", "-o", "slope=0.5") == [Experiment(encoding="alibi", options={"slope": 0.5})]
    [one] = given("run", "--encoding", "none")
    assert one.encoding == "none"


def test_a_sweep_is_every_combination_in_order():
    found = given("sweep", "--encoding", "none", "rope", "--seed", "1", "2")
    assert [(one.encoding, one.seed) for one in found] == [("none", 1), ("none", 2), ("rope", 1), ("rope", 2)]
    found = given("sweep", "--encoding", "none", "alibi", "-o", "alibi.slope=0.5", "-o", "alibi.slope=0.25")
    assert [(one.encoding, one.options) for one in found] == [
        ("none", {}),
        ("alibi", {"slope": 0.5}),
        ("alibi", {"slope": 0.25}),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--sampels", "100"], "unknown option '--sampels'; did you mean '--samples'?"),
        (["run", "--samples", "abc"], "samples='abc': should be a valid integer"),
        (["run", "--encoding", "rop"], "unknown encoding 'rop'; did you mean 'rope'?"),
        (["run", "-o", "slope=1"], "encoding 'rope': unknown setting 'slope'"),
        (["run", "-o", "slope"], "-o slope: should be NAME=VALUE"),
        (["run", "-o", "alibi.slope=1"], "-o alibi.slope=1: unknown encoding 'alibi' (known: rope)"),
        (["run", "-o", "base=10", "-o", "base=20"], "`sweep` runs them all"),
        (["run", "--options", "slope"], "options='slope': should be JSON"),
        (["run", "--corpus", "no-such-corpus"], "unknown corpus 'no-such-corpus'"),
        (["run", "--device", "tpu"], "device='tpu' is not available"),
        (["run", "more"], "unexpected 'more'"),
        (["run", "--samples"], "expected one argument"),
        (["sweep", "--workers", "0"], "workers=0: should be 1 or more"),
        (["estimate", "--trials", "0"], "trials=0: should be 1 or more"),
        (["list", "encoding"], "unknown list 'encoding'; did you mean 'encodings'?"),
        (["lst"], "'lst'"),
        ([], "required"),
    ],
)
def test_a_bad_setting_is_one_line_and_exit_code_2(arguments, said, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_underscores_are_as_good_as_hyphens():
    assert main(["run", "--seq_len", "1"]) == 2  # refused for its value, not for its name
    assert main(["run", "--seq_len=1"]) == 2


def test_run_show_and_list_tell_of_the_same_record(corpus, tmp_path, capsys):
    where = ["--corpus", corpus, "--runs", str(tmp_path)]
    assert main(["run", *TINY, *where, "--json"]) == 0
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert "parameters (nano)" in captured.err
    assert said["folder"] == str(tmp_path / said["run"])
    same = Experiment(corpus=corpus, samples=40, seq_len=8, epochs=1, preset="nano", compile="off", device="cpu")
    assert runner.run(same, tmp_path).run == said["run"]
    capsys.readouterr()

    for name in (said["run"], "rope", str(tmp_path / said["run"])):
        assert main(["show", name, "--runs", str(tmp_path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == said
    assert main(["show", said["run"], "--runs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "RoPE 25 %" in shown
    assert "Epoch  1: train_ppl=" in shown
    assert f"{said['metrics']['perplexity']['value']:,.1f}" in shown

    assert main(["list", "--runs", str(tmp_path), "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert row["run"] == said["run"]
    assert row["perplexity"] == said["metrics"]["perplexity"]["value"]
    assert main(["list", "--runs", str(tmp_path)]) == 0
    assert said["run"] in capsys.readouterr().out

    assert main(["show", "ropes", "--runs", str(tmp_path)]) == 1
    assert f"unknown run 'ropes' (known: {said['run']})" in capsys.readouterr().err


def test_what_a_sweep_would_cost(corpus, tmp_path, capsys):
    where = ["--corpus", corpus, "--runs", str(tmp_path)]
    assert main(["run", *TINY, *where]) == 0
    capsys.readouterr()
    assert main(["estimate", *TINY, *where, "--encoding", "none", "alibi", "--trials", "1000", "--workers", "8", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["trials"], said["workers"], said["runs"]) == (1000, 8, 1)
    assert said["hours"] == pytest.approx(said["worker_hours"] / 8)
    assert main(["estimate", *TINY, *where, "--encoding", "none", "alibi"]) == 0
    assert capsys.readouterr().out.startswith("2 trials: 0 minutes of one worker, 0 minutes with 1 at a time. A trial takes ")


def test_what_can_be_chosen_is_listed(tmp_path, capsys):
    for what, known in (("encodings", list(ENCODINGS)), ("corpora", ["aws-docs", "pile"]), ("presets", ["nano", "pythia-70m"])):
        assert main(["list", what]) == 0
        shown = capsys.readouterr().out
        assert all(name in shown for name in known)
        assert main(["list", what, "--json"]) == 0
        assert {row["name"] for row in json.loads(capsys.readouterr().out)} >= set(known)
    assert main(["list", "--runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "No finished runs.\n"


def test_a_failure_of_training_is_exit_code_1(corpus, tmp_path, capsys):
    assert main(["run", *TINY, "--corpus", corpus, "--runs", str(tmp_path), "--lr", "1e9", "--epochs", "3"]) == 1
    assert "try a lower lr" in capsys.readouterr().err


def test_interrupted_is_exit_code_130(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupt)
    assert main(["run"]) == 130
    assert "goes on" in capsys.readouterr().err


def test_help_needs_no_torch():
    code = "import sys; from pe_core.__main__ import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_a_sweep_in_processes_of_its_own(corpus, tmp_path):
    command = [sys.executable, "-m", "pe_core", "sweep", "--encoding", "none", "rope", "--json", *TINY, "--corpus", corpus]
    ran = subprocess.run([*command, "--runs", str(tmp_path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert [row["encoding"] for row in json.loads(ran.stdout)] == ["none", "rope"]
    assert len(records.load_all(tmp_path)) == 2
    assert torch.get_num_threads() == 1
