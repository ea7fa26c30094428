"""A full disk, a lost folder, a shortage of memory: one line, and nothing that was there is lost."""

import errno
import json
import os
import shutil

import pytest
import torch
from helpers import tiny_model as tiny

from pe_core import files, paths, records, runner, saved_model, trainer
from pe_core.config import Experiment
from pe_core.errors import ConfigError, RecordError, TrainingError, WriteError
from pe_core.trainer import TrainState

FAULTS = {"No space left on device": errno.ENOSPC, "Disk quota exceeded": errno.EDQUOT, "Read-only file system": errno.EROFS,
          "Input/output error": errno.EIO}  # fmt: skip


def failing(code):
    def fsync(handle):
        raise OSError(code, os.strerror(code))

    return fsync


@pytest.mark.parametrize(("said", "code"), FAULTS.items())
def test_what_cannot_be_written_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch, said, code):
    file, folder = tmp_path / "a.txt", tmp_path / "folder"
    files.write(file, "old")
    files.write_folder(folder, lambda where: (where / "x").write_text("old"))
    monkeypatch.setattr(os, "fsync", failing(code))
    for write in (
        lambda: files.write(file, "new"),
        lambda: files.write_folder(folder, lambda where: (where / "x").write_text("new")),
    ):
        with pytest.raises(WriteError, match=rf"^cannot write '.*(a\.txt|folder)': {said}$"):
            write()
    assert file.read_text() == (folder / "x").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "folder"], "what was begun is removed"


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(WriteError, match=r"^cannot write '.*gone/a': No such file or directory$"):
        files.write(tmp_path / "gone" / "a", "text")


def test_other_mistakes_stay_what_they_are(tmp_path):
    with pytest.raises(ValueError, match="a mistake"):
        files.write(tmp_path / "a", lambda file: (_ for _ in ()).throw(ValueError("a mistake")))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_cleared_after_a_while(tmp_path):
    old, young = tmp_path / ".a.12345.partial", tmp_path / ".a.12346.partial"
    for left in (old, young):
        left.write_text("half")
    os.utime(old, (0, 0))
    files.write(tmp_path / "a", "text")
    assert not old.exists()
    assert young.exists(), "another process may be writing it"
    growing, dead = tmp_path / ".tokens-of-a.99999998.partial", tmp_path / ".tokens-of-b.99999999.partial"
    for left in (growing, dead):
        left.mkdir()
        (left / "train.bin").write_text("half")
    for path in (growing, dead, dead / "train.bin"):
        os.utime(path, (0, 0))
    files.write_folder(tmp_path / "tokens-of-c", lambda folder: (folder / "all").write_text("all"))
    assert not dead.exists(), "whatever it was to be"
    assert growing.exists(), "an hour's writing into one file"
    mine = tmp_path / f".tokens-of-d.{os.getpid()}.partial"
    mine.write_text("half")
    os.utime(mine, (0, 0))
    files.write(tmp_path / "b", "text")
    assert mine.exists(), "its process is there, and may be waiting for a network"


def test_a_folder_in_the_way_is_renamed(tmp_path):
    (tmp_path / "record.json").mkdir()
    (tmp_path / "record.json" / "kept").write_text("somebody's")
    files.write(tmp_path / "record.json", "{}")
    assert (tmp_path / "record.json").read_text() == "{}"
    (aside,) = tmp_path.glob("record.json.folder-*")
    assert (aside / "kept").read_text() == "somebody's"


@pytest.mark.parametrize("what", [trainer.CHECKPOINT, records.LOSSES, records.MODEL, records.RECORD])
def test_a_run_that_cannot_write_says_so_and_goes_on_later(tmp_path, monkeypatch, library, what):
    """Whichever file the disk has no room for."""
    experiment = Experiment(corpus=str(library), samples=16, seq_len=16, epochs=1, preset="nano", compile="off")
    replace = os.replace

    def full(source, target):
        if os.path.basename(target) == what:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WriteError, match=rf"^cannot write '.*{what}': No space left on device$"):
        runner.run(experiment, tmp_path / "runs")
    [folder] = (tmp_path / "runs").glob("rope-*")
    assert not list(folder.rglob("*.partial"))
    assert (folder / trainer.CHECKPOINT).exists() == (what != trainer.CHECKPOINT)
    monkeypatch.setattr(os, "replace", replace)
    assert runner.run(experiment, tmp_path / "runs").metrics["perplexity"]["value"] > 1
    assert not (folder / trainer.CHECKPOINT).exists()


# Memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=["python", "cpu", "card"],
)
def test_a_checkpoint_outlives_a_shortage_of_memory(tmp_path, monkeypatch, error):
    model = tiny("none")
    optimizer = torch.optim.AdamW(model.parameters())
    trainer._save(tmp_path, model, optimizer, TrainState(epoch=3), {})
    whole = (tmp_path / trainer.CHECKPOINT).read_bytes()

    def short(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", short)
        with pytest.raises(type(error)):
            trainer._load(tmp_path, model, optimizer, torch.device("cpu"))
        with pytest.raises(TrainingError, match=r"^run x: out of memory \(.*what is trained is kept"), runner._memory_told("x"):
            raise error
    assert (tmp_path / trainer.CHECKPOINT).read_bytes() == whole
    assert trainer._load(tmp_path, model, optimizer, torch.device("cpu"))[0].epoch == 3


def test_a_checkpoint_that_cannot_be_read_is_kept_aside(tmp_path):
    model = tiny("none")
    optimizer = torch.optim.AdamW(model.parameters())
    (tmp_path / trainer.CHECKPOINT).write_bytes(b"not a checkpoint")
    assert trainer._load(tmp_path, model, optimizer, torch.device("cpu"))[0].epoch == 1
    assert (tmp_path / trainer.UNREADABLE).read_bytes() == b"not a checkpoint"
    assert not (tmp_path / trainer.CHECKPOINT).exists()


# A finished run of which something was lost


DAMAGE = {
    "weights gone": lambda folder: (folder / records.MODEL / saved_model.WEIGHTS).unlink(),
    "weights cut off": lambda folder: os.truncate(folder / records.MODEL / saved_model.WEIGHTS, 1_000_000),
    "weights empty": lambda folder: os.truncate(folder / records.MODEL / saved_model.WEIGHTS, 0),
    "tokenizer gone": lambda folder: (folder / records.MODEL / "tokenizer.json").unlink(),
    "losses empty": lambda folder: os.truncate(folder / records.LOSSES, 0),
    "losses gone": lambda folder: (folder / records.LOSSES).unlink(),
    "record cut off": lambda folder: os.truncate(folder / records.RECORD, 200),
    "record without metrics": lambda folder: (folder / records.RECORD).write_text(
        json.dumps(json.loads((folder / records.RECORD).read_text()) | {"metrics": {}})
    ),
}


@pytest.fixture(scope="module")
def whole(library, tmp_path_factory):
    experiment = Experiment(corpus=str(library), samples=16, seq_len=16, epochs=1, preset="nano", compile="off")
    return experiment, runner.run(experiment, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_the_same_command_repairs_a_damaged_run(whole, tmp_path, capsys, damage):
    experiment, record = whole
    shutil.copytree(record.folder.parent, tmp_path / "runs")
    folder = tmp_path / "runs" / record.run
    assert records.finished(folder)
    damage(folder)
    assert len(records.load_all(tmp_path / "runs")) in (0, 1), "one line where it cannot be read, never a traceback"
    capsys.readouterr()
    assert runner.run(experiment, tmp_path / "runs").same_result(record)
    said = capsys.readouterr()
    assert f"Run {record.run} is damaged: " in said.out + said.err
    assert records.finished(folder)


def test_a_name_that_no_file_can_have_is_one_line():
    for reading in (False, True):
        with pytest.raises(ConfigError, match=r"^'a\\x00b': names of files and folders hold no NUL$"):
            paths.runs("a\0b", reading=reading)


def test_a_folder_that_is_only_read_need_not_be_writable_and_is_not_made(whole, tmp_path, monkeypatch):
    _, record = whole
    monkeypatch.setattr("tempfile.TemporaryFile", failing(errno.EROFS))
    assert [one.run for one in records.load_all(record.folder.parent)] == [record.run]
    with pytest.raises(RecordError, match=r"^runs folder '.*mistyped' does not exist$"):
        records.load_all(tmp_path / "mistyped")
    assert not (tmp_path / "mistyped").exists()
