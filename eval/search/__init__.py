"""Search: a corpus embedded once, its images and regions found again by image, box, text or any of them together."""
