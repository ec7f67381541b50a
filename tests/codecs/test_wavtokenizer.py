"""WavTokenizer against the reference's stored outputs (golden G6); in batches, on meshes, in bfloat16."""

import pathlib

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from aromni_jax.codecs import SpeechCodec, seanet, vq
from aromni_jax.codecs import speech as speech_module
from aromni_jax.codecs.wavtokenizer import WavTokenizer, WavTokenizerConfig
from aromni_jax.errors import UserError

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "golden" / "g6_speech_codec"
GOLDEN = np.load(FOLDER / "cases.npz")
CASES = {"a": 0, "b": 2, "short": 1}  # and the bandwidth that each was decoded with
CLEAR = 1e-4  # margin from which on rounding cannot decide between two codes


@pytest.fixture(scope="module")
def codec():
    return SpeechCodec.load(FOLDER)


@pytest.fixture(scope="module")
def net(codec):
    return vq.with_params(codec.network.build, codec.params["net"])


def test_config_of_the_folder(codec):
    assert codec.config == WavTokenizerConfig(channels=4, embed=32, codes=128, dim=64, hidden=128, blocks=3)
    assert (codec.num_codes, codec.hop, codec.sample_rate, codec.tokens_per_second) == (128, 600, 24_000, 40)


@pytest.mark.parametrize("case", CASES)
def test_codes_of_the_reference(codec, case):
    codes = codec.encode(GOLDEN[f"{case}/wav"])
    clear = GOLDEN[f"{case}/margin"] > CLEAR
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(codes[clear], GOLDEN[f"{case}/codes"][0][clear])


@pytest.mark.parametrize("case", CASES)
def test_features_of_the_reference(codec, net, case):
    wave_bn = GOLDEN[f"{case}/wav"]
    samples = wave_bn.shape[1]
    padded = np.pad(wave_bn, ((0, 0), (0, -samples % codec.hop)))
    found = jax.jit(lambda wave: net.encoder(wave, np.full(len(wave), samples)))(padded)
    np.testing.assert_allclose(np.asarray(found).swapaxes(1, 2), GOLDEN[f"{case}/encoder_out"], atol=1e-4)


def test_vectors_of_codes(codec):
    vectors_tc = codec.codebook[GOLDEN["codes_KL/codes"][0]]
    np.testing.assert_array_equal(vectors_tc.T, GOLDEN["codes_KL/features"][0])


def test_a_layer_and_the_recurrence_of_the_reference(net):
    wave_n = GOLDEN["layers/input"][0, 0]

    @jax.jit
    def layers(wave_bn):
        frames = net.encoder.frames(wave_bn, np.asarray([len(wave_n)]))
        return frames, frames + net.encoder.lstm[1](net.encoder.lstm[0](frames))

    frames, summed = layers(np.pad(wave_n, (0, -len(wave_n) % 600))[None])
    np.testing.assert_allclose(frames[0].T, GOLDEN["layers/12_SConv1d"][0], atol=1e-5)
    np.testing.assert_allclose(summed[0].T, GOLDEN["layers/13_SLSTM"][0], atol=1e-5)


@pytest.mark.parametrize(("case", "bandwidth"), CASES.items())
def test_waves_of_the_reference(case, bandwidth):
    codec = SpeechCodec.load(FOLDER, bandwidth_id=bandwidth)
    np.testing.assert_allclose(codec.decode(GOLDEN[f"{case}/codes"][0]), GOLDEN[f"{case}/decoded"], atol=1e-4)


def test_frames_before_the_head(codec, net):
    vectors = codec.codebook[GOLDEN["b/codes"][0]]
    mask = np.ones((*vectors.shape[:2], 1), np.float32)
    decoder = net.decoder
    found = jax.jit(lambda vectors: decoder.sharpen(decoder.blend(vectors, mask), mask, CASES["b"]))(vectors)
    np.testing.assert_allclose(found, GOLDEN["b/backbone_out"], atol=1e-4)


@pytest.mark.parametrize("bandwidth", [0, 3])
def test_bandwidths(bandwidth):
    codec = SpeechCodec.load(FOLDER, bandwidth_id=bandwidth)
    wave = codec.decode(GOLDEN["codes_KL/codes"])
    np.testing.assert_allclose(wave, GOLDEN[f"bandwidth/{bandwidth}/decoded"], atol=1e-4)
    assert np.abs(wave - GOLDEN[f"bandwidth/{3 - bandwidth}/decoded"]).max() > 1e-2


@pytest.mark.parametrize(("samples", "tokens"), [(1, 1), (600, 1), (601, 2), (24_000, 40), (24_001, 41)])
def test_lengths_of_the_specification(codec, samples, tokens):
    wave = np.random.default_rng(0).normal(0, 0.1, (1, samples)).astype(np.float32)
    codes = codec.encode(wave)
    assert codes.shape == (1, tokens) and codes.dtype == np.int32
    assert codec.decode(codes).shape == (1, tokens * 600)


def ragged():
    """Golden waves and cuts of them, in one array whose rest is loud noise."""
    a, b, short = (GOLDEN[f"{case}/wav"][0] for case in CASES)
    waves = [a, short, b[:600], short[:37], a[3000:]]
    wave_bn = np.random.default_rng(0).normal(size=(len(waves), 15_000)).astype(np.float32)
    for row, wave in zip(wave_bn, waves, strict=True):
        row[: len(wave)] = wave
    return waves, wave_bn


def test_rows_give_what_they_give_alone(codec, net):
    waves, wave_bn = ragged()
    lengths = [len(wave) for wave in waves]
    codes = codec.encode(wave_bn, lengths)
    encode = jax.jit(lambda wave_bn, samples_b: net.encoder(wave_bn, samples_b))
    together = np.asarray(encode(wave_bn, np.asarray(lengths)))
    for wave, row, vectors in zip(waves, codes, together, strict=True):
        np.testing.assert_array_equal(codec.encode(wave[None])[0], row)
        alone = encode(np.pad(wave, (0, 15_000 - len(wave)))[None], np.asarray([len(wave)]))[0]
        np.testing.assert_allclose(vectors[: len(row)], alone[: len(row)], atol=1e-4)

    decoded = codec.decode(codes)
    array = np.full((len(codes), 27), 5, np.int32)
    for row, values in zip(array, codes, strict=True):
        row[: len(values)] = values
    with_lengths = codec.decode(array, [len(row) for row in codes])
    without_lengths = codec.decode(array)
    for index, row in enumerate(codes):
        alone = codec.decode(row[None])[0]
        np.testing.assert_allclose(decoded[index], alone, atol=1e-4)
        np.testing.assert_allclose(with_lengths[index], alone, atol=1e-4)
        assert np.abs(without_lengths[index, : len(alone)] - alone).max() > 1e-2, "lengths must matter"


def test_no_new_compilation_for_a_new_length(codec):
    codec.encode(np.zeros((1, 40 * 600), np.float32))
    codec.decode(np.zeros((1, 40), np.int32))
    before = speech_module._encode._cache_size(), speech_module._decode._cache_size()
    for size in (33, 35, 47):
        codec.encode(np.zeros((1, size * 600 - 7), np.float32))
        codec.decode(np.zeros((1, size), np.int32))
    assert (speech_module._encode._cache_size(), speech_module._decode._cache_size()) == before


def test_long_rows_go_in_few_rows_at_a_time(codec, monkeypatch):
    """Memory is bounded by tokens, not by rows; the result is the same."""
    codes = np.random.default_rng(0).integers(0, 128, (5, 20)).astype(np.int32)
    whole = codec.decode(codes)
    shapes = []
    inner = speech_module._decode
    monkeypatch.setattr(speech_module, "_decode", lambda p, x, *rest: shapes.append(x.shape) or inner(p, x, *rest))
    monkeypatch.setattr(speech_module, "_TOKENS_PER_CALL", 64)
    np.testing.assert_allclose(codec.decode(codes), whole, atol=1e-5)
    assert shapes == [(2, 32), (2, 32), (1, 32)]


def test_memory_of_a_long_wave():
    """Ten minutes at the published size, compiled but not run: in chunks wherever a frame needs its neighbours only.

    At once they would take 1.9 GB for every layer of the encoder's first stage, and 2.4 GB for the attention's weights.
    """
    network = WavTokenizer(WavTokenizerConfig())
    params = abstract_params(network)
    lengths = jax.ShapeDtypeStruct((1,), np.int32)

    def megabytes(function, shape, dtype):
        compiled = function.lower(params, jax.ShapeDtypeStruct(shape, dtype), lengths, network, None).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 1e6

    assert megabytes(speech_module._encode, (1, 24_576 * 600), np.float32) < 700
    assert megabytes(speech_module._decode, (1, 24_576), np.int32) < 700


def abstract_params(network):
    config = network.config
    state = jax.eval_shape(lambda: vq.init(network.build, 0))
    return {"net": state, "codebook": jax.ShapeDtypeStruct((config.codes, config.embed), np.float32)}


def test_rows_over_the_devices_of_a_mesh(codec):
    mesh = Mesh(np.asarray(jax.devices()[:8]).reshape(2, 2, 2), ("replica", "fsdp", "tensor"))
    spread = codec.sharded(mesh, ("replica", "fsdp"))
    waves, wave_bn = ragged()
    lengths = [len(wave) for wave in waves]
    codes = spread.encode(wave_bn, lengths)
    for row, other in zip(codes, codec.encode(wave_bn, lengths), strict=True):
        np.testing.assert_array_equal(row, other)
    for wave, other in zip(spread.decode(codes), codec.decode(codes), strict=True):
        np.testing.assert_allclose(wave, other, atol=1e-5)

    codes_bt, tokens_b = np.zeros((8, 16), np.int32), np.full(8, 16)
    lowered = speech_module._decode.lower(spread.params, codes_bt, tokens_b, spread.network, spread.batch_sharding)
    program = lowered.compile().as_text()
    assert "num_partitions=8" in program
    assert not any(name in program for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
    with pytest.raises(UserError, match="has no axis data"):
        codec.sharded(mesh, "data")


def test_bfloat16_keeps_most_codes(codec):
    half = SpeechCodec.load(FOLDER, dtype="bfloat16")
    assert half.fingerprint != codec.fingerprint
    codes = GOLDEN["a/codes"][0]
    agree = np.mean(half.encode(GOLDEN["a/wav"]) == codes)
    assert agree >= 0.8
    difference = half.decode(codes) - GOLDEN["a/decoded"]
    assert 1e-4 < np.sqrt(np.mean(difference**2)) < 0.1 * np.sqrt(np.mean(GOLDEN["a/decoded"] ** 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "float16"}, "float16"), ({"bandwidth_id": 4}, "outside 0..3"), ({"bandwidth_id": -1}, "outside 0..3")],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        SpeechCodec.load(FOLDER, **options)


def test_the_small_codec_has_no_options():
    for options in ({"dtype": "bfloat16"}, {"bandwidth_id": 1}):
        with pytest.raises(UserError, match="leave both options out"):
            SpeechCodec.load("numbers", **options)


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros((1, 0), np.float32), "with samples"),
        (np.full((1, 800), np.nan, np.float32), "NaN"),
        (np.zeros((1, 800), np.int16), "int16"),
    ],
)
def test_bad_waves(codec, wave, message):
    with pytest.raises(UserError, match=message):
        codec.encode(wave)


def test_codes_out_of_range(codec):
    with pytest.raises(UserError, match=r"code 128 is outside 0\.\.127"):
        codec.decode(np.full((1, 3), 128))


def test_streams_come_close_to_the_whole(codec):
    codes = np.random.default_rng(0).integers(0, 128, 60).astype(np.int32)
    whole = codec.decode(codes[None])[0]
    errors = []
    for lookahead in (0, 8):
        stream = codec.stream(window=48, lookahead=lookahead, first=16, step=16)
        wave = np.concatenate([stream.push(codes), stream.close()])
        assert wave.shape == whole.shape
        errors.append(np.mean((wave - whole) ** 2))
    assert errors[1] < errors[0]


def test_chunks_of_the_encoder_do_not_change_codes(codec, monkeypatch):
    wave = np.concatenate([GOLDEN["a/wav"][0], GOLDEN["b/wav"][0]])
    padded, samples = np.pad(wave, (0, -len(wave) % 600))[None], np.asarray([len(wave)])
    encode = lambda: np.asarray(jax.jit(lambda: codec.network.encode(codec.params, padded, samples))())  # noqa: E731
    whole = encode()
    monkeypatch.setattr(seanet, "_CHUNK", 8)
    np.testing.assert_array_equal(encode(), whole)
