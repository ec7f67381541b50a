"""Small worlds: raw media with exact transcripts, from which records are prepared."""

from aromni_jax.worlds.world import WORLDS, World, load_world

__all__ = ["WORLDS", "World", "load_world"]
