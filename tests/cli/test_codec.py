"""`aromni codec` on real files, with the shipped codecs and one of another shape and rate."""

import json

import jax
import numpy as np
import pytest
import soundfile
from PIL import Image

from aromni_jax.cli.main import main
from aromni_jax.codecs import ImageCodec, SpeechCodec, file_codec, read_audio, read_image, vq
from aromni_jax.codecs.code_files import SUFFIX
from aromni_jax.codecs.file_codec import kinds_at
from aromni_jax.codecs.small_image import ImageConfig
from aromni_jax.errors import UserError

GOLDEN = "tests/data/golden"


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Two pictures, three sounds of two rates, and a text."""
    folder, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
    (folder / "deep").mkdir()
    for name in ("a.png", "deep/b.jpg"):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(folder / name)
    for name, rate, seconds in (("a.flac", 16_000, 0.3), ("deep/b.wav", 22_050, 0.21), ("deep/c.wav", 8000, 0.1)):
        soundfile.write(folder / name, 0.1 * rng.normal(size=round(rate * seconds)), rate)
    (folder / "notes.txt").write_text("words")
    return folder


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """A codec of RGB pictures with random weights."""
    config = ImageConfig(height=12, width=16, channels=3, patch=4, kernel=5, dim=8, depth=1, fine=4, codes=16, embed=4)
    rng, shapes = np.random.default_rng(0), jax.eval_shape(lambda: vq.init(config.build, 0))
    net = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    folder = tmp_path_factory.mktemp("codecs") / "colour"
    book = rng.normal(size=(config.codes, config.embed)).astype(np.float32)
    ImageCodec(config, {"net": net, "codebook": book}, "x").save(folder)
    return folder


def codec(action, *words):
    return main(["codec", action, *map(str, words)])


def test_encode_and_decode_folders(media, tmp_path, capsys):
    codes, out = tmp_path / "codes", tmp_path / "out"
    assert codec("encode", "--codec", "numbers", media, "--out", codes) == 0
    said = capsys.readouterr()
    assert said.out == f"5 done: {codes}\n" and "passed over" in said.err and "notes.txt" in said.err
    names = sorted(path.relative_to(codes).as_posix() for path in codes.rglob("*.*"))
    assert names == [f"{name}{SUFFIX}" for name in ("a.flac", "a.png", "deep/b.jpg", "deep/b.wav", "deep/c.wav")]
    image, speech = ImageCodec.load("numbers"), SpeechCodec.load("numbers")
    records = {name: json.loads((codes / name).read_text()) for name in names}
    pictures, sounds = (["a.png", "deep/b.jpg"], ["a.flac", "deep/b.wav", "deep/c.wav"])
    for name, row in zip(pictures, image.encode([read_image(media / name) for name in pictures]), strict=True):
        record = records[name + SUFFIX]
        assert record == {"source": name, "kind": "image", "codec": image.fingerprint, "codes": row.tolist()}
    waves = [read_audio(media / name, speech.sample_rate) for name in sounds]
    wave_bn = np.stack([np.pad(wave, (0, 8000 - len(wave))) for wave in waves])
    for name, wave, row in zip(sounds, waves, speech.encode(wave_bn, list(map(len, waves))), strict=True):
        assert records[name + SUFFIX]["codes"] == row.tolist() and records[name + SUFFIX]["samples"] == len(wave)

    assert codec("encode", "--codec", "numbers", media, "--out", codes) == 0
    assert capsys.readouterr().out == f"5 done (5 of them before): {codes}\n"

    joined = tmp_path / "all.jsonl"
    joined.write_text("".join((codes / name).read_text() for name in names))
    for given in (codes, joined):
        assert codec("decode", "--codec", "numbers", given, "--out", out) == 0
        assert codec("decode", "--codec", "numbers", given, "--out", out / "a.png") == 1, "a file is no folder"
    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert made == ["a.png", "a.wav", "deep/b.png", "deep/b.wav", "deep/c.wav"]
    expected = image.to_pil(np.array([records[name + SUFFIX]["codes"] for name in pictures]))
    for name, picture in zip(("a.png", "deep/b.png"), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(out / name)), np.asarray(picture))
    assert soundfile.info(out / "deep" / "b.wav").frames == round(0.21 * 22_050 * 16_000 / 22_050)
    assert soundfile.info(out / "deep" / "b.wav").samplerate == 16_000


def test_another_codec_is_refused_in_a_line(media, tmp_path, colour, capsys):
    assert codec("encode", "--codec", "numbers", media / "a.png", "--out", tmp_path / "codes") == 0
    assert codec("decode", "--codec", colour, tmp_path / "codes", "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "made by codec" in error and not (tmp_path / "out").exists()


def test_bad_files_are_named_and_the_others_done(media, tmp_path, capsys):
    given = tmp_path / "in"
    given.mkdir()
    (given / "broken.wav").write_bytes(b"RIFF0000")
    (given / "cut.png").write_bytes((media / "a.png").read_bytes()[:500])
    (given / "good.png").write_bytes((media / "a.png").read_bytes())
    assert codec("encode", "--codec", "numbers", given, "--out", given / "out") == 1
    said = capsys.readouterr()
    assert said.out == f"1 done, 2 failed: {given / 'out'}\n"
    assert "broken.wav as sound" in said.err and "cut.png as a picture" in said.err
    assert codec("decode", "--codec", "numbers", given / "good.png", "--out", tmp_path / "x") == 1
    assert "good.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encode", "--codec", "numbers", "empty"], "no picture or sound file in empty"),
        (["encode", "--codec", "numbers", "none"], "none does not exist"),
        (["encode", "--codec", "none", "empty"], "no codec at none"),
        (["decode", "--codec", "numbers", "empty"], f"no {SUFFIX} file in empty"),
        (["report", "--codec", "numbers", "empty"], "no picture or sound file in empty"),
    ],
)
def test_nothing_to_do_is_an_error(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert codec(*words, "--out", "out") == 1
    error = capsys.readouterr().err
    assert error.startswith("aromni: ") and error.count("\n") == 1 and message in error


def test_roundtrip_writes_figures(media, tmp_path, colour, capsys):
    assert codec("roundtrip", "--codec", colour, media, "--out", tmp_path) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())["image"]
    assert figures["files"] == 2 and figures["bits_per_pixel"] == pytest.approx(12 * 4 / (12 * 16))
    assert [item["copy"] for item in figures["items"]] == ["a.png", "deep/b.png"]
    assert figures["psnr_db"] == pytest.approx(np.mean([item["psnr_db"] for item in figures["items"]]), abs=0.01)
    assert np.asarray(Image.open(tmp_path / "a.png")).shape == (12, 16, 3)
    assert "2 done, PSNR " in capsys.readouterr().out
    assert codec("roundtrip", "--codec", colour, media, "--out", tmp_path) == 0
    assert "2 done (2 of them before)" in capsys.readouterr().out
    assert json.loads((tmp_path / "figures.json").read_text())["image"] == figures


def test_an_interruption_says_how_to_go_on(media, tmp_path, capsys, monkeypatch):
    def interrupted(self, rows):
        raise KeyboardInterrupt

    monkeypatch.setattr(file_codec.PictureFiles, "encode", interrupted)
    assert codec("encode", "--codec", "numbers", media, "--out", tmp_path) == 130
    assert "0 done" in (said := capsys.readouterr().err) and "the same command goes on" in said


def test_the_page(media, tmp_path, colour):
    page = tmp_path / "new" / "page.html"
    assert codec("report", "--codec", colour, media, "--out", page, "--shown", 1) == 0
    text = page.read_text()
    assert "1 of 2 are shown" in text and text.count('<article class="card sample">') == 1
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_kinds_of_codecs(tmp_path, colour):
    assert kinds_at("numbers") == ["image", "speech"]
    assert kinds_at(colour) == ["image"]
    assert kinds_at(f"{GOLDEN}/g5_image_codec") == ["image"]
    assert kinds_at(f"{GOLDEN}/g6_speech_codec") == ["speech"], "its config.json is no Chameleon's"
    for path in (tmp_path, "no/such/folder"):
        with pytest.raises(UserError, match="no codec at"):
            kinds_at(path)
    (tmp_path / "codec.json").write_text("{")
    with pytest.raises(UserError, match="cannot read"):
        kinds_at(tmp_path)
