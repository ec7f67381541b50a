"""The tables of second turns and of whole dialogs say what was read."""

import second_turn

from aromni_jax.tasks import Options
from tests.tasks.toys import toy_assistant


def test_second_turns_with_and_without_the_cache():
    model = second_turn.open_model("tiny")
    row = second_turn.second_turns(model, 1, 40, 4, 6, 1)
    assert row["batch"] == 1 and 6 <= row["fed_tokens"] <= 7 < row["prompt_tokens"] <= 47
    assert all(len(row[name]["values"]) == 1 and row[name]["median"] > 0 for name in ("kept_ms", "anew_ms", "ratio"))
    result = {
        "models": [{"name": "tiny", "rows": [row]}], "dialogs": [], "repeats": 1, "share_of_others": 0.5,
        "hardware": {"processor": "x", "threads": 1}, "versions": {}, "date": "now",
    }  # fmt: skip
    text = second_turn.markdown(result)
    assert f"| tiny | 1 | {row['prompt_tokens']} | {row['fed_tokens']} | " in text and "Do not quote" in text
    assert "Do not quote" not in second_turn.markdown({**result, "share_of_others": 0.01})


def test_whole_dialogs():
    told = second_turn.whole_dialogs(toy_assistant(max_batch=1), 2, 1, Options(max_new_tokens=24))
    rows = told["rows"]
    assert [len(row["seconds"]["values"]) for row in rows] == [1, 1, 1]
    assert len({(row["prompt_tokens"], row["new_tokens"]) for row in rows}) == 1
    with_sessions, all_read, at_once = (row["fed_tokens"] for row in rows)
    assert with_sessions <= at_once < all_read == rows[0]["prompt_tokens"]
    assert rows[0]["ratio"]["values"] == [1.0]
    result = {
        "models": [], "dialogs": [{"name": "toy", **told}], "repeats": 1, "share_of_others": 0.5,
        "hardware": {"processor": "x", "threads": 1}, "versions": {}, "date": "now",
    }  # fmt: skip
    text = second_turn.markdown(result)
    assert "1 dialogs of 2 turns, model toy" in text and f"| at once | {all_read} | {at_once} | " in text
