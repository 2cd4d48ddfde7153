"""Evaluation: episodes in groups, their records, the figures and tables made of them."""
