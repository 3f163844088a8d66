"""How good a segmentation is: overlap, surface distance, volume, their summary over subjects. Pure (numpy, scipy)."""
