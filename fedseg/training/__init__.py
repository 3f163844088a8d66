"""Networks, local training and inference; `dpsgd` is the only file that imports opacus."""
