"""Media in, media out, with codecs that are easy to check by hand and a model of random weights."""

import dataclasses

import jax
import numpy as np
import PIL.Image
import pytest

from aromni_jax.convert import save_model
from aromni_jax.decoding import GREEDY, Done, Guidance, Policy, State, TextPiece
from aromni_jax.errors import UserError
from aromni_jax.model import init_params
from aromni_jax.prepare import Codecs
from aromni_jax.tasks import Assistant, Dropped, Image, Options, Speech, Text, TurnDone, make_request, task_options
from aromni_jax.tasks.dialog import Said
from aromni_jax.vocabulary import TASKS
from tests.tasks.toys import CONFIG, Pixels, V, toy_assistant, toy_model

SHORT = Options(max_text=6, max_speech=10)


@pytest.fixture(scope="module")
def assistant():
    return toy_assistant()


WAVES = [np.repeat(np.float32([1, 2, 3]), 4), np.repeat(np.float32([8]), 4)]
PICTURES = [PIL.Image.fromarray(np.uint8([[0, 40], [80, 200]])), PIL.Image.fromarray(np.uint8([[0, 0], [0, 0]]))]


def test_media_become_parts(assistant):
    assert assistant.hear(WAVES) == [Speech([1, 2, 3]), Speech([8])]
    assert assistant.look(PICTURES) == [Image([0, 1, 2, 5]), Image([0, 0, 0, 0])]
    assert assistant.hear([]) == assistant.look([]) == []


def test_every_task_gives_its_kind_of_output(assistant):
    for texts in (assistant.transcribe(WAVES, SHORT), assistant.describe(PICTURES, SHORT)):
        assert len(texts) == 2 and all(isinstance(text, str) for text in texts)
    for waves in (assistant.speak(["a", "bc"], SHORT), assistant.image_to_speech(PICTURES, SHORT)):
        assert len(waves) == 2 and all(4 <= len(wave) <= 44 for wave in waves)
    for pictures in (assistant.draw(["a", "bc"], SHORT), assistant.speech_to_image(WAVES, SHORT)):
        assert [picture.size for picture in pictures] == [(2, 2)] * 2
    assert assistant.draw([]) == assistant.speak([]) == assistant.transcribe([]) == []


def test_prompts_and_media_of_a_reply(assistant):
    reply = assistant.answer("text_to_speech", [[Text("hi")]], SHORT)[0]
    assert reply.prompt == assistant.prompts.prompt("text_to_speech", [Text("hi")])
    codes = V.speech_codes([token for token in reply.result.tokens if token in V.speech])
    assert reply.answer.parts == (Speech(codes),)
    media = assistant.media(reply)
    np.testing.assert_array_equal(media.wave, np.repeat(codes, 4))
    assert media.sample_rate == 160 and media.images == () and media.text == ""


def test_items_do_not_depend_on_the_batch(assistant):
    texts = ["a", "bc", "def", "a", "longer than the others", "g"]
    sampled = dataclasses.replace(SHORT, policies={State.SPEECH: Policy(temperature=2.0)})
    together = assistant.answer("text_to_speech", [[Text(text)] for text in texts], sampled)
    assert together[0].answer.parts != together[3].answer.parts, "item n draws with seed + n"
    alone = assistant.answer("text_to_speech", [[Text("a")]], dataclasses.replace(sampled, seed=3))
    assert alone[0].answer.parts == together[3].answer.parts
    some = dict(assistant.answers("text_to_speech", iter([(3, [Text("a")]), (1, [Text("bc")])]), sampled, at_once=1))
    assert {number: reply.answer for number, reply in some.items()} == {n: together[n].answer for n in (3, 1)}


def test_a_fingerprint_tells_what_answers(assistant):
    class Other(Pixels):
        fingerprint = "other"

    trained = toy_model()
    trained.params = jax.tree.map(lambda leaf: leaf + 1e-6, trained.params)
    marks = [assistant.fingerprint, toy_assistant(template="aromni").fingerprint]
    marks += [toy_assistant(image_codec=Other()).fingerprint, toy_assistant(model=trained).fingerprint]
    assert len({*marks}) == 4 and toy_assistant().fingerprint == marks[0]


def test_chat_remembers(assistant):
    reply, history = assistant.chat([], [Text("hi"), *assistant.hear(WAVES[:1])], options=SHORT)
    assert reply.answer.transcript is not None and reply.result.states[1] == State.TRANSCRIPT
    again, longer = assistant.chat(history, [Text("ho")], options=SHORT)
    assert again.prompt[: len(history)] == [V.bos, *history[:-1]] or again.prompt[1 : 1 + len(history)] == history
    assert longer[: len(history) - 1] == history[:-1] and len(longer) > len(history)
    both = assistant.chats([[], history], [[Text("hi"), *assistant.hear(WAVES[:1])], [Text("ho")]], options=SHORT)
    assert [turn[1] for turn in both] == [history, longer]


def test_chat_as_events(assistant):
    parts = [Text("hi")]
    *events, done = assistant.chat_events([], parts, options=SHORT)
    assert isinstance(done, TurnDone) and not any(isinstance(event, Done) for event in events)
    reply, history = assistant.chat([], parts, options=SHORT)
    assert (done.reply.answer, done.history) == (reply.answer, history)
    heard = "".join(e.text for e in events if isinstance(e, TextPiece) and e.state == State.TRANSCRIPT)
    assert heard.strip() == reply.answer.transcript


def test_a_turn_reads_only_what_is_new(assistant):
    """Also after a turn that was cancelled on its way."""
    session, few = assistant.session(), dataclasses.replace(SHORT, max_new_tokens=24)
    first, history = assistant.chat([], [Text("hi")], options=few, session=session)
    assert first.result.usage.fed_tokens == first.result.usage.prompt_tokens == len(first.prompt)
    events = assistant.chat_events(history, [Text("no")], options=few, session=session)
    next(events)
    events.close()
    *_, done = assistant.chat_events(history, [Text("yes")], options=few, session=session)
    plain, longer = assistant.chat(history, [Text("yes")], options=few)
    assert done.history == longer and plain.result.usage.reused_tokens == 0
    usage = done.result.usage
    assert usage.reused_tokens >= len(history) and usage.fed_tokens + usage.reused_tokens == len(plain.prompt)


def test_dialogs_run_side_by_side(assistant):
    """More of them than run at once, of 0 to 3 turns: what each is told is what it is told alone."""
    sampled = dataclasses.replace(SHORT, policies={State.TEXT: Policy(temperature=2.0)}, max_new_tokens=30)
    talks = [["a"], ["bc", "d", "e" * 9], [], ["f", "g"], ["h"], ["i", "j", "k"], ["l", "m"]]
    told, running, most, order = {}, set(), 0, []

    def script(number):
        nonlocal most
        running.add(number)
        most, history = max(most, len(running)), []
        for text in talks[number]:
            _, history = yield Said(history, [Text(text)])
            told.setdefault(number, []).append(history)
            order.append(number)
        running.discard(number)

    assistant.converse((script(number) for number in range(len(talks))), sampled)
    for number, texts in enumerate(talks):
        history = []
        for turn, text in enumerate(texts):
            _, history = assistant.chat(history, [Text(text)], options=sampled)
            assert told[number][turn] == history
        assert len(told.get(number, [])) == len(texts)
    assert not running and most == assistant.max_batch == 4
    assert set(order[:2]) != {order[0]}, "not one dialog after another"
    assistant.converse([])


def test_a_bad_turn_is_told_to_its_dialog_alone(assistant, monkeypatch):
    """No room for the prompt, no room for the history, an answer that cannot be read; what ends one ends all."""
    few, errors, ends = dataclasses.replace(SHORT, max_new_tokens=20), [], []
    long = [*[V.text.start] * 250, V.eom]

    def bad():
        for said in (Said([], [Text("x" * 300)]), Said(long, [Text("x")])):
            with pytest.raises(UserError) as caught:
                yield said
            errors.append(str(caught.value))
        ends.append((yield Said([], [Text("x")]))[0].result.finish)

    def good():
        for _ in range(2):
            ends.append((yield Said([], [Text("y")]))[0].result.finish)

    assistant.converse([bad(), good()], few)
    assert "tokens, the context only 256" in errors[0] and "251 tokens of history" in errors[1]
    assert len(ends) == 3 and {*ends} <= {"stop", "length"}
    finish = assistant._finish

    def unreadable(turn, result):
        if turn.parts == [Text("x")] and not errors[2:]:
            raise UserError("half a picture")
        return finish(turn, result)

    def again():
        try:
            yield Said([], [Text("x")])
        except UserError as error:
            errors.append(str(error))
        yield Said([], [Text("x")])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(assistant, "_finish", unreadable)
        assistant.converse([again(), good()], few)
    assert errors[2:] == ["half a picture"]


def test_what_a_script_raises_closes_the_others(assistant):
    """The third is never begun."""
    few, said = dataclasses.replace(SHORT, max_new_tokens=20), []

    def script(number):
        try:
            said.append(f"{number} begins")
            yield Said([], [Text("x" * 300 if number == 1 else "y")])
        finally:
            said.append(f"{number} ends")

    with pytest.raises(UserError, match="tokens, the context only 256"):
        scripts = [script(number) for number in range(3)]
        assistant.converse(scripts, few)
    assert said == ["0 begins", "1 begins", "1 ends", "0 ends"]


def test_dropped_turns_are_reported(assistant):
    """A context of 256: 200 tokens of two turns and an answer of 60."""
    old = [*[V.text.start] * 150, V.eoh, V.ins, V.res, V.eom]
    recent = [*[V.text.start + 1] * 50, V.eoh, V.ins, V.res, V.eom]
    options = dataclasses.replace(SHORT, max_new_tokens=60)
    with pytest.raises(UserError, match="dialog 0: 208 tokens of history"):
        assistant.chat([*old, *recent], [Text("hi")], "", options)
    options = dataclasses.replace(options, history="drop_oldest")
    session = assistant.session()
    assistant.chat(recent, [Text("hi")], "", options, session)
    reply, history = assistant.chat([*old, *recent], [Text("hi")], "", options, session)
    assert reply.dropped == Dropped(turns=1, tokens=len(old))
    assert reply.prompt[1:-3] == recent and history[: len(recent)] == recent
    assert assistant.chat(recent, [Text("hi")], "", options)[1] == history
    with pytest.raises(UserError, match=r"the prompt has 302 tokens, the context only 256"):
        assistant.chat(recent, [Text("hi" * 150)], "", options)


@pytest.mark.parametrize("task", TASKS)
def test_requests_allow_exactly_the_tasks_output(task):
    request = make_request(task, [V.bos], V, Options(seed=5, guidance=Guidance(2.0)), number=2)
    states = {"text": State.TEXT, "speech": State.SPEECH, "image": State.IMAGE}
    if task == "chat":
        assert request.allowed == set(states.values()) | {State.TRANSCRIPT} and request.first == State.TRANSCRIPT
    else:
        wanted = states["text" if task == "image_caption" else task.rsplit("_", 1)[1]]
        assert request.allowed == {wanted} and request.first == wanted and request.max_spans == 1
    assert (request.seed, request.id, request.guidance) == (7, "2", Guidance(2.0))
    assert task_options(task).policies.get(State.TEXT, GREEDY) == GREEDY


def test_codecs_of_another_vocabulary():
    class Wide(Pixels):
        num_codes = 7

    with pytest.raises(UserError, match="the model's vocabulary has 6 image codes, the codec 7"):
        toy_assistant(image_codec=Wide())
    deaf = toy_assistant(speech_codec=None)
    with pytest.raises(UserError, match="no speech codec is loaded"):
        deaf.transcribe(WAVES)
    assert deaf.answer("text_to_text", [[Text("a")]], SHORT)[0].answer.speech is None


def test_no_model_there():
    with pytest.raises(UserError, match="nowhere"):
        Assistant.load("nowhere")


def test_codecs_that_the_model_was_not_trained_with_are_refused(tmp_path):
    codecs = Codecs.load("numbers")
    config = dataclasses.replace(CONFIG, vocab_size=codecs.vocabulary.size)
    params = init_params(config, jax.random.key(0))
    said = {"world": "numbers", "template": "brief"}
    for name, fingerprints in (("own", codecs.fingerprints), ("other", {**codecs.fingerprints, "image": "0123"})):
        save_model(tmp_path / name, params, config, codecs.vocabulary, {**said, "codecs": fingerprints})
    assert Assistant.load(tmp_path / "own").vocabulary == codecs.vocabulary
    with pytest.raises(UserError, match="trained with image codec 0123, but numbers has"):
        Assistant.load(tmp_path / "other")


def test_a_negative_prompt_is_told_like_the_positive_one(assistant, monkeypatch):
    seen = []
    monkeypatch.setattr(assistant.engine, "generate", lambda requests: seen.extend(requests) or [])
    options = dataclasses.replace(SHORT, guidance=Guidance(2.0, 1.0), negative="dog")
    with pytest.raises(ValueError):
        assistant.answer("text_to_image", [[Text("cat")]], options)  # no results: the requests are what matters
    assert seen[0].guidance == Guidance(2.0, 1.0, negative=assistant.prompts.prompt("text_to_image", [Text("dog")]))
    with pytest.raises(UserError, match="a negative prompt needs guidance"):
        assistant.answer("text_to_image", [[Text("cat")]], dataclasses.replace(SHORT, negative="dog"))
    with pytest.raises(UserError, match="text_to_speech: takes no negative prompt; only text_to_image does"):
        assistant.answer("text_to_speech", [[Text("cat")]], options)
    with pytest.raises(UserError, match="chat: takes no negative prompt"):
        assistant.chat([], [Text("cat")], options=options)
