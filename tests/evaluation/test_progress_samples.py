"""Held-out prompts answered by a model in training: with codecs, without, and on a mesh."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import PIL.Image
import pytest

from aromni_jax.codecs import ImageCodec, SpeechCodec, TextCodec, read_audio
from aromni_jax.config import DataConfig, MeshConfig, ModelConfig, RunConfig
from aromni_jax.data import Manifest, Record
from aromni_jax.data.manifest import write_manifest, write_split
from aromni_jax.errors import UserError
from aromni_jax.evaluation.progress_samples import ProgressSamples, decoding_mesh, held_out_prompts, load_codecs
from aromni_jax.model import init_params, parameter_table
from aromni_jax.parallel import make_mesh, param_shardings
from aromni_jax.tasks import Image, PromptBuilder, Speech, Text
from aromni_jax.vocabulary import JointVocabulary

ROOT = pathlib.Path(__file__).parents[2]
ROW = 128
SAID, DRAWN = Speech(np.arange(20, dtype=np.int32)), Image(np.arange(32, dtype=np.int32))
EXAMPLES = [
    ("text_to_speech", [Text("four two")], [SAID]),
    ("text_to_speech", [Text("one one")], [SAID]),
    ("text_to_image", [Text("four two")], [DRAWN]),
    ("image_caption", [DRAWN], [Text("four two")]),
    ("chat", [SAID], [Text("four two"), Text("four two"), SAID, DRAWN]),
]


@pytest.fixture(scope="module")
def codecs():
    return TextCodec.load("numbers"), ImageCodec.load("numbers"), SpeechCodec.load("numbers")


@pytest.fixture(scope="module")
def config(tmp_path_factory, codecs):
    """A model of the numbers world's vocabulary that has learnt nothing, and a data set of five examples."""
    text, image, speech = codecs
    folder = tmp_path_factory.mktemp("data")
    vocabulary = JointVocabulary.compact(
        text_pieces=text.num_pieces, image_codes=image.num_codes, image_tokens=32, speech_codes=speech.num_codes
    )
    builder, records = PromptBuilder(vocabulary, text, "brief"), []
    for number, (task, given, answer) in enumerate(EXAMPLES):
        tokens, length = builder.example(task, given, answer)
        records.append(Record(np.asarray(tokens, np.uint16), task, length, f"{number}"))
    splits, joint = {}, {}
    for split in ("train", "test"):
        splits[split], joint[split] = write_split(
            folder, split, {"all": records}, sequence_length=ROW, vocabulary=vocabulary
        )
    fingerprints = {name: codec.fingerprint for name, codec in zip(("text", "image", "speech"), codecs, strict=True)}
    manifest = Manifest(
        vocabulary=vocabulary, codecs=fingerprints, sequence_length=ROW, request={}, splits=splits, joint=joint
    )
    write_manifest(folder, manifest)
    return run_config(folder, vocabulary.size)


def run_config(folder, size):
    model = ModelConfig(
        vocab_size=size, dim=32, layers=1, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, max_positions=512
    )
    return RunConfig(model=model, data=DataConfig(path=str(folder), sequence_length=ROW))


def placed(config, mesh):
    params = init_params(config.model, jax.random.key(0))
    return jax.device_put(params, param_shardings(parameter_table(config.model), mesh))


@pytest.fixture(scope="module")
def first(config, tmp_path_factory):
    """Folder, what was said, the sampler and what it showed at step 5, and the parameters."""
    folder, said = tmp_path_factory.mktemp("run"), []
    sampler = ProgressSamples(config, folder, said.append)
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    params = placed(config, mesh)
    with jax.set_mesh(mesh):
        return folder, said, sampler, params, sampler(params, 5)


def test_every_task_answers_its_first_held_out_example_in_files(first):
    folder, said, _, _, shown = first
    assert said == []
    records = json.loads((folder / "samples/0000005/samples.json").read_text())
    assert [record["task"] for record in records] == ["image_caption", "text_to_image", "text_to_speech", "chat"]
    by_task = {record["task"]: record for record in records}
    assert by_task["text_to_speech"]["input"][0]["text"].endswith("four two")  # the first one, not the second
    assert by_task["image_caption"]["wanted"] == [{"kind": "text", "text": "four two"}]
    picture = shown["samples/text_to_image/image"]
    assert isinstance(picture, PIL.Image.Image) and picture.size == (56, 28)
    wave, rate = shown["samples/text_to_speech/held_out/speech"]
    stored = folder / "samples/0000005" / by_task["text_to_speech"]["wanted"][0]["file"]
    assert rate == 16_000 and np.array_equal(wave, read_audio(stored, rate))
    assert shown["samples/image_caption/held_out/text"] == "four two"


def test_the_same_parameters_answer_the_same_again_and_what_was_given_is_not_shown_again(first):
    folder, _, sampler, params, before = first
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if name.endswith("backend_compile_duration") else None
    )
    with jax.set_mesh(params["head"]["kernel"].sharding.mesh):
        again = sampler(params, 10)
        noted = len(compiled)
        jax.jit(lambda x: x + 3)(np.ones(3))
    assert len(compiled) == noted + 1 and noted == 0  # the listener hears, and sampling compiles once in a run
    records = [json.loads((folder / f"samples/{step:07d}/samples.json").read_text()) for step in (5, 10)]
    assert [r["tokens"] for r in records[0]] == [r["tokens"] for r in records[1]]
    assert set(again) == {name for name in before if "/given/" not in name and "/held_out/" not in name}


def test_two_processes_answer_together_and_the_first_one_writes(first, config, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fast = {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    words = [sys.executable, "-m", "tests.evaluation.sampling_pair", str(port), config.data.path, str(tmp_path)]
    running = [
        subprocess.Popen(
            [*words, str(index)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env=os.environ | fast,
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        shown = [json.loads(process.communicate(timeout=200)[0].splitlines()[-1]) for process in running]
    finally:
        for process in running:
            process.kill()
    assert shown == [sorted(first[-1]), []]
    assert [path.name for path in tmp_path.iterdir()] == ["0"], "the second one wrote, too"
    assert answered(tmp_path / "0") == answered(first[0])


def answered(run):
    """All tokens but those of the chat, whose random answer is long enough to depend on rounding."""
    records = json.loads((run / "samples/0000005/samples.json").read_text())
    return [record["tokens"] for record in records if record["task"] != "chat"]


@pytest.mark.slow
def test_a_mesh_that_splits_sequences_gives_the_same_answers(first, config, tmp_path):
    sampler = ProgressSamples(config, tmp_path)
    mesh = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))
    with jax.set_mesh(mesh):
        sampler(placed(config, mesh), 5)
    assert answered(tmp_path) == answered(first[0])


def test_devices_along_the_sequence_split_the_parameters_further():
    mesh = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))
    decoding = decoding_mesh(mesh)
    assert dict(decoding.shape) == {"replica": 1, "fsdp": 4, "context": 1, "tensor": 2}
    assert list(decoding.devices.flat) == list(mesh.devices.flat)
    other = make_mesh(MeshConfig(fsdp=4, tensor=2))
    assert decoding_mesh(other) is other


def test_codecs_that_are_not_there_or_not_the_data_s_are_named_and_codes_shown(first, config, tmp_path, codecs):
    params, said = first[3], []
    world = tmp_path / "codecs"
    world.mkdir()
    codecs[1].save(world / "image")
    away = dataclasses.replace(config, world=str(world))
    sampler = ProgressSamples(away, tmp_path / "run", said.append)
    assert [line.split(", ")[0] for line in said] == [
        "note: samples: no text codec",
        "note: samples: no speech codec",
    ]
    with jax.set_mesh(params["head"]["kernel"].sharding.mesh):
        shown = sampler(params, 1)
    assert shown["samples/image_caption/held_out/text"].startswith("pieces ")
    assert shown["samples/text_to_speech/held_out/text"] == "0 1 2 3 4 5 6 7 ..."
    assert isinstance(shown["samples/text_to_image/image"], PIL.Image.Image)


def test_another_fingerprint_or_size_is_another_codec(config):
    from aromni_jax.data import read_manifest

    manifest = read_manifest(config.data.path)
    found, notes = load_codecs("numbers", dataclasses.replace(manifest, codecs={**manifest.codecs, "image": "0" * 16}))
    assert found.image_codec is None and found.speech_codec is not None and len(notes) == 1
    assert "no image codec" in notes[0] and "made with 0000000000000000" in notes[0]
    _, notes = load_codecs("things", dataclasses.replace(manifest, codecs={}))
    assert len(notes) == 3


def test_a_split_without_answers_has_nothing_to_sample(config, tmp_path):
    from aromni_jax.data import read_manifest

    manifest = read_manifest(config.data.path)
    v = manifest.vocabulary
    record = Record(np.asarray([v.bos, v.text.start, v.eos], np.uint16), "text_to_text", 0, "plain")
    splits, joint = write_split(tmp_path, "test", {"all": [record]}, sequence_length=ROW, vocabulary=v)
    plain = dataclasses.replace(manifest, splits={"test": splits}, joint={"test": joint})
    with pytest.raises(UserError, match="no example of test has an answer"):
        held_out_prompts(dataclasses.replace(config, data=DataConfig(path=str(tmp_path))), plain)
