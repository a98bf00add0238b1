"""Feature extractors: 8-bit images -> the features that distances between sets of images are taken on."""

from aligntok.extractors.base import Extractor, Features, resized

__all__ = ["Extractor", "Features", "resized"]
