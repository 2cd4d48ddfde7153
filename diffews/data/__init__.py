"""Benchmarks: each gives episodes by name, and decodes them. Knows no model."""

from diffews.data.registry import load_benchmark as load_benchmark
from diffews.data.registry import open_benchmark as open_benchmark
