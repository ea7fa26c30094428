"""Sweeps on a Ray cluster: every record arrives, whichever machine dies and whichever trial fails."""

import json
import shutil
import subprocess
import sys

import pytest

from pe_core import progress, records, sweeper
from pe_core.config import Experiment
from pe_core.errors import ConfigError, RecordError, TrainingError
from pe_core.launch import ray as launch_ray


@pytest.fixture
def run_folder(tmp_path):
    """What a finished run leaves: a record, and files beside and below it."""
    folder = tmp_path / "worker" / "rope-nano-0123456789"
    (folder / "model").mkdir(parents=True)
    for name in ("record.json", "heldout.npz", "model/config.json"):
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_run_travels_through_any_file_system(run_folder, tmp_path, kind):
    url = f"memory://{tmp_path.name}/runs/" if kind == "memory" else f"file://{tmp_path}/there/runs"
    launch_ray.upload(run_folder, url)
    here = tmp_path / "here" / run_folder.name
    here.parent.mkdir()
    launch_ray.download(url, here)
    found = {str(path.relative_to(here)): path.read_text() for path in here.rglob("*") if path.is_file()}
    assert found == {name: name for name in ("record.json", "heldout.npz", "model/config.json")}
    assert list(here.parent.iterdir()) == [here]
    (here / "record.json").write_text("mine")
    launch_ray.download(url, here)
    assert (here / "record.json").read_text() == "mine", "what is here already stays"
    launch_ray.download(url, here, fresh=True)
    assert (here / "record.json").read_text() == "record.json"


def test_the_record_is_uploaded_last(run_folder, monkeypatch):
    import fsspec

    order = []
    system = fsspec.filesystem("memory")
    monkeypatch.setattr(type(system), "put_file", lambda self, source, target: order.append(target.rpartition("/")[2]))
    launch_ray.upload(run_folder, "memory://order")
    assert order[-1] == "record.json"
    assert len(order) == 3


def test_a_run_that_did_not_arrive_is_one_line(tmp_path):
    with pytest.raises(RecordError, match=r"^run rope-nano-1: no record in 'memory://nothing'; do this machine and"):
        launch_ray.download("memory://nothing", tmp_path / "rope-nano-1")


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        (
            {"address": "auto"},
            ConfigError,
            r"^address='auto': Ray is not installed: pip install 'position-encoding-lab\[ray\]'$",
        ),
        ({"address": "auto", "workers": 2}, ConfigError, r"^workers=2: on a cluster its GPUs and cores decide"),
        ({"runs": "s3://bucket/runs"}, RecordError, r"^runs='s3://bucket/runs': a URL is for sweeps with an address"),
        ({"address": "auto", "runs": "nowhere://runs"}, ConfigError, r"^runs='nowhere://runs': Protocol not known: nowhere"),
    ],
)
def test_what_cannot_be_is_one_line(monkeypatch, settings, error, said):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(error, match=said):
        sweeper.sweep([Experiment(device="cpu")], **settings)


@pytest.fixture
def two_machines(monkeypatch, tmp_path):
    """A cluster of two nodes with one core each, and its second node."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # its sockets need short paths
    monkeypatch.setenv("TMPDIR", str(tmp_path / "machine"))
    (tmp_path / "machine").mkdir()
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    for attempt in range(3):  # Ray waits for 30 seconds, which a busy machine may not start within
        try:
            machines = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
            second = machines.add_node(**small)
            break
        except Exception as error:
            if attempt == 2 or "timed out" not in str(error):
                raise
    yield machines, second
    machines.shutdown()


@pytest.mark.slow
def test_all_records_arrive_though_a_machine_dies_and_a_trial_fails(corpus, tmp_path, monkeypatch, two_machines):
    machines, second = two_machines
    settings = {"corpus": corpus, "samples": 60, "seq_len": 16, "preset": "nano", "compile": "off", "device": "cpu"}
    chosen = [Experiment(seed=seed, epochs=12, patience=12, lr=1e-5, **settings) for seed in range(3)]
    chosen.append(Experiment(lr=1e9, **settings))
    said, dead = [], []

    def say(line):
        said.append(line)
        if (
            not dead and len({line.partition(" | ")[0] for line in said if "Epoch  2" in line}) == 2
        ):  # both machines are at work
            dead.append(second)
            machines.remove_node(second, allow_graceful=False)

    monkeypatch.setattr(progress, "say", say)
    url = f"file://{tmp_path}/gathered"
    monkeypatch.setenv("PE_RUNS", str(tmp_path / "here"))
    with pytest.raises(TrainingError, match=r"^1 of 4 runs failed, the others are kept .*: RoPE 25 %, seed 42: .* lower lr"):
        sweeper.sweep(chosen, url, address=machines.address)
    assert dead, "the sweep was over before a machine died"
    assert sum("M parameters (nano)" in line for line in said) > 4, "the dead machine's trial was begun again"
    found = records.load_all(tmp_path / "here")
    assert sorted(record.config["seed"] for record in found) == [0, 1, 2]
    assert not list((tmp_path / "machine").rglob("record.json")), "what was copied is removed"

    shutil.rmtree(found[0].folder)  # trained and gathered, but no longer here
    assert sweeper.sweep([found[0].experiment], url, address=machines.address)[0].same_result(found[0])
    assert "already trained, in file://" in said[-1]


@pytest.mark.slow
def test_the_command_line_sweeps_on_a_cluster_of_this_machine(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    settings = [
        "--samples",
        "60",
        "--seq-len",
        "16",
        "--epochs",
        "1",
        "--preset",
        "nano",
        "--compile",
        "off",
        "--device",
        "cpu",
    ]
    command = [sys.executable, "-m", "pe_core", "sweep", "--encoding", "none", "rope", "--corpus", corpus, *settings]
    ran = subprocess.run(
        [*command, "--address", "local", "--runs", str(tmp_path / "shared"), "--json"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert [row["encoding"] for row in json.loads(ran.stdout)] == ["none", "rope"]
    assert "NoPE      | Epoch  1: train_ppl=" in ran.stderr, "trials report here"
    assert len(records.load_all(tmp_path / "shared")) == 2
