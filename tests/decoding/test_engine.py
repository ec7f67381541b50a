"""The engine against a slow, plain re-implementation without cache, scan or buckets; and what it promises callers."""

import dataclasses
import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aromni_jax.codecs.streaming import SpeechStream
from aromni_jax.config import ModelConfig
from aromni_jax.decoding import (
    Done,
    Engine,
    Grammar,
    Guidance,
    ImageDone,
    Limits,
    Policy,
    Request,
    SpeechChunk,
    State,
    StateChange,
    TextPiece,
)
from aromni_jax.decoding import loop as loop_module
from aromni_jax.errors import UserError
from aromni_jax.model import forward, init_params, logits
from aromni_jax.vocabulary import JointVocabulary

V = JointVocabulary.compact(text_pieces=256, image_codes=6, image_tokens=5, speech_codes=7)
CONFIG = ModelConfig(
    vocab_size=V.size, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, max_positions=128
)
GRAMMAR = Grammar(V)
PICTURE = [V.boi, *V.image_ids([0, 1, 2, 3, 4]).tolist(), V.eoi]


@pytest.fixture(scope="module")
def model():
    params = init_params(CONFIG, jax.random.PRNGKey(1))
    # A wide head makes choices clear, so that rounding never decides one.
    params["head"]["kernel"] *= 30.0
    return types.SimpleNamespace(params=params, config=CONFIG, vocabulary=V)


class Bytes:
    """A text codec with one piece per byte."""

    def decode(self, pieces):
        return bytes(pieces).decode(errors="replace")


class Steps:
    """A speech codec whose sample depends on the codes just before and after it."""

    hop, sample_rate = 4, 160

    def decode(self, codes, width=None):
        padded = np.pad(np.asarray(codes, np.float32), ((0, 0), (2, 2)))
        mixed = sum(weight * padded[:, k : k + codes.shape[1]] for k, weight in enumerate([1, 2, 3, 2, 1]))
        return np.repeat(mixed, self.hop, axis=1)

    def stream(self):
        return SpeechStream(self)


def prompt(seed: int, length: int, image: bool = False) -> list[int]:
    rng = np.random.default_rng(seed)
    body = rng.integers(V.text.start, V.text.stop, length).tolist()
    return [V.bos, *body, *(PICTURE if image else []), V.eoh]


def requests() -> list[Request]:
    """One batch of mixed tasks, lengths, policies and scales."""
    sampled = Policy(temperature=1.3, top_k=40, top_p=0.9, repetition_penalty=1.2)
    return [
        Request(prompt_tokens=prompt(0, 3), max_new_tokens=40, first=State.TEXT, allowed=frozenset({State.TEXT})),
        Request(prompt_tokens=prompt(1, 9), max_new_tokens=33, first=State.SPEECH, max_spans=1),
        Request(prompt_tokens=prompt(2, 17), max_new_tokens=12, first=State.IMAGE, guidance=Guidance(2.0, 1.5)),
        Request(prompt_tokens=prompt(3, 5, True), max_new_tokens=30, guidance=Guidance(3.0, 1.5), first=State.IMAGE),
        Request(prompt_tokens=prompt(4, 6), max_new_tokens=50, policies=dict.fromkeys(State, sampled), seed=11),
        Request(prompt_tokens=prompt(5, 1), max_new_tokens=45, first=State.TRANSCRIPT),
    ]  # fmt: skip


@jax.jit
def last_logits(params, tokens_bs, length):
    hidden_bsd, _ = forward(params, CONFIG, tokens_bs)
    return logits(params, CONFIG, hidden_bsd[0, length - 1])


def plain_logits(model, tokens):
    padded = np.full((1, 128), V.pad, np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(last_logits(model.params, padded, len(tokens)))


def plain_greedy(model, request):
    """One row, greedy, every step from scratch; guidance by three separate sequences as SPEC 6.7 describes."""
    limits = GRAMMAR.rules([Limits(request.max_new_tokens, request.allowed, request.first, request.max_spans)])
    state, out = GRAMMAR.start(limits, jnp.zeros(1, bool)), []
    while state.state_b[0] != State.DONE:
        tokens = [*request.prompt_tokens, *out]
        scores = plain_logits(model, tokens)
        if state.state_b[0] == State.IMAGE and request.guidance is not None:
            pictures = [token for token in tokens if token in V.image or token in (V.boi, V.eoi)]
            since = len(tokens) - tokens[::-1].index(V.boi)
            negative = request.guidance.negative or [V.bos]
            i = plain_logits(model, [*([V.bos] if V.boi in request.prompt_tokens else negative), *pictures])
            u = plain_logits(model, [*negative, V.boi, *tokens[since:]])
            scores = u + request.guidance.image * (i - u) + request.guidance.text * (scores - i)
        allowed = np.asarray(GRAMMAR.allowed(state, limits))[0]
        token = int(np.argmax(np.where(allowed, scores, -np.inf)))
        state = GRAMMAR.advance(state, limits, jnp.asarray([token]))
        out.append(token)
    return out


def test_mixed_batch_equals_plain_decoding(model):
    results = Engine(model).generate(requests())
    for request, result in zip(requests(), results, strict=True):
        V.check(result.tokens)
        assert result.tokens[-1] in (V.eos, V.eom)
        if not request.policies:
            assert result.tokens.tolist() == plain_greedy(model, request)
    firsts = [State(int(result.states[1])) for result in results]
    assert firsts[1:4] == [State.SPEECH, State.IMAGE, State.IMAGE] and firsts[5] == State.TRANSCRIPT


def test_guidance_changes_the_picture_and_costs_rows_only_where_used(model, monkeypatch):
    """Else the equality above would hold with guidance ignored; and equal branches are computed once."""
    rows = []
    inner = loop_module.forward
    monkeypatch.setattr(
        "aromni_jax.decoding.loop.forward", lambda *a, **k: rows.append(a[2].shape[0]) or inner(*a, **k)
    )
    # Another eps makes this a new program, which is traced here whatever ran before.
    model = types.SimpleNamespace(**{**vars(model), "config": dataclasses.replace(CONFIG, norm_eps=2e-5)})
    plain, two, three = (
        Request(prompt_tokens=prompt(3, 5, image), max_new_tokens=30, first=State.IMAGE, guidance=guidance, max_spans=1)
        for image, guidance in ((False, None), (False, Guidance(3.0, 1.5)), (True, Guidance(3.0, 1.5)))
    )
    engine = Engine(model)
    unguided, guided = engine.generate([plain])[0], engine.generate([two])[0]
    assert rows == [1, 1, 2, 2]
    assert unguided.tokens.tolist() != guided.tokens.tolist()
    engine.generate([plain, three])
    assert rows[4:] == [4, 4]
    same = engine.generate([dataclasses.replace(two, guidance=Guidance(1.0, 1.0))])
    assert same[0].tokens.tolist() == unguided.tokens.tolist()


def test_second_picture_of_an_answer_forgets_the_first(model):
    """The unconditional row starts over at every boi; the image row keeps earlier pictures."""
    request = Request(
        prompt_tokens=prompt(0, 4), max_new_tokens=60, first=State.IMAGE, allowed=frozenset({State.IMAGE}),
        guidance=Guidance(3.0, 1.5),
    )  # fmt: skip
    head = model.params["head"]["kernel"]
    for sign in (1, -1):  # between pictures only boi, eos and eom are open: let boi win
        kernel = head.at[:, jnp.asarray([V.eos, V.eom])].set(-sign * head[:, V.boi : V.boi + 1])
        kernel = kernel.at[:, V.boi].set(sign * head[:, V.boi])
        eager = types.SimpleNamespace(params={**model.params, "head": {"kernel": kernel}}, config=CONFIG, vocabulary=V)
        tokens = Engine(eager).generate([request])[0].tokens.tolist()
        if tokens.count(V.boi) > 1:
            break
    assert tokens.count(V.boi) > 1
    assert tokens == plain_greedy(eager, request)


def test_a_negative_prompt_takes_the_place_of_bos(model):
    """With a picture in the prompt for u alone, without one for i as well, which then costs no row of its own."""
    batch = requests()
    for n, negative in ((2, prompt(21, 4)), (3, prompt(22, 2, image=True))):
        guidance = Guidance(9.0, 4.0, negative)  # wide apart, so that it shows
        batch[n] = dataclasses.replace(batch[n], guidance=guidance)
    before = programs()
    results = Engine(model).generate(batch)
    assert programs() == before, "as many rows as without"
    for n in (2, 3):
        without = dataclasses.replace(batch[n], guidance=Guidance(9.0, 4.0))
        assert results[n].tokens.tolist() == plain_greedy(model, batch[n]) != plain_greedy(model, without)


@pytest.mark.parametrize(
    ("negative", "message"),
    [
        ([], "request 0: negative prompt: must be a list of token ids, at least one"),
        ([V.bos, V.size], "negative prompt: id .* at position 1 is outside"),
        ([V.bos, V.speech.start], "negative prompt: id .* stands outside an image or speech span"),
        ([V.bos, *[V.text.start] * 122], "negative prompt: 123 tokens and the 6 of a picture are more than .* of 128"),
    ],
)
def test_bad_negative_prompts(model, negative, message):
    request = Request(prompt_tokens=prompt(0, 3), first=State.IMAGE, guidance=Guidance(negative=negative))
    with pytest.raises(UserError, match=message):
        Engine(model).generate([request])


def test_a_negative_prompt_of_no_known_modality():
    official = JointVocabulary.aromni()
    with pytest.raises(UserError, match="here: negative prompt: id 12822 at position 1 is no text, image or speech"):
        Guidance(negative=[official.bos, 12822]).check(official, 4096, "here")


def test_rows_are_independent(model):
    batch = requests()
    together = Engine(model).generate(batch)
    for order in ([4], [3, 5, 4, 4, 2, 1]):
        for n, result in zip(order, Engine(model).generate([batch[n] for n in order]), strict=True):
            assert result.tokens.tolist() == together[n].tokens.tolist()
    other_seed = Engine(model).generate([Request(**{**vars(batch[4]), "seed": 12})])[0]
    assert other_seed.tokens.tolist() != together[4].tokens.tolist()


def test_chunk_and_batch_size_do_not_matter(model):
    together = Engine(model).generate(requests())
    for engine in (Engine(model, chunk=24), Engine(model, max_batch=4)):
        for one, other in zip(engine.generate(requests()), together, strict=True):
            assert one.tokens.tolist() == other.tokens.tolist()


def programs():
    return loop_module.prefill._cache_size(), loop_module.decode._cache_size()


def test_one_program_per_bucket(model):
    engine = Engine(model)
    engine.generate(requests())
    before = programs()
    changed = [
        Request(
            prompt_tokens=prompt(n, 2 + n, image=n == 2), max_new_tokens=20 + n, seed=n, guidance=Guidance(1 + n, 2.0),
            policies={State.TEXT: Policy(temperature=0.5 + n, top_k=n)}, max_spans=1,
        )
        for n in range(3, 8)
    ]  # fmt: skip
    changed += [Request(prompt_tokens=prompt(9, 20), max_new_tokens=64)]
    engine.generate([Request(**{**vars(r), "guidance": r.guidance if n < 3 else None}) for n, r in enumerate(changed)])
    assert programs() == before
    engine.generate(changed[:3])  # another batch bucket: the counter does count
    assert programs()[0] == before[0] + 1


def test_carry_is_donated(model, monkeypatch):
    """To the prefill the cache it reads on in, to each chunk all of it."""
    given = []
    for name in ("prefill", "decode"):
        inner = getattr(loop_module, name)
        keep = functools.partial(lambda inner, *a, **k: given.append(a[1]) or inner(*a, **k), inner)
        monkeypatch.setattr(f"aromni_jax.decoding.pool.{name}", keep)
    Engine(model).generate([requests()[1]])
    cache, carry, *_ = given
    assert (
        cache.layers[0].keys_bkte.is_deleted()
        and carry.cache.layers[0].keys_bkte.is_deleted()
        and carry.seen_bv.is_deleted()
    )


def test_events_tell_the_same_story_as_results(model):
    batch = [Request(**{**vars(r), "id": f"r{n}"}) for n, r in enumerate(requests())]
    events = list(Engine(model, text_codec=Bytes(), speech_codec=Steps(), chunk=24).stream(batch))
    for request, result in zip(batch, Engine(model).generate(batch), strict=True):
        own = [event for event in events if event.id == request.id]
        assert isinstance(own[-1], Done) and not any(isinstance(event, Done) for event in own[:-1])
        done = own[-1].result
        assert done.tokens.tolist() == result.tokens.tolist()
        assert [event.at for event in own] == sorted(event.at for event in own)
        states = [State.TEXT] + [event.state for event in own if isinstance(event, StateChange)]
        expected = [segment.state for segment in done.segments]
        assert states == [*expected, State.DONE]
        assert sum(segment.stop - segment.start for segment in done.segments) == len(done.tokens)

        speech = [event for event in own if isinstance(event, SpeechChunk)]
        codes = np.concatenate([event.codes for event in speech] or [[]])
        assert codes.tolist() == V.speech_codes([t for t in done.tokens if t in V.speech]).tolist()
        if codes.size and sum(event.last for event in speech) == 1:
            samples = np.concatenate([event.samples for event in speech])
            np.testing.assert_allclose(samples, Steps().decode(codes[None].astype(int))[0])
        pictures = [event.codes.tolist() for event in own if isinstance(event, ImageDone)]
        assert list(itertools.chain(*pictures)) == V.image_codes([t for t in done.tokens if t in V.image]).tolist()
        text = "".join(event.text for event in own if isinstance(event, TextPiece))
        runs = np.split(done.tokens, np.flatnonzero(V.modality(done.tokens) != 0))
        whole = "".join(Bytes().decode(V.text_pieces([t for t in run if t in V.text]).tolist()) for run in runs)
        assert text == whole
        usage = done.usage
        assert usage.new_tokens == len(done.tokens) and 0 < usage.first_token <= usage.total
        assert (usage.first_audio is not None) == bool(codes.size)
        assert usage.tokens_per_second > 0 and usage.queued >= 0
        assert (usage.first_speech is not None) == bool(codes.size)
        if codes.size:
            assert usage.first_token <= usage.first_speech <= usage.first_audio <= usage.total
            assert usage.seconds_of_sound == pytest.approx(codes.size * Steps.hop / Steps.sample_rate)
            assert usage.real_time_factor == pytest.approx(usage.total / usage.seconds_of_sound)
        assert result.usage.first_audio is None and result.usage.real_time_factor is None, "`generate` makes no sound"


def test_a_growing_cache_changes_nothing(model, monkeypatch):
    request = Request(prompt_tokens=prompt(4, 6), max_new_tokens=90, first=State.TEXT, allowed=frozenset({State.TEXT}))
    grown = []
    inner = loop_module.grow
    monkeypatch.setattr("aromni_jax.decoding.pool.grow", lambda *a, **k: grown.append(k["length"]) or inner(*a, **k))
    monkeypatch.setattr("aromni_jax.decoding.session.SMALLEST_CACHE", 64)
    small = Engine(model).generate([request])[0]
    monkeypatch.setattr("aromni_jax.decoding.session.SMALLEST_CACHE", 128)
    whole = Engine(model).generate([request])[0]
    assert grown == [128] and len(whole.tokens) > 64
    assert small.tokens.tolist() == whole.tokens.tolist() == plain_greedy(model, request)


def test_finish_tells_length_from_stop(model):
    free = Request(prompt_tokens=prompt(0, 3), max_new_tokens=9, first=State.TEXT, allowed=frozenset({State.TEXT}))
    result = Engine(model).generate([free])[0]
    assert result.finish == ("length" if len(result.tokens) == 9 else "stop")
    assert result.tokens[-1] in (V.eos, V.eom)


def test_prompts_at_the_end_of_the_context(model):
    engine = Engine(model)
    almost = engine.generate([Request(prompt_tokens=prompt(0, 118), max_new_tokens=100)])[0]
    assert len(almost.tokens) <= 8
    with pytest.raises(UserError, match=r"request 1 \(context 128\): .*image needs room for 8 tokens, but .* 7"):
        engine.generate([requests()[0], Request(prompt_tokens=prompt(0, 119), first=State.IMAGE)])
    with pytest.raises(UserError, match="request a: the prompt has 128 tokens, the context only 128"):
        engine.generate([Request(prompt_tokens=prompt(0, 126), id="a")])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "at least one"),
        ([0, V.size], "ids outside"),
        ([0, -1], "ids outside"),
        ([0.5], "list of token ids"),
        (None, "list of token ids"),
    ],
)
@pytest.mark.parametrize("ask", ["stream", "generate"])
def test_bad_prompts(model, ask, tokens, message):
    with pytest.raises(UserError, match=message):
        list(getattr(Engine(model), ask)([Request(prompt_tokens=tokens)]))


@pytest.mark.parametrize(("name", "value"), [("chunk", 0), ("max_batch", -1), ("grammar", "strikt")])
def test_bad_engines(model, name, value):
    with pytest.raises(UserError, match=f"engine: {name} .*{value}"):
        Engine(model, **{name: value})


def test_no_requests(model):
    assert Engine(model).generate([]) == []
