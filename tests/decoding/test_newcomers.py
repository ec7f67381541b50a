"""Turns of dialogs through a queue: what the running batch holds of a prompt is not read again."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aromni_jax.buckets import bucket
from aromni_jax.config import ModelConfig
from aromni_jax.decoding import Done, Engine, Request, RequestQueue
from aromni_jax.decoding import loop as loop_module
from aromni_jax.decoding import pool as pool_module
from aromni_jax.decoding.newcomers import meet, next_group, read_slots
from aromni_jax.decoding.session import SMALLEST_PROMPT
from aromni_jax.vocabulary import JointVocabulary
from tests.decoding.clear_model import SAMPLED, clear_model

V = JointVocabulary.compact(text_pieces=64, image_codes=6, image_tokens=3, speech_codes=7)
CONFIG = ModelConfig(
    vocab_size=V.size, dim=32, layers=1, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, max_positions=512, norm_eps=3e-5
)
BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256)


@pytest.fixture(scope="module")
def model():
    return clear_model(CONFIG, V, seed=3)


@pytest.fixture(scope="module")
def engine(model):
    return Engine(model, chunk=8, max_batch=2)


def said(seed, length):
    """What a user adds."""
    words = np.random.default_rng(seed).integers(V.text.start, V.text.stop, length).tolist()
    return [*words, V.eoh]


def closed(tokens):
    """An answer as it stands in the next prompt: eos has given way to eom (SPEC 6.9)."""
    return [*tokens[:-1], V.eom]


def run(engine, dialogs, at_once=2):
    """Every dialog is a list of lengths, of its turns; returns all requests and results by the id of the turn.

    A turn is handed in when the one before it is over.
    """
    queue, requests, results = RequestQueue(), {}, {}

    def hand_in(name, turn, history):
        prompt = [*history, *said((ord(name), turn), dialogs[name][turn])]
        policies = SAMPLED if name == "s" else {}
        request = Request(id=f"{name}{turn}", prompt_tokens=prompt, max_new_tokens=8, seed=turn, policies=policies)
        requests[request.id] = request
        queue.submit(request)

    for name in dialogs:
        hand_in(name, 0, [V.bos])
    for result in engine.results(queue, at_once):
        results[result.id], name, turn = result, result.id[0], int(result.id[1:])
        if turn + 1 < len(dialogs[name]):
            hand_in(name, turn + 1, [*requests[result.id].prompt_tokens, *closed(result.tokens.tolist())])
        if len(results) == sum(map(len, dialogs.values())):
            queue.close()
    return requests, results


def same_as_alone(engine, requests, results):
    for name, plain in zip(requests, engine.generate(list(requests.values())), strict=True):
        assert results[name].tokens.tolist() == plain.tokens.tolist(), name
        assert plain.usage.reused_tokens == 0


@pytest.fixture
def shapes(monkeypatch):
    """Of all prompts that are read, and of all beginnings that are copied: rows, slots read, slots of the cache."""
    seen = {"prefill": [], "pick": []}

    def spy(name, shape):
        inner = getattr(loop_module, name)
        monkeypatch.setattr(pool_module, name, lambda *a, **k: seen[name].append(shape(*a, **k)) or inner(*a, **k))

    spy("prefill", lambda params, cache, seen, tokens, *_, fresh, **__: (*tokens.shape, cache.length, fresh))
    spy("pick", lambda cache, rows, keep, length: (cache.segments_bt.shape, len(rows), length))
    return seen


def test_turns_through_a_queue_equal_turns_read_whole(engine, shapes):
    """Greedy and sampled, beside each other; and one program per shape, of few shapes."""
    programs = {"prefill": loop_module.prefill, "pick": loop_module.pick}
    before = {name: program._cache_size() for name, program in programs.items()}
    dialogs = {"a": [40, 9, 30], "s": [45, 3]}
    requests, results = run(engine, dialogs)
    for name, program in programs.items():
        assert program._cache_size() - before[name] <= len(set(shapes[name])), name
    assert all(read in BUCKETS and whole in BUCKETS for _, read, whole, _ in shapes["prefill"])
    assert all(slots in BUCKETS and rows in (1, 2, 4) for _, rows, slots in shapes["pick"])
    same_as_alone(engine, requests, results)
    for name, lengths in dialogs.items():
        for turn in range(1, len(lengths)):
            usage = results[f"{name}{turn}"].usage
            assert usage.prompt_tokens == len(requests[f"{name}{turn}"].prompt_tokens)
            # Read is what is new, the eom that may stand for an eos, and at most what fills its part of the slots.
            new, slots = lengths[turn] + 2, bucket(usage.prompt_tokens, SMALLEST_PROMPT)
            part = next(part for part in read_slots(slots) if part >= new)
            assert new - 1 <= usage.fed_tokens <= part


def test_a_dialog_alone(engine):
    """Its next turn finds nobody there, but what it left."""
    requests, results = run(engine, {"a": [40, 9]}, at_once=1)
    same_as_alone(engine, requests, results)
    assert results["a1"].usage.reused_tokens > 40


def test_others_beginnings_serve_too(engine):
    """Of a row that goes on; of one that was cancelled, whose chunks on their way are of no account."""
    prompt, queue = [V.bos, *said(1, 40)], RequestQueue()
    longs = (
        Request(id="long", prompt_tokens=prompt, max_new_tokens=200, seed=seed, policies=SAMPLED, max_spans=40)
        for seed in range(32)
    )
    # It goes on while the others come.
    long = next(request for request in longs if len(engine.generate([request])[0].tokens) > 50)
    queue.submit(long)
    wanted, results, asked = {}, {}, 0

    def ask(name, tokens):
        wanted[name] = Request(id=name, prompt_tokens=tokens, max_new_tokens=9)
        queue.submit(wanted[name])

    for asked, event in enumerate(engine.stream(queue)):
        if asked == 0:
            ask("beside", [*prompt[:-1], *said(2, 5)])
        if isinstance(event, Done):
            results[event.id] = event.result
            if event.id == "beside":
                assert queue.cancel("long")
            elif event.id == "long":
                ask("after", [*prompt, *event.result.tokens.tolist(), *said(3, 5)])
            else:
                queue.close()
    assert results["long"].finish == "cancelled"
    del results["long"]
    same_as_alone(engine, wanted, results)
    assert [results[name].usage.reused_tokens >= 32 for name in ("beside", "after")] == [True, True]


def test_lists_and_iterables_read_all(engine):
    """What they get depends on nothing else, not even by rounding."""
    twice = [Request(id=str(n), prompt_tokens=[V.bos, *said(1, 60)], max_new_tokens=9) for n in range(3)]
    for requests in (twice, iter(twice)):
        assert [result.usage.reused_tokens for result in engine.results(requests, at_once=1)] == [0, 0, 0]


TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=3).map(lambda start: [*start, *[2] * 60])
PROMPTS = st.tuples(TOKENS, st.integers(1, 63)).map(lambda drawn: drawn[0][: drawn[1]])


@dataclasses.dataclass(eq=False)
class Asking:
    """As much of a row as counts."""

    prompt: list[int]
    longest_prompt: int
    side: list[str]


@given(st.lists(PROMPTS, max_size=4), st.lists(st.tuples(PROMPTS, st.booleans()), min_size=1, max_size=9))
def test_who_is_read_together_and_what_is_kept(held, drawn):
    rows = [Asking(prompt, len(prompt), ["side"] if guided else []) for prompt, guided in drawn]
    newcomers = meet(rows, held)
    for row, newcomer in zip(rows, newcomers, strict=True):
        length, keep = len(row.prompt), newcomer.keep
        assert newcomer.row is row and newcomer.slots == bucket(length, SMALLEST_PROMPT)
        assert length - keep <= newcomer.read and keep + newcomer.read <= newcomer.slots
        assert newcomer.read in read_slots(newcomer.slots)
        if keep:
            assert held[newcomer.source][:keep] == row.prompt[:keep] and keep < length and not row.side
            assert keep >= SMALLEST_PROMPT
        else:
            assert newcomer.read == newcomer.slots
            others = [tokens for tokens in held if tokens[: length - 1] == row.prompt[:-1] and len(tokens) >= length]
            assert not others or row.side or newcomer.slots < 2 * SMALLEST_PROMPT, "all but its last token is there"
    seen, left = [], newcomers
    while left:
        group = next_group(left)
        assert len(group) in (1, 2, 4) and len({(n.slots, n.read) for n in group}) == 1
        assert len(group) == 1 or not any(n.row.side for n in group)
        assert group[0].keep or not any(n.keep for n in left)
        seen, left = [*seen, *group], [n for n in left if n not in group]
    assert len(seen) == len(newcomers)


def test_rests_are_read_in_few_sizes():
    for slots in BUCKETS:
        sizes = read_slots(slots)
        assert list(sizes) == sorted(sizes) and set(sizes) <= set(BUCKETS) and sizes[-1] == slots
