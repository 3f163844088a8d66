"""Secure aggregation: Bonawitz et al. 2017, double masking with dropout recovery. Pure; start at `reference`."""
