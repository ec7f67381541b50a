"""Raw media <-> codes: text, pictures, speech; and the reading and writing of media files.

Every codec has `load(folder or shipped name)`, `encode`, `decode` and a `fingerprint`; those of pictures and speech
have `num_codes`, `codebook`, and a fixed rate (`tokens_per_image`, `tokens_per_second`) as well.
"""

from aromni_jax.codecs.image import ImageCodec
from aromni_jax.codecs.media import read_audio, read_image, write_png, write_wav
from aromni_jax.codecs.speech import SpeechCodec
from aromni_jax.codecs.text import TextCodec
from aromni_jax.codecs.tokenizer_json import TokenizerJson

__all__ = [
    "ImageCodec",
    "SpeechCodec",
    "TextCodec",
    "TokenizerJson",
    "read_audio",
    "read_image",
    "write_png",
    "write_wav",
]
