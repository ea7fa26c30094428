"""What is read from a throughput record: by hand, from a made-up one."""

import json
import math

import pytest

from pe_core.errors import RecordError
from pe_core.report import figures
from pe_core.studies.throughput import measure, report


def row(shape, contender, rate, ours, memory=1000.0):
    ratios = dict.fromkeys(("ours_over_it", "lowest_ratio", "highest_ratio"), ours / rate)
    return {"shape": shape, "contender": contender, "tokens_per_second": rate, **ratios, "peak_memory_mb": memory,
            "ready_seconds": 1.0}  # fmt: skip


def made(format_="bf16"):
    rows = []
    for shape, ours in ((measure.NANO, 400.0), (measure.PYTHIA, 20.0)):
        for name, rate in (
            ("ours", 1),
            ("ours, evaluation", 3),
            (measure.DEFAULTS, 0.4),
            (measure.TUNED[format_], 0.8),
            (measure.LIMITS[format_], 1.25),
        ):
            rows.append(row(shape, name, rate * ours, ours, 600.0 if name == "ours" else 1000.0))
    rows += [row(measure.AT_ONCE, "ours, 2 runs at once", 480, 480), row(measure.AT_ONCE, measure.DEFAULTS, 160, 480)]
    return {
        "device": "a processor", "threads": 2, "precision": format_, "rows": rows,
        "encodings": [row(measure.NANO, "ours · none", 400, 400), row(measure.NANO, "ours · slow", 200, 400)],
        "start_up": [{"what": "import pe_core", "seconds": 0.1}],
    }  # fmt: skip


@pytest.fixture
def record(tmp_path):
    (tmp_path / "throughput.json").write_text(json.dumps(made()))
    return measure.load(tmp_path / "throughput.json")[0]


def test_targets_by_hand(record):
    found = measure.targets([record]).set_index("what")
    measured = found.measured.round(6).to_dict()
    assert measured["pythia-70m: times the Trainer's defaults"] == 2.5
    assert measured["pythia-70m: share of the bf16 products' speed"] == 0.8
    assert measured["pythia-70m: peak memory over the Trainer's"] == 0.6
    assert measured["nano: two runs at once, times the Trainer's defaults"] == 3.0
    assert measured["nano: evaluation over training, tokens/s"] == 3.0
    assert measured["nano: slowest encoding (slow) over none"] == 0.5
    assert not found.met["nano: slowest encoding (slow) over none"]
    assert not found.met["nano: times the Trainer in bf16, compiled"]  # 1.25
    assert found.met["import pe_core, seconds"]
    assert math.isnan(measured["first step, compiled before, seconds"])
    assert not found.met["first step, compiled before, seconds"]


def test_slow_encodings_and_conditions_are_said(record):
    assert report.slow([record]).startswith("Below 0.6: [slow](../encodings/slow.html) (0.50). ")
    assert report.slow([record], 0.4) == "No encoding trains at less than 0.4 of the speed without one."
    measured = record | {
        "created": "2026-01-02T03:04",
        "rounds": 3,
        "versions": dict.fromkeys(("torch", "transformers", "git"), "1"),
    }
    assert report.conditions([measured]).startswith("Measured on 2026-01-02: a processor, bf16, 2 threads, torch 1, ")


def test_sentence_tables_and_figures(record):
    said = report.sentence(record)
    assert "**2.5 times** at nano and **2.5 times** at pythia-70m" in said
    assert "Of 11 targets 8 were met" in said
    assert "80%" in report.throughput_table(measure.frame(record)).to_html()
    assert "at least 0.6" in report.targets_table(measure.targets([record])).to_html()
    for figure in (report.throughput_figure(measure.frame(record)), report.encodings_figure(measure.by_encoding([record]))):
        assert figure.axes
        figures.plt.close(figure)


def test_a_short_record_has_fewer_numbers(record):
    short = {**record, "encodings": [], "start_up": [], "rows": [r for r in record["rows"] if r["shape"] == measure.NANO]}
    assert measure.targets([short]).measured.notna().sum() == 4
    assert "at nano as fast" in report.sentence(short)


def test_kinds_of_machine_stand_side_by_side(tmp_path, monkeypatch):
    """The one measured here first; each beside what is faster on it."""
    monkeypatch.setattr(measure.paths, "PUBLISHED", tmp_path / "book" / "records")
    monkeypatch.setattr(measure.paths, "runs", lambda: tmp_path / "runs")
    with pytest.raises(RecordError, match=r"^no throughput record; `make bench` makes one$"):
        measure.load()
    fast, plain = made(), {**made("fp32"), "device": "Another (R) processor", "encodings": []}
    assert measure.file_name(plain) == "another-r-processor-fp32.json"
    for record, folder in ((fast, "book/records"), (plain, "runs")):
        (tmp_path / folder / "throughput").mkdir(parents=True)
        (tmp_path / folder / "throughput" / measure.file_name(record)).write_text(json.dumps(record))
    found = measure.load()
    assert [measure.machine(record) for record in found] == ["Another (R) processor, fp32", "a processor, bf16"]
    rows = measure.frames(found)
    ours = rows[(rows.contender == "ours") & (rows["shape"] == measure.NANO)]
    assert ours.limit.tolist() == [0.8, 0.8]
    targets = measure.targets(found)
    assert set(targets[targets.what.str.contains("share")].what) == {
        f"{shape}: share of the {kind} products' speed" for shape in ("nano", "pythia-70m") for kind in ("bf16", "fp32")
    }
    assert measure.by_encoding(found) == measure.by_encoding([fast])
    assert report.answer(found).count("as fast as the Trainer") == 2
    assert len(report.throughput_figure(rows).axes) == 4
    figures.plt.close("all")


def test_no_record_or_another_file_is_one_line(tmp_path):
    with pytest.raises(RecordError, match=r"^no throughput record at '.*throughput.json'; `make bench` makes one$"):
        measure.load(tmp_path / "throughput.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(RecordError, match="is not a throughput record"):
        measure.load(tmp_path / "other.json")
