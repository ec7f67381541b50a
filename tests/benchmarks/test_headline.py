"""The benchmark of the headline's clocks, run small."""

import argparse

import headline


def test_every_clock_of_every_task():
    args = argparse.Namespace(model="tiny", chunks=[8], prompt=10, codes=40, repeats=2)
    result = headline.run(args, lambda line: None)
    rows = {row["what"]: row for row in result["rows"]}
    assert set(rows) == set(headline.requests(headline._TINY, 10, 40))
    for name, row in rows.items():
        assert 0 < row["first_token_ms"]["median"] <= 1000 * row["total_s"]["median"]
        assert ("real_time_factor" in row) == ("speech" in name)
    text = headline.markdown(result)
    assert text.count("\n| ") == len(rows) and "146 ms" in text
