"""What grows with what: the pipeline's memory and speed on made-up data, a step of training, tables and plots."""

import feeding
import growth
import pytest
from plots import Panel, draw

from aromni_jax import data
from aromni_jax.config import DataConfig, LossConfig
from aromni_jax.data.files import RecordFile

SPREAD = {"median": 1500.0, "min": 1000.0, "max": 2000.0, "values": [1000.0, 1500.0, 2000.0]}


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    feeding.made_up_data(folder, 3000)
    return folder


@pytest.mark.parametrize("packing", feeding.PACKINGS)
def test_made_up_data_are_read_as_any_other(made_up, packing):
    config = DataConfig(path=str(made_up), sequence_length=feeding.ROW, batch_size=feeding.BATCH, packing=packing)
    batch = next(data.batches(config, LossConfig(), feeding.VOCABULARY))
    assert (batch.segment_ids > 0).mean() > 0.9 and len(RecordFile(made_up / "train/all.records.array_record")) == 3000
    sizes = feeding.memory(str(made_up), packing, 8)
    assert 0 <= sizes["begun"] < 100 and sizes["all"] < 100


@pytest.mark.slow
def test_a_step_is_measured_at_any_size():
    rates = growth.measure(8, 16, 1, 2)
    assert len(rates) == 2 and all(rate > 0 for rate in rates)


def test_tables_and_plots(tmp_path):
    machine = {"processor": "p", "cores": 2, "cpu_share_of_others": 0.2}
    about = {"date": "now", "hardware": machine, "versions": {"jax": "1"}, "repeats": 3}
    points = [{"value": 64, "tokens_per_second": SPREAD, "mflop_per_token": 2.0}]
    slower = {"median": 750.0, "min": 700.0, "max": 800.0}
    points += [{"value": 128, "tokens_per_second": slower, "mflop_per_token": 4.0}]
    text = growth.markdown({"length": {**about, "points": points}})
    assert "| 128 | 750 (700..800) | 0.50 | 3.0 |" in text and "20.0%" in text and "not to be quoted" in text
    growth.plot(tmp_path / "growth.png", {"length": {**about, "points": points}})
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    row = {"records": 10, "packing": "online", "begun": 1.0, "quarter": 2.0, "all": 3.0, "seconds_to_first_batch": 0.5}
    fast = {name: {**SPREAD, "median": 15_000.0} for name in ("tokens_per_second", "useful_tokens_per_second")}
    rates = {"training": dict.fromkeys(fast, SPREAD), "offline": fast, "online": fast}
    text = feeding.markdown({**about, "batches": 9, "rates": rates, "memory": [row]})
    assert "| pipeline, packed while reading | 15,000 (1,000..2,000) | 15,000 (1,000..2,000) | 10.0 |" in text
    assert "| 10 | online | 1.0 | 2.0 | 3.0 | 0.50 s |" in text


def test_a_plot_of_two_lines(tmp_path):
    lines = {"one": [(1, 2, 1, 3), (10, 3, 3, 3)], "two": [(1, 1, 1, 1)]}
    draw(tmp_path / "x.png", [Panel("t", "x", "y", lines)], "caption")
    assert (tmp_path / "x.png").stat().st_size > 1000
