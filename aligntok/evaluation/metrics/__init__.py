"""The measures: of pictures, of sets of images by their features, of latent spaces."""
