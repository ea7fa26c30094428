"""What no refactoring may change: the ids of published runs, and the losses of training, to the bit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_config

from pe_core import Experiment, LabForCausalLM, hardware, records, runner
from pe_core.trainer import TrainStep

HERE = Path(__file__).parent
PUBLISHED = records.load_all(HERE.parents[1] / "book" / "records")
# Of each kind of run made before there was a test side: its id, its data's fingerprint, its settings that are not defaults.
FIRST_PROTOCOL = [json.loads(line) for line in (HERE / "first_protocol_ids.jsonl").read_text().splitlines()]
STEPS = 20


@pytest.mark.parametrize("record", PUBLISHED, ids=lambda record: record.run)
def test_published_ids_follow_from_settings_and_data(record):
    assert runner.name_of(record.experiment, record.data["fingerprint"]) == record.run


@pytest.mark.parametrize(
    ("run", "fingerprint", "settings"), FIRST_PROTOCOL, ids=lambda value: value if isinstance(value, str) else ""
)
def test_ids_of_the_first_protocol_are_still_those(run, fingerprint, settings):
    """Their digests named all options, those at their defaults too."""
    experiment = Experiment(**settings)
    assert f"{experiment.encoding}-{experiment.preset}-{experiment.digest(fingerprint)}" == run


def losses(encoding):
    """Of the first steps on windows in which each token decides the next but one, in fp32, uncompiled."""
    model = LabForCausalLM(tiny_config(encoding)).initialise(0).train()
    step = TrainStep(model, Experiment(encoding=encoding, lr=3e-3, decay="all", device="cpu", precision="fp32", compile="off"))
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(16, (STEPS, 8, 33), generator=generator)
    for t in range(2, 33):
        windows[:, :, t] = (5 * windows[:, :, t - 2] + 3) % 16
    return [step(window[:, :-1].contiguous(), window[:, 1:].contiguous())[0] for window in windows]


MADE_WITH = "2.13.0+cpu", "AVX512", True  # torch, its name for the processor's vector instructions, and whether it is Intel's
PINNED = {
    "none": [
        4.575452, 4.2525735, 4.003441, 3.8293607, 3.6351433, 3.4608493, 3.3047934, 3.163116, 3.0610871, 2.9719157,
        2.915349, 2.8561351, 2.817187, 2.7767353, 2.7245898, 2.7290244, 2.74994, 2.6867232, 2.6779444, 2.6634388,
    ],
    "rope": [
        4.57545, 4.2529197, 4.0036354, 3.829909, 3.6354697, 3.46115, 3.3051426, 3.163399, 3.061345, 2.9721746,
        2.915686, 2.8562427, 2.81851, 2.7759876, 2.7259607, 2.729409, 2.75217, 2.6866338, 2.6769733, 2.6632996,
    ],
    "alibi": [
        4.578354, 4.2434416, 4.0002804, 3.8324375, 3.6337643, 3.4588864, 3.3000724, 3.14091, 3.0320075, 2.9211495,
        2.833153, 2.7540054, 2.6323798, 2.5518842, 2.4857316, 2.384029, 2.310575, 2.2585814, 2.1590822, 2.0605235,
    ],
    "fox": [
        4.5827756, 4.2347326, 3.9879272, 3.8224804, 3.6026626, 3.4135947, 3.2015715, 2.9774907, 2.8077774, 2.6767516,
        2.5076396, 2.3532698, 2.2047248, 2.104973, 1.9621845, 1.8611896, 1.7500464, 1.6176679, 1.5011777, 1.3916415,
    ],
}  # fmt: skip


@pytest.mark.parametrize("encoding", PINNED)
def test_the_first_losses_are_those_pinned(encoding):
    """Kernels differ between processors, their makers and versions of torch: elsewhere, nearly the same."""
    assert torch.get_num_threads() == 1
    found, pinned = losses(encoding), np.array(PINNED[encoding], np.float32).tolist()
    assert pinned[-1] < pinned[0] - 0.1, "nothing was learned, so nothing was tested"
    intel = "Intel" in str(hardware.describe("cpu")["device"])
    if (torch.__version__, torch.backends.cpu.get_cpu_capability(), intel) == MADE_WITH:
        assert found == pinned
    else:
        assert found == pytest.approx(pinned, rel=1e-5)
