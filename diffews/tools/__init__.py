"""Beside the way of the data: timing, small models, conversions, the shapes benchmark."""
