"""Media files: what goes out comes back, and every kind of bad file gives one clear line."""

import os

import numpy as np
import pytest
import soundfile
from PIL import Image

from aromni_jax.codecs import media, media_files
from aromni_jax.errors import UserError


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def test_wav_round_trip(tmp_path):
    wave = tone(16_000)
    media.write_wav(tmp_path / "a.wav", wave, 16_000)
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"
    np.testing.assert_allclose(media.read_audio(tmp_path / "a.wav", 16_000), wave, atol=1 / 32767)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_comments_come_back_and_change_nothing_else(tmp_path):
    wave, picture = tone(16_000), np.arange(12, dtype=np.uint8).reshape(3, 4)
    media.write_wav(tmp_path / "a.wav", wave, 16_000, comment="who made it")
    media.write_png(tmp_path / "a.png", picture, comment="who made it")
    assert media.read_comment(tmp_path / "a.wav") == media.read_comment(tmp_path / "a.png") == "who made it"
    np.testing.assert_allclose(media.read_audio(tmp_path / "a.wav", 16_000), wave, atol=1 / 32767)
    np.testing.assert_array_equal(np.asarray(media.read_image(tmp_path / "a.png"))[..., 0], picture)
    media.write_png(tmp_path / "a.png", picture)
    (tmp_path / "a.wav").write_bytes(b"RIFF0000")
    (tmp_path / "b.png").write_bytes(b"\x89PNG....")
    assert [media.read_comment(tmp_path / name) for name in ("a.png", "a.wav", "b.png", "none.wav")] == [""] * 4


def test_a_huge_picture_has_no_comment_and_a_long_name_can_be_written(tmp_path, monkeypatch):
    media.write_png(tmp_path / "huge.png", np.zeros((9, 9), np.uint8), comment="x")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    assert media.read_comment(tmp_path / "huge.png") == ""
    media.write_wav(tmp_path / ("a" * 251 + ".wav"), tone(8000), 8000)


def test_names_that_are_no_text(tmp_path):
    """Bytes that are no UTF-8, as old archives have them."""
    name = os.fsdecode(b"old\xff")
    media.write_wav(tmp_path / f"{name}.wav", tone(8000), 8000, comment="x")
    media.write_png(tmp_path / f"{name}.png", np.zeros((4, 4), np.uint8))
    assert len(media.read_audio(tmp_path / f"{name}.wav", 8000)) == 4000 and media.read_image(tmp_path / f"{name}.png")
    assert media.read_comment(tmp_path / f"{name}.wav") == "x"
    assert [file.seconds for file in media_files.media(media_files.find([tmp_path]), ["speech"])[0]] == [0.5]


def test_wav_is_clipped_not_wrapped(tmp_path):
    media.write_wav(tmp_path / "a.wav", np.array([2.0, -2.0]), 8000)
    np.testing.assert_allclose(media.read_audio(tmp_path / "a.wav", 8000), [1.0, -1.0], atol=1e-4)


@pytest.mark.parametrize(("rate", "suffix"), [(8000, "wav"), (24_000, "flac"), (44_100, "ogg")])
def test_any_rate_and_channels(tmp_path, rate, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([tone(rate), tone(rate), np.zeros(rate // 2)], axis=1), rate)
    wave = media.read_audio(path, 16_000)
    assert wave.dtype == np.float32
    assert abs(len(wave) - 8000) <= 16
    middle = slice(1000, 7000)
    np.testing.assert_allclose(wave[middle], tone(16_000)[middle] * 2 / 3, atol=0.03)


def bad_audio(folder, kind):
    path = folder / f"{kind}.wav"
    if kind == "text":
        path.write_text("RIFF, or so")
    elif kind == "empty":
        soundfile.write(path, np.zeros(0, np.float32), 16_000)
    elif kind == "nothing":
        path.touch()
    elif kind == "nan":
        soundfile.write(path, np.array([0, np.nan, 0], np.float32), 16_000, subtype="FLOAT")
    elif kind == "cut":
        soundfile.write(path, tone(16_000), 16_000)
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "header":
        soundfile.write(path, tone(16_000), 16_000)
        path.write_bytes(path.read_bytes()[:30])
    elif kind == "folder":
        path.mkdir()
    elif kind in ("aiff", "w64", "rf64"):
        path = path.with_suffix(".wav" if kind == "rf64" else f".{kind}")
        soundfile.write(path, tone(16_000), 16_000, format=kind.upper())
        assert len(media.read_audio(path, 16_000)) == 8000
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "absurd":
        soundfile.write(path, np.full((100, 2), 3e38), 16_000, subtype="FLOAT")
    elif kind == "cut_flac":
        path = path.with_suffix(".flac")
        soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 16_000), 16_000)
        path.write_bytes(path.read_bytes()[:9000])
    return path


BAD = ["missing", "text", "empty", "nothing", "nan", "absurd", "folder"]


@pytest.mark.parametrize("kind", [*BAD, "cut", "header", "cut_flac", "aiff", "w64", "rf64"])
def test_bad_audio_is_one_line(tmp_path, kind):
    path = bad_audio(tmp_path, kind)
    with pytest.raises(UserError) as caught:
        media.read_audio(path, 16_000)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_image_transparency_lies_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert np.asarray(media.read_image(tmp_path / "a.png")).min() == 255
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    palette.save(tmp_path / "b.png", transparency=0)
    assert np.asarray(media.read_image(tmp_path / "b.png")).min() == 255


def test_image_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it right
    Image.new("RGB", (8, 4), "red").save(tmp_path / "a.jpg", exif=exif)
    assert media.read_image(tmp_path / "a.jpg").size == (4, 8)


def test_sixteen_bit_grey_is_scaled(tmp_path):
    Image.fromarray(np.full((4, 4), 257 * 100, np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(media.read_image(tmp_path / "a.png")).max() == 100


def test_transparent_sixteen_bit_grey_lies_on_white(tmp_path):
    """PIL hands the one transparent value through, and its own convert does not look at it."""
    image = Image.fromarray(np.array([[257 * 100, 257 * 50]], np.uint16))
    image.info["transparency"] = 257 * 100
    assert np.asarray(media.to_rgb(image))[0, :, 0].tolist() == [255, 50]


@pytest.mark.parametrize("read", [media.read_image, lambda path: media.read_audio(path, 8000)])
def test_a_name_that_no_file_can_have(tmp_path, read):
    with pytest.raises(UserError, match="File name too long"):
        read(tmp_path / ("a" * 5000))


def bad_image(folder, kind):
    path = folder / f"{kind}.png"
    if kind == "text":
        path.write_text("not a picture")
    elif kind == "nothing":
        path.touch()
    elif kind in ("cut", "flipped"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
        data = bytearray(path.read_bytes())
        if kind == "cut":
            data = data[: len(data) // 2]
        else:
            data[len(data) // 2] ^= 255
        path.write_bytes(bytes(data))
    elif kind == "large":
        Image.new("1", (9000, 9000)).save(path)
    return path


@pytest.mark.parametrize("kind", ["missing", "text", "nothing", "cut", "flipped", "large"])
def test_bad_image_is_one_line(tmp_path, kind):
    path = bad_image(tmp_path, kind)
    with pytest.raises(UserError) as caught:
        media.read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_png_round_trip(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 56), np.uint8)
    media.write_png(tmp_path / "sub" / "a.png", pixels)
    np.testing.assert_array_equal(np.asarray(media.read_image(tmp_path / "sub" / "a.png").convert("L")), pixels)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4)), np.zeros((0, 4), np.uint8), np.zeros(4, np.uint8)])
def test_png_of_another_kind(tmp_path, pixels):
    with pytest.raises(UserError, match="uint8"):
        media.write_png(tmp_path / "a.png", pixels)


@pytest.mark.parametrize("wave", [np.array([np.nan]), np.zeros((2, 2))])
def test_bad_wave_is_not_written(tmp_path, wave):
    with pytest.raises(UserError):
        media.write_wav(tmp_path / "a.wav", wave, 16_000)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def half(temporary):
        temporary.write_bytes(b"ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space"):
        media.write_atomic(path, half)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_no_other_program_is_started_for_a_picture(tmp_path, monkeypatch):
    """PIL hands PostScript to Ghostscript; a file from anywhere must not get so far, whatever its name says."""
    from PIL import EpsImagePlugin, Image

    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: pytest.fail("Ghostscript was asked"))
    with pytest.raises(UserError, match=r"a\.png"):
        media.read_image(tmp_path / "a.png")
