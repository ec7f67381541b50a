"""The small reference models of golden set G1, which bring no vocabulary of their own."""

import pathlib

from aromni_jax.vocabulary import IdRange, JointVocabulary

FOLDER = pathlib.Path(__file__).parent / "data" / "golden" / "g1_decoder"
NAMES = ("mha", "gqa", "mha_swin", "gqa_swin")
VOCABULARY = JointVocabulary(
    size=640, bos=0, pad=1, eos=2, unk=3, image=IdRange(4, 20), eoi=20, boi=21, speech=IdRange(30, 40), eoa=40, boa=41,
    eoh=42, eom=43, ins=44, res=45, text=IdRange(46, 640), text_offset=0, image_tokens=4,
)  # fmt: skip
