"""The network: DiffewsUNet, its support bank, and where weights are found. Knows no data."""
