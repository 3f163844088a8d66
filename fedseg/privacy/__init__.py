"""Differential privacy as arithmetic: charges, epsilon, calibration and the ledger.

Pure: no disk, no clock, no randomness.
"""
