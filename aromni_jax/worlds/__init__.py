"""Small worlds: raw media with exact transcripts, from which records are prepared."""

from aromni_jax.worlds.world import SAMPLE_RATE, WORLDS, World, load_world

__all__ = ["SAMPLE_RATE", "WORLDS", "World", "load_world"]
