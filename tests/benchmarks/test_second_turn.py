"""The table of second turns says what was read."""

import second_turn


def test_second_turns_with_and_without_the_cache():
    model = second_turn.open_model("tiny")
    row = second_turn.second_turns(model, 1, 40, 4, 6, 1)
    assert row["batch"] == 1 and 6 <= row["fed_tokens"] <= 7 < row["prompt_tokens"] <= 47
    assert all(len(row[name]["values"]) == 1 and row[name]["median"] > 0 for name in ("kept_ms", "anew_ms", "ratio"))
    result = {
        "models": [{"name": "tiny", "rows": [row]}], "repeats": 1, "share_of_others": 0.5,
        "hardware": {"processor": "x", "threads": 1}, "versions": {}, "date": "now",
    }  # fmt: skip
    text = second_turn.markdown(result)
    assert f"| tiny | 1 | {row['prompt_tokens']} | {row['fed_tokens']} | " in text and "Do not quote" in text
    assert "Do not quote" not in second_turn.markdown({**result, "share_of_others": 0.01})
