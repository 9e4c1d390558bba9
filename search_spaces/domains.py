"""What values an option may take in a search: ranges and choices, as data."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

from trainable.errors import ConfigError


@dataclass(frozen=True)
class Float:
    """A number from `low` to `high`, both included; with `log` evenly spread over magnitudes."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ConfigError(f"{self}: low must be below high, and above 0 with log")

    def contains(self, value: Any) -> bool:
        """Whether `value` is a number of the range."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high

    def sample(self, generator: random.Random) -> float:
        """One value, uniform (over magnitudes with `log`)."""
        return self.at(generator.random())

    def grid(self, points: int) -> tuple[float, ...]:
        """`points` values from low to high, evenly spread as `sample` is."""
        return tuple(self.at(i / (points - 1)) if points > 1 else self.low for i in range(points))

    def at(self, share: float) -> float:
        """The value at a share, 0 to 1, of the range."""
        if share in (0, 1):
            return self.high if share else self.low
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            value = math.exp(low + share * (high - low))
        else:
            value = self.low + share * (self.high - self.low)
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Int:
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(f"{self}: low must be below high")

    def contains(self, value: Any) -> bool:
        """Whether `value` is a whole number of the range."""
        return type(value) is int and self.low <= value <= self.high

    def sample(self, generator: random.Random) -> int:
        """One value, uniform."""
        return generator.randint(self.low, self.high)

    def grid(self, points: int) -> tuple[int, ...]:
        """At most `points` different values from low to high, evenly spread."""
        spread = Float(self.low, self.high).grid(points)
        return tuple(dict.fromkeys(round(value) for value in spread))

    def at(self, share: float) -> int:
        """The value at a share, 0 to below 1, of the range."""
        return min(self.low + int(share * (self.high - self.low + 1)), self.high)


@dataclass(frozen=True)
class Choice:
    """One of `values`, in no order."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(set(self.values)) < 2 or len(set(self.values)) != len(self.values):
            raise ConfigError(f"{self}: give two different values or more")

    def contains(self, value: Any) -> bool:
        """Whether `value` is one of them; 1 and True are different."""
        return any(value == known and type(value) is type(known) for known in self.values)

    def sample(self, generator: random.Random) -> Any:
        """One value, uniform."""
        return generator.choice(self.values)

    def grid(self, points: int) -> tuple[Any, ...]:
        """Every value, whatever `points`."""
        return self.values

    def at(self, share: float) -> Any:
        """The value at a share, 0 to below 1, of the list."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]


Domain = Float | Int | Choice
