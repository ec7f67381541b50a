"""One object for all tasks: media in, media out, in batches (used by the command line, the demo and the evaluation)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import operator
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import jax
import numpy as np

from aromni_jax.codecs import ImageCodec, SpeechCodec, TextCodec
from aromni_jax.decoding import Done, Engine, Event, Request, RequestQueue, Result, Session
from aromni_jax.decoding.engine import Model
from aromni_jax.errors import UserError
from aromni_jax.tasks.answers import Media, Reply, read_answer, to_media
from aromni_jax.tasks.dialog import Said, Script, Turn, TurnDone, plan_turn
from aromni_jax.tasks.parts import Image, Part, Speech, Text
from aromni_jax.tasks.prompts import PromptBuilder
from aromni_jax.tasks.requests import Options, make_request, task_options, tell_negative
from aromni_jax.tasks.templates import Template

if TYPE_CHECKING:
    import PIL.Image


class Assistant:
    """A model, the codecs of its world and its prompt template.

    Args:
      model: anything with `params`, `config` and `vocabulary`.
      text_codec, image_codec, speech_codec: of the vocabulary that the model was trained with; `UserError` if their
        sizes are not the vocabulary's. Pictures or speech cannot be used without their codec.
      template: name or template of the prompts.
      max_batch: items decoded at once.
      cache_dtype: of keys and values, see `Engine`.
    """

    def __init__(
        self,
        model: Model,
        *,
        text_codec: TextCodec,
        image_codec: ImageCodec | None,
        speech_codec: SpeechCodec | None,
        template: Template | str,
        max_batch: int = 32,
        cache_dtype: Literal["float32", "bfloat16", "int8"] | None = None,
    ) -> None:
        self.vocabulary, self.max_batch, self._params = model.vocabulary, max_batch, model.params
        self.text_codec, self.image_codec, self.speech_codec = text_codec, image_codec, speech_codec
        self._check_codecs()
        self.prompts = PromptBuilder(model.vocabulary, text_codec, template)
        self.engine = Engine(
            model, text_codec=text_codec, speech_codec=speech_codec, max_batch=max_batch, cache_dtype=cache_dtype
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        world: str | None = None,
        template: str | None = None,
        max_batch: int = 32,
        cache_dtype: Literal["float32", "bfloat16", "int8"] | None = None,
    ) -> Assistant:
        """From a model folder, run folder or checkpoint; "numbers" and "things" are shipped with the package.

        Args:
          world: folder or name of the codecs; None = what the model says it was trained in.
          template: None = what the model says it was trained with.

        Raises:
          UserError: no model there, the model does not say and neither does the caller, or codecs that it was not
            trained with.
        """
        from aromni_jax.convert import load_model

        model = load_model(path).apart()
        world = world or model.metadata["world"]
        template = template or model.metadata["template"]
        for what, value in (("codecs", world), ("template", template)):
            if value is None:
                raise UserError(f"{path}: the model does not say which {what} it was trained with; name it")
        text, image, speech = TextCodec.load(world), ImageCodec.load(world), SpeechCodec.load(world)
        trained_with = model.metadata.get("codecs") or {}
        for name, codec in (("text", text), ("image", image), ("speech", speech)):
            if trained_with.get(name, codec.fingerprint) != codec.fingerprint:
                raise UserError(
                    f"{path}: trained with {name} codec {trained_with[name]}, but {world} has {codec.fingerprint}: its "
                    "codes mean something else; take the codecs the model was trained with, or train it again"
                )
        return cls(
            model,
            text_codec=text,
            image_codec=image,
            speech_codec=speech,
            template=template,
            max_batch=max_batch,
            cache_dtype=cache_dtype,
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of what answers depend on beside prompt and options: codecs, template, a row of every array of weights."""
        rows = jax.jit(lambda params: jax.tree.map(lambda leaf: leaf[(0,) * (leaf.ndim - 1)], params))(self._params)
        codecs = (self.text_codec, self.image_codec, self.speech_codec)
        words = [self.prompts.template.name, *(codec.fingerprint for codec in codecs if codec is not None)]
        digest = hashlib.sha256(json.dumps(words).encode())
        for row in jax.tree.leaves(jax.device_get(rows)):
            digest.update(row.tobytes())
        return digest.hexdigest()[:16]

    # -- single-output tasks, many items at once -----------------------------------------------------

    def transcribe(self, waves: Sequence[np.ndarray], options: Options | None = None) -> list[str]:
        """float [n] waves at the codec's rate -> text."""
        return [r.answer.text for r in self.answer("speech_to_text", _each(self.hear(waves)), options)]

    def speak(self, texts: Sequence[str], options: Options | None = None) -> list[np.ndarray]:
        """Text -> float32 [n] waves at the codec's rate."""
        return self._waves(self.answer("text_to_speech", _each(map(Text, texts)), options))

    def describe(self, images: Sequence[PIL.Image.Image] | np.ndarray, options: Options | None = None) -> list[str]:
        """Pictures (as `ImageCodec.encode` takes them) -> text."""
        return [r.answer.text for r in self.answer("image_caption", _each(self.look(images)), options)]

    def draw(self, texts: Sequence[str], options: Options | None = None) -> list[PIL.Image.Image]:
        """Text -> pictures."""
        return self._pictures(self.answer("text_to_image", _each(map(Text, texts)), options))

    def speech_to_image(self, waves: Sequence[np.ndarray], options: Options | None = None) -> list[PIL.Image.Image]:
        """Waves -> pictures."""
        return self._pictures(self.answer("speech_to_image", _each(self.hear(waves)), options))

    def image_to_speech(
        self, images: Sequence[PIL.Image.Image] | np.ndarray, options: Options | None = None
    ) -> list[np.ndarray]:
        """Pictures -> waves."""
        return self._waves(self.answer("image_to_speech", _each(self.look(images)), options))

    def answer(
        self,
        task: str,
        inputs: Sequence[Sequence[Part]],
        options: Options | None = None,
        instruction: str | None = None,
    ) -> list[Reply]:
        """Replies to one prompt of `task` per entry of `inputs`, in order; for a chat, each is a first turn.

        Item n draws with the seed of the options + n.
        """
        prompts = [self.prompts.prompt(task, parts, instruction) for parts in inputs]
        options = tell_negative(task, options or task_options(task), self.prompts, instruction)
        requests = [make_request(task, ids, self.vocabulary, options, n) for n, ids in enumerate(prompts)]
        results = self.engine.generate(requests)
        return [self._reply(ids, result) for ids, result in zip(prompts, results, strict=True)]

    def answers(
        self,
        task: str,
        inputs: Iterable[tuple[int, Sequence[Part]]],
        options: Options | None = None,
        instruction: str | None = None,
        at_once: int | None = None,
    ) -> Generator[tuple[int, Reply | UserError]]:
        """As `answer`, each reply as soon as it is there: number and reply, or what is wrong with that one.

        Args:
          inputs: numbers, each of which is given once, and prompts; asked for more as there is room.
          at_once: see `Engine.results`.
        """
        options = tell_negative(task, options or task_options(task), self.prompts, instruction)
        bad: list[tuple[int, UserError]] = []
        prompts: dict[str, list[int]] = {}

        def requests() -> Iterator[Request]:
            for number, parts in inputs:
                try:
                    prompt = self.prompts.prompt(task, parts, instruction)
                except UserError as error:
                    bad.append((number, error))
                    continue
                request = make_request(task, prompt, self.vocabulary, options, number)
                prompts[request.id] = prompt
                yield request

        with contextlib.closing(self.engine.results(requests(), at_once)) as results:
            for result in results:
                prompt = prompts.pop(result.id)
                reply: Reply | UserError
                try:
                    reply = UserError(result.error) if result.error else self._reply(prompt, result)
                except UserError as error:
                    reply = error
                yield int(result.id), reply
        yield from bad

    # -- chat ----------------------------------------------------------------------------------------

    def session(self) -> Session:
        """What one or more dialogs keep between turns, so that a turn reads only what is new (`Engine.session`).

        Give it to every turn of theirs. The answers are the same without it; drop it to free the memory.
        """
        return self.engine.session()

    def chat(
        self,
        history: Sequence[int],
        parts: Sequence[Part],
        append_text: str | None = None,
        options: Options | None = None,
        session: Session | None = None,
    ) -> tuple[Reply, list[int]]:
        """One turn: the reply, and the history (token ids, [] at first) that the next turn takes."""
        return self.chats([history], [parts], append_text, options, session)[0]

    def chats(
        self,
        histories: Sequence[Sequence[int]],
        parts: Sequence[Sequence[Part]],
        append_text: str | None = None,
        options: Options | None = None,
        session: Session | None = None,
    ) -> list[tuple[Reply, list[int]]]:
        """One turn of many dialogs at once; what does not fit the context goes by `options.history`."""
        turns = [
            self._plan(history, said, append_text, options, n)
            for n, (history, said) in enumerate(zip(histories, parts, strict=True))
        ]
        results = self.engine.generate([turn.request for turn in turns], session)
        return [self._finish(turn, result) for turn, result in zip(turns, results, strict=True)]

    def chat_events(
        self,
        history: Sequence[int],
        parts: Sequence[Part],
        append_text: str | None = None,
        options: Options | None = None,
        session: Session | None = None,
    ) -> Generator[Event]:
        """The same turn as events, as they come; the last one is `TurnDone`, with the reply and the new history.

        Closing the iterator cancels the turn: the dialog can go on from the old history.
        """
        turn = self._plan(history, parts, append_text, options)
        with contextlib.closing(self.engine.stream([turn.request], session)) as events:
            for event in events:
                if isinstance(event, Done):
                    yield TurnDone(event.id, event.at, event.result, *self._finish(turn, event.result))
                else:
                    yield event

    def converse(self, scripts: Iterable[Script], options: Options | None = None) -> None:
        """Run dialogs to their ends, `max_batch` of them at once: a turn begins as soon as its script tells it.

        Args:
          scripts: asked for another one when one of those that run has ended.

        Raises:
          What a script raises, also the `UserError` that it was told and did not catch: it ends all dialogs, and those
          that have begun are closed.
        """
        with contextlib.ExitStack() as begun:
            self._converse((begun.enter_context(contextlib.closing(script)) for script in scripts), options)

    def _converse(self, scripts: Iterator[Script], options: Options | None) -> None:
        queue, numbers = RequestQueue(self.max_batch), itertools.count()
        asked: dict[str, tuple[Script, Turn]] = {}

        def go_on(script: Script | None, answer: Callable[[Script], Said] = next) -> None:
            """Hand in the next turn of the script, or of another one when it has ended."""
            while script is not None:
                try:
                    said = answer(script)
                except StopIteration:
                    script, answer = next(scripts, None), next
                    continue
                try:
                    turn = self._plan(said.history, said.parts, said.append_text, options)
                    self.engine.limits(turn.request)
                except UserError as error:
                    answer = operator.methodcaller("throw", error)
                    continue
                name = str(next(numbers))
                asked[name] = script, turn
                queue.submit(dataclasses.replace(turn.request, id=name))
                return

        for script in itertools.islice(scripts, self.max_batch):
            go_on(script)
        with contextlib.closing(self.engine.results(queue, at_once=len(asked))) as results:
            while asked:
                result = next(results)
                script, turn = asked.pop(result.id)
                try:
                    answer = operator.methodcaller("send", self._finish(turn, result))
                except UserError as error:
                    answer = operator.methodcaller("throw", error)
                go_on(script, answer)

    def _plan(
        self,
        history: Sequence[int],
        parts: Sequence[Part],
        append_text: str | None,
        options: Options | None,
        number: int = 0,
    ) -> Turn:
        options = options or task_options("chat")
        return plan_turn(self.prompts, history, parts, append_text, options, context=self.engine.context, number=number)

    def _finish(self, turn: Turn, result: Result) -> tuple[Reply, list[int]]:
        reply = dataclasses.replace(self._reply(turn.request.prompt_tokens, result), dropped=turn.dropped)
        output = result.tokens.tolist()
        return reply, self.prompts.chat_history(turn.history, turn.parts, output, turn.append_text)

    # -- media <-> parts -----------------------------------------------------------------------------

    @property
    def sample_rate(self) -> int:
        """Hertz, of the waves on both sides."""
        return self._need(self.speech_codec, "speech").sample_rate

    def hear(self, waves: Sequence[np.ndarray]) -> list[Speech]:
        """float [n] waves at `speech_codec.sample_rate` -> speech codes."""
        codec = self._need(self.speech_codec, "speech")
        if not len(waves):
            return []
        lengths = [len(wave) for wave in waves]
        padded = np.zeros((len(waves), max(lengths)), np.float32)
        for row, wave in zip(padded, waves, strict=True):
            row[: len(wave)] = wave
        return [Speech(codes) for codes in codec.encode(padded, lengths=lengths)]

    def look(self, images: Sequence[PIL.Image.Image] | np.ndarray) -> list[Image]:
        """Pictures -> image codes."""
        if not len(images):
            return []
        return [Image(codes) for codes in self._need(self.image_codec, "image").encode(images)]

    def media(self, reply: Reply) -> Media:
        """The reply's text, sound and pictures."""
        return to_media(reply.answer, self.speech_codec, self.image_codec)

    def _reply(self, prompt: Sequence[int], result: Result) -> Reply:
        return Reply(prompt, result, read_answer(result.tokens.tolist(), self.vocabulary, self.text_codec))

    def _waves(self, replies: Sequence[Reply]) -> list[np.ndarray]:
        utterances = [reply.answer.speech or Speech(np.zeros(0, np.int32)) for reply in replies]
        return self._need(self.speech_codec, "speech").decode([speech.codes for speech in utterances])

    def _pictures(self, replies: Sequence[Reply]) -> list[PIL.Image.Image]:
        codec = self._need(self.image_codec, "image")
        return codec.to_pil(np.stack([reply.answer.images[0].codes for reply in replies])) if replies else []

    @staticmethod
    def _need(codec, kind: str):
        if codec is None:
            raise UserError(f"no {kind} codec is loaded")
        return codec

    def _check_codecs(self) -> None:
        v, image, speech = self.vocabulary, self.image_codec, self.speech_codec
        sizes = [("text pieces", self.text_codec.num_pieces, len(v.text))]
        if image is not None:
            sizes += [("image codes", image.num_codes, len(v.image))]
            sizes += [("codes per image", image.tokens_per_image, v.image_tokens)]
        if speech is not None:
            sizes += [("speech codes", speech.num_codes, len(v.speech))]
        for what, codec, ours in sizes:
            # The official text tokenizer numbers its pieces by joint ids, so it has more than the text range.
            if codec != ours and not (what == "text pieces" and v.text_offset == 0):
                raise UserError(
                    f"the model's vocabulary has {ours} {what}, the codec {codec}; take the model's own codecs"
                )


def _each(parts) -> list[list[Part]]:
    return [[part] for part in parts]
