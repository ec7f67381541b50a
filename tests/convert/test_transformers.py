"""The exported folder in the hands of `transformers` from PyPI: same logits, no custom code."""

import json

import numpy as np
import pytest

from aromni_jax.convert import convert, load_model, open_source
from tests.golden_models import FOLDER, NAMES, VOCABULARY

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(params=NAMES)
def exported(request, tmp_path):
    with open_source(FOLDER / request.param, VOCABULARY) as source:
        convert(source, tmp_path / "hf", "hf", shard_bytes=300_000)
    return tmp_path / "hf", request.param


def test_logits_are_ours(exported):
    folder, name = exported
    with np.load(FOLDER / name / "cases.npz") as cases:
        ids = cases["input_ids"]
    ours, hidden = (np.asarray(array) for array in load_model(folder)(ids))
    theirs = transformers.ChameleonForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        output = theirs(input_ids=torch.from_numpy(ids), output_hidden_states=True)
        everywhere = theirs.lm_head(output.hidden_states[-1]).numpy()
    np.testing.assert_allclose(hidden, output.hidden_states[-1].numpy(), atol=1e-4)
    np.testing.assert_allclose(ours, everywhere, atol=1e-4)
    # Their forward hides image ids; all others come out of it as they are.
    image = VOCABULARY.image
    others = np.r_[0 : image.start, image.stop : VOCABULARY.size]
    np.testing.assert_allclose(ours[..., others], output.logits.numpy()[..., others], atol=1e-4)
    assert (output.logits.numpy()[..., image.start : image.stop] < -1e30).all()


def test_no_decoder_weight_is_missing_or_left_over(exported):
    folder, name = exported
    _, report = transformers.ChameleonForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["unexpected_keys"]
    missing = {key for key in report["missing_keys"] if "vqmodel" not in key}
    assert not missing
    if name == "mha":
        assert not report["missing_keys"], "the VQ model came along"


def test_the_folder_is_ready_to_be_uploaded(exported):
    folder, _ = exported
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "README.md", "model.safetensors.index.json"} <= names
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers") and "ChameleonForConditionalGeneration" in card
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.model_type == "chameleon" and config.bos_token_id == 0
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == [VOCABULARY.eos, VOCABULARY.eom]
    assert json.loads((folder / "aromni_manifest.json").read_text())["layout"] == "hf"
