"""Feature extractors: 8-bit images -> the features that distances between sets of images are taken on."""
