"""Scans on disk and in memory: NIfTI, BIDS data sets, the data check, and the way to the network's grid and back."""
