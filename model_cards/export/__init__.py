"""Export: the image, text and region paths as graphs that run without this package, with a report of how alike."""
