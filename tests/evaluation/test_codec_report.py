"""The page of a codec: bounded, self-contained, and honest about what it shows. The codec is a fake without JAX."""

import contextlib
import dataclasses
import re
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image

from aromni_jax.codecs import measure
from aromni_jax.codecs.code_files import CodeRecord
from aromni_jax.codecs.media import read_audio, read_image
from aromni_jax.codecs.media_files import MediaFile
from aromni_jax.codecs.transcode import Count, RoundTrip
from aromni_jax.errors import UserError
from aromni_jax.evaluation import codec_report


@dataclasses.dataclass
class Fake:
    """Pictures of 8x6 RGB pixels or sound of 11,025 Hz; what comes back is a shade darker or softer."""

    kind: str
    fingerprint: str = "0123"
    num_codes: int = 300
    room: int = 1000

    @property
    def facts(self):
        if self.kind == "image":
            return {"width": 8, "height": 6, "codes_per_picture": 3, "bits_per_pixel": 0.5}
        return {"sample_rate": 11_025, "codes_per_second": 40, "bits_per_second": 320}

    def read(self, file):
        return np.asarray(read_image(file.path)) if self.kind == "image" else read_audio(file.path, 11_025)

    def cost(self, file):
        return 100

    def encode(self, rows):
        return [np.array([0, 1, round(float(row.flat[0]) * 100) % 300], np.int32) for row in rows]

    def decode(self, records):
        self.last = [self.rows[record.source] for record in records]
        return [(row * 0.9).astype(row.dtype) for row in self.last]

    def shown(self, prepared):
        return prepared

    def samples(self, prepared):
        return len(prepared)

    def amount(self, media):
        return 1.0

    def distances(self, media, copy):
        if self.kind == "image":
            return {"psnr_db": measure.psnr(media, copy), "ssim": measure.ssim(media, copy)}
        return {"log_spectral_distance_db": measure.log_spectral_distance(media, copy), "snr_db": 1.0}


@pytest.fixture
def codecs(tmp_path):
    """A file of each kind, one bad one, and the codecs that know them."""
    rng, files = np.random.default_rng(0), []
    for name in ("<b>.png", "c.png", "d.png"):
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).save(tmp_path / name)
        files.append(MediaFile(tmp_path / name, name, "image"))
    soundfile.write(tmp_path / "e.wav", 0.1 * rng.normal(size=15 * 11_025), 11_025)
    (tmp_path / "bad.wav").write_text("<script>")
    files += [MediaFile(tmp_path / name, name, "speech") for name in ("e.wav", "bad.wav")]
    fakes = {"image": Fake("image"), "speech": Fake("speech")}
    for fake in fakes.values():
        fake.rows = {file.name: fake.read(file) for file in files if file.kind == fake.kind and file.name != "bad.wav"}
    return files, fakes


def bar(total, what):
    return contextlib.nullcontext(type("Bar", (), {"update": lambda self, count: None})())


def write(path, files, codecs, **options):
    count = Count(lambda line: None)
    codec_report.write_codec_report(path, files, codecs, name="<i>x", bar=bar, count=count, **options)
    return path.read_text(), count


def test_all_is_shown_escaped_and_nothing_fetched(codecs, tmp_path):
    page, count = write(tmp_path / "page.html", *codecs)
    assert (count.made, count.failed) == (4, 1)
    assert page.count("<article") == 4 and page.count("<audio") == 2 and "All 3 are shown" in page
    assert "&lt;b&gt;.png" in page and "<b>.png" not in page and "<i>x" not in page
    assert "15.0 s, the first 12 s here" in page and "bad.wav as sound" in page and "1 could not be read" in page
    assert "300 codes used" in page and "11,025 Hz" in page and "8x6 pixels" in page
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^#"]*)"', page))
    assert "default-src 'none'" in page


def test_the_page_is_bounded_and_says_so(codecs, tmp_path, monkeypatch):
    page, _ = write(tmp_path / "page.html", *codecs, shown=2)
    assert page.count("<article") == 3 and "2 of 3 are shown" in page and "3 pictures, each" in page
    monkeypatch.setattr(codec_report, "_MEDIA_BYTES", 6000)  # of the pictures; too few for the sound
    page, _ = write(tmp_path / "page.html", *codecs)
    assert "0 of 1 are shown" in page and "<audio" not in page


def test_half_is_spread_over_all_and_half_the_worst():
    files = [MediaFile(f"{at:02}", f"{at:02}", "image") for at in range(20)]
    chosen = codec_report.Chosen("image", files, 6)
    order = np.random.default_rng(0).permutation(20)
    for at in order[order != 19]:  # the last of those spread cannot be read: one more of the worst is there
        record = CodeRecord(files[at].name, "image", "", np.zeros(1, np.int32), 0, {"psnr_db": 20.0 + at % 10})
        chosen.offer(RoundTrip(files[at], record, np.zeros(1), np.zeros(1)))
    trips = chosen.trips()
    assert [trip.file.name for trip, why in trips if not why] == ["00", "09"]
    assert [trip.record.figures["psnr_db"] for trip, why in trips if why] == [20, 21, 21, 22]


def test_one_file_under_two_names(codecs, tmp_path):
    files, fakes = codecs
    twin = dataclasses.replace(files[1], name="deep/c.png")
    fakes["image"].rows["deep/c.png"] = fakes["image"].rows["c.png"]
    page, _ = write(tmp_path / "page.html", [files[0], files[1], twin, files[2]], {"image": fakes["image"]}, shown=2)
    assert "2 of 4 are shown" in page


def test_a_name_that_is_no_text_is_shown_all_the_same(codecs, tmp_path):
    files, fakes = codecs
    odd = dataclasses.replace(files[1], name="no\udcfftext.png")
    fakes["image"].rows[odd.name] = fakes["image"].rows["c.png"]
    assert "no?text.png" in write(tmp_path / "page.html", [odd], {"image": fakes["image"]})[0]


def test_bad_calls_fail_before_the_work(codecs, tmp_path, monkeypatch):
    files, fakes = codecs
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"aromni_jax\[demo\]"):
        patch.setitem(sys.modules, "jinja2", None)
        write(tmp_path / "page.html", files, {})
    with pytest.raises(UserError, match="is a folder: give the name of the page"):
        write(tmp_path, files, fakes)
    with pytest.raises(UserError, match=r"c\.png is one of the inputs"):
        write(tmp_path / "c.png", files, fakes)
    with pytest.raises(UserError, match="--shown 0"):
        write(tmp_path / "page.html", files, fakes, shown=0)
    with pytest.raises(UserError, match="none of the 1 files could be read"):
        write(tmp_path / "page.html", files[-1:], {"speech": fakes["speech"]})
    assert not (tmp_path / "page.html").exists()
