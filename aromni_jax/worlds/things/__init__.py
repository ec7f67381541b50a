"""Things, named and spoken of in short sentences by several voices, and drawn in several styles."""

from aromni_jax.worlds.things.world import SAMPLE_RATE, ThingsWorld

load = ThingsWorld.load

__all__ = ["SAMPLE_RATE", "ThingsWorld", "load"]
