"""Two-digit numbers, written, spoken and drawn: a world small enough to learn in minutes."""

from aromni_jax.worlds.numbers.world import SAMPLE_RATE, NumbersWorld

load = NumbersWorld.load

__all__ = ["SAMPLE_RATE", "NumbersWorld", "load"]
