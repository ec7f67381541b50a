"""Loss weights against SPEC 4.4 and the reference's own arrays (golden G2)."""

import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aromni_jax.config import LossConfig
from aromni_jax.data.rows import Row
from aromni_jax.data.weights import Role, inside_segments, tail_mask, token_roles, weight_table
from aromni_jax.vocabulary import TASKS, IdRange, JointVocabulary, task_id

GOLDEN = pathlib.Path(__file__).parent / "golden" / "g2_losses"
ARRAYS = np.load(GOLDEN / "weights.npz")
META = json.loads((GOLDEN / "weights.json").read_text())
PRETRAIN = [case for case in META["cases"] if case["name"].startswith("pretrain")]
SFT = [case for case in META["cases"] if case["name"].startswith("sft")]


def vocabulary_with(size: int, ins: int, res: int) -> JointVocabulary:
    """Every id is text except the controls and the markers at the end of the range."""
    free = iter(i for i in range(size - 1, 0, -1) if i not in (ins, res))
    names = ("boi", "eoi", "boa", "eoa", "eoh", "eom")
    markers = {name: next(free) for name in names}
    return JointVocabulary(
        size=size, bos=0, pad=1, eos=2, unk=3, ins=ins, res=res, **markers, image=IdRange(4, 4), speech=IdRange(4, 4),
        text=IdRange(4, 4), text_offset=0, image_tokens=1,
    )  # fmt: skip


def weights_of(ids, task, response_length, loss, vocabulary):
    """Label-aligned weights of one unpadded example, first position left out (it is never a target)."""
    roles = token_roles(np.asarray(ids), response_length, vocabulary)
    weights = weight_table(loss)[task_id(task), roles]
    assert weights[0] == 0
    return weights[1:]


A_IDS = ([0, 5, 6, 7, 3, 2], [0, 4, 5, 2])
A_CE = ([2.939720, 3.301945, 1.758093, 3.001430, 3.604453], [2.448809, 3.251430, 3.233089])


@pytest.mark.parametrize(
    ("weight", "weighted", "tasks", "responses", "expected", "loss"),
    [
        (2, ("image_caption", "speech_to_text"), ("speech_to_text", "text_to_image"), (2, 0),
         ([1, 1, 2, 2, 1], [1, 1, 1]), 2.829849198981103),
        (1, ("image_caption", "speech_to_text"), ("speech_to_text", "text_to_image"), (2, 0),
         ([1, 1, 1, 1, 1], [1, 1, 1]), 2.942371168154632),
        (2, ("image_caption", "speech_to_text"), ("speech_to_text", "text_to_image"), (99, 3),
         ([2, 2, 2, 2, 1], [1, 1, 1]), 2.878346447940524),
        (3, ("image_caption", "speech_to_text"), ("image_caption", "speech_to_text"), (0, 1),
         ([1, 1, 1, 1, 1], [1, 3, 1]), 3.004182870932046),
    ],
)  # fmt: skip
def test_spec_4_4_a(weight, weighted, tasks, responses, expected, loss):
    config = LossConfig(response_weights=dict.fromkeys(weighted, float(weight)))
    vocabulary = vocabulary_with(48, 40, 41)
    got = [weights_of(*row, config, vocabulary) for row in zip(A_IDS, tasks, responses, strict=True)]
    for weights, wanted in zip(got, expected, strict=True):
        np.testing.assert_array_equal(weights, wanted)
    ce, weights = np.concatenate(A_CE), np.concatenate(got)
    assert (ce * weights).sum() / weights.sum() == pytest.approx(loss, abs=1e-6)


def test_spec_4_4_a_interior_eos():
    weights = weights_of([0, 5, 2, 6, 7, 2], "image_caption", 3, LossConfig(), vocabulary_with(48, 40, 41))
    np.testing.assert_array_equal(weights, [2, 1, 2, 2, 1])


def test_spec_4_4_b():
    ids = np.asarray([0, 10, 40, 21, 22, 41, 31, 40, 33, 41, 2])
    assert np.flatnonzero(inside_segments(ids, 40, 41)).tolist() == [3, 4, 8]
    config = LossConfig(segment_weight=2.0)
    weights = weights_of(ids, "chat", 0, config, vocabulary_with(48, 40, 41))
    weights[0] = 0  # the label that the vector ignores
    np.testing.assert_array_equal(weights, [0, 1, 2, 2, 1, 1, 1, 2, 1, 1])
    ce = [0, 4.157733, 5.176580, 3.174326, 3.377461, 4.179029, 3.137866, 2.949842, 3.140827, 4.455726]
    assert (ce * weights).sum() / weights.sum() == pytest.approx(3.754178030494005, abs=1e-6)


@pytest.mark.parametrize(
    ("ids", "inside"),
    [
        ([40, 1, 40, 1, 1, 41, 1, 41], [1, 2, 3, 4, 5, 6]),
        ([41, 40, 41, 40, 5], []),
        ([40, 41, 40, 7, 41], [3]),
        ([40, 5, 6], []),
        ([5], []),
    ],
)
def test_segment_pairing(ids, inside):
    assert np.flatnonzero(inside_segments(np.asarray(ids), 40, 41)).tolist() == inside


@pytest.mark.parametrize("case", PRETRAIN, ids=lambda case: case["name"])
def test_golden_tails_and_weights(case):
    name, constructor = case["name"], case["ctor"]
    ids, labels = ARRAYS[f"{name}/input_ids"], ARRAYS[f"{name}/labels"]
    packed = labels[:, 0]
    tasks = case["tasks"] or [TASKS[i] if 0 <= (i := p // 2048 - 1) < 7 else "text_to_text" for p in packed]
    lengths = ARRAYS[f"{name}/resp_lens"] if case["tasks"] else packed % 2048
    weighted = constructor.get("response_weighted_tasks", ["image_caption", "speech_to_text"])
    weight = constructor["response_seg_weight"]
    table = weight_table(LossConfig(response_weights=dict.fromkeys(weighted, weight)))
    for row, task in enumerate(tasks):
        predicted = labels[row] != -100
        predicted[0] = False
        tail = tail_mask(predicted, ids[row], int(lengths[row]), case["eos_token_id"])
        roles = np.where(tail, Role.RESPONSE, np.where(predicted, Role.PLAIN, Role.NONE))
        np.testing.assert_array_equal(table[task_id(task), roles][1:], ARRAYS[f"{name}/weights"][row])
        if weight != 1 and task in weighted:
            np.testing.assert_array_equal(tail[1:], ARRAYS[f"{name}/tail_mask"][row])


def test_golden_weights_of_whole_examples():
    """The same through `token_roles`, on the rows that are what a record is: a start without ignored labels."""
    name, rows = "pretrain_ce_basic", 0
    case = next(case for case in PRETRAIN if case["name"] == name)
    vocabulary = vocabulary_with(40, 38, 39)
    for row, task in enumerate(case["tasks"]):
        ignored = ARRAYS[f"{name}/labels"][row] == -100
        length = int(np.argmax(np.append(ignored, True)))
        if not ignored[length:].all():
            continue
        rows += 1
        ids, response = ARRAYS[f"{name}/input_ids"][row, :length], int(ARRAYS[f"{name}/resp_lens"][row])
        got = weights_of(ids, task, response, LossConfig(), vocabulary)
        np.testing.assert_array_equal(got, ARRAYS[f"{name}/weights"][row, : length - 1])
    assert rows >= 4


@pytest.mark.parametrize("case", SFT, ids=lambda case: case["name"])
def test_golden_segments(case):
    name = case["name"]
    for row, ids in enumerate(ARRAYS[f"{name}/input_ids"]):
        inside = inside_segments(ids, 38, 39)
        np.testing.assert_array_equal(inside, ARRAYS[f"{name}/inside_mask"][row])
        valid = ARRAYS[f"{name}/labels"][row] != -100
        weights = np.where(inside, case["ctor"].get("seg_weight", 1.0), 1.0) * valid
        if "seg_weight" in case["ctor"]:
            np.testing.assert_array_equal(weights[1:], ARRAYS[f"{name}/weights"][row])


def test_golden_collate(make_record):
    """A row that holds one example is what the reference's collator makes of it."""
    vocabulary = vocabulary_with(40, 38, 39)
    wanted = {key.removeprefix("collate/"): ARRAYS[key] for key in ARRAYS.files if key.startswith("collate/")}
    record = type(make_record(0))
    for i, task in enumerate(META["collate_tasks"]):
        ids = wanted[f"in_ids_{i}"]
        row = Row.of([record(ids.astype(np.uint16), task, int(wanted["in_response_len"][i]))], 19, vocabulary)
        real = wanted["out_attention_mask"][i] == 1
        np.testing.assert_array_equal(row.segment_ids, real)
        np.testing.assert_array_equal(row.tokens[real], wanted["out_input_ids"][i][real])
        assert (row.tokens[~real] == vocabulary.pad).all()
        np.testing.assert_array_equal(row.roles[1:] != Role.NONE, (wanted["out_labels"][i] != -100)[1:])
        assert row.task_ids[0] == wanted["out_task_ids"][i]


def test_prompt_weight_zero_leaves_the_answer_and_its_eos():
    ids = [0, 10, 11, 12, 20, 21, 2]
    loss = LossConfig(prompt_weight=0.0, response_weights={"image_caption": 2.0})
    vocabulary = vocabulary_with(48, 40, 41)
    np.testing.assert_array_equal(weights_of(ids, "image_caption", 2, loss, vocabulary), [0, 0, 0, 2, 2, 1])
    # Without a marked answer there is no prompt: plain text keeps its loss.
    np.testing.assert_array_equal(weights_of(ids, "text_to_text", 0, loss, vocabulary), [1] * 6)


def test_every_answer_of_a_dialog_is_an_answer():
    vocabulary = vocabulary_with(48, 40, 41)
    first = [vocabulary.ins, 10, vocabulary.res, 11, vocabulary.eom]
    last = [vocabulary.ins, 12, vocabulary.res, 13, 14, vocabulary.eom]
    ids = [0, 20, 21, *first, 22, *last]
    roles = token_roles(np.asarray(ids), len(last), vocabulary) & 3
    wanted = [Role.NONE, *[Role.PROMPT] * 2, *[Role.RESPONSE] * 5, Role.PROMPT, *[Role.RESPONSE] * 6]
    assert roles.tolist() == wanted


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 50))
def test_roles_partition_every_example(tokens, response_length):
    vocabulary = vocabulary_with(20, 8, 9)
    ids = np.asarray(tokens)
    roles = token_roles(ids, response_length, vocabulary)
    kinds = roles & 3
    assert kinds[0] == roles[0] == Role.NONE
    assert (kinds[1:] != Role.NONE).all()
    assert (kinds == Role.RESPONSE).sum() == min(response_length, (ids[1:] != vocabulary.eos).sum())
    first = np.flatnonzero(kinds == Role.RESPONSE)
    if first.size:
        assert (kinds[1 : first[0]] == Role.PROMPT).all() and not (kinds[first[0] :] == Role.PROMPT).any()
