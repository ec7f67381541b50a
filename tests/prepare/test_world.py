"""A prepared world: every task, nothing shared between the splits, whole or not at all."""

import collections
import hashlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from aromni_jax.cli.main import main
from aromni_jax.config import DataConfig, LossConfig
from aromni_jax.data import batches, epoch, read_manifest, read_records
from aromni_jax.errors import UserError
from aromni_jax.prepare import Codecs, prepare_world
from aromni_jax.prepare.world import MIXTURE, UNCONDITIONAL
from aromni_jax.tasks.parts import Image, Speech, Text
from aromni_jax.tasks.templates import TASK_KINDS
from aromni_jax.vocabulary import TASKS, Modality
from aromni_jax.worlds.numbers import NumbersWorld
from tests.small_world import ANSWERS, COLOURS, THINGS, BarCodec, ToneCodec, small_world

SIZES = {"examples": 400, "held_out": 70}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, fake_codecs):
    folder = tmp_path_factory.mktemp("numbers") / "data"
    return folder, prepare_world("numbers", folder, codecs=fake_codecs, progress=False, **SIZES)


def records_of(prepared, split, task):
    folder, manifest = prepared
    return list(read_records(folder / manifest.splits[split][task].records, manifest.vocabulary))


def test_counts_follow_the_mixture(prepared):
    _, manifest = prepared
    train = {task: part.examples for task, part in manifest.splits["train"].items()}
    whole = sum(MIXTURE.values())
    assert train == {task: pytest.approx(400 * share / whole, abs=1) for task, share in MIXTURE.items()}
    assert manifest.figures("train")["examples"] == 400
    assert {part.examples for part in manifest.splits["test"].values()} == {10}
    assert manifest.figures("train")["packing"]["packed"] > 0.9
    statistics = manifest.statistics
    assert statistics["train"]["strings"] == 80 and statistics["test"]["strings"] == 20
    assert statistics["train"]["utterances"] == 80 and statistics["train"]["pictures"] == 200
    assert 0 < statistics["train"]["hours_of_speech"] < 0.1 and statistics["seconds"] > 0


def test_every_task_is_made_of_the_right_parts(prepared, fake_codecs):
    v, world = prepared[1].vocabulary, NumbersWorld.load()
    unconditional = 0
    for split in ("train", "test"):
        for task in MIXTURE:
            for record in records_of(prepared, split, task):
                made_in, made_for, _, string = record.id.split("/")
                assert (made_in, made_for, record.task) == (split, task, task)
                tokens = record.tokens.tolist()
                kinds = collections.Counter(v.modality(tokens).tolist())
                if v.eoh not in tokens:
                    assert task == "text_to_image" and tokens[:2] == [v.bos, v.boi] and tokens[-2:] == [v.eoi, v.eos]
                    unconditional += 1
                    continue
                assert tokens[0] == v.bos and tokens.count(v.bos) == 1
                assert tokens[-1] == (v.eom if task == "chat" else v.eos)
                assert kinds[Modality.IMAGE] == 32 * tokens.count(v.boi)
                if task == "chat":
                    continue
                eoh = tokens.index(v.eoh)
                prompt, answer = tokens[1:eoh], tokens[eoh + 1 : -1]
                assert record.response_length == len(answer)
                shape = {"speech": (v.boa, v.eoa), "image": (v.boi, v.eoi), "text": None}
                given, wanted = task.replace("image_caption", "image_to_text").split("_to_")
                if shape[wanted]:
                    assert (answer[0], answer[-1]) == shape[wanted]
                else:
                    assert fake_codecs.text.decode(v.text_pieces(answer).tolist()) == world.text(string)
                if shape[given]:
                    assert prompt[-1] == shape[given][1] and shape[given][0] in prompt
                else:
                    words = fake_codecs.text.decode(v.text_pieces(prompt).tolist())
                    assert words.endswith(world.text(string))
    assert 0 < unconditional < 3 * UNCONDITIONAL * 95


def test_dialogs_have_both_turns(prepared):
    v = prepared[1].vocabulary
    shapes = collections.Counter()
    for record in records_of(prepared, "train", "chat") + records_of(prepared, "test", "chat"):
        tokens = record.tokens.tolist()
        marks = [t for t in tokens if t in (v.boa, v.boi, v.eoh, v.ins, v.res, v.eom)]
        first = [v.boa, v.eoh, v.ins, v.res, v.boa, v.boi, v.eom]
        second = [v.boi, v.eoh, v.ins, v.res, v.boa, v.eom]
        shapes[{tuple(first): "first", tuple(second): "second", tuple(first + second): "both"}[tuple(marks)]] += 1
        assert len(tokens) <= 256
        last = len(tokens) - 1 - tokens[::-1].index(v.eoh)
        assert record.response_length == len(tokens) - 1 - last
    assert set(shapes) == {"first", "second", "both"}


def test_no_medium_of_the_test_split_occurs_in_training(prepared):
    def spans(split):
        v, found = prepared[1].vocabulary, set()
        for task in MIXTURE:
            for record in records_of(prepared, split, task):
                ids = record.tokens
                for opening, closing in ((v.boi, v.eoi), (v.boa, v.eoa)):
                    starts, stops = np.flatnonzero(ids == opening), np.flatnonzero(ids == closing)
                    found |= {ids[a:b].tobytes() for a, b in zip(starts, stops, strict=True)}
        return found

    def strings(split):
        return {record.id.split("/")[3] for task in MIXTURE for record in records_of(prepared, split, task)}

    assert not spans("train") & spans("test")
    assert not strings("train") & strings("test")
    assert len(strings("train")) == 80


def test_the_batches_of_training_come_out_of_it(prepared):
    folder, manifest = prepared
    config = DataConfig(path=str(folder), sequence_length=256, batch_size=4)
    batch = next(batches(config, LossConfig(), manifest.vocabulary))
    assert batch.tokens.shape == (4, 256) and (batch.segment_ids > 0).mean() > 0.8
    tasks = {TASKS[t] for b in epoch(config, LossConfig(), manifest.vocabulary) for t in np.unique(b.task_ids)}
    assert tasks == set(MIXTURE)


def test_the_same_request_gives_the_same_bytes_and_is_not_done_twice(prepared, fake_codecs, tmp_path):
    folder, manifest = prepared
    again = prepare_world("numbers", tmp_path / "again", codecs=fake_codecs, progress=False, **SIZES)
    for split in ("train", "test"):
        for task in MIXTURE:
            name = manifest.splits[split][task].records
            assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    stamp = (folder / "manifest.json").stat().st_mtime_ns
    assert prepare_world("numbers", folder, codecs=fake_codecs, progress=False, **SIZES) == manifest
    assert (folder / "manifest.json").stat().st_mtime_ns == stamp
    assert {part.examples for part in again.splits["test"].values()} == {10}


def test_another_request_does_not_replace_a_data_set_unless_told(tmp_path, fake_codecs):
    folder = tmp_path / "data"
    few = {"examples": 20, "held_out": 7, "codecs": fake_codecs, "progress": False}
    prepare_world("numbers", folder, **few)
    with pytest.raises(UserError, match=r"another data set \(seed: 0 there, 1 asked\).*--force"):
        prepare_world("numbers", folder, seed=1, **few)
    assert prepare_world("numbers", folder, seed=1, force=True, **few).request["seed"] == 1
    assert read_manifest(folder).request["seed"] == 1
    assert os.listdir(tmp_path) == ["data"]


def test_a_folder_that_is_no_data_set_is_never_replaced(tmp_path, fake_codecs):
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(UserError, match="is not empty and holds no data set: give another folder"):
        prepare_world("numbers", tmp_path, codecs=fake_codecs, force=True, progress=False)
    assert (tmp_path / "thesis.txt").exists()


def test_an_interrupted_preparation_leaves_nothing_and_the_old_one_stands(tmp_path, fake_codecs):
    folder = tmp_path / "data"
    few = {"examples": 20, "held_out": 7, "progress": False}
    old = prepare_world("numbers", folder, codecs=fake_codecs, **few)

    class Interrupted:
        def __getattr__(self, name):
            return getattr(fake_codecs.image, name)

        def encode(self, images):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_world(
            "numbers", folder, codecs=Codecs(fake_codecs.text, Interrupted(), fake_codecs.speech), force=True, **few
        )
    assert read_manifest(folder) == old
    assert os.listdir(tmp_path) == ["data"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    """The limit on file size makes the system fail a write, as a full disk does."""
    code = (
        "import resource, signal, sys\n"
        "from tests.prepare.conftest import FakeImageCodec, FakeSpeechCodec\n"
        "from aromni_jax.codecs import TextCodec\n"
        "from aromni_jax.errors import UserError\n"
        "from aromni_jax.prepare import Codecs, prepare_world\n"
        "codecs = Codecs(TextCodec.load('numbers'), FakeImageCodec(), FakeSpeechCodec())\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, 70_000))\n"
        "try:\n"
        "    prepare_world('numbers', sys.argv[1], examples=2000, held_out=70, codecs=codecs, progress=False)\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "data"],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stdout.startswith(f"cannot write {tmp_path}") and done.stdout.endswith(": File too large\n")
    assert done.stdout.count("\n") == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixture": {"asr": 1.0}}, "mixture: unknown task 'asr'; a world has speech_to_text"),
        ({"mixture": {"chat": -1.0}}, "the share of chat is -1.0"),
        ({"mixture": {"chat": 0.0}}, "no task has a share above 0"),
        ({"examples": 3}, "3 and 420 examples are too few for 7 tasks"),
        ({"template": "long"}, "unknown template 'long'"),
        ({"sequence_length": 50, "examples": 70}, r"has \d+ tokens, a row takes 50: raise the sequence length"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, tmp_path, fake_codecs):
    with pytest.raises(UserError, match=message):
        prepare_world("numbers", tmp_path / "data", codecs=fake_codecs, progress=False, **arguments)
    assert os.listdir(tmp_path) == []


def test_a_mixture_of_one_task(tmp_path, fake_codecs):
    manifest = prepare_world(
        "numbers",
        tmp_path / "data",
        examples=30,
        held_out=5,
        mixture={"speech_to_text": 1},
        codecs=fake_codecs,
        progress=False,
    )
    assert list(manifest.splits["train"]) == ["speech_to_text"]


def test_the_command_with_the_shipped_codecs(tmp_path, capsys):
    words = ["prepare", "numbers", "--out", str(tmp_path / "data"), "--examples", "80", "--held-out", "14"]
    assert main([*words, "--mixture", "speech_to_text=1", "text_to_image=1"]) == 0
    assert f"{tmp_path}/data train: 80 examples" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert set(manifest["codecs"]) == {"text", "image", "speech"} and manifest["statistics"]["seconds"] > 0
    assert main([*words, "--mixture", "chat"]) == 1
    assert capsys.readouterr().err == "aromni: --mixture chat: write it as TASK=SHARE, such as chat=0.5\n"


def test_each_split_is_composed_of_its_own_media(tmp_path, fake_codecs, monkeypatch):
    asked = collections.Counter()

    def spied(name, real):
        def compose(self, string, rng, *, split):
            asked[name, split] += 1
            assert string in self.strings(split)
            return real(self, string, rng, split=split)

        return compose

    for name in ("utterance", "picture"):
        monkeypatch.setattr(NumbersWorld, name, spied(name, getattr(NumbersWorld, name)))
    manifest = prepare_world("numbers", tmp_path / "data", codecs=fake_codecs, progress=False, **SIZES)
    assert asked == {
        (name, split): manifest.statistics[split][f"{name}s"]
        for name in ("utterance", "picture")
        for split in ("train", "test")
    }


def test_the_records_of_the_numbers_world_are_what_they_were(prepared):
    """Data sets made before go on being used, so the same request must give the same bytes.

    Change the sum only together with `_RECIPE`, or where a library composes the media otherwise than it did.
    """
    digest = hashlib.sha256()
    for split in ("train", "test"):
        for task in MIXTURE:
            for record in records_of(prepared, split, task):
                digest.update(record.to_bytes())
    assert digest.hexdigest()[:16] == "3cc38f347c65f964"


@pytest.fixture(scope="module")
def small(tmp_path_factory, fake_codecs):
    """A world of sentences, and its data set, whose codes name the thing, the voice and the style."""
    world = small_world(tmp_path_factory.mktemp("media"))
    codecs = Codecs(fake_codecs.text, BarCodec(), ToneCodec())
    folder = tmp_path_factory.mktemp("small") / "data"
    return world, (folder, prepare_world(world, folder, examples=300, held_out=70, codecs=codecs, progress=False))


def _media(v, tokens):
    """Codes between the markers, in order: [voice, thing, letters] of speech, [thing, style] of pictures."""
    spans = []
    for opening, closing, codes in ((v.boa, v.eoa, v.speech), (v.boi, v.eoi, v.image)):
        starts, stops = np.flatnonzero(tokens == opening), np.flatnonzero(tokens == closing)
        spans += [(a, (tokens[a + 1 : b] - codes.start).tolist()) for a, b in zip(starts, stops, strict=True)]
    return [codes for _, codes in sorted(spans)]


def test_a_world_is_heard_in_any_voice_and_seen_in_any_style_and_answers_in_one(small, fake_codecs):
    world, prepared = small
    v, voices = prepared[1].vocabulary, collections.Counter()
    for split in ("train", "test"):
        for task in set(MIXTURE) - {"chat"}:
            given, wanted = TASK_KINDS[task]
            for number, record in enumerate(records_of(prepared, split, task)):
                string = record.id.split("/", 3)[3]
                about_things = task in ("image_caption", "text_to_image", "image_to_speech")
                items = [f"{thing}/0" for thing in THINGS] if about_things else world.strings(split)
                assert string == items[number % len(items)]
                tokens = record.tokens.astype(int)
                said = fake_codecs.text.decode(v.text_pieces(tokens[v.text.mask(tokens)]).tolist())
                spoken = [codes for codes in _media(v, tokens) if len(codes) == 3]
                shown = [codes for codes in _media(v, tokens) if len(codes) == 2]
                for voice, thing, letters in spoken:
                    assert (THINGS[thing], letters) == (string.split("/")[0], len(world.text(string)))
                    voices[split, "answered" if wanted is Speech else "given", voice] += 1
                for thing, style in shown:
                    assert THINGS[thing] == string.split("/")[0]
                    assert style in ((ANSWERS,) if wanted is Image else COLOURS[split])
                if Text in (given, wanted) and v.eoh in tokens:
                    assert said.endswith(world.text(string))
    assert all(voices[split, "given", voice] > 5 for split in ("train", "test") for voice in (0, 1))
    assert all(voices[split, "answered", 1] > 5 and not voices[split, "answered", 0] for split in ("train", "test"))


def test_dialogs_of_sentences_echo_them_and_name_the_thing(small, fake_codecs):
    world, prepared = small
    v = prepared[1].vocabulary
    shapes = collections.Counter()
    for split in ("train", "test"):
        for record in records_of(prepared, split, "chat"):
            tokens, string = record.tokens.astype(int), record.id.split("/", 3)[3]
            media, turns = _media(v, tokens), []
            for ins, res in zip(np.flatnonzero(tokens == v.ins), np.flatnonzero(tokens == v.res), strict=True):
                end = res + 1 + int(np.argmin(v.text.mask(tokens[res + 1 :])))
                turns.append(
                    [
                        fake_codecs.text.decode(v.text_pieces(tokens[a + 1 : b]).tolist())
                        for a, b in ((ins, res), (res, end))
                    ]
                )
            if len(media[0]) == 3:
                heard, answer, picture = media[:3]
                thing = string.split("/")[0]
                assert turns[0] == [world.text(string), f"a {thing}"]
                assert heard[1:] == [THINGS.index(thing), len(world.text(string))]
                assert answer == [1, THINGS.index(thing), len(thing) + 2]
                assert picture == [THINGS.index(thing), ANSWERS]
                media, turns = media[3:], turns[1:]
                shapes["first"] += 1
            if media:
                (thing, style), told = media
                assert style in COLOURS[split]
                assert turns == [["a " + THINGS[thing]] * 2] and told == [1, thing, len(THINGS[thing]) + 2]
                shapes["second"] += 1
    assert min(shapes["first"], shapes["second"]) > 5


def test_media_are_of_what_is_named_and_of_each_voice_and_style(small):
    _, (_, manifest) = small
    train = manifest.statistics["train"]
    assert (train["strings"], train["utterances"], train["pictures"]) == (15, 2 * (300 // 6), 2 * 150)
    assert manifest.request["world"] == "small" and manifest.sequence_length == 256
