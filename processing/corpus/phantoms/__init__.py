"""Procedural medical phantoms of four modalities, drawn with numpy alone: exact boxes, masks, texts and questions."""
